"""Score one's own images with any model trained here.

The header of a model file (see :mod:`iqa_utils.training.checkpoints`) is all that is needed: the
network's architecture and the pixels it was trained on. One bad file never stops the others.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from iqa_utils.images import to_float
from iqa_utils.images.decode_once import Fit
from iqa_utils.images.decoding import BadImageError, read_image
from iqa_utils.training.checkpoints import load_model, read_metadata

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".mpo")
PREPROCESSING = ("size", "fit", "resampler", "mean", "std")


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """List the image files among some paths; folders are searched to any depth.

    Args:
        paths: Files (taken whatever their ending) and folders.

    Returns:
        Files, each once, folders' contents sorted by name.

    Raises:
        FileNotFoundError: If a path does not exist, or none of them holds an image.
    """
    found: dict[Path, None] = {}
    given = [Path(path) for path in paths]
    for path in given:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found.update(dict.fromkeys(sorted(inside)))
        elif path.is_file():
            found[path] = None
        else:
            raise FileNotFoundError(f"nothing at {path}")
    if not found:
        raise FileNotFoundError(f"no image ({', '.join(SUFFIXES)}) in {', '.join(map(str, given))}")
    return list(found)


def score_images(
    paths: Sequence[str | Path],
    checkpoint: str | Path,
    *,
    partial: str | Path | None = None,
    batch_size: int = 16,
    device: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Predict the quality of image files.

    Args:
        paths: Files and folders.
        checkpoint: Model file of :func:`iqa_utils.training.checkpoints.save_model`.
        partial: File that rows are appended to as they are scored: files that a killed run with the
            same model has scored are read from there, unless they have changed since.
        batch_size: Images a forward pass; images of different sizes are never put together.
        device: Torch device; the first GPU, else the CPU.
        progress: Show a bar on a terminal.

    Returns:
        One row a file in the order found: ``image``, ``score`` (on the scale the model was trained
        on, higher is better; NaN where the file is bad) and ``error`` (empty where it is good).

    Raises:
        FileNotFoundError: If a path or the checkpoint does not exist.
        ValueError: If the checkpoint is foreign, damaged or altered, or needs more than pixels.
    """
    model, metadata = load_model(checkpoint)
    treatment = Preprocessing(metadata, Path(checkpoint).name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    files = find_images(paths)
    scores, errors = np.full(len(files), np.nan), [""] * len(files)
    model = model.to(device).eval()
    key = f"{metadata['weights_hash']} {metadata['preprocessing']}"
    done = _read_partial(partial, key) if partial else {}
    stamps = [_stamp(path) for path in files]
    for i, stamp in enumerate(stamps):
        if stamp in done:
            scores[i], errors[i] = done[stamp]
    todo = [i for i, stamp in enumerate(stamps) if stamp not in done]
    bar = tqdm(
        total=len(files), initial=len(files) - len(todo), unit="image",
        disable=None if progress else True,
    )  # fmt: skip
    with ThreadPoolExecutor() as pool, torch.inference_mode(), bar:
        for start in range(0, len(todo), batch_size):
            part = todo[start : start + batch_size]
            pixels = dict(
                zip(part, pool.map(treatment.load, [files[i] for i in part]), strict=True)
            )
            for i in part:
                if isinstance(pixels[i], str):
                    errors[i] = pixels.pop(i)
            for rows in _same_size(pixels):
                batch = torch.from_numpy(np.stack([pixels[i] for i in rows])).permute(0, 3, 1, 2)
                scores[rows] = treatment.predict(model, batch.to(device))
            if partial:
                _append(partial, [[key, stamps[i], scores[i], errors[i]] for i in part])
            bar.update(len(part))
    names = [str(path) for path in files]
    return pd.DataFrame({"image": names, "score": scores, "error": errors})


def _stamp(path: Path) -> str:
    about = path.stat()
    return f"{path.resolve()} {about.st_size} {about.st_mtime_ns}"


def _append(partial: str | Path, rows: list[list[Any]]) -> None:
    with Path(partial).open("a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)


def _read_partial(partial: str | Path, key: str) -> dict[str, tuple[float, str]]:
    """Read what one model has scored; drop the half line that a kill may have left at the end."""
    path = Path(partial)
    if not path.is_file():
        return {}
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    rows = [json.loads(line) for line in whole.splitlines()]
    return {stamp: (score, error) for known, stamp, score, error in rows if known == key}


class Preprocessing:
    """What a model file says must happen to pixels before, and to numbers after, the network.

    Args:
        metadata: Header of the model file.
        name: Its file name, for errors.

    Raises:
        ValueError: If the header does not say enough, or asks for inputs other than pixels.
    """

    def __init__(self, metadata: Mapping[str, Any], name: str) -> None:
        given = metadata["preprocessing"]
        absent = [key for key in PREPROCESSING if key not in given]
        if absent:
            raise ValueError(f"model {name}: its preprocessing does not tell {', '.join(absent)}")
        if given.get("inputs", ["image"]) != ["image"]:
            raise ValueError(
                f"model {name} needs {', '.join(given['inputs'])}; only models of pixels alone can "
                "score files"
            )
        size = tuple(given["size"]) if isinstance(given["size"], list) else given["size"]
        self.fit = Fit(size, given["fit"], given["resampler"])
        self.mean, self.std = given["mean"], given["std"]
        self.gain, self.offset = given.get("gain", 1.0), given.get("offset", 0.0)

    def load(self, path: Path) -> np.ndarray | str:
        """Return fitted pixels, uint8 (H, W, 3), or the reason why there are none."""
        try:
            return self.fit.apply(read_image(path))
        except (BadImageError, OSError) as error:
            return str(error)

    def predict(self, model: nn.Module, batch: torch.Tensor) -> np.ndarray:
        """Return scores (B,) of uint8 images (B, 3, H, W) on the model's device."""
        output = model(to_float(batch, mean=self.mean, std=self.std)).reshape(len(batch))
        return (output.double() * self.gain + self.offset).cpu().numpy()


def _same_size(pixels: Mapping[int, np.ndarray]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, array in pixels.items():
        groups.setdefault(array.shape, []).append(row)
    return list(groups.values())


def describe_model(checkpoint: str | Path) -> str:
    """Say in a sentence or two what a model file was trained on, and whether that was made data.

    Args:
        checkpoint: Model file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, not one of ours, or does not tell.
    """
    metadata = read_metadata(checkpoint)
    told, seen = metadata["training_data"], metadata["scores_seen"]
    if not (isinstance(told, Mapping) and {"dataset", "demo"} <= set(told)):
        raise ValueError(
            f"model {Path(checkpoint).name} must tell the data set it was trained on and whether "
            f"that is made data, found training_data {told!r}"
        )
    seen = seen if isinstance(seen, str) else "; ".join(seen)
    text = f"Scores by {metadata['architecture']['name']}, trained on {told['dataset']} ({seen})."
    made = " These images were made for the demo: the numbers say nothing about quality."
    return text + (made if told["demo"] else " Higher is better, on the scale of that training.")


def write_contact_sheet(
    scores: pd.DataFrame, path: str | Path, *, note: str = "", thumbnail: int = 220
) -> Path:
    """Write one HTML file with every image, best first, bad files at the end.

    Args:
        scores: From :func:`score_images`.
        path: File to write; it needs no other file to be looked at.
        note: Sentence below the title, such as :func:`describe_model` gives.
        thumbnail: Longest side of a picture, pixels.

    Returns:
        The path.
    """
    good = scores[scores["error"] == ""].sort_values("score", ascending=False)
    cards = [_card(row.image, row.score, thumbnail) for row in good.itertuples()]
    bad = "".join(
        f"<li><code>{html.escape(row.image)}</code> {html.escape(row.error)}</li>"
        for row in scores[scores["error"] != ""].itertuples()
    )
    page = _PAGE.format(
        n=len(good), note=html.escape(note), cards="\n".join(cards),
        bad=f"<h2>Not scored</h2><ul>{bad}</ul>" if bad else "",
    )  # fmt: skip
    path = Path(path)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    made.write_text(page, encoding="utf-8")
    made.replace(path)
    return path


def score_to_files(
    paths: Sequence[str | Path], checkpoint: str | Path, out: str | Path, **options: Any
) -> tuple[pd.DataFrame, str]:
    """Score image files into ``OUT.csv`` and the contact sheet ``OUT.html``, both best first.

    Until all are scored, what is done lies in ``OUT.csv.partial``, where a killed run goes on.

    Args:
        paths: Files and folders.
        checkpoint: Model file.
        out: Both files without their ending; the folder must exist.
        **options: For :func:`score_images`.

    Returns:
        The table, bad files at its end, and what :func:`describe_model` says.

    Raises:
        FileNotFoundError: If the folder, a path or the checkpoint does not exist.
        ValueError: As :func:`score_images`.
    """
    note, table = describe_model(checkpoint), Path(f"{out}.csv")
    if not table.parent.is_dir():
        raise FileNotFoundError(f"folder for the scores: nothing at {table.parent}")
    partial = Path(f"{table}.partial")
    scores = score_images(paths, checkpoint, partial=partial, **options)
    scores = scores.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    made = table.with_name(f".{table.name}.{os.getpid()}")
    scores.to_csv(made, index=False)
    made.replace(table)
    write_contact_sheet(scores, Path(f"{out}.html"), note=note)
    partial.unlink()
    return scores, note


def _card(name: str, score: float, thumbnail: int) -> str:
    picture = read_image(Path(name))
    picture.thumbnail((thumbnail, thumbnail), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    label = html.escape(name)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{label}" loading="lazy">'
        f"<figcaption><b>{score:.3f}</b> {html.escape(Path(name).name)}</figcaption></figure>"
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Scored images</title>
<style>
 body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px }}
 body {{ padding: 0 1rem }}
 main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 1rem }}
 figure {{ margin: 0 }} img {{ width: 100%; height: 150px; object-fit: contain; background: #eee }}
 figcaption {{ font-size: 13px; overflow-wrap: anywhere }}
</style>
<h1>{n} images, best first</h1>
<p>{note}</p>
<main>
{cards}
</main>
{bad}
</html>
"""
