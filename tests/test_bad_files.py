"""Files that a person wrote or a crash tore: each is named, with what was expected and found."""

import json

import pytest

from iqa_utils.datasets import load_scores
from iqa_utils.files import read_mapping
from iqa_utils.workshop import notebooks, report, runs, sweeps, tables

TORN = {
    "empty": ("", "found nothing"),
    "list": ("- 1\n- 2\n", r"found list '\[1, 2\]'"),
    "text": ("just words", "found str 'just words'"),
    "tag": ("!!python/object/apply:os.system [echo]", "could not determine a constructor"),
    "colon": ("A: b: c", "mapping values are not allowed here"),
    "number": ("1: 2", "found dict"),
    "latin": (b"A: \xe9", "can't decode byte 0xe9"),
    "binary": (b"\x00\x01", "not allowed"),
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("kind", TORN)
def test_a_profile_that_holds_no_names_and_values_is_named(kind, tmp_path, monkeypatch):
    content, found = TORN[kind]
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    path = write(tmp_path / "params" / "00_claims_audit.odd.yaml", content)
    expected = rf"{path}: expected (YAML with )?names and values[:,] .*{found}"
    with pytest.raises(ValueError, match=expected) as error:
        notebooks.read_profile("00_claims_audit", "odd")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "Expecting value"),
        ('{"stem": ', "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("null", "found nothing"),
    ],
)
def test_a_torn_json_file_is_named(content, found, tmp_path):
    with pytest.raises(ValueError, match=rf"metrics\.json: expected .*{found}"):
        read_mapping(write(tmp_path / "metrics.json", content))


@pytest.mark.parametrize(
    "content",
    [
        "05_lds_fds: 3",
        "05_lds_fds: {after: []}",
        "05_lds_fds: {grid: [1]}",
        "05_lds_fds: {grid: {SEED: []}}",
        "05_lds_fds: {grid: {SEED: 1}}",
        "- 05_lds_fds",
    ],
)
def test_a_grid_without_lists_of_values_is_named(content, tmp_path):
    with pytest.raises(ValueError, match=r"odd\.yaml.*expected"):
        sweeps.read_grid(write(tmp_path / "odd.yaml", content))


def test_one_broken_run_is_left_out_by_name_and_the_others_are_read(tmp_path):
    whole = {"stem": "00_x", "profile": "demo", "parameters": {}, "results": []}
    write(tmp_path / "demo" / "00_x" / "metrics.json", json.dumps(whole))
    write(tmp_path / "demo" / "01_y" / "metrics.json", '{"stem": "01_y", "res')
    write(tmp_path / "demo" / "02_z" / "metrics.json", json.dumps(whole | {"results": 3}))
    with pytest.warns(UserWarning, match="a run is left out") as told:
        found = runs.find_runs(tmp_path)
    assert [run["folder"].name for run in found] == ["00_x"]
    assert len(told) == 2
    assert "01_y" in str(told[0].message)
    assert "02_z" in str(told[1].message)


def test_the_report_goes_on_past_a_broken_run_and_lists_it(tmp_path, monkeypatch, capsys):
    whole = {"stem": "00_x", "profile": "demo", "parameters": {}, "results": []}
    write(tmp_path / "runs" / "demo" / "00_x" / "metrics.json", json.dumps(whole))
    write(tmp_path / "figures" / "01_y" / "paper" / "metrics.json", "")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    found, broken = report.read_runs()
    assert [run["stem"] for run in found] == ["00_x"]
    assert len(broken) == 1
    assert broken[0].startswith("- a run is left out: ")
    assert "01_y/paper/metrics.json: expected JSON with names and values" in broken[0]
    assert capsys.readouterr().err.strip() == broken[0]


def test_compared_runs_that_are_broken_are_named(tmp_path):
    write(tmp_path / "a" / "metrics.json", "[]")
    with pytest.raises(ValueError, match=r"a/metrics\.json: expected names and values"):
        tables.read_tables(tmp_path / "a")


def test_a_torn_note_beside_synthetic_data_is_named_and_not_taken_for_real_data(tmp_path):
    write(tmp_path / "scores.csv", "image,mos\na.png,1\nb.png,2\n")
    assert not load_scores("table", tmp_path).attrs["demo"]
    for content in ("", "null", '{"version"', "[1]"):
        write(tmp_path / "demo.json", content)
        with pytest.raises(ValueError, match=r"demo\.json: expected .*names and values"):
            load_scores("table", tmp_path)
