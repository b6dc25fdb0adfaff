"""What a notebook's first cell costs: its imports in a fresh process, once bytecode is there.

``setup.sh`` compiles all bytecode. Here a first run writes what is missing, also where the machine
forbids it, and is not counted. Timed are the longest list of imports and that of a training.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from common import report, within

SECONDS = 3  # of the processor that the imports may take
NO_TORCH = ("00", "01", "07")
TRAINING, REPEATS = "02_cross_sampling", 3
ROOT = Path(__file__).parents[1]


def first_cell(notebook: Path) -> str:
    """Return the source of the first code cell, which holds all imports."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code"))


def run(code: str) -> str:
    """Run code in a process of its own that may write bytecode; return what it prints."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def seconds_of(code: str) -> float:
    """Return the processor time that code takes in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Time the imports of two notebooks; look for torch behind those that need none."""
    notebooks = sorted((ROOT / "notebooks").glob("0[0-9]_*.ipynb"))
    cells = {path.stem: first_cell(path) for path in notebooks}
    longest = max(cells, key=lambda stem: len(cells[stem].splitlines()))
    records = []
    for stem in dict.fromkeys((TRAINING, longest)):
        run(cells[stem])  # writes the bytecode
        seconds = statistics.median(seconds_of(cells[stem]) for _ in range(REPEATS))
        records.append(within(f"imports of {stem}, CPU seconds", seconds, SECONDS))
    asked = "\nimport sys\nprint('torch' in sys.modules)"
    heavy = [s for s in cells if s.startswith(NO_TORCH) and "True" in run(cells[s] + asked)]
    title = f"notebooks of {', '.join(NO_TORCH)} that load torch"
    report([*records, within(title, len(heavy), 0, names=heavy)])


if __name__ == "__main__":
    main()
