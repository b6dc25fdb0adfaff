import bench_features
import bench_scanning
import pytest
from common import clock, compare, judge, time_legs, within

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


def test_legs_take_turns_and_a_warm_up_is_not_timed():
    calls = []
    legs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = time_legs(legs)
    assert calls == list("ab") * 6
    assert [len(values) for values in seconds.values()] == [5, 5]
    time_legs(legs, warm_up=False)
    assert len(calls) == 22
    with pytest.raises(ValueError, match="at least 5 repeats, found 4"):
        time_legs(legs, repeats=4)


def test_seconds_are_divided_by_the_units_of_each_leg(monkeypatch):
    monkeypatch.setattr("common.time_legs", lambda *_, **__: {"naive": [6.0], "ours": [6.0]})
    record = compare("job", {}, gate=(0, 0), units={"naive": 2, "ours": 6})
    assert record["ratios"] == {"ours": 3.0}


def test_a_clock_returns_what_its_function_returns():
    result, seconds = clock(divmod, 7, 2)
    assert result == (3, 1)
    assert seconds > 0


def test_both_svrs_of_the_benchmark_predict_alike_and_the_fit_is_the_shorter_half():
    fit, both = bench_features.bench_svr(60, 2000, 2, 1)
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
