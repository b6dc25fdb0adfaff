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
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from iqa_utils.workshop import ROOT, VARIABLES

CODE = Path(__file__).resolve().parents[2]  # ROOT, or where pip put the package
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
PUBLISHED = ("figures", "docs", "README.md")  # what publishing changes, and pages without code
PACKAGES = ("numpy", "pandas", "scipy", "scikit-learn", "pillow", "torch", "torchvision", "timm")


def commit() -> tuple[str, bool]:
    """Return the commit of the checkout, and whether its tracked files are those of the commit.

    What publishing writes does not count: a run must not make the next one look changed.
    """
    name = _git("rev-parse", "--short=12", "HEAD").stdout.strip()
    others = [f":(exclude){path}" for path in PUBLISHED]
    same = _git("diff", "--quiet", "HEAD", "--", ".", *others).returncode == 0
    return name or "unknown", bool(name) and same


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
    """Text of every file of the package, by its path in the repository."""
    paths = sorted((CODE / "iqa_utils").rglob("*.py"))
    return {path.relative_to(CODE).as_posix(): _code(path) for path in paths}


def used_files(stem: str, files: Mapping[str, str]) -> dict[str, str]:
    """Digest of those `code_files` that this process has imported, and of the notebook."""
    loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    used = {n: code_digest(text) for n, text in files.items() if str(CODE / n) in loaded}
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
    """Digest of the code of a file or notebook, as it is without papermill's parameters."""
    return code_digest(_code(path))


@cache
def code_digest(code: str) -> str:
    """Digest of what code does: of its syntax tree, so without comments, docstrings and layout."""
    try:
        text = _written(ast.parse(code))
    except SyntaxError:  # your notebook may hold a line for IPython
        text = code
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _written(node: Any) -> str:
    """Write a syntax tree, without what is empty: Python 3.11 to 3.13 then agree."""
    if isinstance(node, list):
        return f"[{','.join(map(_written, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    if isinstance(node, ast.JoinedStr):
        fields["values"] = [part for part in node.values if part.value != ""]
    told = [f"{k}={_written(v)}" for k, v in fields.items() if v not in (None, [])]
    return f"{type(node).__name__}({','.join(told)})"


def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)
