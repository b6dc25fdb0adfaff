"""Score your images with the shipped model, any other trained here, NIQE or BRISQUE.

Results are a CSV and a contact sheet, best first. A bad file stops no other. Models become ONNX.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from iqa_utils import natural_scenes
from iqa_utils.backbones import SHIPPED_FILE
from iqa_utils.decoding import read_image
from iqa_utils.files import atomic_write
from iqa_utils.image_files import find_images
from iqa_utils.scorer import Scorer, same_size
from iqa_utils.training.checkpoints import read_metadata
from iqa_utils.workshop.tables import write_csv

METHODS = ("model", "niqe", "brisque")
SMALL, LARGE = 160, 5000  # px: shorter and longer side beyond which a size is unusual
THUMBNAIL = 220  # px, longest side
FREE_SIDE = 256  # px, of the images that a model of any size is exported and checked with
TOLERANCE = 1e-4  # of an export, of the range of the checked scores, or of 1
COLUMNS = ["image", "score", "percentile", "warning", "error"]
Row = tuple[float, float, str, str]  # score, percentile, warning, error


class Rater(NamedTuple):
    """What scores: ``prepare`` runs where images are decoded, ``rate`` on batches of one size."""

    hash: str
    scale: str
    lower_is_better: bool
    note: str
    prepare: Callable[[Image.Image], np.ndarray]
    rate: Callable[[np.ndarray], list[tuple[float, float, str]]]
    at_once: int = 1  # images in a batch: on a CPU the memory for the maps of several costs a third


def open_method(method: str, checkpoint: str | Path | None, device: str | None, most: int) -> Rater:
    """Open a model file (the shipped one without a name), NIQE or BRISQUE."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, found {method!r}")
    if method != "model":
        if checkpoint is not None:
            raise ValueError(f"method {method!r} takes no checkpoint")
        measure, key = getattr(natural_scenes, method), f"{method} {natural_scenes._CODE}"
        lower = method == "niqe"
        scale = "0 and above, lower is better" if lower else "about 0 to 100, higher is better"
        key = hashlib.sha256(key.encode()).hexdigest()[:16]
        note = f"Scores by {method.upper()}. Scale: {scale}."

        def prepare(image: Image.Image) -> np.ndarray:
            return np.array([measure(np.asarray(image))])  # (1,)

        return Rater(key, scale, lower, note, prepare, lambda one: [(*s, np.nan, "") for s in one])
    checkpoint = checkpoint or SHIPPED_FILE
    scorer = Scorer.load(checkpoint)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if hasattr(scorer.model, "fold"):
        scorer.model.fold()
    scorer.model.to(device).eval()

    def rate(images: np.ndarray) -> list[tuple[float, float, str]]:
        looked = scorer.look(torch.from_numpy(images).permute(0, 3, 1, 2), device=device)
        far = "unlike the training photographs"
        return [(s, scorer.percentile(s), far * odd) for s, odd in zip(*looked, strict=True)]

    note = f"{describe_model(checkpoint)} Scale: {scorer.scale}."
    at_once = 1 if device == "cpu" else most
    return Rater(scorer.hash, scorer.scale, False, note, scorer.fit.apply, rate, at_once)


def score_images(
    paths: Sequence[str | Path],
    checkpoint: str | Path | None = None,
    *,
    method: str = "model",
    partial: str | Path | None = None,
    batch_size: int = 4,
    device: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Predict the quality of image files, with the shipped model if no checkpoint is named.

    Rows are appended to the file ``partial`` as they are scored: files that a killed run of the
    same method has scored are read from there, unless they have changed since.

    Returns:
        One row per file in the order found: ``image``, ``score`` (NaN where the file is bad),
        ``percentile`` (among the predictions for the training photographs by models that had not
        seen them; NaN where the model does not tell), ``warning`` (what is unusual about the image)
        and ``error`` (empty where it was scored).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, found {batch_size}")
    rater, found = open_method(method, checkpoint, device, batch_size), find_images(paths)
    files = [path for path, reason in found.items() if not reason]
    known = _read_partial(Path(partial), rater.hash) if partial else {}
    stamps = {path: _stamp(path) for path in files}
    done: dict[Path, Row] = {p: known[stamps[p]] for p in files if stamps[p] in known}
    todo = [path for path in files if path not in done]
    quiet = None if progress else True
    with tqdm(total=len(files), initial=len(done), unit="image", disable=quiet) as bar:
        for part, read in _decoded(todo, rater.prepare, batch_size):
            rows = dict(zip(part, _rate(rater, read), strict=True))
            if partial:
                lines = [json.dumps([rater.hash, stamps[p], *row]) for p, row in rows.items()]
                with Path(partial).open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)
            done |= rows
            bar.update(len(part))
    done |= {path: (np.nan, np.nan, "", why) for path, why in found.items() if why}
    table = pd.DataFrame([(str(path), *done[path]) for path in found], columns=COLUMNS)
    table.attrs = {"scale": rater.scale, "note": rater.note, "ascending": rater.lower_is_better}
    return table


def _decoded(
    files: list[Path], prepare: Callable[[Image.Image], Any], size: int
) -> Iterator[tuple[list[Path], list[tuple[Any, str]]]]:
    """Yield batches; the next one is decoded while its taker works, so two are in memory."""

    def read(path: Path) -> tuple[Any, str]:
        try:
            image = read_image(path)
            return prepare(image), unusual(image)
        except (ValueError, OSError) as error:
            return None, str(error)

    parts = [files[start : start + size] for start in range(0, len(files), size)]
    with ThreadPoolExecutor() as pool:
        ahead = deque(maxlen=2)
        for part in [*parts, []]:
            ahead.append((part, [pool.submit(read, path) for path in part]))
            if len(ahead) == 2:
                now, futures = ahead.popleft()
                yield now, [future.result() for future in futures]


def _rate(rater: Rater, read: list[tuple[Any, str]]) -> list[Row]:
    """Score what was decoded; (None, reason) stays an error."""
    rows: list[Row] = [(np.nan, np.nan, "", text) for _, text in read]
    good = np.array([i for i, (value, _) in enumerate(read) if value is not None], int)
    batches = same_size([read[i][0].shape for i in good], rater.at_once) if len(good) else []
    for same in batches:
        rated = rater.rate(np.stack([read[i][0] for i in good[same]]))
        for i, (score, percentile, far) in zip(good[same], rated, strict=True):
            warning = "; ".join(filter(None, (read[i][1], far)))
            rows[i] = (float(score), percentile, warning, "")
    return rows


def unusual(image: Image.Image) -> str:
    """Say what tells an image from the photographs that models and people are used to."""
    found, size = [], f"{image.width}x{image.height}"
    if min(image.size) < SMALL:
        found.append(f"tiny ({size})")
    if max(image.size) > LARGE:
        found.append(f"huge ({size})")
    image.thumbnail((1600, 1600), Image.Resampling.NEAREST)  # no colour is mixed
    bands = np.stack([np.asarray(band, np.int16) for band in image.split()])  # (3, H, W)
    if np.abs(3 * bands - bands.sum(axis=0, dtype=np.int16)).max() < 9:  # 3 from their mean
        found.append("grey")
    pixels = np.asarray(image.convert("RGBX")).view(np.uint32)[..., 0]  # (H, W)
    if (np.diff(pixels) == 0).mean() > 0.4:
        found.append("large areas of one colour: drawn, or over- or underexposed")
    return "; ".join(found)


def _stamp(path: Path) -> str:
    about = path.stat()
    return f"{path.resolve()} {about.st_size} {about.st_mtime_ns}"


def _read_partial(path: Path, key: str) -> dict[str, Row]:
    """Read what one method has scored; drop the half line that a kill may have left at the end."""
    if not path.is_file():
        return {}
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    rows = [json.loads(line) for line in whole.splitlines()]
    return {stamp: tuple(row) for known, stamp, *row in rows if known == key}


def describe_model(checkpoint: str | Path) -> str:
    """Say in a sentence or two what a model file was trained on, and whether that was synthetic."""
    metadata = read_metadata(checkpoint)
    seen, told = metadata["scores_seen"], metadata["training_data"]
    seen = seen if isinstance(seen, str) else "; ".join(seen)
    text = f"Scores by {metadata['architecture']['name']}, trained on {told['dataset']} ({seen})."
    warning = " These images are synthetic: the numbers say nothing about quality."
    return text + warning * told["demo"]


def score_to_files(
    paths: Sequence[str | Path], checkpoint: str | Path | None, out: str | Path, **options: Any
) -> tuple[pd.DataFrame, str]:
    """Score image files into ``OUT.csv`` and the contact sheet ``OUT.html``, both best first.

    Until all are scored, what is done lies in ``OUT.csv.partial``, where a killed run goes on.
    Options are those of :func:`score_images`. Returns the table, bad files at its end, and what
    the scores are.
    """
    table = Path(f"{out}.csv")
    if not table.parent.is_dir():
        raise FileNotFoundError(f"folder for the scores: nothing at {table.parent}")
    if table.is_dir():
        raise ValueError(f"file for the scores: {table} is a folder")
    partial = Path(f"{table}.partial")
    scores = score_images(paths, checkpoint, partial=partial, **options)
    scale, note, ascending = (scores.attrs[key] for key in ("scale", "note", "ascending"))
    scores = scores.sort_values("score", ascending=ascending, kind="stable", ignore_index=True)
    with atomic_write(table) as temporary:
        write_csv(scores.assign(scale=scale), temporary)
    write_contact_sheet(scores, Path(f"{out}.html"), note=note)
    partial.unlink(missing_ok=True)
    return scores, note


def write_contact_sheet(scores: pd.DataFrame, path: Path, *, note: str) -> None:
    """Write one HTML file with every image in order, bad files at the end, below a note."""
    good, bad = scores[scores["error"] == ""], scores[scores["error"] != ""]
    named = zip(bad["image"].map(html.escape), bad["error"].map(html.escape), strict=True)
    listed = "".join(f"<li><code>{image}</code> {error}</li>" for image, error in named)
    head, foot = _PAGE.format(n=len(good), note=html.escape(note)).split("CARDS")
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(head)
        file.writelines(_card(row) for row in good.itertuples())
        file.write(f"{foot}<h2>Not scored</h2><ul>{listed}</ul>" if listed else foot)


def text_table(scores: pd.DataFrame, *, most: int = 40) -> str:
    """List scores with one decimal, at most so many of the best and worst."""
    good = scores[scores["error"] == ""]
    rows = []
    for row in good.itertuples():
        share = "" if np.isnan(row.percentile) else f"{row.percentile:4.0f} %"
        warning = f"  ({row.warning})" if row.warning else ""
        rows.append(f"{row.score:6.1f}  {share:6}  {row.image}{warning}")
    if len(rows) > most:
        left = f"   ... {len(rows) - most} more in the file"
        rows = [*rows[: most // 2], left, *rows[-(most // 2) :]]
    return "\n".join([" score  pctile  image", *rows])


def _card(row: Any) -> str:
    picture = read_image(Path(row.image))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    label, name, warning = map(html.escape, (row.image, Path(row.image).name, row.warning))
    caption = f"<figcaption><b>{row.score:.1f}</b> {name} {warning}</figcaption>"
    picture = f'<img src="data:image/jpeg;base64,{data}" alt="{label}" loading="lazy">'
    return f"<figure>{picture}{caption}</figure>\n"


class _Scores(nn.Module):
    """RGB in [0, 1], shape (B, 3, H, W), to scores (B,) on the scale of the training."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer, self.model = scorer, scorer.model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(scorer, name)).reshape(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        output = self.model((images - self.mean) / self.std).reshape(-1)
        return output * self.scorer.gain + self.scorer.offset


def export_onnx(model: str | Path, out: str | Path) -> float:
    """Write a model file as ONNX with the input ``images`` and the output ``scores``.

    Images are RGB in [0, 1], float32, already of the model's size; batches may be of any size. The
    file is kept only where ONNX Runtime gives the same scores of random images as PyTorch; returns
    the largest difference found.
    """
    import onnxruntime
    import onnxscript  # noqa: F401 - PyTorch's exporter needs it

    scorer = Scorer.load(model)
    size = scorer.fit.target(FREE_SIDE, FREE_SIDE) if scorer.fit.resamples else [FREE_SIDE] * 2
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((2, 3, *size), dtype=np.float32))
    network = _Scores(scorer).eval()
    with atomic_write(out) as partial:
        batch = {"images": {0: torch.export.Dim("batch", min=1, max=4096)}}
        how = {"dynamic_shapes": batch, "dynamo": True, "external_data": False, "verbose": False}
        how |= {"input_names": ["images"], "output_names": ["scores"]}
        torch.onnx.export(network, (images,), partial, **how)
        session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
        checked = torch.from_numpy(rng.random((5, 3, *size), dtype=np.float32))
        [theirs] = session.run(None, {"images": checked.numpy()})
        with torch.inference_mode():
            ours = network(checked).numpy()
        difference = float(np.abs(theirs - ours).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(ours).max())):
            raise ValueError(f"{out}: scores of ONNX Runtime differ by {difference:.3g}; not kept")
    return difference


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
CARDS</main>
"""
