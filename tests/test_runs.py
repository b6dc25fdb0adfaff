import json
import os
import re
import socket
import subprocess
import sys
import time

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from iqa_utils.backbones import SHIPPED_FILE, weights_hash
from iqa_utils.files import hash_file
from iqa_utils.workshop import provenance, runs

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PARAMETERS = {
    "PROFILE": "test",
    "DATA_ROOT": "x",
    "PRETRAINED": "random",
    "RUN_NAME": "",
    "SEED": 3,
}
TYPES = {
    "PROFILE": str,
    "DATA_ROOT": str,
    "PRETRAINED": str,
    "RUN_NAME": str,
    "SEED": int,
}


@pytest.fixture
def repo(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("word", ["random", "hub", "shipped"])
def test_a_word_for_weights_is_no_path_and_a_path_is_resolved(repo, word):
    assert runs.start_run("02_x", {**PARAMETERS, "PRETRAINED": word}).pretrained == word
    given = runs.start_run("02_x", {**PARAMETERS, "PRETRAINED": "a/b.safetensors"}).pretrained
    assert given == str(repo / "a/b.safetensors")


def test_parameters_keep_their_order_and_values():
    namespace = {"__annotations__": TYPES, **PARAMETERS, "SCRATCH": 1}
    assert runs.notebook_parameters(namespace) == PARAMETERS


def test_a_number_that_yaml_read_as_text_is_refused_by_name():
    namespace = {"__annotations__": TYPES | {"RATE": float}, **PARAMETERS, "RATE": "1e-3"}
    with pytest.raises(TypeError, match=r"RATE must be float, got '1e-3' \(str\).*1\.0e-3"):
        runs.notebook_parameters(namespace)


def test_an_undeclared_common_parameter_is_named():
    namespace = {"__annotations__": {"PROFILE": str}, "PROFILE": "demo"}
    with pytest.raises(KeyError, match="SEED"):
        runs.notebook_parameters(namespace)


def test_metrics_appear_only_when_the_run_is_finished(repo):
    run = runs.start_run("00_x", PARAMETERS, paper="p")
    run.add_result(table="T", method="m", dataset="d", metric="SRCC", value=0.5, data="demo")
    assert not (repo / "runs/test/00_x").exists()
    run.finish()
    metrics = json.loads((repo / "runs/test/00_x/metrics.json").read_text())
    assert metrics["stem"] == "00_x"
    row = {"paper": "p", "table": "T", "method": "m", "dataset": "d", "metric": "SRCC"}
    row |= {"value": 0.5, "n_runs": 1, "data": "demo", "protocol": {}}
    row |= dict.fromkeys(["ci_low", "ci_high", "n", "sd", "pred_spread"])
    words = ["network", "weights", "recipe", "kind", "baseline", "variant", "subset", "stage"]
    row |= dict.fromkeys([*words, "layer", "regressor"], "")
    assert metrics["results"] == [row]
    assert [r["folder"].name for r in runs.find_runs(repo / "runs")] == ["00_x"]


def test_a_rerun_replaces_everything_of_the_run_before(repo):
    first = runs.start_run("00_x", PARAMETERS)
    (first.dir / "left-over").write_text("")
    first.finish()
    second = runs.start_run("00_x", PARAMETERS)
    assert (repo / "runs/test/00_x/left-over").exists()  # the old run stands until the new one ends
    second.finish()
    assert not (repo / "runs/test/00_x/left-over").exists()
    assert sorted(p.name for p in (repo / "runs/test").iterdir()) == [".00_x.lock", "00_x"]


def test_the_time_of_a_killed_run_counts_up_to_the_last_file_it_left(repo):
    killed = runs.start_run("00_x", PARAMETERS)
    checkpoint = killed.checkpoints_dir / "last.pt"
    checkpoint.write_text("weights")
    note = killed.dir / "attempts.json"
    started = json.loads(note.read_text())["started"]
    os.utime(checkpoint, (started + 100, started + 100))
    folder = runs.start_run("00_x", PARAMETERS).finish()
    seen = json.loads((folder / "provenance.json").read_text())
    assert 100 <= seen["seconds"] < 160
    assert seen["killed_attempts"] == 1
    assert not (folder / "attempts.json").exists()
    again = json.loads(
        (runs.start_run("00_x", PARAMETERS).finish() / "provenance.json").read_text()
    )
    assert (again["killed_attempts"], again["seconds"] < 60) == (0, True)


def test_a_killed_run_finds_its_checkpoints_again_and_nothing_else(repo):
    killed = runs.start_run("00_x", PARAMETERS)
    kept = killed.checkpoints_dir / "0123456789ab/last.pt"
    kept.parent.mkdir()
    kept.write_text("weights")
    left = ["predictions.parquet", "history.parquet", "figures/stray.png", "metrics.json"]
    left += ["checkpoints/model.safetensors", "own/table.csv"]
    for name in left:
        (killed.dir / name).parent.mkdir(exist_ok=True)
        (killed.dir / name).write_text("of an earlier seed")
    again = runs.start_run("00_x", {**PARAMETERS, "SEED": 4})
    assert kept.read_text() == "weights"  # its name is the key of its training
    assert [name for name in left if (again.dir / name).exists()] == []
    folder = again.finish()
    seen = json.loads((folder / "provenance.json").read_text())
    assert (seen["killed_attempts"], seen["seed"]) == (0, 4)  # the other seed is another run


@pytest.mark.parametrize("torn", ["", '{"killed": 2, "sec'])
def test_a_torn_note_of_attempts_counts_as_one_killed_attempt(repo, torn):
    killed = runs.start_run("00_x", PARAMETERS)
    (killed.dir / "attempts.json").write_text(torn)
    folder = runs.start_run("00_x", PARAMETERS).finish()
    assert json.loads((folder / "provenance.json").read_text())["killed_attempts"] == 1


def test_a_note_of_attempts_without_seconds_counts_as_one_killed_attempt(repo):
    killed = runs.start_run("00_x", PARAMETERS)
    (killed.dir / "attempts.json").write_text(json.dumps({"parameters": PARAMETERS}))
    folder = runs.start_run("00_x", PARAMETERS).finish()
    assert json.loads((folder / "provenance.json").read_text())["killed_attempts"] == 1


def test_links_in_the_folder_of_a_killed_run_go_and_what_they_name_stays(repo):
    killed, elsewhere = runs.start_run("00_x", PARAMETERS), repo / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    links = [
        killed.dir / "linked",
        killed.checkpoints_dir / "0123456789ab",
        killed.dir / "dangling",
    ]
    for link in links:
        link.symlink_to(elsewhere if link.name != "dangling" else repo / "nowhere")
    again = runs.start_run("00_x", PARAMETERS)
    assert not any(link.is_symlink() for link in links)
    assert (elsewhere / "precious").exists()
    again.finish()


def test_a_run_killed_between_the_two_renames_of_its_end_is_found_again(repo):
    for find in (
        lambda: runs.find_runs(repo / "runs"),
        lambda: [runs.start_run("00_x", PARAMETERS)],
    ):
        final = runs.start_run("00_x", PARAMETERS).finish()
        final.rename(final.with_name(".00_x.old"))
        assert len(find()) == 1
        assert (final / "metrics.json").is_file()
    (run,) = runs.find_runs(repo / "runs")
    assert run["folder"] == final


def test_the_weights_of_a_network_are_pinned_by_the_file_that_was_read(repo):
    network, folder = torch.nn.Linear(2, 1), repo / "weights"
    folder.mkdir()
    (folder / "net-imagenet.pth").write_bytes(b"abc")
    (folder / "clip_net-openai.safetensors").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    run = runs.start_run("00_x", PARAMETERS | {"PRETRAINED": "weights"})
    for name in ("net", "clip_net", "unknown"):
        run.use_weights(name, network)
    run.use_weights("own", network, folder / "net-imagenet.pth")
    plain = {"source": "weights", "digest": weights_hash(network)}
    files = {"net": "net-imagenet.pth", "clip_net": "clip_net-openai.safetensors"}
    files |= {"own": "net-imagenet.pth"}
    pinned = {name: {**plain, "file": file, "sha256": abc} for name, file in files.items()}
    assert run.weights == pinned | {"unknown": plain}
    run.finish()
    run = runs.start_run("00_x", PARAMETERS | {"PRETRAINED": "weights/net-imagenet.pth"})
    run.use_weights("net", network)
    told = {"file": "net-imagenet.pth", "sha256": abc}
    assert run.weights["net"] == {"source": "net-imagenet.pth", **told, "digest": plain["digest"]}
    run.finish()
    run = runs.start_run("00_x", PARAMETERS | {"PRETRAINED": "shipped"})
    run.use_weights("net", network)
    assert run.weights["net"]["sha256"] == hash_file(SHIPPED_FILE)
    run.finish()
    run = runs.start_run("00_x", PARAMETERS)
    run.use_weights("net", network)
    assert run.weights["net"] == {"source": "random", "digest": weights_hash(network)}


OWNER = "import sys, pathlib; from iqa_utils.workshop import runs\n"
OWNER += "held = runs._claim(pathlib.Path(sys.argv[1])); print('held', flush=True); input()"


def test_two_processes_do_not_share_a_run(repo):
    command = [sys.executable, "-c", OWNER, str(repo / "runs/test/00_x")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        told = rf"00_x is being written by process {owner.pid} on {socket.gethostname()}; wait"
        with pytest.raises(RuntimeError, match=told + r".*delete .*/runs/test/\.00_x\.lock"):
            runs.start_run("00_x", PARAMETERS)
        owner.kill()
    runs.start_run("00_x", PARAMETERS)  # its owner is gone, whatever process has its number now


def test_a_lock_file_that_names_a_living_process_does_not_hold_a_run(repo):
    lock = repo / "runs/test/.00_x.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(f"process {os.getppid()} on elsewhere")  # a number that was used again
    runs.start_run("00_x", PARAMETERS)
    assert lock.read_text() == f"process {os.getpid()} on {socket.gethostname()}"


RACE = """
import sys, time
from pathlib import Path
from iqa_utils.workshop import runs
print("ready", flush=True)
start, held = float(input()), []
for number in range(20):
    time.sleep(max(0.0, start + number * 0.02 - time.time()))
    try:
        held.append(runs._claim(Path(sys.argv[1]) / f"{number:02}_x"))
        print(number)
    except RuntimeError:
        pass
print("done", flush=True)
input()
"""


def test_a_race_for_a_run_has_exactly_one_winner(repo):
    command, pipe = [sys.executable, "-c", RACE, str(repo / "runs")], subprocess.PIPE
    racers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    assert {racer.stdout.readline() for racer in racers} == {"ready\n"}
    for racer in racers:
        print(time.time() + 0.1, file=racer.stdin, flush=True)
    won = [int(line) for r in racers for line in iter(r.stdout.readline, "done\n")]
    for racer in racers:  # each holds what it won until all have tried
        racer.communicate("\n")
    assert sorted(won) == list(range(20))


def test_figures_are_the_same_bytes_on_every_repeat(repo):
    files = []
    for _ in range(2):
        run = runs.start_run("00_x", PARAMETERS)
        figure, axes = plt.subplots(layout="constrained")
        axes.plot([1, 3, 2])
        run.save_figure(figure, "line")
        png = run.dir / "figures" / "line.png"
        files.append((png.read_bytes(), png.with_suffix(".pdf").read_bytes()))
        plt.close(figure)
    assert files[0] == files[1]


@pytest.mark.parametrize("demo", [True, False])
def test_a_figure_states_its_question_and_whether_its_data_are_demo_data(repo, demo):
    table = pd.DataFrame({"mos": [1.0]})
    table.attrs = {"dataset": "d", "fingerprint": "f", "demo": demo}
    run = runs.start_run("00_x", PARAMETERS)
    run.use_data(table)
    figure, _ = plt.subplots()
    run.save_figure(figure, "line", "Does it rise?")
    plt.close(figure)
    words = [text.get_text() for text in figure.texts]
    assert words == ["Does it rise?"] + ["demo run: shows the machinery"] * demo


def test_provenance_pins_what_was_used(repo):
    table = pd.DataFrame({"image": ["a"], "mos": [0.709]})
    table.attrs = {"dataset": "d", "fingerprint": "f", "demo": False}
    network = torch.nn.Linear(2, 1)
    run = runs.start_run("00_x", PARAMETERS | {"PRETRAINED": "/somewhere/net.safetensors"})
    run.use_data(table)
    run.use_pixels("d", "key")
    run.use_weights("net", network)
    seen = json.loads((run.finish() / "provenance.json").read_text())
    assert seen["pixels"] == {"d": "key"}
    assert seen["data"]["d"]["table"] == provenance.table_digest(table.assign(mos=0.7090))
    assert seen["data"]["d"]["table"] != provenance.table_digest(table.assign(mos=0.7091))
    assert seen["weights"] == {
        "net": {"source": "net.safetensors", "digest": weights_hash(network)}
    }
    assert set(seen["machine"]) == {"cpu", "cores", "memory_gib"}
    assert isinstance(seen["clean"], bool)
    assert "iqa_utils/workshop/runs.py" in seen["files"]


def test_a_run_is_current_until_a_file_that_it_imported_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "CODE", tmp_path)
    module, notebook = tmp_path / "iqa_utils/a.py", tmp_path / "notebooks/00_x.ipynb"
    for path in (module, notebook):
        path.parent.mkdir()
    module.write_text("x = 1\n")
    (tmp_path / "iqa_utils/unused.py").write_text("y = 1\n")
    cells = [{"cell_type": "markdown", "source": ["a"]}, {"cell_type": "code", "source": ["b"]}]
    notebook.write_text(json.dumps({"cells": cells}))
    fake = type(sys)("a")
    fake.__file__ = str(module)
    monkeypatch.setitem(sys.modules, "a_module_of_this_test", fake)
    used = provenance.used_files("00_x", provenance.code_files())
    assert set(used) == {"iqa_utils/a.py", "notebooks/00_x.ipynb"}
    assert provenance.is_current({"files": used})
    (tmp_path / "iqa_utils/unused.py").write_text("y = 2\n")
    module.write_text('"""Words."""\n\nx = (1)  # one\n')
    cells[0]["source"] = ["other words"]
    cells[1]["source"] = ["# a comment\n", "b"]
    notebook.write_text(json.dumps({"cells": cells}))
    assert provenance.is_current({"files": used})
    module.write_text("x = 2\n")
    assert not provenance.is_current({"files": used})
    assert not provenance.is_current({})  # a run from before files were recorded


CODE = '''"""A module."""

def f(x: int = 0, *more, name: str = "é") -> str:
    """A function."""
    return f"{x!r:>{more[0]}}{{}}" f"{name:%Y}\\n" if x is not None else ""

async def g(*, a=(), b=[], c={}):
    "only words"

class A(object, metaclass=type):
    """A class."""
    x: "int" = -1.5e3
'''


def test_the_digest_of_code_is_the_same_in_every_version_of_python():
    assert provenance.code_digest(CODE) == "9ba71eccabc78e0d"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("A module.", "Other words.", True),
        ("A function.", "Other words.", True),
        ("A class.", "Other words.", True),
        ("x: int = 0, *more", "x: int=0,*more  # a comment\n", True),
        ("-1.5e3", "-1500.0", True),
        ("-1.5e3", "-1500", False),
        ("is not None", "is not False", False),
        ("{{}}", "{{ }}", False),
        ("b=[]", "b=()", False),
    ],
)
def test_the_digest_of_code_sees_what_it_does_and_not_its_words(old, new, same):
    assert CODE.count(old) == 1
    changed = provenance.code_digest(CODE.replace(old, new))
    assert (changed == provenance.code_digest(CODE)) == same


def test_code_that_is_not_python_alone_has_a_digest_too():
    assert provenance.code_digest("%matplotlib") != provenance.code_digest("%timeit 1")


@pytest.mark.parametrize(
    ("changed", "is_clean"),
    [("README.md", True), ("figures/a.json", True), ("docs/a.md", True), ("code.py", False)],
)
def test_a_checkout_is_clean_where_only_published_files_changed(
    tmp_path, monkeypatch, changed, is_clean
):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == ("unknown", False)
    for name in ("README.md", "figures/a.json", "docs/a.md", "code.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "First"]):
        subprocess.run([*git, *command], check=True)
    name, clean = provenance.commit()
    assert clean
    (tmp_path / changed).write_text("2\n")
    assert provenance.commit() == (name, is_clean)
    assert re.fullmatch(r"[0-9a-f]{12}", name)


def test_a_notebook_depends_on_what_it_imports_and_what_that_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    code = {
        "__init__.py": "",
        "a.py": "def f():\n    from iqa_utils import b\n",  # imported when it is needed
        "b/__init__.py": "from iqa_utils.b.c import x\n",
        "b/c.py": "import numpy\nx = 1\n",
        "unused.py": "from iqa_utils import a\n",
    }
    for name, text in code.items():
        path = tmp_path / "iqa_utils" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "notebooks").mkdir()
    cells = [{"cell_type": "code", "source": ["from iqa_utils.a import f"]}]
    (tmp_path / "notebooks/00_x.ipynb").write_text(json.dumps({"cells": cells}))
    files = provenance.imported_files("00_x")
    wanted = {f"iqa_utils/{name}" for name in code if name != "unused.py"}
    assert set(files) == {"notebooks/00_x.ipynb", *wanted}
    (tmp_path / "iqa_utils/b/c.py").write_text("x = 2\n")
    changed = provenance.imported_files("00_x")
    assert [name for name in files if changed[name] != files[name]] == ["iqa_utils/b/c.py"]


def test_results_must_be_finite(repo):
    run = runs.start_run("00_x", PARAMETERS)
    row = {"table": "T", "method": "m", "dataset": "d", "metric": "SRCC", "data": "demo"}
    with pytest.raises(ValueError, match="T, m, d, SRCC: value is nan"):
        run.add_result(**row, value=float("nan"))
    run.add_results(pd.DataFrame([{**row, "value": 1.0, "ci_low": np.nan, "n": 4.0}]))
    assert run.results[0]["ci_low"] is None
    assert run.results[0]["n"] == 4


def test_results_say_what_they_are_as_described_once_or_for_themselves(repo):
    run = runs.start_run("00_x", PARAMETERS)
    run.describe(network="net", kind="trained here", protocol={"epochs": 2})
    run.describe(weights="imagenet")
    row = {"table": "T", "method": "m", "dataset": "d", "metric": "SRCC", "data": "demo"}
    run.add_results([{**row, "value": 1.0}, {**row, "value": 2.0, "kind": "arithmetic", "sd": 0.1}])
    first, second = run.results
    assert (first["network"], first["weights"], first["recipe"]) == ("net", "imagenet", "")
    assert (first["kind"], first["protocol"], first["sd"]) == ("trained here", {"epochs": 2}, None)
    assert (second["kind"], second["network"], second["sd"]) == ("arithmetic", "net", 0.1)
    with pytest.raises(ValueError, match=r"described by .* got \['net'\]"):
        run.describe(net="x")
    with pytest.raises(TypeError, match=r"has the fields .* got \['pvalue'\]"):
        run.add_result(**row, value=1.0, pvalue=0.1)


def test_predictions_need_their_columns_and_finite_values(repo):
    run = runs.start_run("00_x", PARAMETERS)
    frame = pd.DataFrame({c: ["a"] for c in runs.PREDICTION_COLUMNS}).assign(mos=1.0, pred=2.0)
    with pytest.raises(ValueError, match=r"lack the columns \['pred'\]"):
        run.save_predictions(frame.drop(columns="pred"))
    with pytest.raises(ValueError, match="1 predictions are not finite"):
        run.save_predictions(frame.assign(pred=np.inf))
    run.save_predictions(frame)
    saved = pd.read_parquet(run.dir / "predictions.parquet")
    pd.testing.assert_frame_equal(saved[frame.columns], frame)
    assert saved[["reference", "subset", "stage"]].isna().all(axis=None)


def test_predictions_say_which_reference_and_subset_an_image_belongs_to(repo):
    run = runs.start_run("00_x", PARAMETERS)
    table = pd.DataFrame({"image": ["a", "b"], "mos": 1.0, "reference": ["r", "s"]})
    table.attrs = {"dataset": "d", "fingerprint": "f", "demo": True}
    run.use_data(table.assign(subset=["ss01", "ss02"]))
    frame = pd.DataFrame({c: ["b", "a", "a"] for c in runs.PREDICTION_COLUMNS})
    frame = frame.assign(mos=1.0, pred=[1.0, 2.0, 3.0], dataset=["d", "d", "other"])
    run.save_predictions(frame.assign(stage="fine-tuned"))
    saved = pd.read_parquet(run.dir / "predictions.parquet")
    assert saved["pred"].tolist() == [1.0, 2.0, 3.0]
    assert saved["reference"].fillna("").tolist() == ["s", "r", ""]
    assert saved["subset"].fillna("").tolist() == ["ss02", "ss01", ""]
    assert set(saved["stage"]) == {"fine-tuned"}


@pytest.mark.parametrize(
    ("made", "demo"), [([], False), ([True], True), ([True, False], False), ([False], False)]
)
def test_a_run_is_demo_when_it_read_made_data_and_nothing_else(repo, made, demo):
    run = runs.start_run("00_x", PARAMETERS)
    for number, kind in enumerate(made):
        frame = pd.DataFrame({"mos": [1.0]})
        frame.attrs = {"dataset": f"set{number}", "fingerprint": "f", "demo": kind}
        run.use_data(frame)
    folder = run.finish()
    assert json.loads((folder / "provenance.json").read_text())["demo"] is demo


@pytest.mark.parametrize("name", ["../up", "a b", "x/y"])
def test_folder_names_are_plain(repo, name):
    with pytest.raises(ValueError, match="RUN_NAME may hold letters"):
        runs.run_dir("00_x", "test", name)


@pytest.mark.parametrize(
    ("given", "loaded", "said"),
    [
        ("random", "random", "random"),
        ("shipped", "shipped", "shipped"),
        ("hub", "hub", "imagenet"),
        ("data/weights/net-imagenet.pth", "{root}/data/weights/net-imagenet.pth", "net-imagenet"),
    ],
)
def test_words_of_weights_stay_words_and_paths_are_resolved(repo, given, loaded, said):
    run = runs.start_run("00_x", PARAMETERS | {"PRETRAINED": given})
    assert run.pretrained == loaded.format(root=repo)
    assert run.weights_source == said
