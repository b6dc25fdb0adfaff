"""Memory of a scan of images without scores: bytes per file, as the slope between two counts.

The files are hard links to a few tiny pictures. Each scan has a process of its own, whose largest
resident memory is taken; the naive implementation keeps a path object and a row per file.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import report, within
from PIL import Image

COUNTS, LINKS, GOAL = (20_000, 220_000), 30_000, 200  # bytes per file
SCAN = """
import hashlib, sys
from pathlib import Path
from iqa_utils.distill.unlabelled import scan_images
from iqa_utils.decoding import image_size
folder = Path(sys.argv[1])
if sys.argv[2] == "naive":
    paths = sorted(p for p in folder.rglob("*") if p.suffix == ".jpg")
    rows = [(str(p), p, *image_size(p), p.stat().st_size) for p in paths]
else:
    rows = scan_images(folder, crop=(8, 8))
lines = Path("/proc/self/status").read_text().splitlines()
[peak] = [line for line in lines if "VmHWM" in line]
memory = int(peak.split()[1]) * 1024  # of this process alone, unlike ru_maxrss
if sys.argv[2] == "naive":
    names = sorted(p.relative_to(folder.parent).as_posix() for p in paths)
else:
    names = sorted(rows.images["image"])
print(hashlib.sha256(repr(names).encode()).hexdigest(), len(names), memory)
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


def largest_memory(folder: Path, how: str, n: int) -> tuple[str, int]:
    """Scan in a process of its own; return a hash of the names and its largest memory in bytes."""
    command = [sys.executable, "-c", SCAN, str(folder), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names, count, memory = done.stdout.split()
    if int(count) != n:
        raise ValueError(f"expected {n} images, found {count}")
    return names, int(memory)


def main() -> None:
    """Measure bytes per file; fail above the goal, or where the two list other names."""
    found: dict[str, list[int]] = {"naive": [], "scan": []}
    with tempfile.TemporaryDirectory() as temporary:
        for n in COUNTS:
            folder = Path(temporary) / str(n) / "photos"
            make_links(folder, n)
            scans = {how: largest_memory(folder, how, n) for how in found}
            if scans["naive"][0] != scans["scan"][0]:
                raise ValueError(f"{n} files: the two scans list different names")
            for how, (_, memory) in scans.items():
                found[how].append(memory)
    slope = {how: (b - a) / (COUNTS[1] - COUNTS[0]) for how, (a, b) in found.items()}
    title = f"memory of a scan, bytes per file from {COUNTS[0]:,} to {COUNTS[1]:,} files"
    report([within(title, slope["scan"], GOAL, naive=slope["naive"])])


if __name__ == "__main__":
    main()
