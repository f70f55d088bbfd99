"""Captioned pictures: a folder that holds pictures and files of captions.

Such a file has "caption" in its name: COCO's .json, or a .csv or .tsv with the columns ``image`` and ``caption``, a
line for each caption. A file's name finds a picture of the folder or none, never a path outside of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.annotations.coco import lists_of
from lookalike.data.annotations.record import Pictures
from lookalike.data.decode import SUFFIXES
from lookalike.data.example import PictureSource
from lookalike.data.fingerprint import stamps_of_files
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import Divided, Encoded
from lookalike.data.formats.files import Listing, Names, by_split, folder_split, listed
from lookalike.data.formats.places import Place, folder_store
from lookalike.data.source import Data, place_of
from lookalike.data.text.files import decoded, lines_of

MOST = 8  # captions of a picture that are read
NamedCaptions = Iterable[tuple[str, str]]
"""Names of pictures, each with one caption."""


class CaptionedImages(Encoded):
    """The captioned pictures of a folder, with as many captions each as the picture that has most: few ones repeat."""

    def __init__(self, root: Path, captions: dict[str, list[str]], unlisted: dict[str, str], tables: list[str]) -> None:
        """``captions`` by path below ``root``; ``tables`` are the files that hold them, below ``root`` too."""
        files, disk = sorted(captions), Local(root)
        store = folder_store(disk, Listing(files, 0, unlisted), by_split(files, folder_split))
        super().__init__(store, partial(stamps_of_files, disk.file, [*store.files, *tables]))
        self.files = store.files
        width = max(map(len, captions.values()))
        captions_of = [captions[path] for path in self.files]
        self._texts = [Names(texts[i % len(texts)] for texts in captions_of) for i in range(width)]

    def texts(self, row: int) -> tuple[str, ...]:
        """The captions of one picture."""
        return tuple(texts[row] for texts in self._texts)


def find_captioned(data: Data) -> Place[PictureSource]:
    """The captioned pictures of a folder; the pictures of whatever has no captions. Raises UserError."""
    if not isinstance(data, str | os.PathLike) or not Path(data).is_dir():
        return place_of(data)
    root = Path(data)
    tables = [path for path in listed(root, (".json", ".csv", ".tsv")).files if "caption" in Path(path).name.lower()]
    if not tables:
        return place_of(data)
    images = _read(root, tables)
    row_of = {path: row for row, path in enumerate(images.files)}
    splits = by_split(list(images.files), folder_split)
    return Divided(images, {split: sorted(map(row_of.__getitem__, paths)) for split, paths in splits.items()})


def _read(root: Path, tables: list[str]) -> CaptionedImages:
    """The pictures that files of captions name; raises UserError where they name none."""
    pictures = Pictures(root)
    captions: dict[str, list[str]] = {}
    for table in tables:
        for name, text in _coco(root / table) if table.endswith(".json") else _table(root, table):
            path = pictures.find(name, table)
            if path is not None and len(captions.setdefault(path, [])) < MOST:
                captions[path].append(text)
    if not captions:
        raise UserError(f"{root}: no file of captions names a picture in it, of {', '.join(tables[:3])}", BAD_DATA)
    without = {path: "no caption" for path in pictures.paths if path not in captions}
    return CaptionedImages(root, captions, listed(root, SUFFIXES).unreadable | without, tables)


def _coco(file: Path) -> NamedCaptions:
    """Those of COCO's captions_*.json; raises UserError."""
    images, annotations = lists_of(file, "images", "annotations")
    names = {str(one.get("id")): one.get("file_name") for one in images}
    return _captions((names.get(str(one.get("image_id"))), one.get("caption")) for one in annotations)


def _table(root: Path, table: str) -> NamedCaptions:
    """Those of a .csv or .tsv; raises UserError."""
    lines = lines_of(Local(root), table, ("image", "caption"))
    return _captions(line.texts for line in lines if len(line.texts) == 2 and line.bad is None)


def _captions(pairs: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Pairs of a name and a text; what is neither is left out, and a text is cut as a line of a file would be."""
    for name, text in pairs:
        if isinstance(name, str) and isinstance(text, str):
            caption = decoded(text.encode("utf-8", "replace")[: 1 << 14])
            if caption and "\0" not in caption:
                yield name, caption
