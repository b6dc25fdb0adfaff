"""Attack the repository, and say what was found: `python -m tests.attack [--part NAME]`.

Not part of `make test`. Faults, kills inside training, shared caches, full and read-only disks,
random order and hash seeds, and mutants of the code that decides numbers. Without ``--part`` the
parts run in two lanes beside each other. Each lane works on its own copy of the checkout below
``runs/attack``, where each finished row is kept: the next call goes on after the last one,
``--fresh`` begins again. The exit code is 1 where a row is not as expected.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "runs" / "attack"
COPY = WORK / os.environ.get("ATTACK_COPY", "copy")  # each lane has its own
PYTHON = sys.executable
IQA = [PYTHON, "-m", "iqa_utils.workshop.cli"]
Row = tuple[str, str, str]  # attack, expected, found

# ---- faults: each attack is a test that failed before it was mended --------------------------

FAULTS = {
    "a killed run with another seed left its tables": "test_runs.py::test_a_killed_run_finds_its",
    "a torn note of attempts": "test_runs.py::test_a_torn_note",
    "two owners of one run": "test_runs.py::test_two_processes",
    "a race for one run": "test_runs.py::test_a_race",
    "a process number that is used again": "test_runs.py::test_a_lock_file_that_names",
    "a flip of DMOS removed, no real files": "test_readers.py::test_a_reader_gives",
    "damaged files of an image store": "test_images.py::test_a_damaged_store",
    "a torn list of hashes": "test_images.py::test_a_torn_list",
    "a killed build of a store": "test_images.py::test_a_killed_build",
    "two builds at once": "test_images.py::test_two_builds",
    "a damaged array": "test_files.py::test_a_damaged_array",
    "a torn JSON file": "test_bad_files.py::test_a_torn_json",
    "leavings of killed passes": "test_files.py::test_what_a_killed_process_left",
    "a lock whose holder dies": "test_files.py::test_a_lock_keeps",
    "a canvas of 100 megapixels": "test_decoding.py::test_a_huge_canvas",
    "GIF, dangling link, folder x.png": "test_decoding.py::test_what_only_looks",
    "the same in a folder to score": "test_scoring.py::test_files_that_are_not_read",
    "truncated images": "test_decoding.py::test_a_truncated_file",
    "a killed teacher pass": "test_distill.py::test_a_killed_pass",
    "an archive with hostile names": "test_downloads.py",
    "a killed batch; an edit that no job imports": "test_snakemake.py::test_a_killed_batch",
    "one failed job of a grid": "test_snakemake.py::test_one_failing_job",
    "options out of bounds": "test_scoring.py::test_options_out_of_bounds",
    "a size below one": "test_notebooks.py::test_a_size_below_one",
    "an unknown profile": "test_notebooks.py::test_an_unknown_profile",
    "publishing a named run": "test_publishing.py::test_demo_results_named",
    "a profile without names and values": "test_bad_files.py::test_a_profile_that_holds",
    "a grid without lists": "test_bad_files.py::test_a_grid_without",
    "a broken run among others": "test_bad_files.py::test_one_broken_run",
    "a torn demo.json": "test_bad_files.py::test_a_torn_note_beside",
    "a name twice in YAML or JSON": "test_files.py::test_a_name_that_is_there_twice",
    "references that stand for endless text": "test_files.py::test_a_file_that_stands",
    "a table of one score": "test_datasets.py::test_a_table_of_one_score",
    "a folder for scores that is missing": "test_scoring.py::test_a_folder_that_is_missing",
    "a killed scoring": "test_scoring.py::test_a_killed_run_goes_on",
    "bad lines of a killed scoring": "test_scoring.py::test_a_bad_line",
    "names that are no UTF-8": "test_scoring.py::test_names_that_are_not_text",
    "no clone": "test_cli.py::test_without_a_clone",
    "a run where there is no clone": "test_cli.py::test_a_notebook_run_leaves",
    "rows of a feature cache": "test_features.py::test_a_feature_cache_of_another_length",
    "the spool of a killed Gram pass": "test_features.py::test_a_killed_pass_whose_files",
    "a killed Gram pass": "test_features.py::test_a_gram_pass_killed",
    "code in a model file": "test_hostile_models.py::test_a_file_with_code",
    "a model of a giant size": "test_hostile_models.py::test_a_model_that_asks",
    "a hostile header of a model": "test_scoring.py::test_a_header_of_another_form",
    "an image that is giant for the model": "test_scoring.py::test_an_image_that_becomes",
    "formulas in CSV cells": "test_scoring.py::test_a_name_that_a_spreadsheet",
    "a log-in page": "test_downloads.py::test_a_log_in_page",
    "flipped bits in headers of images": "test_decoding.py::test_whatever_bits",
    "a link to itself": "test_decoding.py::test_a_link_to_itself",
    "1,200 nested folders": "test_decoding.py::test_folders_in_folders",
    "a file of 40 GB": "test_decoding.py::test_a_file_larger_than",
    "a kill between two renames": "test_runs.py::test_a_run_killed_between",
}


def faults(_: argparse.Namespace) -> Iterator[Row]:
    """Run the tests that stand for attacks in one go; one row per attack."""
    report = WORK / "faults.xml"
    chosen = [f"tests/{name.split('::')[0]}" for name in FAULTS.values()]
    words = sorted({name.split("::")[1] for name in FAULTS.values() if "::" in name})
    alone = [f"tests/{name}" for name in FAULTS.values() if "::" not in name]
    command = [PYTHON, "-m", "pytest", "-q", f"--junitxml={report}"]
    files = sorted(set(chosen) - set(alone))
    cases: list[tuple[str, bool, bool]] = []
    for arguments in ([*files, "-k", " or ".join(words)], alone):
        report.unlink(missing_ok=True)  # of an earlier round
        run([*command, *arguments])
        found = ElementTree.parse(report).iter("testcase") if report.exists() else []
        for case in found:
            name = f"{case.get('classname', '').split('.')[-1]}.py::{case.get('name')}"
            kinds = {child.tag for child in case}
            cases.append((name, bool(kinds & {"failure", "error"}), "skipped" in kinds))
    for attack, test in FAULTS.items():
        mine = [(bad, skipped) for name, bad, skipped in cases if name.startswith(test)]
        bad, skipped = (sum(column) for column in zip(*mine, strict=True)) if mine else (0, 0)
        found = f"{bad} of {len(mine)} tests fail" if bad else "ends well"
        yield attack, "ends well", found if len(mine) > skipped else "no test ran"


# ---- kills inside training --------------------------------------------------------------------

STEMS = ("02", "03", "04", "05", "06")
SMALL = {"SAVE_SECONDS": "0.5"}
EQUAL = "equal to the uninterrupted run"
MISSED = "no kill hit"


def kills(options: argparse.Namespace) -> Iterator[Row]:
    """Kill the kernel of notebooks 02-06 at random moments of training; the end is the same."""
    for stem in STEMS:
        name = next((COPY / "notebooks").glob(f"{stem}_*.ipynb")).stem
        started = time.monotonic()
        whole = uninterrupted(stem, name, options.code)
        seconds = json.loads((whole / "provenance.json").read_text())["seconds"]
        print(f"{name}: {seconds:.0f} s alone, {time.monotonic() - started:.0f} s with its start")
        for number in range(options.kills):
            attack = f"kill -9 of {name}, number {number + 1}"
            if attack in options.done:
                continue
            moment = random.Random(f"{stem}{number}").uniform(0.2, 0.8) * seconds
            for share in (1.0, 0.6, 0.3):  # what came too late is tried again, earlier
                found = kill_once(stem, name, whole, share * moment)
                if found != MISSED:
                    break
            yield attack, EQUAL, found


def uninterrupted(stem: str, name: str, code: str) -> Path:
    """Return a run of this very code that nobody disturbed."""
    whole = COPY / "runs" / "demo" / f"{name}-whole-{code}"
    is_there = (whole / "metrics.json").is_file()
    failed = 0 if is_there else notebook(stem, f"whole-{code}").wait()
    if failed:
        raise RuntimeError(f"{name}: the uninterrupted run ended with {failed}")
    return whole


def kill_once(stem: str, name: str, whole: Path, seconds: float) -> str:
    """Kill a notebook on an empty cache, run it again, and compare the end."""
    from iqa_utils.training.checkpoints import load_checkpoint

    folder = whole.with_name(f"{name}-killed")
    partial = whole.with_name(f".{name}-killed.partial")
    for left in (COPY / "runs" / "cache", folder, partial):
        shutil.rmtree(left, ignore_errors=True)
    if not end(notebook(stem, "killed"), after=partial, seconds=seconds):
        return MISSED
    # of a training that had ended, only the outcome is kept
    begun = any("threads" in load_checkpoint(path) for path in partial.rglob("last.pt"))
    if failed := notebook(stem, "killed").wait():
        return f"the rerun ended with {failed}"
    if not json.loads((folder / "provenance.json").read_text())["killed_attempts"]:
        return MISSED
    if begun and "resumed at" not in (folder / f"{name}.ipynb").read_text():
        return "a training that was begun was not resumed"
    return same(whole, folder)


def everything(options: argparse.Namespace) -> Iterator[Row]:
    """Kill `iqa run all` and a live batch three times each; the ends are equal."""
    batch = [PYTHON, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--profile"]
    batch += ["workflow/profiles/local", "--config", "profile=demo"]
    for title, command in (("iqa run all", [*IQA, "run", "all"]), ("a batch", batch)):
        runs = COPY / "runs" / "demo"
        kept = WORK / f"{title.replace(' ', '-')}-{options.code}"
        if not kept.is_dir():
            shutil.rmtree(runs, ignore_errors=True)
            if failed := start(command).wait():
                raise RuntimeError(f"{title}, undisturbed, ended with {failed}")
            shutil.copytree(runs, kept)
        for number in range(3):
            attack = f"kill -9 of {title}, number {number + 1}"
            if attack in options.done:
                continue
            shutil.rmtree(runs, ignore_errors=True)
            hit = end(start(command), seconds=random.Random(attack).uniform(20, 120))
            failed = start(command).wait()
            found = f"the rerun ended with {failed}" if failed else same(kept, runs)
            yield attack, EQUAL, found if hit else MISSED


def caches(options: argparse.Namespace) -> Iterator[Row]:
    """Start two notebooks at once on an empty cache; each ends as it does alone."""
    for pair in (("04", "05"), ("02", "06")):
        names = [next((COPY / "notebooks").glob(f"{stem}_*.ipynb")).stem for stem in pair]
        stems = dict(zip(names, pair, strict=True))
        alone = {name: uninterrupted(stem, name, options.code) for name, stem in stems.items()}
        shared = {name: whole.with_name(f"{name}-shared") for name, whole in alone.items()}
        for left in (COPY / "runs" / "cache", *shared.values()):
            shutil.rmtree(left, ignore_errors=True)
        processes = {name: notebook(stem, "shared") for name, stem in stems.items()}
        failed = {name: process.wait() for name, process in processes.items()}
        for name in names:
            ended = (
                f"ended with {failed[name]}" if failed[name] else same(alone[name], shared[name])
            )
            found = "as alone" if ended == EQUAL else ended
            yield f"{' and '.join(pair)} share caches: {name}", "as alone", found


def notebook(stem: str, run_name: str) -> subprocess.Popen:
    """Start one demo notebook in the copy, saving often."""
    values = [word for item in {**SMALL, "RUN_NAME": run_name}.items() for word in ("-p", *item)]
    return start([*IQA, "run", stem, *values])


def end(process: subprocess.Popen, *, after: Path | None = None, seconds: float = 0.0) -> bool:
    """Kill a process with all it started, some time after a path has appeared; tell if it ran."""
    import psutil

    while after is not None and not after.exists() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(seconds)
    ran = process.poll() is None
    if ran:
        family = psutil.Process(process.pid)
        for one in [*family.children(recursive=True), family]:
            one.send_signal(signal.SIGKILL)
    process.wait()
    return ran


def same(whole: Path, other: Path) -> str:
    """Compare two runs, or folders of runs, number by number."""
    code = "import sys; from iqa_utils.workshop.tables import differences\n"
    code += "from pathlib import Path\na, b = map(Path, sys.argv[1:])\n"
    code += "print(max(row[3] for row in differences(a, b)))"
    done = run([PYTHON, "-c", code, str(whole), str(other)])
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    largest = float(done.stdout.split()[-1])
    return f"differs by {largest:.3g}" if largest else EQUAL


# ---- disks ------------------------------------------------------------------------------------

LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
import iqa_utils.files as files
from iqa_utils.files import write_json
from iqa_utils.workshop import runs
from iqa_utils.images import build_store
folder, what = Path(sys.argv[1]), sys.argv[2]
old = folder / "old.json"
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if sys.argv[3] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
if what == "json":
    write_json(old, {"long": "x" * 50_000})
elif what == "array":
    files.save_array(folder / "a.npy", np.zeros(9_000))
elif what == "store":
    build_store(folder, ["a.png"], folder / "stores", size=(100, 100), progress=False)
"""


def disks(_: argparse.Namespace) -> Iterator[Row]:
    """Write to a disk that is full or read-only: one error that names it, and nothing is half."""
    from PIL import Image

    small = WORK / "disk"
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir(parents=True)
    Image.new("RGB", (120, 120), "red").save(small / "a.png")
    for what in ("json", "array", "store"):
        (small / "old.json").write_text("{}\n")
        done = run([PYTHON, "-c", LIMITED, str(small), what, "limit"])
        whole = (small / "old.json").read_text() == "{}\n" and not [*small.glob(".*-*")]
        word = done.stderr.strip().splitlines()[-1].split(":")[0] if done.stderr else "no error"
        ended = "OSError, old files whole" if whole and word == "OSError" else f"{word}, {whole=}"
        yield f"a full disk (file-size limit): {what}", "OSError, old files whole", ended
    again = run([PYTHON, "-c", LIMITED, str(small), "store", "none"])
    yield (
        "the store after the full disk",
        "built",
        "built" if not again.returncode else again.stderr,
    )
    mounted = small / "read-only"
    mounted.mkdir()
    if run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(mounted)]).returncode:
        print("a read-only disk was not tried: mounting is refused here")
        return
    try:
        for what in ("json", "array"):
            done = run([PYTHON, "-c", LIMITED, str(mounted), what, "none"])
            word = done.stderr.strip().splitlines()[-1] if done.stderr else "no error"
            told = "OSError with the path" if str(mounted) in word and "OSError" in word else word
            yield f"a read-only disk (mounted): {what}", "OSError with the path", told
    finally:
        run(["umount", str(mounted)])


# ---- order ------------------------------------------------------------------------------------


def order(options: argparse.Namespace) -> Iterator[Row]:
    """Run `make check` in three random orders with three hash seeds."""
    for seed in ("1", "2", "3"):
        attack = f"make check in random order, hash seed {seed}"
        if attack not in options.done:
            setting = {"PYTHONHASHSEED": seed, "ATTACK_ORDER": seed}
            # the environment is the checkout's: setup.sh must not install the copy there
            check = ["make", "--assume-old=.venv/.ready", "check"]
            done = run(check, **setting, PYTEST_ADDOPTS="-p tests.attack")
            last = (done.stdout.strip().splitlines() or ["no output"])[-1]
            yield attack, "passes", "passes" if not done.returncode else last


def pytest_collection_modifyitems(items: list) -> None:
    """Shuffle the tests by ATTACK_ORDER, where pytest loads this file with `-p tests.attack`."""
    if seed := os.environ.get("ATTACK_ORDER"):
        random.Random(seed).shuffle(items)


# ---- mutants ----------------------------------------------------------------------------------

MODULES = {  # module -> its own tests; a dozen mutants of each
    "samplers.py": ["test_samplers.py", "test_mixed_batches.py"],
    "losses.py": ["test_losses.py"],
    "imbalance.py": ["test_imbalance.py", "test_feature_smoothing.py"],
    "metrics.py": ["test_metrics.py"],
    "datasets/readers.py": ["test_readers.py", "test_datasets.py"],
    "datasets/parsing.py": ["test_readers.py", "test_datasets.py"],
    "workshop/claims.py": ["test_claims.py"],
}
SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
    ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
HARMLESS = {  # part of a survivor's row -> why no test can see it
    '1 -> 2 in `times = {"none": 1': "none takes all images, whatever stands here",
    "Sub -> Add in `counts = np.bincount(ranges": "further ranges hold no image",
    "1.0 -> 2.0 in `p, q, alphas = 2.0, 2.0, (1.0": "weights count as shares of their sum",
    "read_tid(files, 24)": "there are 24 names, so a slice of 25 is the same",
    "1.0 -> 2.0 in `if min(norms) <= 1e-14": "how nearly constant counts as constant",
    "in `weight, left = self.project(up if theta[0] > 0": "a start of the search, not its end",
    "in `norm = (step**2).sum(axis=1)": "a start of the search, not its end",
    "Gt -> GtE in `better = (difference > 0)": "no difference is close, before it is better",
}


def mutants(options: argparse.Namespace) -> Iterator[Row]:
    """Change one operator or number of a module at a time; its own tests must notice."""
    import matplotlib.pyplot  # noqa: F401 - loaded once, every mutant starts from here
    import pandas  # noqa: F401
    import pytest
    import sklearn.svm  # noqa: F401
    import torch  # noqa: F401
    from scipy import optimize, stats  # noqa: F401

    for module, tests in MODULES.items():
        path = COPY / "iqa_utils" / module
        source = path.read_text()
        plain = _survives(lambda tests=tests: pytest.main(_arguments(tests)))
        yield f"{module}: no change", "survives", plain
        sites = range(len([*_sites(ast.parse(source))]))
        for site in sorted(random.Random(module).sample(sites, min(options.mutants, len(sites)))):
            attack, tree = mutant(module, source, site)
            if attack in options.done:
                continue
            path.write_text(ast.unparse(tree))
            try:
                found = _survives(lambda tests=tests: pytest.main(_arguments(tests)))
            finally:
                path.write_text(source)
            reason = next((why for part, why in HARMLESS.items() if part in attack), "")
            yield (
                attack,
                "survives: " + reason if reason else "noticed",
                ("survives: " + reason if reason and found == "survives" else found),
            )


def mutant(module: str, source: str, site: int) -> tuple[str, ast.Module]:
    """Change one site of a module; return the row's name and the changed tree."""
    tree = ast.parse(source)
    line, words = _mutate([*_sites(tree)][site])
    text = source.splitlines()[line - 1].strip()
    return f"{module}:{line} {words} in `{text[:60]}`", tree


def mutants_of(module: str, source: str) -> list[str]:
    """Name every change that may be drawn."""
    return [mutant(module, source, site)[0] for site in range(len([*_sites(ast.parse(source))]))]


def _arguments(tests: list[str]) -> list[str]:
    return ["-x", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in tests)]


def _sites(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int]]:
    """Yield what may be changed: a node, the name of its field, the place in a list or -1."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, "op", -1
        elif isinstance(node, ast.Compare):
            yield from ((node, "ops", i) for i, op in enumerate(node.ops) if type(op) in SWAPS)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "value", -1


def _mutate(site: tuple[ast.AST, str, int]) -> tuple[int, str]:
    """Change a tree at a site; return the line and what was done."""
    node, name, place = site
    if name == "value":
        before, node.value = node.value, node.value + 1
        return node.lineno, f"{before} -> {node.value}"
    holder = node.ops if place >= 0 else None
    before = holder[place] if holder else node.op
    after = SWAPS[type(before)]()
    if holder:
        holder[place] = after
    else:
        node.op = after
    return node.lineno, f"{type(before).__name__} -> {type(after).__name__}"


def _survives(tests: Callable[[], int]) -> str:
    """Run tests in a fork of this process, which has loaded the slow libraries already."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # seconds; a mutant may never end
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        os.chdir(COPY)
        sys.path.insert(0, str(COPY))
        sys.dont_write_bytecode = True
        os.environ |= {"IQA_TEST_DATA": "/nowhere", "PYTHONPATH": str(COPY)}
        os._exit(int(tests()))
    _, status = os.waitpid(child, 0)
    return "noticed" if status else "survives"


# ---- the script -------------------------------------------------------------------------------

PARTS = {f.__name__: f for f in (faults, disks, mutants, order, caches, kills, everything)}
LANES = {
    "copy": ("kills", "caches"),
    "copy-2": ("everything", "order", "mutants", "faults", "disks"),
}


def start(command: list[str], **setting: str) -> subprocess.Popen:
    """Start a command in the copy, quietly."""
    environment = os.environ | {"PYTHONPATH": str(COPY)} | setting
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=COPY, env=environment, **quiet)


def run(command: list[str], **setting: str) -> subprocess.CompletedProcess:
    """Run a command in the copy and keep what it says."""
    environment = os.environ | {"PYTHONPATH": str(COPY)} | setting
    return subprocess.run(
        command, cwd=COPY, env=environment, capture_output=True, text=True, check=False
    )


def refresh_copy() -> str:
    """Bring the copy up to date with the checkout's tracked files; return a digest of the code."""
    digest = hashlib.sha256()
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        target = COPY / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)
            if name.startswith(("iqa_utils/", "notebooks/", "workflow/")):
                digest.update(f"{name}\n".encode() + target.read_bytes())
        else:
            target.unlink(missing_ok=True)
    if not (COPY / ".venv").exists() and (ROOT / ".venv").exists():
        (COPY / ".venv").symlink_to((ROOT / ".venv").resolve())
    subprocess.run(["git", "init", "-q", str(COPY)], check=True)  # some tests list them
    (COPY / ".git" / "info" / "exclude").write_text(".venv\n")
    subprocess.run(["git", "-C", str(COPY), "add", "-A"], check=True)
    return digest.hexdigest()[:8]


def main() -> None:
    """Attack, print the table and say whether all rows are as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be repeated")
    parser.add_argument("--kills", type=int, default=10, help="of each notebook")
    parser.add_argument("--mutants", type=int, default=12, help="of each module")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of earlier calls")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if options.part:
        for name in options.part:
            attack(name, options)
    else:
        lanes = []
        for copy, names in LANES.items():
            parts = [word for name in names for word in ("--part", name)]
            command = [PYTHON, "-m", "tests.attack", *parts, *sys.argv[1:]]
            own = os.environ | {"ATTACK_COPY": copy}
            lanes.append(subprocess.Popen(command, cwd=ROOT, env=own))
        for lane in lanes:
            lane.wait()
    sys.exit(tell(options.part or [*PARTS], (time.monotonic() - started) / 60))


def attack(name: str, options: argparse.Namespace) -> None:
    """Run a part, keeping each row at once; what was as expected before is not tried again."""
    if options.fresh:
        shutil.rmtree(COPY / "runs", ignore_errors=True)
    options.code = refresh_copy()
    log = WORK / f"{name}.jsonl"
    if options.fresh:
        log.unlink(missing_ok=True)
    kept = {row[0]: row for row in _read(log) if row[1] == row[2]}
    options.done = set(kept)
    with log.open("w") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in kept.values())
        for row in until_it_breaks(PARTS[name](options)):
            file.write(f"{json.dumps(row)}\n")
            file.flush()
            print(f"{'  ' if row[1] == row[2] else '! '}{' | '.join(row)}", flush=True)


def until_it_breaks(rows: Iterator[Row]) -> Iterator[Row]:
    """Pass rows on; an error of the attack itself becomes the last row."""
    try:
        yield from rows
    except Exception as error:  # the other parts still run
        yield "the rest of the part", "runs", f"{type(error).__name__}: {error}"


def tell(chosen: Sequence[str], minutes: float) -> bool:
    """Write the table of all parts; return whether a row of the chosen ones is not as expected."""
    rows = []
    for name in PARTS:
        found = {row[0]: row for row in _read(WORK / f"{name}.jsonl")}
        rows += [(name, *row) for row in found.values()]
        if name in chosen and not found:
            rows.append((name, "the part", "ran", "it has no row"))
    bad = [row for row in rows if row[2] != row[3]]
    table = ["| part | attack | expected | found |", "|---|---|---|---|"]
    table += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    (WORK / "table.md").write_text("\n".join(table) + "\n")
    for name in chosen:
        mine = [row for row in rows if row[0] == name]
        print(f"{name}: {len(mine)} attacks, {sum(row in bad for row in mine)} not as expected")
    as_expected = len(rows) - len(bad)
    print(f"{len(rows)} attacks, {as_expected} as expected, {minutes:.0f} min: {WORK / 'table.md'}")
    return any(row[0] in chosen for row in bad)


def _read(log: Path) -> list[Row]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


if __name__ == "__main__":
    main()
