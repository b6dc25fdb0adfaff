import os
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from papermill.clientwrap import PapermillNotebookClient
from typer.testing import CliRunner

from iqa_utils.workshop import cli, notebooks, papermill_engine

PARAMETERS = """
PROFILE: str = "demo"
DATA_ROOT: str = "data/demo"
PRETRAINED: str = "random"
RUN_NAME: str = ""
SEED: int = 0
RATE: float = 0.1
SIZES: list[int] = [1, 2]
"""
BODY = """
from pathlib import Path
folder = Path(r"{runs}") / PROFILE / "90_small"
for i in range(30):
    print(i)
if RATE > 1:
    raise ValueError("rate too high")
folder.mkdir(parents=True, exist_ok=True)
_ = (folder / "metrics.json").write_text("{{}}")
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    (folder / "params").mkdir(parents=True)
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(BODY.format(runs=tmp_path / "runs")),
    ]
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "p"}
    nbformat.write(notebook, folder / "90_small.ipynb")
    (folder / "params/90_small.paper.yaml").write_text("RATE: 0.5\n")
    (folder / "params/rehearsal.yaml").write_text("90_small:\n  RATE: 0.6\n")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", folder)
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(
        notebooks, "run_dir", lambda stem, profile, name="": tmp_path / "runs" / profile / stem
    )
    return tmp_path


def test_a_notebook_is_found_by_name_and_by_number(repository):
    assert (
        notebooks.find_notebook("90").stem == notebooks.find_notebook("90_small").stem == "90_small"
    )
    with pytest.raises(ValueError, match="no notebook '91'; there are 90_small"):
        notebooks.find_notebook("91")


def test_an_unknown_profile_names_those_there_are(repository):
    assert notebooks.read_profile("90_small", "paper") == {"RATE": 0.5}
    assert notebooks.read_profile("90_small", "demo") == {}
    with pytest.raises(FileNotFoundError, match="no profile 'big'; it has demo, paper"):
        notebooks.read_profile("90_small", "big")


def test_unknown_names_and_wrong_types_are_all_listed_before_anything_starts(repository):
    with pytest.raises(ValueError, match=r"RATES is not one of PROFILE.*SEED must be int, got '3'"):
        notebooks.run_notebook("90", parameters={"RATES": 1, "SEED": "3"})
    assert not (repository / "runs").exists()


def test_a_profile_comes_with_its_values_and_a_named_run_is_not_published(repository):
    with pytest.raises(ValueError, match="a profile brings its values with it; use --prof"):
        notebooks.run_notebook("90", parameters={"PROFILE": "paper"})
    with pytest.raises(ValueError, match="RUN_NAME is 'two', and published figures are those"):
        notebooks.run_notebooks(["90"], parameters={"RUN_NAME": "two"}, publish_results=True)
    with pytest.raises(ValueError, match="90_small: a rehearsal is not published; run it with"):
        notebooks.run_notebooks(["90"], profile="rehearsal", publish_results=True)
    (repository / "notebooks/params/90_small.paper.yaml").write_text("# all to come\n")
    with pytest.raises(ValueError, match=r"90_small\.paper\.yaml: expected names and values"):
        notebooks.run_notebook("90", profile="paper")
    assert not (repository / "runs").exists()


@pytest.mark.slow
def test_a_run_leaves_its_executed_notebook_with_coalesced_output(repository):
    folder = notebooks.run_notebook("90", profile="paper", parameters={"SIZES": [3]})
    assert (folder.parent / "unfinished").is_dir()  # another job may be about to write into it
    executed = nbformat.read(folder / "90_small.ipynb", as_version=4)
    assert "RATE = 0.5" in executed.cells[1].source
    outputs = executed.cells[2].outputs
    assert len(outputs) == 1
    assert outputs[0].text.split() == [str(i) for i in range(30)]


@pytest.mark.slow
def test_a_failed_cell_is_reported_and_its_notebook_kept(repository, capsys):
    failures = notebooks.run_notebooks(["90"], parameters={"RATE": 2.0})
    assert len(failures) == 1
    assert "ValueError: rate too high" in failures[0]
    assert (repository / "runs/demo/unfinished/90_small.ipynb").is_file()
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.slow
def test_a_notebook_that_never_finishes_its_run_is_a_failure(repository):
    path = notebooks.NOTEBOOKS / "90_small.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = "1 + 1"
    nbformat.write(notebook, path)
    with pytest.raises(RuntimeError, match=r"wrote no 90_small/metrics\.json"):
        notebooks.run_notebook("90")


LEASE = """
    import papermill, sys, time
    from iqa_utils.workshop import papermill_engine
    papermill_engine._gpu_indices = lambda: ["0", "1"]
    papermill_engine.POLL_SECONDS = 0.05
    with papermill_engine.lease_gpu() as index:
        print(index, flush=True)
        time.sleep(float(sys.argv[1]))
"""


def _lease(tmp_path, seconds, **environment):
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LEASE), str(seconds)],
        env=env | {"TMPDIR": str(tmp_path)} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_each_kernel_gets_a_gpu_of_its_own_and_a_killed_one_gives_it_back(tmp_path):
    first, second = _lease(tmp_path, 60), _lease(tmp_path, 60)
    taken = {first.stdout.readline().strip(), second.stdout.readline().strip()}
    assert taken == {"0", "1"}
    third = _lease(tmp_path, 0)
    assert third.poll() is None  # waits: both are taken
    first.kill()
    assert third.stdout.readline().strip() in taken
    second.kill()
    for process in (first, second, third):
        process.communicate()


def test_a_choice_made_outside_is_left_alone(tmp_path):
    process = _lease(tmp_path, 0, CUDA_VISIBLE_DEVICES="5")
    assert process.communicate()[0].strip() == "None"


def test_a_kernel_is_shut_down_only_when_it_is_idle_after_its_last_answer(monkeypatch):
    def says(state, of):
        return {"content": {"execution_state": state}, "parent_header": {"msg_id": of}}

    told = [says("idle", "cell"), says("busy", "last"), says("idle", "last"), says("busy", "later")]

    async def get_iopub_msg(timeout):
        return told.pop(0)

    client = papermill_engine.Client(SimpleNamespace(nb=nbformat.v4.new_notebook()))
    client.kc = SimpleNamespace(get_iopub_msg=get_iopub_msg)
    monkeypatch.setattr(PapermillNotebookClient, "wait_for_reply", lambda *_: "answer")
    assert client.wait_for_reply("last") == "answer"
    assert told == [says("busy", "later")]


def test_papermill_finds_the_engine_by_name():
    assert papermill.engines.papermill_engines.get_engine("iqa").__name__ == "IQAEngine"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("00 -p SEED", "-p needs a name and a value"),
        ("-p SEED 1", "name the notebooks to run, or 'all'"),
        ("05 -p METHODS [a", "-p METHODS: '[a' is not YAML: expected ',' or ']'"),
        ("05 -p LEARNING_RATE 1e-3", "05_lds_fds: LEARNING_RATE must be float, got '1e-3' (str)"),
    ],
)
def test_the_command_line_refuses_in_one_line_and_runs_nothing(words, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["iqa", "run", *words.split()])
    monkeypatch.setattr(notebooks, "run_notebook", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"iqa: {told}")
    assert err.count("\n") == 1


def test_a_process_that_refuses_ends_with_its_one_line():
    command = [sys.executable, "-m", "iqa_utils.workshop.cli", "run", "-p", "SEED", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "iqa: name the notebooks to run, or 'all'\n"


def test_the_workers_of_a_killed_command_end_with_it(repository):
    code = (
        "import sys, time; from concurrent.futures import ProcessPoolExecutor as Pool\n"
        "import multiprocessing, os\n"
        "from iqa_utils.workshop.notebooks import _end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    options = {'initializer': _end_with_parent, 'initargs': (os.getpid(),)}\n"
        "    with Pool(1, mp_context=context, **options) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 60).result()\n"
    )
    script = repository / "parent.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as one:
        worker = int(one.stdout.readline())
        one.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and is_running(worker):
        time.sleep(0.2)
    assert not is_running(worker)


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "arguments",
    [
        ["label", ".", "--teacher", "t", "--out", "o", "--batch-size", "-1"],
        ["label", ".", "--teacher", "t", "--out", "o", "--part-size", "0"],
        ["label", ".", "--teacher", "t", "--out", "o", "--crop", "0", "5"],
        ["score", ".", "--checkpoint", "c", "--batch-size", "0"],
    ],
)
def test_a_size_below_one_is_refused_before_anything_is_read(arguments):
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert "greater than or" in done.output


def test_all_notebooks_of_a_profile_are_those_that_have_it():
    assert notebooks.stems_with("demo") == notebooks.notebook_stems()
    assert "08_across_data_sets" not in notebooks.stems_with("paper")
    assert "05_lds_fds" in notebooks.stems_with("paper")


def test_what_a_check_finds_stops_a_run_and_the_check_sees_every_value(repository):
    seen = {}

    def check(stem, values):
        seen.update(values, stem=stem)
        return ["the disk is full", "no weights"]

    told = notebooks.run_notebooks(["90"], profile="paper", check=check)
    assert told == ["90_small cannot run: the disk is full; no weights"]
    assert (seen["stem"], seen["RATE"], seen["SIZES"]) == ("90_small", 0.5, [1, 2])
    assert not (repository / "runs").exists()


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("papper", "no notebook has a profile 'papper'; there are .*demo.*paper"),
        ("rehearsal", "name the notebooks of a rehearsal"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_all_notebooks_of_no_profile_are_refused(command, profile, told):
    done = CliRunner().invoke(cli.app, [command, "all", "--profile", profile])
    assert done.output == ""
    with pytest.raises(ValueError, match=told):
        raise done.exception


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("05 --publish", "belong to --true-size"),
        ("05 --steps 3", "belong to --true-size"),
        ("05 --scale 0.5", "belong to --true-size"),
        ("05 --true-size --annotations .", "--true-size reads no annotations"),
        ("07 --true-size", "07 trains no network; there are 02, 03, 04, 05, 06"),
    ],
)
def test_an_option_that_a_rehearsal_would_ignore_is_refused(words, told):
    done = CliRunner().invoke(cli.app, ["rehearse", *words.split()])
    with pytest.raises(ValueError, match=told):
        raise done.exception


@pytest.mark.parametrize(
    "words",
    [
        "plan 05 --rate 0",
        "plan 05 --rate -3",
        "rehearse --true-size --scale 0",
        "rehearse --true-size --scale 2",
    ],
)
def test_a_rate_or_a_scale_out_of_bounds_is_refused(words):
    assert CliRunner().invoke(cli.app, words.split()).exit_code == 2
