"""`iqa score` against the loop a user would write: decode, normalise, network, one image at a time.

Ours decodes the next batch while the network works and folds batch normalisation. Photographs of
1024x768 become 683x512 in both. Each call scores other photographs, 200 in all. The last record is
memory: peak of a process that scores 200 small images, and of one that scores 2,000; the pixels of
all would be above the limit three times.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import compare, report, within
from PIL import Image
from skimage import data

from iqa_utils.backbones import SHIPPED_FILE
from iqa_utils.training.checkpoints import load_model
from iqa_utils.workshop.scoring import score_images

N_IMAGES, CALLS = 200, 5
FEW, MORE, MEGABYTES, SMALL = 200, 2000, 64, (224, 160)
PEAK = """
import sys
from pathlib import Path
from iqa_utils.workshop.scoring import score_images
score_images(sys.argv[1:], progress=False)
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(int(peak.split()[1]) / 1024)  # of this process alone, unlike ru_maxrss
"""


def write_photographs(folder: Path, n: int, size: tuple[int, int]) -> list[Path]:
    """Write JPEGs of a width and height, cut from one enlarged photograph."""
    large = Image.fromarray(data.astronaut()).resize((1536, 1152), Image.Resampling.BICUBIC)
    paths = [folder / f"{size[0]}-{number:04d}.jpg" for number in range(n)]
    for number, path in enumerate(paths):
        left, top = 2 * (number % 200), number % 200
        large.crop((left, top, left + size[0], top + size[1])).save(path, quality=92)
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
        paths = write_photographs(Path(temporary), N_IMAGES, (1024, 768))
        small = write_photographs(Path(temporary), MORE, SMALL)
        ours = score_images(paths[:8], progress=False)["score"].to_numpy()
        gate = (float(np.abs(ours - naive(paths[:8])).max()), 1e-2)
        groups = [paths[start::CALLS] for start in range(CALLS)]
        for_naive, for_ours = iter(groups), iter(groups)
        implementations = {
            "decode, network, one by one": lambda: naive(next(for_naive)),
            "iqa score": lambda: score_images(next(for_ours), progress=False),
        }
        title = f"scoring {N_IMAGES} photographs of 1024x768, per image"
        units = N_IMAGES // CALLS
        speed = compare(
            title, implementations, gate=gate, repeats=CALLS, units=units, goal=1.2, warm_up=False
        )
        few, more = peak(small[:FEW]), peak(small)
        title = f"scoring: peak memory of {MORE} images above that of {FEW}, MB"
        megabytes = {str(FEW): few, str(MORE): more}
        report([speed, within(title, more - few, MEGABYTES, megabytes=megabytes)])


if __name__ == "__main__":
    main()
