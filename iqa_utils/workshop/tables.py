"""Tables: for spreadsheets, of scored images, of timed networks; compared between two runs.

Text comes from anywhere: it is written so that no spreadsheet, browser or terminal acts on it. A
change of code that is meant to move nothing is checked by running notebooks before and after.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from PIL import Image

from iqa_utils.decoding import read_image
from iqa_utils.files import atomic_write, read_mapping
from iqa_utils.workshop import ROOT

FILES = ("metrics.json", "predictions.parquet", "history.parquet")
TIMES = ["seconds", "images_per_second"]  # columns that measure the machine
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # at the start of a cell
THUMBNAIL = 220  # px, longest side
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Scored images</title>
<style>
 :root {{ color-scheme: light dark }}
 body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px }}
 body {{ padding: 0 1rem }}
 main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 1rem }}
 figure {{ margin: 0 }} img {{ width: 100%; height: 150px; object-fit: contain; background: #8882 }}
 figcaption {{ font-size: 13px; overflow-wrap: anywhere }}
</style>
<h1>{n} images, best first</h1>
<p>{note}</p>
<main>
CARDS</main>
"""


def write_csv(frame: pd.DataFrame, file: str | Path | IO[str]) -> None:
    """Write a table without its index; text that begins like a formula gets a ``'`` before it."""

    def safe(cell: Any) -> Any:
        return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell

    texts = frame.select_dtypes(exclude="number").map(safe)
    frame.assign(**texts).rename(columns=safe).to_csv(file, index=False)


def plain(text: str) -> str:
    r"""Write bytes that are not UTF-8, and control characters, as ``\x1b``."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def write_contact_sheet(scores: pd.DataFrame, path: Path, *, note: str) -> None:
    """Write one HTML file with every image in order, bad files at the end, below a note."""
    good, bad = scores[scores["error"] == ""], scores[scores["error"] != ""]
    named = zip(bad["image"], bad["error"], strict=True)
    told = [(image, error.removeprefix(f"{image}: ")) for image, error in named]
    listed = "".join(f"<li><code>{_escape(x)}</code> {_escape(why)}</li>" for x, why in told)
    head, foot = _PAGE.split("CARDS")
    head = head.format(n=len(good), note=_escape(note))
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(head)
        file.writelines(_card(row) for row in good.itertuples())
        file.write(f"{foot}<h2>Not scored</h2><ul>{listed}</ul>" if listed else foot)


def _escape(text: str) -> str:
    return html.escape(plain(text))


def _card(row: Any) -> str:
    label, name, warning = map(_escape, (row.image, Path(row.image).name, row.warning))
    warned = f" ({warning})" if warning else ""
    caption = f"<figcaption><b>{row.score:.1f}</b> {name}{warned}</figcaption>"
    try:
        image = read_image(Path(row.image))
    except (ValueError, OSError) as error:  # it has changed since it was scored
        return f"<figure><p>no longer readable: {_escape(str(error))}</p>{caption}</figure>\n"
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    picture = f'<img src="data:image/jpeg;base64,{data}" alt="{label}" loading="lazy">'
    return f"<figure>{picture}{caption}</figure>\n"


def read_tables(run: Path) -> dict[str, pd.DataFrame]:
    """Read what a run left as tables; times of the machine are left out."""
    tables = {}
    for path in filter(Path.is_file, (run / name for name in FILES)):
        results = path.suffix == ".json"
        table = pd.DataFrame(read_mapping(path)["results"]) if results else pd.read_parquet(path)
        if "metric" in table:
            table = table[~table["metric"].astype(str).str.contains("second|time")]
        tables[path.name] = table.drop(columns=TIMES, errors="ignore").reset_index(drop=True)
    return tables


def find(root: Path) -> dict[str, Path]:
    """Name the finished runs in a folder, or the folder itself if it is one."""
    if (root / "metrics.json").is_file():
        return {".": root}
    found = {str(path.parent.relative_to(root)): path.parent for path in root.rglob("metrics.json")}
    return {name: found[name] for name in sorted(found) if not re.match(r"(.*/)?\.", name)}


def differences(a: Path, b: Path) -> Iterator[tuple[str, str, str, float]]:
    """Yield run, file, column and the largest relative difference of two runs or folders of runs.

    It is infinite where words, missing values or row numbers differ; all runs need a partner.
    """
    ours, theirs = find(a), find(b)
    if not ours or set(ours) != set(theirs):
        odd = sorted(set(ours) ^ set(theirs)) or ["no finished run in either"]
        raise FileNotFoundError(f"{a} and {b} do not hold the same runs: {', '.join(odd)}")
    for name in ours:
        left, right = read_tables(ours[name]), read_tables(theirs[name])
        for file in sorted(set(left) | set(right)):
            if file not in left or file not in right or len(left[file]) != len(right[file]):
                yield name, file, "rows", float("inf")
                continue
            for column in sorted(set(left[file]) | set(right[file])):
                yield name, file, column, _largest(left[file], right[file], column)


def _largest(a: pd.DataFrame, b: pd.DataFrame, column: str) -> float:
    a, b = (t if column in t else t.assign(**{column: ""}) for t in (a, b))  # absent: empty
    left, right = (pd.to_numeric(t[column], errors="coerce").to_numpy(float) for t in (a, b))
    text = np.isnan(left)
    words = [["" if pd.isna(v) is True else str(v) for v in t[column][text]] for t in (a, b)]
    if (text != np.isnan(right)).any() or words[0] != words[1]:
        return float("inf")
    scale = np.maximum(np.maximum(np.abs(left), np.abs(right)), np.finfo(float).tiny)
    return float(np.nanmax(np.abs(left - right) / scale, initial=0.0))


def true_size_table(folder: Path = ROOT / "figures" / "true_size") -> str:
    """Write what was timed at true size, one row per network and card, and how many are not."""
    from iqa_utils.workshop.notebooks import notebook_stems
    from iqa_utils.workshop.paper_pages import markdown
    from iqa_utils.workshop.plan import TRAINED_BY
    from iqa_utils.workshop.true_size import listed

    here = [stem for stem in TRAINED_BY if any(name[:2] == stem for name in notebook_stems())]
    stems = {kind: stem for kind, (_, stem, _) in listed(here).items()}
    rows, done = [], set()
    for file in sorted(folder.glob("*.json")):
        seen = json.loads(file.read_text())
        for row in seen["rows"]:
            network, size, *how = row["kind"].rsplit(", ", 3)
            batch, _, size = size.partition("x")
            told = {"notebook": stems.get(row["kind"], ""), "network": network, "batch": batch}
            told |= {"input": size, "how": ", ".join(how), "card": seen["card"]}
            if "error" in row:
                rows.append(told | {"images/s": "failed: " + row["error"].replace("|", "/")})
                continue
            done |= {row["kind"]} & stems.keys()
            told |= {"images/s": f"{row['images_per_s']:,.0f}", "waiting": f"{row['waiting']:.1%}"}
            told |= {"GPU memory": f"{row['peak_bytes'] / 2**30:.2f} GiB"}
            told |= {"of peak": f"{row['of_peak']:.2%} of {row['peak']:.0f} TFLOP/s"}
            told["timed with"] = row.get("input", "input as in the notebook")
            told |= {name: row.get(name, "not recorded") for name in ("torch", "commit")}
            rows.append(told)
    if not rows:
        return "Nothing measured at true size is published."
    counts = [
        f"{stem} {sum(stems[kind] == stem for kind in done)} of {list(stems.values()).count(stem)}"
        for stem in here
    ]
    columns = ["notebook", "network", "batch", "input", "how", "images/s", "waiting", "GPU memory"]
    columns += ["of peak", "timed with", "card", "torch", "commit"]
    table = markdown(pd.DataFrame(rows, columns=columns).fillna(""))
    return f"""Of {len(stems)} kinds of network, {len(done)} are measured: {", ".join(counts)}.

{table}

Weights are random and images synthetic: no accuracy is claimed. *Waiting* is the share of a step's
time in which no input is there yet; *GPU memory* is the most that PyTorch allocated; *of peak*
compares the counted operations a second with those of a large matrix product on the same card,
which may use TF32 in fp32."""
