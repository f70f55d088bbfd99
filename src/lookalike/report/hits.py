"""Search results as pictures: the page of ``lookalike search``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from lookalike.core.errors import UserError
from lookalike.curate.search import Hit
from lookalike.curate.sheet import upright
from lookalike.data.decode import Unreadable, decode
from lookalike.data.example import PictureSource, Rows
from lookalike.data.loader import Loader
from lookalike.data.source import splits_of
from lookalike.report.page import picture, shown, write

SIDE = 176  # px of the longer side of a picture
_AT_ONCE = 64  # pictures


def write_page(path: Path, table: str, data: str, queries: Sequence[str], hits: Sequence[Sequence[Hit]]) -> None:
    """Each query and what lies nearest to it with its cosine, as pictures of ``data``; queries may be files.

    Raises UserError where ``data`` does not exist, or the page cannot be written.
    """
    album = pictures(data, queries, hits)
    parts = []
    for query, nearest in zip(queries, hits):
        own = [_figure(query, "query", album)] if query in album else []
        figures = [*own, *(_figure(hit.path, f"{hit.cosine:.3f}", album) for hit in nearest)]
        parts += [f"<h2>{shown(query)}</h2>", f'<div class="hits">{"".join(figures)}</div>']
    write(path, f"Nearest in {Path(table).name}", "", parts)


def pictures(data: str, queries: Sequence[str], hits: Sequence[Sequence[Hit]]) -> Mapping[str, Image.Image]:
    """By path: hits and queries that are rows of ``data``, and queries that are files. Unreadable ones are left out.

    Raises UserError where ``data`` does not exist.
    """
    paths = {*queries, *(hit.path for nearest in hits for hit in nearest)}
    try:
        sources = splits_of(data).values()
    except UserError as error:
        raise UserError(f"no page: {error}; say with --data where the pictures are", error.code) from None
    album: dict[str, Image.Image] = {}
    for source in sources:
        album |= _rows(source, paths - album.keys())
    return album | dict(_files(query for query in queries if query not in album))


def _rows(source: PictureSource, paths: set[str]) -> Iterator[tuple[str, Image.Image]]:
    """The pictures of a source that have these paths."""
    rows = {path: row for row, path in enumerate(source.paths) if path in paths}
    few = Rows(source, torch.tensor(list(rows.values()), dtype=torch.int64))
    loader = Loader(few, SIDE, workers=0, max_bad=1.0)
    for chunk, canvases in loader.batches(torch.split(torch.arange(len(rows)), _AT_ONCE)) if rows else ():
        for i, pixels, (height, width) in zip(chunk.tolist(), canvases.pixels, canvases.sizes.tolist()):
            if i not in loader.bad_rows:
                yield few.paths[i], upright(pixels, height, width, SIDE)


def _files(queries: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
    for query in queries:
        try:
            canvas = decode(Path(query).read_bytes(), SIDE)
        except (OSError, ValueError, Unreadable):
            continue  # a sentence
        yield query, upright(canvas.pixels, canvas.height, canvas.width, SIDE)


def _figure(path: str, words: str, album: Mapping[str, Image.Image]) -> str:
    image = picture(album[path], path) if path in album else ""
    return f"<figure>{image}<figcaption><b>{shown(words)}</b> {shown(path)}</figcaption></figure>"
