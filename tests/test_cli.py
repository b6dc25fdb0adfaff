"""The command line: what it shows, and what it does where there is no clone of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from iqa_utils import __version__
from iqa_utils.models.imqnet import IMQNet
from iqa_utils.training.checkpoints import save_model
from iqa_utils.workshop import cli, downloads, runs
from iqa_utils.workshop.papers import papers
from iqa_utils.workshop.tables import write_csv

ROOT = Path(__file__).resolve().parents[1]
N_ROWS = sum(paper.LEDGER[0] for paper in papers().values())


def iqa(*words, **variables):
    command = [sys.executable, "-m", "iqa_utils", *map(str, words)]
    environment = os.environ | variables
    options = {"capture_output": True, "text": True, "check": False, "cwd": tempfile.gettempdir()}
    return subprocess.run(command, env=environment, **options)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The package as pip puts it into site-packages, without notebooks and ledger."""
    site = tmp_path_factory.mktemp("site-packages")
    shutil.copytree(
        ROOT / "iqa_utils", site / "iqa_utils", ignore=shutil.ignore_patterns("__pycache__")
    )
    return site


@pytest.mark.parametrize("command", ["run 00", "demo", "report", "plan 02", "list", "rehearse 05"])
def test_without_a_clone_one_sentence_says_what_is_needed(elsewhere, command):
    before = sorted(elsewhere.iterdir())
    done = iqa(
        *command.split(), PYTHONPATH=str(elsewhere), PYTHONDONTWRITEBYTECODE="1", IQA_ROOT=""
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"iqa: this needs a clone of the repository and {elsewhere} is none: work inside one, or "
        "name it with IQA_ROOT\n"
    )
    assert sorted(elsewhere.iterdir()) == before


@pytest.mark.slow
def test_a_clone_named_by_the_variable_serves_a_package_that_is_elsewhere(elsewhere):
    named = {"PYTHONPATH": str(elsewhere), "IQA_ROOT": str(ROOT)}
    done = iqa("list", **named)
    assert done.returncode == 0, done.stderr
    assert re.search(r"05 · LDS and FDS\n +profiles +demo, ", done.stdout)
    code = (
        "from iqa_utils.workshop import claims, provenance; "
        "print(len(claims.load_claims()), provenance.environment()['variables'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=os.environ | named, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{N_ROWS} {{'IQA_ROOT': '{ROOT.name}'}}\n"


def test_a_notebook_run_leaves_nothing_where_there_is_no_clone(monkeypatch, tmp_path):
    monkeypatch.setattr("iqa_utils.workshop.IS_CHECKOUT", False)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="IQA_ROOT"):
        runs.start_run("00_x", {"PROFILE": "demo", "RUN_NAME": "", "SEED": 0})
    assert not list(tmp_path.iterdir())


def test_help_and_version_are_there_without_anything_heavy():
    told = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "400"}).output
    for word in ("IQA_ROOT", "IQA_TEST_DATA", "HF_ENDPOINT", "--install-completion", "export"):
        assert word in told
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"iqa {__version__}\n"


def write_set(root):
    """A user's table of ten images, noted as synthetic."""
    (root / "table").mkdir(parents=True)
    rows = "".join(f"{i}.png,{i}\n" for i in range(10))
    (root / "table" / "scores.csv").write_text(f"image,mos\n{rows}")
    (root / "table" / "demo.json").write_text('{"seed": 0}')


def test_a_broken_run_does_not_stop_the_list(monkeypatch, tmp_path):
    torn = tmp_path / "runs" / "demo" / "05_lds_fds" / "metrics.json"
    torn.parent.mkdir(parents=True)
    torn.write_text('{"stem": "05_l')
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    with pytest.warns(UserWarning, match=r"a run is left out: .*05_lds_fds/metrics\.json"):
        lines = cli._notebook_lines()
    assert "  05 · LDS and FDS" in lines


def test_the_list_names_runs_data_and_weights_that_are_here(monkeypatch, tmp_path):
    write_set(tmp_path / "data")
    run = tmp_path / "runs" / "demo" / "05_lds_fds-two" / "metrics.json"
    run.parent.mkdir(parents=True)
    whole = {"stem": "05_lds_fds", "profile": "demo", "parameters": {}, "results": []}
    run.write_text(json.dumps(whole))
    (tmp_path / "data" / "weights").mkdir()
    (tmp_path / "data" / "weights" / "trunk.pth").touch()
    shutil.copytree(run.parent, tmp_path / "figures" / "05_lds_fds" / "sensitivity")
    copy = tmp_path / "figures" / "05_lds_fds" / "sensitivity" / "metrics.json"
    copy.write_text(json.dumps(whole | {"profile": "sensitivity"}))
    for module in (downloads, cli):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    lines = [*cli._notebook_lines(), *downloads.describe_data(tmp_path / "data")]
    start = lines.index("  05 · LDS and FDS")
    assert lines[start + 1].startswith("      profiles   demo, biq2021, ")
    assert lines[start + 2] == "      published  sensitivity"
    assert lines[start + 3] == "      run here   demo-two"
    assert lines[start + 4].startswith("  06 · ")  # neither published nor run: no empty line
    assert max(map(len, lines)) <= 120
    assert "  here      table" in lines
    assert "  download  koniq10k, kadid10k, biq2021" in lines
    assert "  file      trunk.pth" in lines
    shown = {text.partition(":")[0]: text for text in downloads.catalogue(tmp_path / "data")}
    assert shown["table"].endswith(f"here    {tmp_path}/data/table, synthetic")
    assert "here    no; iqa data download koniq10k" in shown["koniq10k"]
    assert "here    no; by hand to" in shown["csiq"]


def test_a_split_is_printed_as_csv_and_counted(tmp_path):
    write_set(tmp_path)
    words = ["data", "splits", "table", "--data-root", str(tmp_path)]
    told = CliRunner().invoke(cli.app, words).output
    printed = CliRunner().invoke(cli.app, [*words, "--csv"]).output
    (tmp_path / "split.csv").write_text(printed)
    table = pd.read_csv(tmp_path / "split.csv")
    assert list(table.columns) == ["image", "split"]
    assert told == "6 training, 2 validation, 2 test\n"
    assert table["split"].value_counts().to_dict() == {"training": 6, "validation": 2, "test": 2}


def test_a_cell_that_a_spreadsheet_would_run_is_text(tmp_path):
    cells = [
        "=cmd|' /C calc'!A0",
        "+1",
        "-a.png",
        "@SUM(A1)",
        "\tx",
        "'=1",
        "''-x",
        "'it",
        "a=b.png",
    ]
    frame = pd.DataFrame({"image": cells, "score": [-1.5, 2, 3, 4, 5, 6, 7, 8, 9]})
    write_csv(frame, tmp_path / "scores.csv")
    raw = pd.read_csv(tmp_path / "scores.csv")
    assert not raw["image"].str.match(r"[=+\-@\t\r]").any()
    assert raw["score"].tolist() == frame["score"].tolist()
    assert raw["image"].tolist()[-2:] == ["'it", "a=b.png"]
    assert raw["image"].str.removeprefix("'").tolist()[:5] == cells[:5]


def test_a_picture_named_like_a_formula_is_text_in_the_scores(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = IMQNet(width=0.125, high_level_side=48, mos_mean=50.0, mos_std=10.0)
    pixels = {"size": [64, 64], "fit": "squash", "resampler": "bilinear"}
    told = {"preprocessing": pixels | {"mean": [0.5] * 3, "std": [0.5] * 3}, "metrics": {}}
    told |= {"training_data": {"dataset": "x", "demo": True}, "scores_seen": "x"}
    save_model(tmp_path / "m.safetensors", model, told)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (70, 70)).save("=cmd.png")
    words = ["score", "=cmd.png", "--checkpoint", "m.safetensors", "--out", "scores"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.exception
    assert pd.read_csv("scores.csv")["image"].tolist() == ["'=cmd.png"]
