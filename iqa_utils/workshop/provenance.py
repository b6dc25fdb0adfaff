"""What a run used: commit, code, machine, packages, the bytes of its score tables and weights."""

import ast
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from iqa_utils.workshop import ROOT, VARIABLES

CODE = Path(__file__).resolve().parents[2]  # ROOT, or where pip put the package
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


def environment() -> dict[str, Any]:
    """Describe what runs the code: Python, platform, packages, machine, device, variables set.

    The machine is the model of its processor, the cores for this process and its memory.
    """
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    models = re.findall(r"^model name\s*: (.+)$", info, re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = models[0].strip() if models else platform.processor()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "machine": {"cpu": model, "cores": cores, "memory_gib": round(memory, 1)},
        "device": device_name(),
        "variables": {n: Path(os.environ[n]).name for n in VARIABLES if os.environ.get(n)},
    }


def table_digest(frame: pd.DataFrame) -> str:
    """Digest of a parsed score table: 0.709 and 0.7090 in the file are the same."""
    text = frame.to_csv(index=False, float_format="%.10g")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_files() -> dict[str, str]:
    """Digest of every file of the package, by its path in the repository."""
    paths = sorted((CODE / "iqa_utils").rglob("*.py"))
    return {path.relative_to(CODE).as_posix(): _digest(path) for path in paths}


def used_files(stem: str, files: Mapping[str, str]) -> dict[str, str]:
    """Keep those of the `code_files` that this process has imported; add the notebook's code."""
    loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    used = {name: digest for name, digest in files.items() if str(CODE / name) in loaded}
    notebook = ROOT / "notebooks" / f"{stem}.ipynb"
    own = {notebook.relative_to(ROOT).as_posix(): _digest(notebook)} if notebook.is_file() else {}
    return used | own


def imported_files(stem: str) -> dict[str, str]:
    """Digest of the notebook and of every file of the package that it may import, by its path."""
    files, todo = {}, [ROOT / "notebooks" / f"{stem}.ipynb"]
    while todo:
        path = todo.pop()
        name = path.relative_to(ROOT).as_posix()
        if name not in files:
            files[name] = _digest(path)
            todo += _imports(path)
    return dict(sorted(files.items()))


def _imports(path: Path) -> set[Path]:
    """List the files of the package that a file or notebook names in its imports."""
    names = set()
    for node in ast.walk(ast.parse(_code(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names if name.split(".")[0] == "iqa_utils"]
    modules = {ROOT.joinpath(*one[:n]) for one in parts for n in range(1, len(one) + 1)}
    files = {f for m in modules for f in (m.with_suffix(".py"), m / "__init__.py")}
    return {file for file in files if file.is_file()}


def is_current(provenance: Mapping[str, Any]) -> bool:
    """Tell whether every file that a run depended on was recorded and is still what it was."""
    files = provenance.get("files") or {"": ""}
    return all(
        (ROOT / name).is_file() and _digest(ROOT / name) == digest for name, digest in files.items()
    )


def _digest(path: Path) -> str:
    """Digest of a file; of a notebook, that of its code without the parameters papermill adds."""
    content = _code(path).encode() if path.suffix == ".ipynb" else path.read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)
