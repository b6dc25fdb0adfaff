"""Imports point one way: the workshop knows the science, and no module knows itself."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "iqa_utils"
UPWARD = "iqa_utils.metrics imports iqa_utils.workshop.runs"
LATER = ("training", "features", "distill")  # of these, a network knows nothing


def imports_of(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return what every module imports of the package, inside functions too, by dotted name."""
    files = {_name(path, package): path for path in package.rglob("*.py")}
    found = {}
    for name, path in files.items():
        wanted: list[str] = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                wanted += _imported(node, name, is_package=path.name == "__init__.py")
        # `from a import b` may name a module b or something that a defines
        known = {w if w in files else w.rpartition(".")[0] for w in wanted}
        found[name] = (known & set(files)) - {name}
    return found


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(node: ast.ImportFrom, name: str, *, is_package: bool) -> list[str]:
    base = node.module or ""
    if node.level:
        parents = name.split(".")[: None if is_package else -1]
        parents = parents[: len(parents) + 1 - node.level]
        base = ".".join([*parents, *filter(None, [node.module])])
    return [f"{base}.{alias.name}" for alias in node.names]


def rooms(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Take the modules of a subpackage together: one word of the field, one node."""
    found: dict[str, set[str]] = {}
    for name, targets in imports.items():
        word = _word(name)
        found.setdefault(word, set()).update({_word(t) for t in targets} - {word, "iqa_utils"})
    return found


def _word(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def broken_rules(imports: dict[str, set[str]]) -> list[str]:
    """List every import that points the wrong way, and the words that import each other."""
    # `python -m iqa_utils` is the command line, the one door that is named in both rooms
    science = {k: v for k, v in imports.items() if _word(k) not in ("workshop", "__main__")}
    found = [
        f"{name} imports {target}"
        for name, targets in sorted(science.items())
        for target in sorted(targets)
        if _word(target) == "workshop" or (_word(name) == "models" and _word(target) in LATER)
    ]
    # between words of the field, and between single modules, those of the workshop too
    starts = [*in_circles(rooms(science)), *in_circles(imports)]
    return found + [f"{start} imports itself in a circle" for start in starts]


def in_circles(graph: dict[str, set[str]]) -> list[str]:
    """List what imports itself by way of others."""
    found = []
    for start in sorted(graph):
        reached, waiting = set(), list(graph[start])
        while waiting:
            if (word := waiting.pop()) not in reached:
                reached.add(word)
                waiting += graph.get(word, ())
        found += [start] if start in reached else []
    return found


def test_imports_point_one_way():
    assert broken_rules(imports_of()) == []


@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        ("def f():\n    from iqa_utils.workshop import runs\n", UPWARD),
        ("import iqa_utils.workshop.runs\n", UPWARD),
        ("from .workshop.runs import start\n", UPWARD),
        ("from iqa_utils.models import net\n", "metrics imports itself in a circle"),
        ("from iqa_utils.models import net\n", "iqa_utils.models.net imports itself in a circle"),
    ],
)
def test_a_planted_import_is_found(tmp_path, planted, complaint):
    package = tmp_path / "iqa_utils"
    files = {
        "metrics.py": planted,
        "features.py": "",
        "models/net.py": "from ..metrics import srcc\nfrom ..features import taps\n",
        "workshop/runs.py": "from iqa_utils import metrics\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
        (package / name).with_name("__init__.py").touch()
    found = broken_rules(imports_of(package))
    assert "iqa_utils.models.net imports iqa_utils.features" in found
    assert complaint in found
    (package / "metrics.py").write_text("")
    assert broken_rules(imports_of(package)) == ["iqa_utils.models.net imports iqa_utils.features"]


@pytest.mark.parametrize(
    "planted", ["from iqa_utils.workshop import jobs\n", "def f():\n    from .jobs import Job\n"]
)
def test_a_circle_in_the_workshop_is_found(tmp_path, planted):
    folder = tmp_path / "iqa_utils" / "workshop"
    folder.mkdir(parents=True)
    for name, text in {"__init__": "", "plan": planted, "jobs": "from . import plan\n"}.items():
        (folder / f"{name}.py").write_text(text)
    (tmp_path / "iqa_utils" / "__init__.py").touch()
    assert broken_rules(imports_of(tmp_path / "iqa_utils")) == [
        "iqa_utils.workshop.jobs imports itself in a circle",
        "iqa_utils.workshop.plan imports itself in a circle",
    ]
