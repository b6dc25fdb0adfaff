"""Score your images with the shipped model, any other trained here, NIQE or BRISQUE.

Results are a CSV and a contact sheet, best first. A bad file stops no other. Models become ONNX.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from iqa_utils.files import atomic_write, find_images
from iqa_utils.scorer import Scorer, same_size
from iqa_utils.training.checkpoints import read_metadata
from iqa_utils.workshop.tables import plain, write_contact_sheet, write_csv

METHODS = ("model", "niqe", "brisque")
SMALL, LARGE = 160, 5000  # px: shorter and longer side beyond which a size is unusual
MOST_PIXELS = 4_000_000  # of an image that a model gets: its memory grows with them
FREE_SIDE = 256  # px, of the images that a model of any size is exported and checked with
CHECKED = 6  # images that an export is checked with: half noise, half smooth as photographs are
TOLERANCE = 1e-4  # of an export, of the range of the checked scores, or of 1
LISTED = 20  # of the best images on the screen, and of the worst
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
    with _naming(checkpoint):
        scorer, note = _load(checkpoint), describe_model(checkpoint)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if hasattr(scorer.model, "fold"):
        scorer.model.fold()
    scorer.model.to(device).eval()

    def fit(image: Image.Image) -> np.ndarray:
        height, width = scorer.fit.target(image.height, image.width)
        if scorer.fit.resamples and height * width > MOST_PIXELS:
            found = f"{image.width}x{image.height} becomes {width}x{height} for the model"
            raise ValueError(f"{found}, more than {MOST_PIXELS / 1e6:g} million pixels; crop it")
        return scorer.fit.apply(image)

    def rate(images: np.ndarray) -> list[tuple[float, float, str]]:
        looked = scorer.look(torch.from_numpy(images).permute(0, 3, 1, 2), device=device)
        if not np.isfinite(looked[0]).all():
            raise ValueError(f"model {Path(checkpoint).name} gives scores that are not finite")
        far = "unlike the training photographs"
        return [(s, scorer.percentile(s), far * odd) for s, odd in zip(*looked, strict=True)]

    note += f" Scale: {scorer.scale}."
    if len(scorer.percentiles):
        note += " Percentile: among its predictions for the training photographs."
    at_once = 1 if device == "cpu" else most
    return Rater(scorer.hash, scorer.scale, False, note, fit, rate, at_once)


@contextmanager
def _naming(checkpoint: str | Path) -> Iterator[None]:
    """Turn what a header of another form runs into into one sentence that names the file."""
    name = Path(checkpoint).name
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        if isinstance(error, ValueError) and name in str(error):
            raise
        told = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"model {name}: its header is not of the form expected ({told})"
        ) from error


def _load(checkpoint: str | Path) -> Scorer:
    """Open a model file whose numbers can give scores."""
    scorer = Scorer.load(checkpoint)
    for key, length in {"mean": 3, "std": 3, "gain": 1, "offset": 1}.items():
        found = np.asarray(getattr(scorer, key))
        good = found.dtype.kind in "iuf" and found.size == length and np.isfinite(found).all()
        if not good or (key == "std" and found.min() <= 0):
            raise ValueError(f"{key} is {getattr(scorer, key)!r}")
    known = np.asarray(scorer.percentiles)
    if known.size and (known.dtype.kind not in "iuf" or known.ndim != 1):
        raise ValueError("percentiles are not numbers")
    if scorer.far is not None and not hasattr(scorer.model, "with_distance"):
        raise ValueError(f"far is {scorer.far!r}, and its network tells no distances")
    if scorer.far is not None and not isinstance(scorer.far, int | float):
        raise ValueError(f"far is {scorer.far!r}")
    return scorer


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
    known = _read_partial(Path(partial), rater.hash) if partial else {}
    stamps = {}
    for path in [path for path, reason in found.items() if not reason]:
        try:
            stamps[path] = _stamp(path)
        except OSError as error:  # it has just gone, or its path is too long for the system
            found[path] = f"cannot be read ({error.strerror})"
    files = list(stamps)
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
    rows = [(str(path), *done[path]) for path in found]
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)  # names need not be UTF-8
    table = table.astype({"score": float, "percentile": float})
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
    whole, newline, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        path.write_bytes(whole + newline)
    rows, n_bad = {}, 0
    for line in whole.split(b"\n") if whole else []:
        try:
            known, stamp, score, percentile, warning, error = json.loads(line.decode("utf-8"))
            if not (isinstance(warning, str) and isinstance(error, str)):
                raise ValueError("no text")
            if known == key:
                rows[stamp] = float(score), float(percentile), warning, error
        except (ValueError, TypeError, RecursionError):
            n_bad += 1
    if n_bad:
        told = f"{path}: {n_bad} damaged lines are left out, their images are scored again"
        print(told, file=sys.stderr, flush=True)
    return rows


def describe_model(checkpoint: str | Path) -> str:
    """Say in a sentence or two what a model file was trained on, and whether that was synthetic."""
    metadata = read_metadata(checkpoint)
    seen, told = metadata["scores_seen"], metadata["training_data"]
    seen = seen if isinstance(seen, str) else "; ".join(seen)
    is_shipped = Path(checkpoint) == SHIPPED_FILE
    model = "the shipped model" if is_shipped else metadata["architecture"]["name"]
    text = f"Scores by {model}, trained on {told['dataset']} ({seen})."
    warning = " These images are synthetic: the numbers say nothing about quality."
    return plain(text + warning * told["demo"])


def score_to_files(
    paths: Sequence[str | Path], checkpoint: str | Path | None, out: str | Path, **options: Any
) -> tuple[pd.DataFrame, str]:
    """Score image files into ``OUT.csv`` and the contact sheet ``OUT.html``, both best first.

    Until all are scored, what is done lies in ``OUT.csv.partial``, where a killed run goes on.
    Options are those of :func:`score_images`. Returns the table, bad files at its end and names
    as :func:`plain` writes them, and what the scores are.
    """
    table, sheet = Path(f"{out}.csv"), Path(f"{out}.html")
    if not table.parent.is_dir():
        raise FileNotFoundError(f"folder for the scores: nothing at {table.parent}")
    for file in (table, sheet):
        if file.is_dir():
            raise ValueError(f"file for the scores: {file} is a folder")
    partial = Path(f"{table}.partial")
    scores = score_images(paths, checkpoint, partial=partial, **options)
    scale, note, ascending = (scores.attrs[key] for key in ("scale", "note", "ascending"))
    scores = scores.sort_values("score", ascending=ascending, kind="stable", ignore_index=True)
    texts = {column: scores[column].map(plain).astype(object) for column in ("image", "error")}
    told = scores.assign(**texts)
    with atomic_write(table) as temporary:
        write_csv(told.assign(scale=scale), temporary)
    write_contact_sheet(scores, sheet, note=note)
    partial.unlink(missing_ok=True)
    return told, note


def text_table(scores: pd.DataFrame) -> str:
    """List scores with one decimal, the best and the worst of many."""
    good = scores[scores["error"] == ""]
    rows = []
    for row in good.itertuples():
        share = "" if np.isnan(row.percentile) else f"{row.percentile:4.0f} %"
        warning = f"  ({row.warning})" if row.warning else ""
        rows.append(f"{row.score:6.1f}  {share:6}  {plain(row.image)}{warning}")
    if len(rows) > 2 * LISTED:
        left = f"   ... {len(rows) - 2 * LISTED} more in the file"
        rows = [*rows[:LISTED], left, *rows[-LISTED:]]
    return "\n".join([" score  pctile  image", *rows])


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

    Images are RGB in [0, 1], float32, of the one size that is printed; batches may be of any size.
    The file is kept only where ONNX Runtime gives the same scores of noise and of smooth images as
    PyTorch; returns the largest difference found.
    """
    import onnxruntime
    import onnxscript  # noqa: F401 - PyTorch's exporter needs it

    with _naming(model):
        scorer = _load(model)
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
        checked = torch.from_numpy(rng.random((CHECKED, 3, *size), dtype=np.float32))
        coarse = torch.from_numpy(rng.random((CHECKED // 2, 3, 5, 5), dtype=np.float32))
        checked[: CHECKED // 2] = nn.functional.interpolate(coarse, tuple(size), mode="bilinear")
        [theirs] = session.run(None, {"images": checked.numpy()})
        with torch.inference_mode():
            ours = network(checked).numpy()
        difference = float(np.abs(theirs - ours).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(ours).max())):
            raise ValueError(f"{out}: scores of ONNX Runtime differ by {difference:.3g}; not kept")
    taken = "any number of RGB images in [0, 1]"
    print(f"{out} takes {taken} of {size[0]} rows and {size[1]} columns, no other size")
    return difference
