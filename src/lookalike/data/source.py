"""From what a person names to a source: a place (``places.py``), ``digits``, a tensor, a dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.core.devices import isolated
from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.data.decode import Unreadable
from lookalike.data.example import PictureSource, Rows, Source, remarks
from lookalike.data.formats.arrays import InMemory, MapStyle, digits, in_memory
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION, split_of
from lookalike.data.formats.places import Place
from lookalike.data.formats.places import find as pictures
from lookalike.data.video.source import video_of

S = TypeVar("S", bound=Source)
Data = str | os.PathLike[str] | Tensor | npt.NDArray[np.generic] | MapStyle | Mapping[str, MapStyle] | Rows
Finder = Callable[[Data], Place[Source]]
"""How what a person names becomes a place."""
Say = Callable[[str], None]
"""What is told a line."""
DIGITS = "digits"
"""The word that always means scikit-learn's digits, whatever lies in the folder of this name."""
_MOST_BYTES = 1 << 30  # of tables and archives, which are read whole to compare what is in them
EVERYTHING = "all"  # the name of no split: every row of every split


@overload
def open_source(data: Data, split: str | None = None) -> PictureSource: ...
@overload
def open_source(data: Data, split: str | None = None, *, find: Callable[[Data], Place[S]]) -> S: ...
@isolated()
def open_source(data: Data, split: str | None = None, *, find: Finder | None = None) -> Source:
    """The rows of one split; None is train where it exists, else everything.

    ``split`` takes the Hub's words (val, dev, test, ...) and ``all``. The word ``digits`` is always scikit-learn's
    digits; a folder of that name is ``./digits``. ``find`` opens another kind of data than pictures. Raises UserError.
    """
    place = (find or place_of)(data)
    return place.rows(_chosen(split, place))


def splits(data: Data) -> list[str]:
    """Which of train, validation and test exist, in this order; [] where the data is not divided. Raises UserError."""
    return list(place_of(data).splits)


@overload
def splits_of(data: Data) -> dict[str, PictureSource]: ...
@overload
def splits_of(data: Data, *, find: Callable[[Data], Place[S]]) -> dict[str, S]: ...
@isolated()
def splits_of(data: Data, *, find: Finder | None = None) -> Mapping[str, Source]:
    """Every split that exists, listed once; {"all": everything} where the data is not divided. Raises UserError."""
    place = (find or place_of)(data)
    return {name: place.rows(name) for name in place.splits} or {EVERYTHING: place.rows(None)}


def place_of(data: Data) -> Place[PictureSource]:
    """The pictures of a path, an address, a name, a tensor, a dataset, or some rows of any; raises UserError."""
    if isinstance(data, Rows):
        return InMemory({}, data)
    if not isinstance(data, str | os.PathLike):
        return in_memory(data)
    return InMemory({}, digits()) if data == DIGITS else pictures(data)


@overload
def reference_and_query(data: Data, *, say: Say | None = None) -> tuple[PictureSource, PictureSource]: ...
@overload
def reference_and_query(
    data: Data, *, find: Callable[[Data], Place[S]], say: Say | None = None
) -> tuple[S | Rows, S | Rows]: ...
@isolated()
def reference_and_query(data: Data, *, find: Finder | None = None, say: Say | None = None) -> tuple[Source, Source]:
    """The reference and the queries of an evaluation: train and test (else validation), else 80 and 20 percent.

    A test part without labels is none where another part has some. ``say`` is told which split was taken and why, which
    classes and rows one part alone has, and what both share.
    """
    parts = splits_of(data, find=find or place_of)
    query, why = query_split({name: bool((part.labels >= 0).any()) for name, part in parts.items()})
    if query is not None:
        divided: tuple[Source, Source] = parts[TRAIN], parts[query]
    else:
        whole = parts[TRAIN] if TRAIN in parts else next(iter(parts.values()))
        if TRAIN not in parts and len(parts) > 1:
            whole = open_source(data, EVERYTHING, find=find or place_of)
        reference_rows, query_rows = split_by_hash(whole.paths, whole.labels)
        divided = Rows(whole, reference_rows), Rows(whole, query_rows)
    if say is not None:
        local = not isinstance(data, str) or "://" not in data
        named = dict(zip(("the reference", "the queries"), divided))
        leaks = shared(*divided, contents=local)
        for line in (why, *remarks(name_of(data), named), *_unlabelled(named), *([leaks] if leaks else [])):
            say(line)
    return divided


def query_split(labelled: Mapping[str, bool]) -> tuple[str | None, str]:
    """The split that queries are from, None for a fifth by hash, and why, in words; given which splits have labels.

    Where none has, labels are not what is evaluated by.
    """
    tests = [name for name in (TEST, VALIDATION) if name in labelled]
    good = [name for name in tests if labelled[name] or not any(labelled.values())]
    missing = "test has no labels" if TEST in labelled else "there is no test split"
    if TRAIN in labelled and good:
        return good[0], "tested on test" if good[0] == TEST else f"tested on validation: {missing}"
    why = "there are no splits" if not {TRAIN, *tests} & set(labelled) else "there is no train split"
    why = why if TRAIN not in labelled else missing if tests else "there is only train"
    return None, f"tested on a fifth, drawn by a hash of the names: {why}"


def _unlabelled(parts: Mapping[str, Source]) -> Iterator[str]:
    """In words, how many rows of each part have no label, where some have one."""
    without = {name: (part.labels < 0) for name, part in parts.items()}
    if all(bool(some.all()) for some in without.values()):
        return
    for name, part in parts.items():
        if count := int(without[name].sum()):
            first = part.paths[int(without[name].int().argmax())]
            yield f"{count:,} of {len(part):,} rows of {name} have no label and are left out, first {first}"


def shared(reference: Source, query: Source, contents: bool = True) -> str:
    """In words, how many queries the reference has too, under one path or with one content; "" where there are none."""
    paths = set(reference.paths)
    twins = {path: path for path in query.paths if path in paths}
    if contents and (keys := _contents(reference)) and (asked := _contents(query)):
        rows = {key: row for row, key in reversed(list(enumerate(keys))) if key is not None}
        for row, key in enumerate(asked):
            if key in rows and _equal(reference, rows[key], query, row):
                twins.setdefault(query.paths[row], reference.paths[rows[key]])
    if not twins:
        return ""
    first = next(f"{one} is {other}" if one != other else one for one, other in twins.items())
    return f"leak: {len(twins):,} of {len(query):,} queries are in the reference too, first {first}"


def _contents(source: Source) -> Sequence[Hashable] | None:
    """(N,) what tells the contents of rows apart, None of a row that cannot be read; None where looking costs much."""
    read = getattr(source, "read", None)
    if read is None and source.texts is not None:
        return [source.texts(row) for row in range(len(source))]
    stamps = source.stamps()
    if read is None or not len(source) or video_of(source.paths[0]) in set(stamps.names):  # a file a row, or a video
        files = {name: (size, token) for name, size, token in zip(stamps.names, stamps.sizes, stamps.tokens) if token}
        return [files.get(video_of(path)) for path in source.paths]
    if stamps.sizes.sum() > _MOST_BYTES:
        return None
    return [_content(read, row) for row in range(len(source))]


def _content(read: Callable[[int], bytes], row: int) -> Hashable:
    try:
        data = read(row)
    except Unreadable:
        return None
    return len(data), hash(data)


def _equal(reference: Source, row: int, query: Source, other: int) -> bool:
    """Whether two rows are the same bytes, whose files have one size and the same pieces; videos count as equal."""
    one, two = getattr(reference, "read", None), getattr(query, "read", None)
    if one is None or two is None or video_of(query.paths[other]) != query.paths[other]:
        return True
    return _content(one, row) == _content(two, other) is not None


def split_by_hash(paths: Sequence[str], labels: Tensor, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Sorted rows (reference, query): of every label ``share`` are queries, those whose paths have the lowest hashes.

    A function of paths and labels alone, on any machine; a label of two rows or more has one of each at least. Frames
    of a video stay together, as one.
    """
    strata: dict[int, dict[str, list[int]]] = {}
    for row, (path, label) in enumerate(zip(paths, labels.tolist())):
        strata.setdefault(label, {}).setdefault(video_of(path), []).append(row)
    query: list[int] = []
    for units in strata.values():
        count = min(max(1, round(share * len(units))), len(units) - 1)
        for unit in sorted(
            units, key=lambda unit: (blake2b(unit.encode("utf-8", "surrogateescape"), digest_size=8).digest(), unit)
        )[:count]:
            query += units[unit]
    chosen = torch.zeros(len(paths), dtype=torch.bool)
    chosen[query] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def native_side(source: PictureSource, looks: int = 256) -> int:
    """The median short side in pixels of up to ``looks`` evenly spaced pictures, by their headers; raises UserError."""
    count = min(looks, len(source))
    sides, reasons = list[int](), list[str]()
    for i in range(count):
        try:
            sides.append(min(source.size(i * len(source) // count)))
        except Unreadable as unreadable:
            reasons.append(unreadable.reason)
    if not sides:
        raise UserError(f"none of {count} pictures can be read, first {source.paths[0]} ({reasons[0]})", BAD_DATA)
    return sorted(sides)[len(sides) // 2]


def name_of(data: Data) -> str:
    """What records and messages call the data: a path as it is, anything in memory by its kind and length."""
    return str(data) if isinstance(data, str | os.PathLike) else f"a {type(data).__name__} of {len(data)}"


def _chosen(split: str | None, place: Place[Source]) -> str | None:
    """The split's own name, None for everything; raises UserError."""
    if split is None:
        return TRAIN if TRAIN in place.splits else None
    if split == EVERYTHING:
        return None
    name = split_of(split)
    if name is None or name not in place.splits:
        names = ", ".join([*place.splits, EVERYTHING])
        existing = f"there are {names}" if place.splits else "the data is not divided"
        raise UserError(f"no split {split!r}: {existing}; choose with --split, or leave it out", USAGE)
    return name
