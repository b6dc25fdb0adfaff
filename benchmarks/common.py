"""How every benchmark is timed: implementations in turn, medians and their spread, a gate, JSON.

A ratio counts only while its gate holds in the same run, so a benchmark hands both over together.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
MOST_MEMORY = 4.0  # GB; a benchmark on a processor may take no more
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def threads_here() -> str:
    """Say for a title how many threads this process was started with."""
    n = torch.get_num_threads()
    return "one thread" if n == 1 else f"{n} threads"


def call_alone(function: Callable[..., list], *args: object, threads: int) -> list[dict]:
    """Call a function of a benchmark in a process that is started with a number of threads.

    Limited later, the threads of torch and of SciPy wait for each other.

    Args:
        function: Stands at the top of a file and returns a list of records.
        args: Its arguments; JSON takes them there.
        threads: Of every library.

    Returns:
        Its records, with ``threads``.
    """
    file = Path(function.__code__.co_filename)
    code = (
        f"import json, sys\nfrom {file.stem} import {function.__name__} as function\n"
        "print(json.dumps(function(*json.loads(sys.argv[1]))))"
    )
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    folders = (file.resolve().parent, ROOT / "benchmarks", ROOT)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    command = [sys.executable, "-c", code, json.dumps(args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    records = json.loads(done.stdout.splitlines()[-1])
    return [record | {"threads": threads} for record in records]


def clock(implementation: Callable[..., object], *args: object) -> tuple[object, float]:
    """Call a function; return its result and the seconds it took."""
    _synchronise()
    start = time.perf_counter()
    result = implementation(*args)
    _synchronise()
    return result, time.perf_counter() - start


def time_implementations(
    implementations: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 5,
    naive_repeats: int | None = None,
    warm_up: bool = True,
) -> dict[str, list]:
    """Time functions in turn, so that a slow minute of the machine slows them all.

    Args:
        implementations: Name -> function without arguments.
        repeats: Timed calls of each, at least 5.
        naive_repeats: Those of the first, at least 3, where it takes many seconds; as the others
            if None.
        warm_up: Whether each is called once more, untimed; not where a gate has called it.

    Returns:
        Name -> seconds of each call.

    Raises:
        ValueError: If there are fewer repeats.
    """
    counts = dict.fromkeys(implementations, repeats)
    counts |= dict.fromkeys([*implementations][:1], naive_repeats or repeats)
    if repeats < 5 or (naive_repeats or repeats) < 3:
        raise ValueError(f"expected at least 5 repeats and 3 naive ones, found {counts}")
    seconds: dict[str, list] = {name: [] for name in implementations}
    for name in implementations if warm_up else ():
        clock(implementations[name])
    for repeat in range(max(counts.values(), default=0)):
        for name, implementation in implementations.items():
            if repeat < counts[name]:
                seconds[name].append(clock(implementation)[1])
    return seconds


def compare(
    title: str,
    implementations: Mapping[str, Callable[[], object]],
    *,
    gate: tuple[float, float],
    repeats: int = 5,
    naive_repeats: int | None = None,
    units: Mapping[str, float] | float = 1,
    goal: float | None = None,
    warm_up: bool = True,
) -> dict[str, object]:
    """Time implementations and put the gate beside the ratio.

    Args:
        title: What is compared.
        implementations: Name -> function without arguments; the first is the naive one.
        gate: Largest difference found between their results, and the one allowed.
        repeats: Timed calls of each, at least 5.
        naive_repeats: As for `time_implementations`.
        units: Units of work in one call (images, resamples), the same or by implementation, if one
            does more of them in a call; seconds are divided by it.
        goal: Smallest ratio that is satisfactory, if one is stated.
        warm_up: As for `time_implementations`.

    Returns:
        What `judge` returns.
    """
    by_implementation = (
        units if isinstance(units, Mapping) else dict.fromkeys(implementations, units)
    )
    counts = {"repeats": repeats, "naive_repeats": naive_repeats, "warm_up": warm_up}
    seconds = {
        name: [value / by_implementation[name] for value in values]
        for name, values in time_implementations(implementations, **counts).items()
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
        A record with `seconds_per_unit` (median, smallest and largest by implementation),
        `ratios` to the first, `goal`, `gate`, and `passed`: the gate holds and the goal is met.
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

    With them go the machine, the commit and the largest memory of one process.

    Args:
        records: What `compare` and `within` returned.

    Raises:
        SystemExit: If a gate or a goal was missed, or a processor needed more than 4 GB.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    out = parser.parse_args().out
    gpu = torch.cuda.is_available()
    machine = {"device": torch.cuda.get_device_name() if gpu else _processor()}
    machine |= {"processor": _processor(), "cpus": os.cpu_count()}
    machine |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    machine |= {"peak_memory_gb": _peak_memory()} | _revision()
    text = json.dumps({"machine": machine, "results": records}, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
    missed = [record["title"] for record in records if not record["passed"]]
    if not gpu and machine["peak_memory_gb"] > MOST_MEMORY:
        missed.append(f"memory of {MOST_MEMORY:g} GB")
    if missed:
        sys.exit(f"gate or goal missed: {'; '.join(missed)}")


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (models or [platform.processor() or platform.machine()])[0]


def _peak_memory() -> float:
    """Largest resident memory of this process or of one that it started, in GB."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    return max(resource.getrusage(one).ru_maxrss for one in who) * unit / 1e9


def _revision() -> dict[str, object]:
    """Name the commit, and say whether tracked files are as it has them; empty without git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "clean": not changed}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
