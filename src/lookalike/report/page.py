"""Self-contained HTML pages that load nothing and run nothing, and what they are made of: pictures and tables."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from lookalike.core.errors import IO, UserError
from lookalike.core.files import write_atomically
from lookalike.metrics.fewshot import Interval

CSS = files("lookalike.report").joinpath("page.css").read_text("utf-8")
GAP = 6  # px between pictures that stand side by side


class Accuracies(NamedTuple):
    """Rows of things compared, columns of conditions, in each cell a mean and its interval."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Interval]]
    caption: str


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document that may load nothing: only its own style sheet, by its hash, and pictures inside the file.

    The first of ``parts`` is the head of the page, for people who jump from landmark to landmark.
    """
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    head, *rest = parts
    body = "\n".join(rest)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<header>{head}</header>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def write(path: Path, title: str, lead: str, parts: Iterable[str]) -> None:
    """Publish a page below its title and a sentence, if any. Raises UserError where it cannot be written."""
    head = f"<h1>{shown(title)}</h1>" + (f'<p class="lead">{shown(lead)}</p>' if lead else "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page(title, [head, *parts]).encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): choose another place", IO) from None


def shown(text: object) -> str:
    """Anything as HTML text; what cannot be printed, such as a stray byte of a file's name, becomes a mark."""
    plain = "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in str(text)
    )
    return escape(plain)


def picture(image: Image.Image, alt: str, kind: Literal["jpeg", "png"] = "jpeg", frame: str = "") -> str:
    """A picture inside the page; PNG keeps what is transparent, ``frame`` is a class of the CSS."""
    file = io.BytesIO()
    image.save(file, kind, quality=85, optimize=True)
    uri = f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
    of = f' class="{frame}"' if frame else ""
    return f'<img{of} src="{uri}" width="{image.width}" height="{image.height}" alt="{shown(alt)}">'


def side_by_side(images: Sequence[Image.Image], ground: str) -> Image.Image:
    """Images of one height in a row on a ground."""
    lefts = [sum(image.width + GAP for image in images[:i]) for i in range(len(images))]
    row = Image.new("RGB", (lefts[-1] + images[-1].width, images[0].height), ground)
    for left, image in zip(lefts, images):
        row.paste(image, (left, 0))
    return row


def table(kind: str, rows: Iterable[Sequence[str]], head: Sequence[str] = (), title: str = "table") -> str:
    """An HTML table of cells that are HTML already, the first of each row its name; ``kind`` is a class of the CSS.

    One that is wider than the window is moved by itself, with the keyboard, too: ``title`` says what has the focus.
    """
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    top = f"<thead><tr><td></td>{columns}</tr></thead>\n" if head else ""
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
        for name, *cells in rows
    )
    return wide(f'<table class="{kind}">{top}<tbody>{body}</tbody></table>', title)


def wide(inner: str, title: str) -> str:
    """What may be wider than the window, to be moved sideways by itself."""
    return f'<div class="wide" role="region" aria-label="{shown(title)}" tabindex="0">{inner}</div>'


def facts(values: Mapping[str, Any]) -> str:
    """Names and values in two columns, or below each other where the window is narrow."""
    pairs = "".join(f"<div><dt>{shown(name)}</dt><dd>{shown(value)}</dd></div>\n" for name, value in values.items())
    return f'<dl class="facts">{pairs}</dl>'


def accuracies(results: Accuracies) -> str:
    """The table as HTML; the best of each column is marked."""
    columns = zip(*results.rows.values())
    best = [max((cell.mean for cell in column if math.isfinite(cell.mean)), default=math.nan) for column in columns]
    rows = (
        (shown(name), *(_accuracy(cell, cell.mean == top) for cell, top in zip(cells, best)))
        for name, cells in results.rows.items()
    )
    head = [shown(column) for column in results.columns]
    return f'{table("accuracies", rows, head, results.title)}\n<p class="quiet">{shown(results.caption)}</p>'


def _accuracy(cell: Interval, best: bool) -> str:
    return (f"<strong>{percent(cell)}</strong>" if best else percent(cell)) + bar(cell, best)


def percent(cell: Interval) -> str:
    """``71.2 ± 1.3 %``; a mean without an interval stands alone."""
    if not math.isfinite(cell.mean):
        return "–"
    half = f" ± {100 * cell.half:.1f}" if math.isfinite(cell.half) else ""
    return f"{100 * cell.mean:.1f}{half} %"


def bar(cell: Interval, best: bool) -> str:
    """The mean as a bar on 0 to 100 %, the interval as a whisker."""
    if not math.isfinite(cell.mean):
        return ""
    half = cell.half if math.isfinite(cell.half) else 0
    low, mean, high = (min(100.0, max(0.0, 100 * (cell.mean + sign * half))) for sign in (-1, 0, 1))
    whisker = f'<rect class="whisker" x="{low:.2f}" y="2" width="{high - low:.2f}" height="4"/>' if half else ""
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/>'
        f'<rect class="{"best" if best else "fill"}" width="{mean:.2f}" height="8"/>{whisker}</svg>'
    )
