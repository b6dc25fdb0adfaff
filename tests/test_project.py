"""What holds the repository together: one list of dependencies, clean notebooks, thin imports."""

import ast
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import yaml
from pydantic import TypeAdapter

from iqa_utils.workshop import notebooks, runs
from iqa_utils.workshop.papers import papers
from tests.attack import FAULTS, HARMLESS, LANES, MODULES, PARTS, mutants_of

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMS = sorted((ROOT / "notebooks/params").glob("*.*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked(*patterns):
    command = ["git", "-C", str(ROOT), "ls-files", "--", *patterns]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_the_conda_environment_is_the_project_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    assert environment["dependencies"] == [
        f"python{PROJECT['requires-python']}",
        "pip",
        {"pip": [f"-e .[{','.join(sorted(PROJECT['optional-dependencies']))}]"]},
    ]


def test_the_lock_pins_every_dependency_by_hash_without_addresses():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pinned = set(re.findall(r"^([a-z0-9._-]+)==", lock, flags=re.MULTILINE))
    extras = PROJECT["optional-dependencies"].values()
    wanted = PROJECT["dependencies"] + [name for extra in extras for name in extra]
    names = {re.match(r"[A-Za-z0-9._-]+", w)[0].lower().replace("_", "-") for w in wanted}
    assert names <= pinned
    entries = re.split(r"\n(?=[a-z0-9])", lock)
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry.split("\n")[0])


def test_prescribed_packages_are_dependencies():
    wanted = [*PROJECT["dependencies"]]
    for extra in PROJECT["optional-dependencies"].values():
        wanted += extra
    names = {re.match(r"[A-Za-z0-9_-]+", d)[0] for d in wanted}
    assert names >= {
        "jupyterlab", "papermill", "torch", "torchvision", "timm", "open_clip_torch",
        "seaborn", "pandas", "scipy", "nbval",
    }  # fmt: skip


def test_an_interpreter_that_was_asked_for_is_taken_or_refused(tmp_path):
    shutil.copy(ROOT / "setup.sh", tmp_path)
    environment = os.environ | {"PYTHON": "python3.99"}
    command = ["sh", str(tmp_path / "setup.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "found none as python3.99" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, iqa_utils; heavy = {'torch', 'timm', 'pandas', 'numpy', 'matplotlib', 'scipy'}"
        "; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_says_what_it_is_and_stays_one_idea():
    for path in tracked("iqa_utils/*.py"):
        text = path.read_text()
        assert text.startswith('"""'), f"{path.name} has no module docstring"
        assert text.count("\n") <= 400, f"{path.name} is two ideas"
        assert "fmt: skip" not in text, f"{path.name} is not formatted"
        assert max(map(len, text.split("\n"))) <= 100, path.name


def docstring_lines(text):
    """Count the lines of docstrings, and those of code, without blank ones and comments."""
    told = set()
    for node in ast.walk(ast.parse(text)):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            told |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    written = (n for n, line in enumerate(text.split("\n"), 1) if line.strip()[:1] not in "#")
    return len(told), len(set(written) - told)


def test_docstrings_stay_in_proportion():
    assert docstring_lines('"""One\n\ntwo."""\n\nx = 1  # why\n# what\ny = 2\n') == (3, 2)
    counts = [docstring_lines(path.read_text()) for path in tracked("iqa_utils/*.py")]
    told, code = np.sum(counts, axis=0)
    assert told <= 0.4 * code


def test_every_tracked_file_is_small_and_names_no_machine():
    for path in tracked():
        most = 10_000_000 if path.name == "quality.safetensors" else 600_000
        most = 1_500_000 if path.name == "metrics.json" else most  # 04 has up to 2,767 results
        assert path.stat().st_size < most, f"{path} is too large to track"
        content = path.read_bytes()
        if b"\0" not in content:  # as git tells text
            text = content.decode()
            assert not (found := MACHINE.search(text)), f"{path}: {found[0]}"
            here = re.compile(rf"(?<![\w~.]){re.escape(str(ROOT.parent))}/")
            assert not here.search(text) or str(ROOT.parent) == "/", path


MACHINE = re.compile(
    r"(?<![\w.}~-])/(?:home|Users|root|mnt|media|work|workspace|scratch)/(?!someone|sets\b)\w+"
    r"|\b[a-z_][\w-]*@[\w-]+:[~/]"
)


def test_what_names_a_machine_is_known():
    folders = ["/".join(["", top, "ada", "iqa"]) for top in ("home", "Users", "mnt", "work")]
    prompts = ["ada" + "@box:~/iqa$ make", "(.venv) root" + "@3f2a:/iqa# make"]
    assert all(MACHINE.search(f"x = '{text}'") for text in folders + prompts)
    harmless = ["/".join([before, "work", "b"]) for before in ("~", "tests", "a/home")]
    assert not any(MACHINE.search(text) for text in [*harmless, "git" + "@github.com:owner/iqa"])


def test_every_notebook_is_of_a_paper_or_of_all_of_them():
    of_papers = {stem for paper in papers().values() for stem in paper.NOTEBOOKS}
    of_all = {"00_claims_audit", "07_scoreboard", "08_across_data_sets"}
    assert {path.stem for path in NOTEBOOKS} == of_papers | of_all
    assert {stem[:2] for stem in of_papers} >= {"01", "02", "03", "04", "05", "06"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestNotebook:
    def test_has_the_portable_kernel_and_no_outputs(self, path):
        notebook = json.loads(path.read_text())
        assert notebook["metadata"] == {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
        nbformat.validate(nbformat.read(path, as_version=4))

    def test_follows_the_common_anatomy(self, path):
        cells = nbformat.read(path, as_version=4).cells
        assert cells[0].cell_type == "markdown"
        assert cells[0].source.startswith(f"# {path.stem[:2]} · ")
        tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
        assert tags.count("parameters") == 1
        assert "check" in tags
        code = [c for c in cells if c.cell_type == "code"]
        assert len(code) <= len(cells) - len(code) + 2, "at least one markdown cell per code cell"

    def test_code_cells_are_short_and_define_no_class(self, path):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        for cell in cells:
            parameters = "parameters" in cell.metadata.get("tags", [])
            assert len(cell.source.splitlines()) <= (45 if parameters else 30), cell.source
            assert not re.search(r"^\s*class |^\s*[!%]|sys\.path", cell.source, re.MULTILINE)
        assert statistics.median(len(cell.source.splitlines()) for cell in cells) <= 12

    def test_a_training_is_one_visible_function(self, path):
        """Network, loss, optimiser and the call of `fit` stand on one screen."""
        if path.stem[:2] not in {"02", "03", "04", "05", "06"}:
            return
        cells = nbformat.read(path, as_version=4).cells
        trees = [ast.parse(c.source) for c in cells if c.cell_type == "code"]
        functions = [n for t in trees for n in ast.walk(t) if isinstance(n, ast.FunctionDef)]
        shown = [
            n.end_lineno - n.lineno + 1
            for n in functions
            if all(re.search(what, ast.unparse(n)) for what in (r"\bfit\(", r"\boptim\.", "loss"))
        ]
        assert shown, "no function of this notebook trains"
        assert min(shown) <= 25

    def test_every_figure_of_a_paper_states_its_question(self, path):
        if path.stem[:2] not in {"02", "03", "04", "05", "06"}:
            return
        code = (c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        calls = [n for text in code for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
        titles = [c.args[2:] for c in calls if ast.unparse(c.func) == "run.save_figure"]
        assert titles
        assert all(title and "?" in ast.literal_eval(title[0]) for title in titles)

    def test_parameters_are_annotated_literals_with_the_demo_as_default(self, path):
        declared = notebooks.declared_parameters(path)
        assert set(runs.REQUIRED) <= set(declared)
        cells = nbformat.read(path, as_version=4).cells
        source = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
        for node in ast.parse(source).body:
            assert isinstance(node, ast.AnnAssign), ast.unparse(node)
            ast.literal_eval(node.value)
        assert 'PROFILE: str = "demo"' in source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_notes_which_data_and_pixels_it_used(path):
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    decodes = re.search(r"build_store\(|prepare_maps", code) is not None
    assert decodes == ("run.use_pixels(" in code)
    assert ("load_scores(" in code or "load_sets(" in code) <= ("run.use_data(" in code)


def test_links_to_a_notebook_carry_its_title():
    titles = {
        path.name: nbformat.read(path, as_version=4).cells[0].source.split("\n")[0][2:]
        for path in NOTEBOOKS
    }
    texts = {path: path.read_text() for path in [*NOTEBOOKS, ROOT / "README.md"]}
    found = [
        (path.name, match[1], match[2])
        for path, text in texts.items()
        for match in re.finditer(r"\[(\d\d · [^\]]*)\]\((?:notebooks/)?(\w+\.ipynb)\)", text)
    ]
    assert len(found) > 2 * len(NOTEBOOKS)
    wrong = [link for link in found if link[1] != titles[link[2]]]
    assert not wrong


@pytest.mark.parametrize("path", PARAMS, ids=lambda p: p.stem)
def test_profile_values_have_declared_names_and_types(path):
    stem, profile = path.stem.split(".")
    values = yaml.safe_load(path.read_text())
    assert values["PROFILE"] == profile
    notebooks.check_parameters(ROOT / "notebooks" / f"{stem}.ipynb", values)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_papermill_itself_knows_every_parameter_of_every_profile(path, caplog):
    """Papermill only warns of a name that it does not find; `iqa run` would have refused it."""
    values = {"PROFILE": "demo"}
    for profile in PARAMS:
        if profile.stem.split(".")[0] == path.stem:
            values |= yaml.safe_load(profile.read_text())
    for more, warned in ({}, 0), ({"PROFLE": "demo"}, 1):
        caplog.clear()
        papermill.execute_notebook(path, None, values | more, prepare_only=True, progress_bar=False)
        told = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert len([text for text in told if "unknown parameter" in text]) == warned, told


def test_every_part_of_the_attack_runs_in_one_lane():
    assert sorted(part for lane in LANES.values() for part in lane) == sorted(PARTS)


def test_every_fault_of_the_attack_is_a_test_that_exists():
    for attack, name in FAULTS["test"].items():
        file, _, start = name.partition("::")
        text = (ROOT / "tests" / file).read_text()
        tests = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
        assert any(test.startswith(start) for test in tests), f"{attack}: {name}"


def test_every_harmless_mutant_of_the_attack_is_a_line_of_its_module():
    names = []
    for module in MODULES:
        names += mutants_of(module, (ROOT / "iqa_utils" / module).read_text())
    assert [part for part in HARMLESS if not any(part in name for name in names)] == []


def test_every_name_in_the_list_of_slow_tests_is_a_test_or_a_file_of_them():
    for line in (ROOT / "tests/slow.txt").read_text().splitlines():
        path, _, name = line.partition("::")
        assert (ROOT / path).is_file(), line
        if name:
            text = (ROOT / path).read_text()
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), line


def test_published_metrics_hold_real_results_only():
    for path in (ROOT / "figures").glob("*/*/metrics.json"):
        metrics = json.loads(path.read_text())
        assert metrics["results"], f"{path} is empty"
        assert path.parent.name == metrics["profile"]
        assert path.parent.parent.name == metrics["stem"]
        for result in metrics["results"]:
            assert set(result) <= set(runs.RESULT_COLUMNS)
            assert result.keys() >= {"paper", "table", "method", "value", "data"}
            assert result["data"] != "demo"
            TypeAdapter(float).validate_python(result["value"])
        assert not list(path.parent.glob("private-*"))
