import importlib
import json
import subprocess
import sys

import bench_bilinear
import bench_features
import bench_scanning
import common
import numpy as np
import pytest
import torch
from bench_fds import LoopFDS
from common import call_alone, clock, compare, judge, report, time_implementations, within

from iqa_utils.workshop.paper_pages import measurements
from iqa_utils.workshop.readme import speed_line

SECONDS = {"naive": [4.0, 6.0, 5.0], "ours": [1.0, 2.0, 2.5]}


def test_a_ratio_is_of_medians_and_counts_while_results_are_equal():
    record = judge("job", SECONDS, gate=(0.1, 0.1), goal=2.5)
    assert record["ratios"] == {"ours": 2.5}
    assert record["seconds_per_unit"]["ours"] == {"median": 2.0, "low": 1.0, "high": 2.5}
    assert record["passed"]
    assert not judge("job", SECONDS, gate=(0.2, 0.1), goal=2.5)["passed"]
    assert not judge("job", SECONDS, gate=(0.1, 0.1), goal=2.6)["passed"]


def test_a_number_with_a_limit_is_compared_with_the_naive_one_where_there_is_one():
    record = within("bytes", 150, 200, naive=900, names=["a"])
    assert record["passed"]
    assert record["ratios"] == {"ours": 6.0}
    assert (record["naive"], record["names"]) == (900.0, ["a"])
    assert "naive" not in within("bytes", 150, 200)
    assert not within("bytes", 201, 200)["passed"]


def test_implementations_take_turns_and_a_warm_up_is_not_timed():
    calls = []
    implementations = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = time_implementations(implementations)
    assert calls == list("ab") * 6
    assert [len(values) for values in seconds.values()] == [5, 5]
    time_implementations(implementations, warm_up=False)
    assert len(calls) == 22
    with pytest.raises(ValueError, match=r"at least 5 repeats and 3 naive ones, found .*4"):
        time_implementations(implementations, repeats=4)


def test_a_slow_naive_implementation_may_run_three_times_and_no_fewer():
    implementations = {name: lambda: None for name in ("naive", "ours")}
    seconds = time_implementations(implementations, naive_repeats=3)
    assert [len(values) for values in seconds.values()] == [3, 5]
    with pytest.raises(ValueError, match="'naive': 2, 'ours': 5"):
        time_implementations(implementations, naive_repeats=2)


def test_seconds_are_divided_by_the_units_of_each_implementation(monkeypatch):
    monkeypatch.setattr(
        "common.time_implementations", lambda *_, **__: {"naive": [6.0], "ours": [6.0]}
    )
    record = compare("job", {}, gate=(0, 0), units={"naive": 2, "ours": 6})
    assert record["ratios"] == {"ours": 3.0}


def test_a_clock_returns_what_its_function_returns():
    result, seconds = clock(divmod, 7, 2)
    assert result == (3, 1)
    assert seconds > 0


def test_both_svrs_of_the_benchmark_predict_alike_and_the_fit_is_the_shorter_half():
    fit, both = bench_features.bench_svr(60, 2000)
    assert "fit of 60 images, 2000 features" in fit["title"]
    assert "fit of 60 images, prediction of 15, 2000 features" in both["title"]
    assert 0 < both["gate"]["difference"] < both["gate"]["allowed"]
    slow = [record["seconds_per_unit"]["SVR(kernel='linear')"]["median"] for record in (fit, both)]
    assert 0 < slow[0] < slow[1]


def test_the_links_of_a_scan_are_as_many_as_asked_and_share_their_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_scanning, "LINKS", 3)
    bench_scanning.make_links(tmp_path / "photos", 7)
    files = list((tmp_path / "photos").rglob("*.jpg"))
    assert len(files) == 7
    assert len({file.stat().st_ino for file in files}) == 3


ALONE = """
import os
import common
import numpy as np
import torch

def told(size):
    variables = {name: os.environ[name] for name in common.THREAD_VARIABLES}
    ones = np.ones(size, np.uint8)
    return [{"torch": torch.get_num_threads(), **variables, "memory": common._peak_memory()}]
"""


@pytest.mark.slow
def test_a_function_that_is_called_alone_starts_with_its_threads_and_memory_is_in_gigabytes(
    tmp_path, monkeypatch
):
    (tmp_path / "bench_alone.py").write_text(ALONE)
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("bench_alone").told
    [record] = call_alone(function, 800_000_000, threads=1)
    assert 0.8 <= record.pop("memory") < 80
    assert record == dict.fromkeys(common.THREAD_VARIABLES, "1") | {"torch": 1, "threads": 1}


def test_a_report_tells_memory_processor_and_commit_and_fails_above_the_memory(
    tmp_path, monkeypatch, capsys
):
    out = tmp_path / "bench.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--out", str(out)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(common, "_peak_memory", lambda: 3.9)
    report([within("bytes", 1, 2)])
    machine = json.loads(out.read_text())["machine"]
    assert machine["peak_memory_gb"] == 3.9
    assert machine["threads"] == torch.get_num_threads()
    assert machine["processor"] == machine["device"] != ""
    monkeypatch.setattr(common, "_peak_memory", lambda: 4.1)
    with pytest.raises(SystemExit, match="missed: jobs; memory of 4 GB"):
        report([within("jobs", 3, 2)])


def test_the_commit_of_a_changed_tree_is_told_with_the_change(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert common._revision() == {}
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    file = tmp_path / "file"
    file.write_text("old")
    for words in (["init", "--quiet"], ["add", "file"], [*identity, "commit", "-qm", "One"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    before = common._revision()
    file.write_text("new")
    assert before["clean"]
    assert len(before["commit"]) == 40
    assert common._revision() == before | {"clean": False}


@pytest.mark.parametrize("fused", [False, True])
def test_both_forms_of_the_bilinear_head_train_alike_by_either_adam(fused):
    assert bench_bilinear.gate(fused=fused, steps=5) < 1e-6


def test_the_loop_for_whole_labels_finds_the_buckets_that_a_search_finds():
    mos = torch.tensor([0.0, 0.99, 1.0, 41.5, 99.999, 100.0])
    for start in (0.0, -3.0):
        loops = {
            variant: LoopFDS(2, np.arange(start, 101.0), variant=variant)
            for variant in ("released_agedb", "released_stsb")
        }
        assert [loop.whole for loop in loops.values()] == [True, False]
        found = [loop.buckets(mos) for loop in loops.values()]
        np.testing.assert_array_equal(*found)


def test_published_measurements_are_of_one_commit_without_changes():
    machines = [file["machine"] for file in measurements()]
    assert machines
    assert len({machine.get("commit") for machine in machines}) == 1
    assert all(machine.get("clean", True) for machine in machines)


def test_the_line_on_speed_counts_what_was_timed_and_names_missed_goals(tmp_path):
    timed = judge("fit, 600 images", SECONDS, gate=(0, 0.1), goal=2)
    slow = judge("decode, per image", {"naive": [1.0], "ours": [1.0]}, gate=(0, 0.1), goal=1.5)
    size = {"title": "disk", "ratios": {"Gram matrices": 900.0}, "goal": 30}
    size |= {"gate": {"difference": 0.0, "allowed": 0.0}, "passed": True}
    records = [timed, slow, size, within("imports, CPU seconds", 5, 3), within("bytes", 1, 2)]
    assert speed_line(tmp_path) == "No measurements are published."
    (tmp_path / "a.json").write_text(json.dumps({"machine": {}, "results": records}))
    told = speed_line(tmp_path)
    assert told.startswith("2 jobs timed against a straightforward implementation")
    assert "1.0x to 2x" in told
    assert "2 goals missed (decode; imports)" in told
    assert "\n" not in told
    (tmp_path / "a.json").write_text(json.dumps({"machine": {}, "results": [timed]}))
    assert "0 goals missed." in speed_line(tmp_path)
    other = judge("sum", SECONDS, gate=(0.2, 0.1), goal=2)
    (tmp_path / "a.json").write_text(json.dumps({"machine": {}, "results": [timed, other]}))
    assert speed_line(tmp_path).startswith("1 jobs timed")
    assert "1 goal missed (sum)." in speed_line(tmp_path)
