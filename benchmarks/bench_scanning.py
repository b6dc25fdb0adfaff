"""Memory of a scan of images without scores: bytes per file, as the slope between two counts.

The files are hard links to a few tiny pictures. Each scan has a process of its own, whose largest
resident memory is taken; the naive implementation keeps a path object and a row per file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

COUNTS, LINKS, GOAL = (20_000, 220_000), 30_000, 200  # bytes per file
SCAN = """
import resource, sys
from pathlib import Path
from iqa_utils.distill.unlabelled import scan_images
from iqa_utils.decoding import image_size
folder = Path(sys.argv[1])
if sys.argv[2] == "naive":
    paths = sorted(p for p in folder.rglob("*") if p.suffix == ".jpg")
    rows = [(str(p), p, *image_size(p), p.stat().st_size) for p in paths]
else:
    rows = scan_images(folder, crop=(8, 8))
print(len(rows), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def make_links(folder: Path, n: int) -> None:
    """Write n small JPEG files of which every 30,000 share their bytes; ten folders."""
    for i in range(n):
        source = folder.parent / f"source-{i // LINKS}.jpg"
        folder.mkdir(parents=True, exist_ok=True)
        if not source.exists():
            Image.new("RGB", (8, 8), (i // LINKS, 0, 0)).save(source)
        place = folder / f"train_{i % 10}"
        place.mkdir(parents=True, exist_ok=True)
        os.link(source, place / f"{i * 2654435761 % 2**64:016x}.jpg")


def largest_memory(folder: Path, how: str, n: int) -> int:
    """Scan in a process of its own; return its largest resident memory in bytes."""
    command = [sys.executable, "-c", SCAN, str(folder), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, memory = map(int, done.stdout.split())
    if count != n:
        raise ValueError(f"expected {n} images, found {count}")
    return memory


def main() -> None:
    """Print bytes per file; fail above the goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    out, found = parser.parse_args().out, {"naive": [], "scan": []}
    with tempfile.TemporaryDirectory() as temporary:
        for n in COUNTS:
            folder = Path(temporary) / str(n) / "photos"
            make_links(folder, n)
            for how, memory in found.items():
                memory.append(largest_memory(folder, how, n))
    slope = {how: (b - a) / (COUNTS[1] - COUNTS[0]) for how, (a, b) in found.items()}
    record = {"title": "memory of a scan", "bytes_per_file": slope, "goal": GOAL}
    record |= {"files": COUNTS, "passed": slope["scan"] <= GOAL}
    text = json.dumps({"results": [record]}, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
    if not record["passed"]:
        sys.exit(f"goal missed: {record['title']}")


if __name__ == "__main__":
    main()
