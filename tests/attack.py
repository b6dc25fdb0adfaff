"""Attack the repository, and say what was found: `python -m tests.attack [--part NAME]`.

Not part of `make test`. Faults, kills inside training, shared caches, full and read-only disks,
random order and hash seeds, and mutants of the code that decides numbers. Without ``--part`` the
parts run in two lanes beside each other. Each lane works on its own copy of the checkout below
``runs/attack``, where each finished row is kept: the next call goes on after the last one,
``--fresh`` begins again. The exit code is 1 where a row is not as expected.
"""

import argparse
import ast
import contextlib
import glob
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "runs" / "attack"
COPY = WORK / os.environ.get("ATTACK_COPY", "copy")  # each lane has its own
PYTHON = sys.executable
IQA = [PYTHON, "-m", "iqa_utils.workshop.cli"]
Row = tuple[str, str, str]  # attack, expected, found
COLUMNS = ["part", "attack", "expected", "found", "code", "seconds"]

# ---- faults: each attack is a test that failed before it was mended --------------------------

FAULTS = pd.read_csv(ROOT / "tests" / "faults.csv").set_index("attack")  # before, test


def faults(_: argparse.Namespace) -> Iterator[Row]:
    """Run the tests that stand for attacks in one go; one row per attack."""
    report, tests = WORK / "faults.xml", FAULTS["test"]
    alone = [f"tests/{name}" for name in tests if "::" not in name]  # whole files
    words = sorted({name.partition("::")[2] for name in tests} - {""})
    files = sorted({f"tests/{name.partition('::')[0]}" for name in tests} - {*alone})
    cases: list[tuple[str, bool, bool]] = []
    for arguments in ([*files, "-k", " or ".join(words)], alone):
        report.unlink(missing_ok=True)  # of an earlier round
        run([PYTHON, "-m", "pytest", "-q", f"--junitxml={report}", *arguments])
        found = ElementTree.parse(report).iter("testcase") if report.exists() else []
        for case in found:
            name = f"{case.get('classname', '').split('.')[-1]}.py::{case.get('name')}"
            kinds = {child.tag for child in case}
            cases.append((name, bool(kinds & {"failure", "error"}), "skipped" in kinds))
    for attack, test in tests.items():
        mine = [(bad, skipped) for name, bad, skipped in cases if name.startswith(test)]
        bad, skipped = (sum(column) for column in zip(*mine, strict=True)) if mine else (0, 0)
        found = f"{bad} of {len(mine)} tests fail" if bad else "ends well"
        yield attack, "ends well", found if len(mine) > skipped else "no test ran"


# ---- kills inside training --------------------------------------------------------------------

OFTEN = "-p N_RESAMPLES 10 -p SAVE_SECONDS"
SMALL = {  # parameters of the notebooks here
    "02": f"{OFTEN} 0.5 -p EPOCHS 1 -p EQUAL_STEPS False -p SIZE [48,64] -p RESOLUTIONS [[48,64]]",
    "03": f"{OFTEN} 0.2 -p EPOCHS 2 -p N_SPLITS 1 -p KONCEPT_EPOCHS 2",
    "04": f"{OFTEN} 0.5",
    "05": f"{OFTEN} 0.1",
    "06": f"{OFTEN} 0.5",
}
EQUAL = "resumed inside a training, equal to the uninterrupted run"
AS_ALONE = "equal to the uninterrupted run"
MISSED = "no kill hit a training"


def kills(options: argparse.Namespace) -> Iterator[Row]:
    """Kill the kernel of notebooks 02-06 inside a training at random moments; the end is equal."""
    for stem in SMALL:
        name = next((COPY / "notebooks").glob(f"{stem}_*.ipynb")).stem
        started = time.monotonic()
        whole = uninterrupted(stem, name, options.code)
        seconds = json.loads((whole / "provenance.json").read_text())["seconds"]
        print(f"{name}: {seconds:.0f} s alone, {time.monotonic() - started:.0f} s with its start")
        for number in range(options.kills):
            attack = f"kill -9 of {name}, number {number + 1}"
            if attack in options.done:
                continue
            moment = random.Random(f"{stem}{number}").uniform(0.0, 0.8) * seconds
            for share in (1.0, 0.6, 0.3, 0.0):  # where no training was left, an earlier moment
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
    folder = whole.with_name(f"{name}-killed")
    partial = whole.with_name(f".{name}-killed.partial")
    cache = COPY / "runs" / "cache"
    for left in (cache, folder, partial):
        shutil.rmtree(left, ignore_errors=True)
    process = notebook(stem, "killed")
    wait_for(process, partial.exists)
    time.sleep(seconds)
    wait_for(process, lambda: trainings(partial, cache, begun=True))
    if not kill(process) or not trainings(partial, cache, begun=True):
        return MISSED  # it had ended, or the training did meanwhile
    ended = trainings(partial, cache, begun=False)
    if failed := notebook(stem, "killed").wait():
        return f"the rerun ended with {failed}"
    if not json.loads((folder / "provenance.json").read_text())["killed_attempts"]:
        return "the rerun does not know of the kill"
    text = (folder / f"{name}.ipynb").read_text()
    if not any(int(e) + int(s) for e, s in re.findall(r"resumed at epoch (\d+), step (\d+)", text)):
        return "the training that was begun was not resumed"
    now = trainings(folder, cache, begun=False)
    if again := [key for key, time_ns in ended.items() if now.get(key, time_ns) != time_ns]:
        return f"{len(again)} trainings that had ended ran twice"
    found = same(whole, folder)
    return EQUAL if found == AS_ALONE else found


def trainings(*folders: Path, begun: bool) -> dict[str, int]:
    """Find trainings that have begun, or that have ended: key to the time of their last state."""
    from iqa_utils.training.checkpoints import load_checkpoint

    found = {}
    for name in (n for f in folders for n in glob.iglob(f"{f}/**/last.pt", recursive=True)):
        path = Path(name)
        with contextlib.suppress(FileNotFoundError):  # cleared this very moment
            # of a training that has ended, only the outcome is kept
            if ("threads" in load_checkpoint(path)) == begun:
                found[path.parent.name] = path.stat().st_mtime_ns
    return found


def wait_for(process: subprocess.Popen, happened: Callable[[], object]) -> None:
    """Return when something has happened, or the process has ended."""
    while process.poll() is None and not happened():
        time.sleep(0.1)


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
            for left in (runs, COPY / "runs" / "cache"):
                shutil.rmtree(left, ignore_errors=True)
            process = start(command)
            time.sleep(random.Random(attack).uniform(20, 120))
            hit, failed = kill(process), start(command).wait()
            found = f"the rerun ended with {failed}" if failed else same(kept, runs)
            yield attack, AS_ALONE, found if hit else "it had ended before the kill"


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
            yield f"{' and '.join(pair)} share caches: {name}", AS_ALONE, ended


def notebook(stem: str, run_name: str) -> subprocess.Popen:
    """Start one demo notebook in the copy at small size, saving often."""
    return start([*IQA, "run", stem, *SMALL[stem].split(), "-p", "RUN_NAME", run_name])


def kill(process: subprocess.Popen) -> bool:
    """Kill a process with all it started; tell whether it was still running."""
    import psutil

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
    return f"differs by {largest:.3g}" if largest else AS_ALONE


# ---- disks ------------------------------------------------------------------------------------

WRITE = """
import resource, signal, sys
from pathlib import Path
import numpy as np
import torch
from iqa_utils.files import save_array, write_json
from iqa_utils.images import build_store
from iqa_utils.training.checkpoints import save_checkpoint
folder, what, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if what == "json":
    write_json(folder / "old.json", {"long": "x" * 50_000})
elif what == "array":
    save_array(folder / "a.npy", np.zeros(9_000))
elif what == "store":
    build_store(folder.parent, ["a.png"], folder / "stores", size=(100, 100), progress=False)
elif what == "checkpoint":
    save_checkpoint(folder / "last.pt", {"weights": torch.zeros(20_000)})
"""
WRITTEN = ("json", "array", "store", "checkpoint")
FULL, READ_ONLY = "OSError, old files whole", "OSError with the path"
TORCH_FULL = "RuntimeError, old files whole"  # of torch.save, which names no file


def disks(_: argparse.Namespace) -> Iterator[Row]:
    """Write to a disk that is full or read-only: one error that names it, and nothing is half.

    The disks are mounted; where that is refused, a limit of the file size stands for a full one.
    """
    from PIL import Image

    small = WORK / "disk"
    disk = small / "disk"
    for left in (disk, small):
        run(["umount", str(left)])
        shutil.rmtree(left, ignore_errors=True)
    disk.mkdir(parents=True)
    Image.new("RGB", (120, 120), "red").save(small / "a.png")
    mounts = not run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]).returncode
    way = "mounted" if mounts else "by a limit of the file size"
    (disk / "old.json").write_text("{}\n")
    if mounts:
        (disk / "rest").write_bytes(bytes(44 * 1024))  # leaves 16 KiB
    for what in WRITTEN:
        done = run([PYTHON, "-c", WRITE, str(disk), what, "0" if mounts else "20000"])
        whole = (disk / "old.json").read_text() == "{}\n" and not [*disk.glob(".*-*")]
        word = done.stderr.strip().splitlines()[-1].split(":")[0] if done.stderr else "no error"
        found = f"{word}, old files {'whole' if whole else 'torn'}"
        yield f"a full disk ({way}): {what}", TORCH_FULL if what == "checkpoint" else FULL, found
    if mounts:
        with (disk / "more").open("wb") as file, contextlib.suppress(OSError):
            file.write(bytes(64 * 1024))
        done = run([*IQA, "score", str(small / "a.png"), "--out", str(disk / "scores.csv")])
        told = (done.stdout + done.stderr).strip().splitlines()[-1]
        right = done.returncode and "No space left" in told and not (disk / "scores.csv").exists()
        found = FULL if right else f"exit {done.returncode}: {told}"
        yield f"a full disk ({way}): table of iqa score", FULL, found
        run(["umount", str(disk)])
    again = run([PYTHON, "-c", WRITE, str(disk), "store", "0"])
    found = again.stderr if again.returncode else "built"
    yield "the store after the full disk", "built", found
    refused = run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(disk)]).returncode
    for what in ("json", "array"):
        if refused:
            yield f"a read-only disk: {what}", READ_ONLY, "not tried: mounting is refused"
            continue
        done = run([PYTHON, "-c", WRITE, str(disk), what, "0"])
        word = done.stderr.strip().splitlines()[-1] if done.stderr else "no error"
        found = READ_ONLY if str(disk) in word and "OSError" in word else word
        yield f"a read-only disk (mounted): {what}", READ_ONLY, found
    run(["umount", str(disk)])


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
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # seconds; a mutant may never end,
        signal.alarm(180)  # or wait for ever; two lanes share the cores
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
BY_RUNNING = ("caches", "kills", "everything")  # the code of tests has no say in them
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


def refresh_copy(folders: tuple[str, ...]) -> str:
    """Bring the copy up to date with the tracked files; return a digest of some folders."""
    digest = hashlib.sha256()
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        target = COPY / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)
            if name.startswith(folders):
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
    parser.add_argument("--keep", action="store_true", help="write the table to docs/attack.md too")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    if options.part:
        for name in options.part if options.fresh else ():
            _log(name).unlink(missing_ok=True)
        if options.fresh:
            shutil.rmtree(COPY / "runs", ignore_errors=True)
        for name in options.part:
            attack(name, options)
    else:
        lanes = []
        for copy, names in LANES.items():
            parts = [word for name in names for word in ("--part", name)]
            words = [word for word in sys.argv[1:] if word != "--keep"]
            own = os.environ | {"ATTACK_COPY": copy}
            command = [PYTHON, "-m", "tests.attack", *parts, *words]
            lanes.append(subprocess.Popen(command, cwd=ROOT, env=own))
        for lane in lanes:
            lane.wait()
    chosen = options.part or [*PARTS]
    rows = pd.concat([_read(name) for name in PARTS], ignore_index=True)
    lost = set(chosen) - set(rows["part"])
    text = page(rows)
    (WORK / "table.md").write_text(text)
    if options.keep:
        (ROOT / "docs" / "attack.md").write_text(text)
    rows = rows[rows["part"].isin(chosen)]
    bad = (rows["expected"] != rows["found"]).sum()
    print(f"{len(rows)} attacks, {bad} not as expected: {WORK / 'table.md'}")
    sys.exit(f"parts without a row: {', '.join(sorted(lost))}" if lost else bool(bad))


def attack(name: str, options: argparse.Namespace) -> None:
    """Run a part; rows that this very code has passed before are not tried again."""
    folders = ("iqa_utils/", "notebooks/", "workflow/")
    options.code = refresh_copy(folders if name in BY_RUNNING else (*folders, "tests/"))
    known = _read(name)
    known = known[(known["code"] == options.code) & (known["expected"] == known["found"])]
    options.done = set(known["attack"])
    known.to_json(_log(name), orient="records", lines=True)
    last = time.monotonic()
    with _log(name).open("a") as file:
        for row in until_it_breaks(PARTS[name](options)):
            now = time.monotonic()
            values = (name, *row, options.code, round(now - last, 1))
            file.write(json.dumps(dict(zip(COLUMNS, values, strict=True))) + "\n")
            file.flush()
            last = now
            print(f"{'  ' if row[1] == row[2] else '! '}{' | '.join(row)}", flush=True)


def until_it_breaks(rows: Iterator[Row]) -> Iterator[Row]:
    """Pass rows on; an error of the attack itself becomes the last row."""
    try:
        yield from rows
    except Exception as error:  # the other parts still run
        yield "the rest of the part", "runs", f"{type(error).__name__}: {error}"


def page(rows: pd.DataFrame) -> str:
    """Write totals and all rows as a page of the documentation."""
    right = rows["expected"] == rows["found"]
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    )
    parts = rows.assign(right=right).groupby("part", sort=False)
    totals = parts.agg(attacks=("right", "size"), well=("right", "sum"), minutes=("seconds", "sum"))
    totals["minutes"] = (totals["minutes"] / 60).round(1)
    whole = [f"{value:g}" for value in totals.sum()]
    table = rows.assign(before=rows["attack"].map(FAULTS["before"]).fillna(""))
    table["found"] = table["found"].where(right, "**" + table["found"] + "**")
    lines = [
        "# What the code was attacked with",
        "",
        f"`make attack` at commit {commit.stdout.strip()}, two parts at a time on "
        f"{os.cpu_count()} cores. Before it was written, 204 attacks were tried by hand and 135 "
        'ended well; what did not is told under "before". What is not as expected is bold.',
        "",
        *_table(["part", "attacks", "as expected", "minutes"], [*totals.reset_index().to_numpy()]),
        _line(["all", *whole]),
        "",
        *_table(
            ["part", "attack", "before", "found"],
            table[["part", "attack", "before", "found"]].to_numpy(),
        ),
    ]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [_line(head), "|---" * len(head) + "|", *(_line(row) for row in rows)]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _log(name: str) -> Path:
    return WORK / f"{name}.jsonl"


def _read(name: str) -> pd.DataFrame:
    lines = _log(name).read_text().splitlines() if _log(name).exists() else []
    rows = pd.DataFrame([json.loads(line) for line in lines if line], columns=COLUMNS)
    return rows.drop_duplicates("attack", keep="last")


if __name__ == "__main__":
    main()
