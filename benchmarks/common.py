"""How every benchmark is timed: legs interleaved, medians with their spread, a gate, JSON.

A ratio counts only while its gate holds in the same run, so a benchmark hands both over together.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def clock(leg: Callable[..., object], *args: object) -> tuple[object, float]:
    """Call a function; return its result and the seconds it took."""
    _synchronise()
    start = time.perf_counter()
    result = leg(*args)
    _synchronise()
    return result, time.perf_counter() - start


def time_legs(
    legs: Mapping[str, Callable[[], object]], *, repeats: int = 5, warm_up: bool = True
) -> dict[str, list]:
    """Time functions in turn, so that a slow minute of the machine slows them all.

    Args:
        legs: Name -> function without arguments.
        repeats: Timed calls of each, at least 5.
        warm_up: Whether each is called once more, untimed; not where a gate has called it.

    Returns:
        Name -> seconds of each call, `repeats` values.

    Raises:
        ValueError: If there are fewer than five repeats.
    """
    if repeats < 5:
        raise ValueError(f"expected at least 5 repeats, found {repeats}")
    seconds: dict[str, list] = {name: [] for name in legs}
    for repeat in range(repeats + warm_up):
        for name, leg in legs.items():
            took = clock(leg)[1]
            if repeat or not warm_up:
                seconds[name].append(took)
    return seconds


def compare(
    title: str,
    legs: Mapping[str, Callable[[], object]],
    *,
    gate: tuple[float, float],
    repeats: int = 5,
    units: Mapping[str, float] | float = 1,
    goal: float | None = None,
    warm_up: bool = True,
) -> dict[str, object]:
    """Time legs and put the gate beside the ratio.

    Args:
        title: What is compared.
        legs: Name -> function without arguments; the first is the naive one.
        gate: Largest difference found between the results of the legs, and the one allowed.
        repeats: Timed calls of each leg, at least 5.
        units: Units of work in one call (images, resamples), the same or by leg, if a leg does
            more of them in a call; seconds are divided by it.
        goal: Smallest ratio that is satisfactory, if one is stated.
        warm_up: As for `time_legs`.

    Returns:
        What `judge` returns.
    """
    by_leg = units if isinstance(units, Mapping) else dict.fromkeys(legs, units)
    seconds = {
        name: [value / by_leg[name] for value in values]
        for name, values in time_legs(legs, repeats=repeats, warm_up=warm_up).items()
    }
    return judge(title, seconds, gate=gate, goal=goal)


def judge(
    title: str,
    seconds: Mapping[str, list[float]],
    *,
    gate: tuple[float, float],
    goal: float | None = None,
) -> dict[str, object]:
    """Put the gate beside the ratios of seconds that were measured; arguments as `compare`.

    Returns:
        A record with `seconds_per_unit` (median, smallest and largest by leg), `ratios` to the
        first leg, `goal`, `gate`, and `passed`: the gate holds and the goal is met.
    """
    table = {
        name: {"median": statistics.median(v), "low": min(v), "high": max(v)}
        for name, v in seconds.items()
    }
    naive, *others = table
    ratios = {name: table[naive]["median"] / table[name]["median"] for name in others}
    difference, allowed = map(float, gate)
    passed = difference <= allowed and all(ratio >= (goal or 0) for ratio in ratios.values())
    return {
        "title": title,
        "seconds_per_unit": table,
        "ratios": ratios,
        "goal": goal,
        "gate": {"difference": difference, "allowed": allowed},
        "passed": passed,
    }


def within(
    title: str, found: float, allowed: float, *, naive: float | None = None, **facts: object
) -> dict[str, object]:
    """Return the record of a number that must not be above what is allowed.

    ``naive`` is the number of the naive implementation, where there is one.
    """
    gate = {"difference": float(found), "allowed": float(allowed)}
    record = {"title": title, "ratios": {}, "gate": gate, "passed": found <= allowed} | facts
    if naive is not None:
        record |= {"naive": float(naive), "ratios": {"ours": float(naive / found)}}
    return record


def report(records: list[dict[str, object]]) -> None:
    """Print records as JSON, write them to ``--out`` if it was given, fail if one failed.

    Args:
        records: What `compare` and `within` returned.

    Raises:
        SystemExit: If a gate or a goal was missed.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    out = parser.parse_args().out
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    machine = {"device": device or platform.machine(), "cpus": os.cpu_count()}
    machine["torch"], machine["threads"] = torch.__version__, torch.get_num_threads()
    text = json.dumps({"machine": machine, "results": records}, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
    if missed := [record["title"] for record in records if not record["passed"]]:
        sys.exit(f"gate or goal missed: {'; '.join(missed)}")


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
