"""From what a person names to a source: a place (``places.py``), ``digits``, a tensor, a dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.core.devices import isolated
from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.data.decode import Unreadable
from lookalike.data.example import PictureSource, Rows, Source
from lookalike.data.formats.arrays import InMemory, MapStyle, digits, in_memory
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION, split_of
from lookalike.data.formats.places import Place
from lookalike.data.formats.places import find as pictures
from lookalike.data.video.source import video_of

S = TypeVar("S", bound=Source)
Data = str | os.PathLike[str] | Tensor | npt.NDArray[np.generic] | MapStyle | Mapping[str, MapStyle]
Finder = Callable[[Data], Place[Source]]
"""How what a person names becomes a place."""
DIGITS = "digits"
"""The word that always means scikit-learn's digits, whatever lies in the folder of this name."""
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
    """The pictures of a path, an address, a name, a tensor or a dataset; raises UserError."""
    if not isinstance(data, str | os.PathLike):
        return in_memory(data)
    return InMemory({}, digits()) if data == DIGITS else pictures(data)


@overload
def reference_and_query(data: Data) -> tuple[PictureSource, PictureSource]: ...
@overload
def reference_and_query(data: Data, *, find: Callable[[Data], Place[S]]) -> tuple[S | Rows, S | Rows]: ...
@isolated()
def reference_and_query(data: Data, *, find: Finder | None = None) -> tuple[Source, Source]:
    """The reference and the queries of an evaluation: train and test (else validation), else 80 and 20 percent."""
    parts = splits_of(data, find=find or place_of)
    query = TEST if TEST in parts else VALIDATION
    if TRAIN in parts and query in parts:
        return parts[TRAIN], parts[query]
    source = next(iter(parts.values())) if len(parts) == 1 else open_source(data, EVERYTHING, find=find or place_of)
    reference_rows, query_rows = split_by_hash(source.paths, source.labels)
    return Rows(source, reference_rows), Rows(source, query_rows)


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
