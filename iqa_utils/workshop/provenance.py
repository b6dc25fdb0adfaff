"""What a run used: commit, code, machine, packages, the bytes of its score tables and weights."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("numpy", "pandas", "scipy", "scikit-learn", "pillow", "torch", "torchvision", "timm")


def commit() -> tuple[str, bool]:
    """Return the commit of the checkout, and whether its tracked files are those of the commit."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    name = done.stdout.strip()
    return name.removesuffix("+") or "unknown", bool(name) and not name.endswith("+")


def device_name() -> str:
    """Name the device that networks ran on: the first GPU, else the CPU."""
    torch = sys.modules.get("torch")  # what has not been imported has run nothing
    return torch.cuda.get_device_name(0) if torch and torch.cuda.is_available() else "cpu"


def machine() -> dict[str, Any]:
    """Describe the machine: model of the processor, cores for this process, memory."""
    model, info = platform.processor(), Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "memory_gib": round(memory, 1)}


def packages() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def environment() -> dict[str, Any]:
    """Describe what runs the code: Python, platform, packages, machine, device."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages(),
        "machine": machine(),
        "device": device_name(),
    }


def table_digest(frame: pd.DataFrame) -> str:
    """Digest of a parsed score table: 0.709 and 0.7090 in the file are the same."""
    text = frame.to_csv(index=False, float_format="%.10g")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_files() -> dict[str, str]:
    """Digest of every file of the package, by its path in the repository."""
    paths = sorted((ROOT / "iqa_utils").rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): _digest(path) for path in paths}


def used_files(stem: str, files: Mapping[str, str]) -> dict[str, str]:
    """Keep those of the `code_files` that this process has imported; add the notebook's code."""
    loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    used = {name: digest for name, digest in files.items() if str(ROOT / name) in loaded}
    notebook = ROOT / "notebooks" / f"{stem}.ipynb"
    own = {notebook.relative_to(ROOT).as_posix(): _digest(notebook)} if notebook.is_file() else {}
    return used | own


def is_current(provenance: Mapping[str, Any]) -> bool:
    """Tell whether every file that a run depended on was recorded and is still what it was."""
    files = provenance.get("files") or {"": ""}
    return all(
        (ROOT / name).is_file() and _digest(ROOT / name) == digest for name, digest in files.items()
    )


def _digest(path: Path) -> str:
    """Digest of a file; of a notebook, that of its code without the parameters papermill adds."""
    content = path.read_bytes()
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(content)["cells"] if cell["cell_type"] == "code"]
        content = "\n".join("".join(cell["source"]) for cell in cells).encode()
    return hashlib.sha256(content).hexdigest()[:16]
