"""The page of a search: each query set apart, and what lies nearest to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lookalike.core.files import whole
from lookalike.curate.search import Hit
from lookalike.curate.survey import largest, upright
from lookalike.data.decode import Unreadable, cropped, decode
from lookalike.data.example import PictureSource
from lookalike.recipes.modality import crop_of
from lookalike.report.page import picture, shown, write

_SIDES = ((60, 960), (200, 560), (1000, 240))  # pictures on a page up to which the longer side has so many pixels
_LEAST = 176


class Answer(NamedTuple):
    """What was asked, in one line and by its parts, and the hits."""

    name: str
    queries: Sequence[str]
    hits: Sequence[Hit]


class _Shown(NamedTuple):
    """A picture of the page, and the label that the data gives it, -1 where it gives none."""

    image: Image.Image
    label: int = -1


def write_hits(path: Path, table: str, sources: Iterable[PictureSource], answers: Sequence[Answer]) -> None:
    """Each query beside its hits with their cosines, as pictures of ``sources``; queries may be files, or parts of one.

    Hits that have the label of a query are marked, where it has one. A click opens a picture: there is no script, the
    address names what is open. Raises UserError where the page cannot be written.
    """
    paths = {query for answer in answers for query in answer.queries}
    paths |= {hit.path for answer in answers for hit in answer.hits}
    side = next((side for most, side in _SIDES if len(paths) <= most), _LEAST)
    album, classes = dict[str, _Shown](), list[str]()
    for source in sources:
        album |= _of_paths(source, paths - album.keys(), side)
        classes = source.classes
    for query in {query for answer in answers for query in answer.queries} - album.keys():
        with suppress(OSError, ValueError, Unreadable):  # a sentence
            part = crop_of(query)
            data = whole(query) if part is None else cropped(whole(part.file), *part.box)
            canvas = decode(data, side)
            album[query] = _Shown(upright(canvas.pixels, canvas.height, canvas.width, side))
    parts = [_section(f"q{number}", answer, album, classes) for number, answer in enumerate(answers)]
    write(path, f"Nearest in {Path(table).name}", "", parts)


def _of_paths(source: PictureSource, paths: set[str], side: int) -> Iterator[tuple[str, _Shown]]:
    """The readable pictures of a source that have these paths."""
    for row, path in enumerate(source.paths):
        if path in paths:
            example = source.example(row, largest(source, side))
            if example.bad is None:
                image = upright(example.pixels, example.height, example.width, side)
                yield path, _Shown(image, example.label)


def _section(name: str, answer: Answer, album: Mapping[str, _Shown], classes: Sequence[str]) -> str:
    """A query and its hits. Of several queries a mark means the label of any."""
    labels = {album[query].label for query in answer.queries if query in album} - {-1}
    asked = [_asked(f"{name}-{number}", query, album, classes) for number, query in enumerate(answer.queries)]
    hits = [_hit(f"{name}h{number}", hit, album, labels, classes) for number, hit in enumerate(answer.hits)]
    return (
        f'<h2>{shown(answer.name)}</h2>\n<div class="answer"><div class="asked">{"".join(asked)}</div>\n'
        f'<div class="hits">{"".join(hits)}</div></div>'
    )


def _asked(name: str, query: str, album: Mapping[str, _Shown], classes: Sequence[str]) -> str:
    if query not in album:
        return f"<blockquote>{shown(query)}</blockquote>"
    label = album[query].label
    kind = f" {shown(classes[label])}" if 0 <= label < len(classes) else ""
    return _tile(name, query, album, f"<b>query</b>{kind}")


def _hit(name: str, hit: Hit, album: Mapping[str, _Shown], labels: set[int], classes: Sequence[str]) -> str:
    words = f"<b>{hit.cosine:.3f}</b>"
    if 0 <= hit.label < len(classes):
        kind = shown(classes[hit.label])
        same = hit.label in labels
        mark = "✓ same class" if same else "✗ other class"
        tag = f'<span class="{"same" if same else "other"}"><span aria-hidden="true">{mark[0]}</span> {kind}</span>'
        words += tag.replace("<span ", f'<span title="{mark[2:]}" ', 1) if labels else f" {kind}"
    return _tile(name, hit.path, album, words)


def _tile(name: str, path: str, album: Mapping[str, _Shown], words: str) -> str:
    """A picture in a square, which its own link opens and the link over it closes."""
    caption = f"<figcaption>{words} {shown(path)}</figcaption>"
    if path not in album:
        return f'<figure class="tile">{caption}</figure>'
    image = f'<a class="open" href="#{name}">{picture(album[path].image, path)}</a>'
    closing = f'<a class="close" href="#{name}-" id="{name}-" aria-label="close"></a>'
    return f'<figure class="tile" id="{name}">{image}{caption}{closing}</figure>'
