"""What a search found, as pictures: the page of ``lookalike search``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from lookalike.core.errors import UserError
from lookalike.curate.search import Hit
from lookalike.curate.sheet import upright
from lookalike.data.image.decode import Unreadable, decode
from lookalike.data.loader import Loader
from lookalike.data.source import Rows, splits_of
from lookalike.report.page import page, photo
from lookalike.report.tables import shown

SIDE = 176  # px of the longer side of a picture
_AT_ONCE = 64  # pictures

Album = Mapping[str, Image.Image]


def hits_page(where: str, queries: Sequence[str], found: Sequence[Sequence[Hit]], album: Album) -> str:
    """One self-contained page: each query, and what lies nearest to it with its cosine."""
    parts = [f"<h1>Nearest in {shown(Path(where).name)}</h1>"]
    for query, hits in zip(queries, found):
        own = [_figure(query, "what was asked", album)] if query in album else []
        near = [_figure(hit.path, f"{hit.cosine:.3f}", album) for hit in hits]
        parts += [f"<h2>{shown(query)}</h2>", f'<div class="hits">{"".join([*own, *near])}</div>']
    return page(f"nearest in {Path(where).name}", parts)


def pictures(data: str, queries: Sequence[str], found: Sequence[Sequence[Hit]]) -> Album:
    """By path those of ``data`` that were found or asked, and queries that are files; unreadable ones are left out.

    Raises UserError where ``data`` is not there.
    """
    wanted = {*queries, *(hit.path for hits in found for hit in hits)}
    album: dict[str, Image.Image] = {}
    try:
        sources = splits_of(data).values()
    except UserError as error:
        raise UserError(f"no page: {error}; say with --data where the pictures are", error.code) from None
    for source in sources:
        rows = [row for row, path in enumerate(source.paths) if path in wanted and path not in album]
        if not rows:
            continue
        loader = Loader(Rows(source, torch.tensor(rows, dtype=torch.int64)), SIDE, workers=0, max_bad=1.0)
        for chunk, canvases in loader.batches(torch.split(torch.arange(len(rows)), _AT_ONCE)):
            for i, pixels, (height, width) in zip(chunk.tolist(), canvases.pixels, canvases.sizes.tolist()):
                if i not in loader.bad_rows:
                    album[source.paths[rows[i]]] = upright(pixels, height, width, SIDE)
    return album | dict(_files(query for query in queries if query not in album))


def _files(queries: Iterable[str]) -> Iterable[tuple[str, Image.Image]]:
    for query in queries:
        try:
            canvas = decode(Path(query).read_bytes(), SIDE)
        except (OSError, ValueError, Unreadable):
            continue  # a sentence
        yield query, upright(canvas.pixels, canvas.height, canvas.width, SIDE)


def _figure(path: str, words: str, album: Album) -> str:
    said = f"<b>{shown(words)}</b> {shown(path)}"
    if path not in album:
        return f"<figure><figcaption>{said}</figcaption></figure>"
    return f"<figure>{photo(album[path], path)}<figcaption>{said}</figcaption></figure>"
