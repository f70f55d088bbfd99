"""What a source is: rows, which can be read in any order."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.fingerprint import Stamps
from lookalike.data.formats.files import Chosen, by_folder, class_names, outer_folder, printable
from lookalike.data.preprocessing import Side, pixels_of


class Example(NamedTuple):
    """One row: the picture as a canvas, ``pixels`` uint8 (3, S, S), black where ``bad`` says why."""

    pixels: Tensor
    height: int
    width: int
    label: int  # -1 where there is none
    path: str
    bad: str | None = None


class Source(Protocol):
    """N rows in an order that depends on the data alone, whatever they hold; a power that one lacks is None."""

    unlisted: dict[str, str]  # what could not be looked into or is no row: path and reason

    @property
    def paths(self) -> Sequence[str]:
        """(N,) unique, valid Unicode."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, -1 where there is none."""

    @property
    def classes(self) -> list[str]:
        """The names of the labels, the same in every split."""

    @property
    def starts(self) -> Sequence[int] | None:
        """(M + 1,) the first row of each of M shards, and N; None for rows that lie in no shards."""

    @property
    def texts(self) -> Callable[[int], tuple[str, ...]] | None:
        """The texts of a row: its captions, one sentence, or the two of a pair; None for rows without any."""

    def stamps(self) -> Stamps:
        """The files that rows come from, as they are now."""

    def __len__(self) -> int: ...


class PictureSource(Source, Protocol):
    """Rows that are pictures; a bad row is an example that says so, never an exception."""

    @property
    def read(self) -> Callable[[int], bytes] | None:
        """The file of a row, which raises Unreadable; None for pictures that are no files."""

    def example(self, row: int, side: Side) -> Example:
        """One row as a canvas; raises UserError where the source has fewer pixels for all rows."""

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, from the header where there is one; raises Unreadable."""


@runtime_checkable
class _Pictured(Protocol):
    def example(self, row: int, side: Side) -> Example: ...


def as_pictures(source: Source) -> PictureSource:
    """The same rows as pictures; raises UserError where they are texts."""
    if not isinstance(source, _Pictured):
        raise UserError("this data is text, and pictures are wanted; name a folder of pictures", BAD_DATA)
    return cast(PictureSource, source)


class TextSource(Source, Protocol):
    """Rows that are texts, or pairs of them."""

    @property
    def scores(self) -> Tensor:
        """(N,) how alike the two texts of each pair are, NaN where nobody says."""

    @property
    def refused(self) -> int:
        """Lines of the whole data that are no text."""


def broken(side: Side, label: int, path: str, reason: str) -> Example:
    """An example that could not be read: a black canvas of one pixel's size."""
    return Example(torch.zeros(3, pixels_of(side), pixels_of(side), dtype=torch.uint8), 1, 1, label, path, reason)


class Rows:
    """Some rows of a source, as a source of the same kind."""

    def __init__(self, source: Source, rows: Tensor | Sequence[int]) -> None:
        self._source, self._numbers = source, in_sequence(rows)
        self._rows = _index(self._numbers)
        self._pictures, self._texts = cast(PictureSource, source), cast(TextSource, source)  # whichever it is
        self.classes, self.unlisted = source.classes, source.unlisted
        self.paths = Chosen(source.paths, self._numbers)

    @property
    def labels(self) -> Tensor:
        """(N,) int64, -1 where there is none."""
        return self._source.labels[self._rows]

    @property
    def starts(self) -> list[int] | None:
        """The first row of each shard, where the source has shards and the rows are sorted."""
        rows, starts = self._rows, self._source.starts
        if starts is None or (isinstance(rows, Tensor) and not bool((rows.diff() > 0).all())):
            return None
        bounds = torch.tensor(starts)
        own = (bounds - rows.start).clamp(0, len(self)) if isinstance(rows, slice) else torch.searchsorted(rows, bounds)
        return sorted(set(own.tolist()))

    @property
    def texts(self) -> Callable[[int], tuple[str, ...]] | None:
        """The texts of one row, where the source has texts."""
        texts = self._source.texts
        return None if texts is None else lambda row: texts(self._numbers[row])

    @property
    def read(self) -> Callable[[int], bytes] | None:
        """The file of one row, where the source has files; raises Unreadable."""
        read = self._pictures.read
        return None if read is None else lambda row: read(self._numbers[row])

    @property
    def scores(self) -> Tensor:
        """(N,) of pairs of texts."""
        return self._texts.scores[self._rows]

    @property
    def refused(self) -> int:
        """Lines of the whole source that are no text."""
        return self._texts.refused

    def stamps(self) -> Stamps:
        """Those of the whole source: rows are chosen by what its files hold."""
        return self._source.stamps()

    def __len__(self) -> int:
        return len(self._numbers)

    def example(self, row: int, side: Side) -> Example:
        """One picture as a canvas."""
        return self._pictures.example(self._numbers[row], side)

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels; raises Unreadable."""
        return self._pictures.size(self._numbers[row])


def in_sequence(rows: Tensor | Sequence[int] | npt.NDArray[np.int64]) -> range | array[int]:
    """The numbers of rows (N,), as a range where they follow each other: no memory a row, else 8 bytes."""
    if isinstance(rows, range):
        return rows
    numbers = np.asarray(rows, np.int64)
    if bool((np.diff(numbers) == 1).all()):
        return range(int(numbers[0]), int(numbers[-1]) + 1) if len(numbers) else range(0)
    return array("q", numbers.tobytes())  # an element of a tensor takes ten times as long


def joined(parts: Iterable[range | array[int]]) -> range | array[int]:
    """The rows of all parts, sorted."""
    some = sorted((rows for rows in parts if len(rows)), key=itemgetter(0))
    if all(isinstance(rows, range) for rows in some) and all(a[-1] + 1 == b[0] for a, b in pairwise(some)):
        return range(some[0][0], some[-1][-1] + 1) if some else range(0)
    return in_sequence(np.sort(np.concatenate([np.asarray(rows, np.int64) for rows in some])))


def _index(rows: range | array[int]) -> slice | Tensor:
    """What gets these rows of a tensor."""
    return slice(rows.start, rows.stop) if isinstance(rows, range) else torch.frombuffer(rows, dtype=torch.int64)


# ---- what is to be said of data by whoever opens it ----

_NAMED = 4  # kinds of things that are left out, or classes, which are named in one line


def left_out(sources: Iterable[Source]) -> list[str]:
    """What is no row of the data and why, alike ones together: ``3 other files not read: 2 .tga, 1 .md``."""
    alike: dict[str, list[str]] = {}
    for path, reason in {path: reason for source in sources for path, reason in source.unlisted.items()}.items():
        alike.setdefault(reason, []).append(path)
    return [
        f"{paths[0]}: {reason}" if len(paths) == 1 else f"{len(paths):,} × {reason}, first {paths[0]}"
        for reason, paths in alike.items()
    ]


def remarks(name: str, sources: Mapping[str, Source]) -> Iterator[str]:
    """Lines on data that is called ``name``, of which these splits are opened: what is left out, and what is odd."""
    if left := left_out(sources.values()):
        more = [f"{len(left) - _NAMED} more kinds, which lookalike doctor lists"] if len(left) > _NAMED else []
        yield "; ".join([*left[:_NAMED], *more])
    if inner := inner_folder(name, sources.values()):
        yield f"did you mean {inner}?"
    yield from only_in_one(sources)


def inner_folder(name: str, sources: Iterable[Source]) -> str | None:
    """The folder inside of the folder ``name`` that was meant, it seems, with the splits or classes that it holds."""
    paths = [path for source in sources for path in _everywhere(source)] if Path(name).is_dir() else []
    tops = {path.partition("/")[0] + "/" for path in paths if "/" in path}
    outer = outer_folder(paths)
    folders = [outer] if outer else sorted(tops) if len(tops) <= _NAMED and not by_folder(paths) else []
    below = {
        folder: [path.removeprefix(folder) for path in paths if path.startswith(folder)]
        for folder in folders
        if (Path(name) / folder).is_dir()
    }
    divided = {folder: splits for folder, inside in below.items() if (splits := list(by_folder(inside)))}
    if len(divided) == 1:
        ((folder, splits),) = divided.items()
        return f"{Path(name, folder)}, which holds the {'splits' if len(splits) > 1 else 'split'} {', '.join(splits)}"
    if outer in below and (classes := class_names([below[outer]], 0)):
        return f"{Path(name, outer)}, which holds {len(classes)} classes: {_some(classes)}"
    return None


def _everywhere(source: Source) -> Sequence[str]:
    """All paths, or of a file of many rows, which lies in one folder, those of a few."""
    return source.paths if source.starts is None else Chosen(source.paths, sorted({*source.starts} - {len(source)}))


def labels_in(source: Source) -> set[int]:
    """The labels that rows have, looked at a million at a time."""
    return {
        label for part in torch.split(source.labels, 1 << 20) for label in torch.unique(part).tolist() if label >= 0
    }


def only_in_one(sources: Mapping[str, Source]) -> Iterator[str]:
    """Which classes one part alone has, of parts with labels."""
    classes = {
        name: {source.classes[label] for label in labels_in(source) if label < len(source.classes)}
        for name, source in (sources if len(sources) > 1 else {}).items()  # labels may be slow to read
    }
    classes = {name: some for name, some in classes.items() if some}
    for name, some in classes.items():
        others = {other for part, every in classes.items() if part != name for other in every}
        if others and (alone := sorted(some - others)):
            capitals = {one.casefold() for one in alone} & {other.casefold() for other in others - some}
            hint = "; others have some of them but for capitals" if capitals else ""
            yield f"classes in {name} alone: {_some(alone)}{hint}"


def _some(names: Sequence[str]) -> str:
    return ", ".join([*map(printable, names[:_NAMED]), *([f"{len(names) - _NAMED} more"] * (len(names) > _NAMED))])


def facts(source: Source) -> dict[str, object]:
    """What two machines compare that are to hold the same rows; reading labels may be slow, and they are not read."""
    names = hashlib.sha256()
    for path in source.paths:
        names.update(f"{path}\n".encode())
    return {
        "examples": len(source),
        "their names": names.hexdigest()[:16],
        "their files": source.stamps().digest()[:16],
    }


def unreadable(bad: Mapping[str, str], where: str) -> str:
    """The line on rows that cannot be read: how many, the first with the reason, and where all of them are."""
    path, reason = next(iter(bad.items()))
    return f"{len(bad):,} cannot be read, first {path} ({reason}); {where}"
