"""A page that shows scored images, best first; names are written so that nothing acts on them."""

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from iqa_utils.decoding import read_image
from iqa_utils.files import atomic_write

THUMBNAIL = 220  # px, longest side
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


def plain(text: str) -> str:
    r"""Write bytes that are not UTF-8, and control characters, as ``\x1b``."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def write_contact_sheet(scores: pd.DataFrame, path: Path, *, note: str) -> None:
    """Write one HTML file with every image in order, bad files at the end, below a note."""
    good, bad = scores[scores["error"] == ""], scores[scores["error"] != ""]
    named = zip(bad["image"].map(_escape), bad["error"].map(_escape), strict=True)
    listed = "".join(f"<li><code>{image}</code> {error}</li>" for image, error in named)
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
    caption = f"<figcaption><b>{row.score:.1f}</b> {name} {warning}</figcaption>"
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
