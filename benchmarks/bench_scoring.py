"""`iqa score` against the loop a user would write: decode, normalise, network, one image at a time.

Ours decodes the next batch while the network works, folds batch normalisation and keeps channels
last. Photographs of 1024x768 become 683x512 in both. The last record is memory: peak of a process
that scores few images, and of one that scores more.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import compare, report
from PIL import Image
from skimage import data

from iqa_utils.backbones import SHIPPED_FILE
from iqa_utils.training.checkpoints import load_model
from iqa_utils.workshop.scoring import score_images

N_IMAGES = 200
FEW, MORE, MEGABYTES = 40, 200, 40
PEAK = """
import sys
from pathlib import Path
from iqa_utils.workshop.scoring import score_images
score_images(sys.argv[1:], progress=False)
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(int(peak.split()[1]) / 1024)  # of this process alone, unlike ru_maxrss
"""


def write_photographs(folder: Path) -> list[Path]:
    """Write different 1024x768 JPEGs cut from one enlarged photograph."""
    large = Image.fromarray(data.astronaut()).resize((1536, 1152), Image.Resampling.BICUBIC)
    paths = [folder / f"{number:03d}.jpg" for number in range(N_IMAGES)]
    for number, path in enumerate(paths):
        left, top = 2 * number, number
        large.crop((left, top, left + 1024, top + 768)).save(path, quality=92)
    return paths


def naive(paths: list[Path]) -> np.ndarray:
    """Score files as in a tutorial."""
    model, _ = load_model(SHIPPED_FILE)
    model.eval()
    scores = []
    with torch.no_grad():
        for path in paths:
            image = Image.open(path).convert("RGB")
            shorter = min(image.size)
            if shorter > 512:
                size = (image.width * 512 // shorter, image.height * 512 // shorter)
                image = image.resize(size, Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
            scores.append(100 * model(((pixels - 0.5) / 0.5)[None]).item())
    return np.array(scores)


def peak(paths: list[Path]) -> float:
    """Megabytes that a process takes at most while it scores these files."""
    command = [sys.executable, "-c", PEAK, *map(str, paths)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Time both with the scores' equality as the gate; measure memory."""
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_photographs(Path(temporary))
        ours = score_images(paths[:8], progress=False)["score"].to_numpy()
        gate = (float(np.abs(ours - naive(paths[:8])).max()), 1e-2)
        legs = {
            "naive": lambda: naive(paths),
            "iqa score": lambda: score_images(paths, progress=False),
        }
        speed = compare("scoring", legs, gate=gate, units=N_IMAGES, goal=1.2)
        few, more = peak(paths[:FEW]), peak(paths[:MORE])
        memory = {
            "title": f"scoring: peak memory at {FEW} and {MORE} images, MB",
            "ratios": {},
            "megabytes": {str(FEW): few, str(MORE): more},
            "gate": {"difference": more - few, "allowed": MEGABYTES},
            "passed": more - few <= MEGABYTES,
        }
        report([speed, memory])


if __name__ == "__main__":
    main()
