"""The batch workflow on a copy of the repository with one-second notebooks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = Path(sys.executable).parent / "snakemake"
pytestmark = pytest.mark.slow
BODY = """
import os
import time
from pathlib import Path
from iqa_utils.workshop.runs import notebook_parameters, start_run
parameters = notebook_parameters(globals())
run = start_run(STEM, parameters, paper="p")
with open(Path(DATA_ROOT) / "log.txt", "a") as log:
    log.write(f"{STEM} {SEED}\\n")
with open(Path(DATA_ROOT) / "gpus.txt", "a") as log:
    log.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + "\\n")
time.sleep(SECONDS)
if SEED == FAIL:
    raise ValueError("this seed fails")
cell = {"table": "T", "method": "m", "dataset": "d", "metric": "SRCC", "data": "demo"}
run.add_result(**cell, value=SEED)
run.finish()
"""
PARAMETERS = """
PROFILE: str = "demo"
DATA_ROOT: str = "."
PRETRAINED: str = "random"
RUN_NAME: str = ""
SEED: int = 0
SECONDS: float = 0.0
FAIL: int = -1
THREADS: int = 1
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package and the workflow, with two small notebooks in place of the real ones."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "iqa_utils", folder / "iqa_utils")
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    shutil.copytree(ROOT / "data", folder / "data", ignore=lambda *_: ["demo", "weights"])
    (folder / "notebooks/params").mkdir(parents=True)
    for stem in ("80_first", "81_second"):
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [
            nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(f'STEM = "{stem}"' + BODY),
        ]
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "p"}
        notebook.metadata["kernelspec"]["language"] = "python"
        nbformat.write(notebook, folder / f"notebooks/{stem}.ipynb")
    return folder


def write_grid(copy, name, *, fail=-1, seconds=0.0, seeds=(0, 1), gpus=0):
    (copy / name).mkdir()
    common = f"      DATA_ROOT: ['{copy / name}']\n      SECONDS: [{seconds}]\n"
    text = ""
    for stem, after in (("80_first", ""), ("81_second", "    after: [80_first]\n")):
        grid = f"      SEED: {list(seeds)}\n      FAIL: [{fail if stem == '80_first' else -1}]\n"
        text += f"{stem}:\n    gpus: {gpus}\n{after}    grid:\n{grid}{common}"
    (copy / f"workflow/grids/{name}.yaml").write_text(text.replace("    ", "  "))
    for stem in ("80_first", "81_second"):
        (copy / f"notebooks/params/{stem}.{name}.yaml").write_text(f"PROFILE: {name}\n")


def snakemake(copy, name, *arguments, profile="local", **options):
    command = [str(SNAKEMAKE), "--snakefile", "workflow/Snakefile"]
    command += ["--profile", f"workflow/profiles/{profile}", "--config", f"profile={name}"]
    command += arguments
    # the copy's own package, in this process and in every kernel
    environment = os.environ | {"PYTHONPATH": str(copy)}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=copy, env=environment, **options)


def plan(copy, name, *arguments, **options):
    """What would be run, as printed."""
    process = snakemake(copy, name, *arguments, "--dry-run", "--printshellcmds", **options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def finished(copy, name):
    return sorted(p.parent.name[:9] for p in (copy / "runs" / name).glob("*grid.*/metrics.json"))


def _lines(path):
    return path.read_text().splitlines() if path.is_file() else []


def test_a_killed_batch_goes_on_without_losing_or_repeating_work(copy):
    write_grid(copy, "kill", seconds=1.0)
    process = snakemake(copy, "kill", "--cores", "1", start_new_session=True)
    log = copy / "kill/log.txt"
    deadline = time.monotonic() + 240
    while len(_lines(log)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)  # the first job is done and the second has started
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = _lines(log)
    assert len(before) == 2
    again = snakemake(copy, "kill")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert finished(copy, "kill") == ["80_first-", "80_first-", "81_second", "81_second"]
    assert before[0] not in _lines(log)[1:], "finished work was repeated"
    assert set(_lines(log)) == {"80_first 0", "80_first 1", "81_second 0", "81_second 1"}
    grid = copy / "runs/kill/80_first-grid/metrics.json"
    assert {row["n_runs"] for row in json.loads(grid.read_text())["results"]} == {2}
    (copy / "iqa_utils/losses.py").write_text("# no notebook here imports this file\n")
    imported = copy / "iqa_utils/files.py"
    code = imported.read_text()
    imported.write_text(code + "# a comment is no code\n")
    values = copy / "notebooks/params/81_second.kill.yaml"
    values.write_text("# a comment\nPROFILE: kill\n")
    assert "Nothing to be done" in plan(copy, "kill")
    imported.write_text(code + "CHANGED = True\n")
    try:
        assert plan(copy, "kill").count("rule notebook:") == 4
    finally:
        imported.write_text(code)
    values.write_text("PROFILE: kill\nTHREADS: 2\n")
    assert plan(copy, "kill").count("rule notebook:") == 2


def test_one_failing_job_is_named_and_the_rest_goes_on(copy):
    write_grid(copy, "fail", fail=0)
    process = snakemake(copy, "fail")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert finished(copy, "fail") == ["80_first-"]
    logs = [p for p in (copy / "runs/fail/logs").iterdir() if "SEED-0" in p.name]
    assert "ValueError: this seed fails" in logs[0].read_text()
    assert logs[0].name.removesuffix(".log") in output
    assert "80_first: 1 of 2 runs finished, not grid.SEED-0" in output
    grid = json.loads((copy / "runs/fail/80_first-grid/metrics.json").read_text())
    assert [row["n_runs"] for row in grid["results"]] == [1]
    assert grid["parameters"]["MISSING"] == ["grid.SEED-0"]
    assert "rule aggregate:" in plan(copy, "fail")  # again, once the other job has finished
    kept = list((copy / "runs/fail/unfinished").glob("80_first-*.ipynb"))
    assert len(kept) == 1


def test_parameters_on_the_command_line_reach_every_run_with_their_types(copy):
    write_grid(copy, "given")
    given = {"PRETRAINED": "a folder/w.pth", "THREADS": 2, "SEED": 7}
    output = plan(copy, "given", f"parameters={json.dumps(given)}")
    assert output.count(" -p PRETRAINED 'a folder/w.pth' ") == 4, output
    assert output.count(" -p THREADS 2 ") == 4
    assert " -p SEED 7 " not in output  # the grid has the last word


def test_parameters_may_come_from_a_file_as_text(copy):
    write_grid(copy, "file")
    (copy / "settings.yaml").write_text('parameters: \'{"PRETRAINED": "w.pth"}\'\n')
    output = plan(copy, "file", "--configfile", "settings.yaml")
    assert output.count(" -p PRETRAINED w.pth ") == 4, output


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_a_job_asks_for_its_threads_and_its_gpu(copy, profile):
    name = f"threads_{profile}"
    write_grid(copy, name, gpus=1)
    (copy / f"notebooks/params/80_first.{name}.yaml").write_text(f"PROFILE: {name}\nTHREADS: 2\n")
    output = plan(copy, name, "--cores", "4", profile=profile)
    jobs = [part for part in output.split("rule ") if part.startswith("notebook:")]
    threads = {
        stem: [part.count("threads: 2") for part in jobs if f"stem={stem}" in part]
        for stem in ("80_first", "81_second")
    }
    assert threads == {"80_first": [1, 1], "81_second": [0, 0]}  # one thread is not printed
    assert all("gpu=1" in part for part in jobs), output


def test_a_paper_job_is_not_killed_after_an_hour():
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    limits = profile["default-resources"]
    assert limits["runtime"] >= 24 * 60  # minutes; the longest plan is of a day and more
    assert limits["mem_mb"] >= 32_000  # decoded images in memory and what learns from them


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_a_failed_job_stops_no_other(name):
    profile = yaml.safe_load((ROOT / f"workflow/profiles/{name}/config.yaml").read_text())
    assert profile["keep-going"] is True


def test_one_machine_counts_its_gpus():
    profile = yaml.safe_load((ROOT / "workflow/profiles/local/config.yaml").read_text())
    assert [r.split("=")[0] for r in profile["resources"]] == ["gpu"]
