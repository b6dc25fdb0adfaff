"""Score your images with any model trained here: a CSV and a contact sheet, best first.

One bad file never stops the others.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from iqa_utils.files import atomic_write
from iqa_utils.images.decoding import find_images, read_image
from iqa_utils.scorer import Scorer, same_size
from iqa_utils.training.checkpoints import read_metadata

THUMBNAIL = 220  # px, longest side


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
        batch_size: Images per forward pass; images of different sizes are never put together.
        device: Torch device; the first GPU, else the CPU.
        progress: Show a bar on a terminal.

    Returns:
        One row per file in the order found: ``image``, ``score`` (on the scale the model was
        trained on, higher is better; NaN where the file is bad) and ``error`` (empty where it is
        good).

    Raises:
        FileNotFoundError: If a path or the checkpoint does not exist.
        ValueError: As :meth:`iqa_utils.scorer.Scorer.load`.
    """
    scorer, found = Scorer.load(checkpoint), find_images(paths)
    files = [path for path, why in found.items() if not why]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    scorer.model.to(device).eval()
    scores, errors = np.full(len(files), np.nan), [""] * len(files)
    done = _read_partial(Path(partial), scorer.hash) if partial else {}
    stamps = [_stamp(path) for path in files]
    for i, stamp in enumerate(stamps):
        scores[i], errors[i] = done.get(stamp, (np.nan, ""))
    todo = [i for i, stamp in enumerate(stamps) if stamp not in done]
    quiet = None if progress else True
    bar = tqdm(total=len(files), initial=len(files) - len(todo), unit="image", disable=quiet)
    with ThreadPoolExecutor() as pool, bar:
        for start in range(0, len(todo), batch_size):
            part = todo[start : start + batch_size]
            read = list(pool.map(scorer.read, [files[i] for i in part]))
            pixels = {i: one for i, one in zip(part, read, strict=True) if not isinstance(one, str)}
            for i, one in zip(part, read, strict=True):
                errors[i] = "" if i in pixels else one
            rows = np.array(list(pixels))
            for same in same_size([one.shape for one in pixels.values()], batch_size):
                batch = torch.from_numpy(np.stack([pixels[i] for i in rows[same]]))
                scores[rows[same]] = scorer.score(batch.permute(0, 3, 1, 2), device=device).cpu()
            if partial:
                _append(
                    Path(partial), [[scorer.hash, stamps[i], scores[i], errors[i]] for i in part]
                )
            bar.update(len(part))
    told = dict(zip(files, scores, strict=True)) | dict.fromkeys(set(found) - set(files), np.nan)
    errors = found | dict(zip(files, errors, strict=True))
    return pd.DataFrame(
        {"image": map(str, found), "score": map(told.get, found), "error": errors.values()}
    )


def _stamp(path: Path) -> str:
    about = path.stat()
    return f"{path.resolve()} {about.st_size} {about.st_mtime_ns}"


def _append(partial: Path, rows: list[list[Any]]) -> None:
    with partial.open("a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)


def _read_partial(path: Path, key: str) -> dict[str, tuple[float, str]]:
    """Read what one model has scored; drop the half line that a kill may have left at the end."""
    if not path.is_file():
        return {}
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    rows = [json.loads(line) for line in whole.splitlines()]
    return {stamp: (score, error) for known, stamp, score, error in rows if known == key}


def describe_model(checkpoint: str | Path) -> str:
    """Say in a sentence or two what a model file was trained on, and whether that was synthetic.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, not one of ours, or does not tell.
    """
    metadata = read_metadata(checkpoint)
    told, seen = metadata["training_data"], metadata["scores_seen"]
    if not (isinstance(told, Mapping) and {"dataset", "demo"} <= set(told)):
        raise ValueError(
            f"model {Path(checkpoint).name} must tell the data set it was trained on and whether "
            f"that is synthetic, found training_data {told!r}"
        )
    seen = seen if isinstance(seen, str) else "; ".join(seen)
    text = f"Scores by {metadata['architecture']['name']}, trained on {told['dataset']} ({seen})."
    synthetic = " These images are synthetic: the numbers say nothing about quality."
    return text + (
        synthetic if told["demo"] else " Higher is better, on the scale of the training."
    )


def write_contact_sheet(scores: pd.DataFrame, path: Path, *, note: str) -> None:
    """Write one HTML file with every image, best first, bad files at the end, below a note."""
    good = scores[scores["error"] == ""].sort_values("score", ascending=False)
    bad = "".join(
        f"<li><code>{html.escape(row.image)}</code> {html.escape(row.error)}</li>"
        for row in scores[scores["error"] != ""].itertuples()
    )
    page = _PAGE.format(
        n=len(good),
        note=html.escape(note),
        cards="\n".join(_card(row.image, row.score) for row in good.itertuples()),
        bad=f"<h2>Not scored</h2><ul>{bad}</ul>" if bad else "",
    )
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8")


def score_to_files(
    paths: Sequence[str | Path], checkpoint: str | Path, out: str | Path, **options: Any
) -> tuple[pd.DataFrame, str]:
    """Score image files into ``OUT.csv`` and the contact sheet ``OUT.html``, both best first.

    Until all are scored, what is done lies in ``OUT.csv.partial``, where a killed run goes on.
    Options are those of :func:`score_images`.

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
    with atomic_write(table) as temporary:
        scores.to_csv(temporary, index=False)
    write_contact_sheet(scores, Path(f"{out}.html"), note=note)
    partial.unlink()
    return scores, note


def _card(name: str, score: float) -> str:
    picture = read_image(Path(name))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
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
