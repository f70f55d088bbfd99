"""Pictures with what people say of them: a folder that holds pictures and files of captions.

Such a file has "caption" in its name: COCO's .json, or a .csv or .tsv with the columns ``image`` and ``caption``, a
line for each caption. A file's name finds a picture of the folder or none, never a path outside of it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.annotations.coco import lists_of
from lookalike.data.annotations.pictures import Pictures
from lookalike.data.example import PictureSource
from lookalike.data.fingerprint import stamps_of_files
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import Encoded
from lookalike.data.formats.files import Listing, Names, by_split, folder_split, listed
from lookalike.data.formats.places import Place, folder_store
from lookalike.data.image.decode import SUFFIXES
from lookalike.data.loader import Loaded, Loader
from lookalike.data.rows import Rows
from lookalike.data.source import Data, place_of
from lookalike.data.text.texts import decoded, rows_of
from lookalike.data.text.tokenizer import Reader
from lookalike.types import Captioned

MOST = 8  # captions of a picture that are read
Said = Iterable[tuple[str, str]]
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
        said = [captions[path] for path in self.files]
        self._texts = [Names(texts[i % len(texts)] for texts in said) for i in range(width)]

    def texts(self, row: int) -> tuple[str, ...]:
        """The captions of one picture."""
        return tuple(texts[row] for texts in self._texts)


class Album:
    """A folder with captions, read once."""

    def __init__(self, pictures: CaptionedImages) -> None:
        self._pictures = pictures
        self._splits = by_split(list(pictures.files), folder_split)

    @property
    def splits(self) -> list[str]:
        """Which of train, validation and test exist."""
        return list(self._splits)

    def rows(self, split: str | None) -> CaptionedImages | Rows:
        """One split, or everything."""
        whole = self._pictures
        if split is None:
            return whole
        wanted = set(self._splits[split])
        return Rows(whole, torch.tensor([row for row, path in enumerate(whole.files) if path in wanted]))


def find_captioned(data: Data) -> Place[PictureSource]:
    """The captioned pictures of a folder; the pictures of whatever has no captions. Raises UserError."""
    if not isinstance(data, str | os.PathLike) or not Path(data).is_dir():
        return place_of(data)
    root = Path(data)
    tables = [path for path in listed(root, (".json", ".csv", ".tsv")).files if "caption" in Path(path).name.lower()]
    return Album(_read(root, tables)) if tables else place_of(data)


def _read(root: Path, tables: list[str]) -> CaptionedImages:
    """Everything that the files of captions say of pictures that are there; raises UserError where that is nothing."""
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


def _coco(file: Path) -> Said:
    """Those of COCO's captions_*.json; raises UserError."""
    images, annotations = lists_of(file, "images", "annotations")
    names = {str(one.get("id")): one.get("file_name") for one in images}
    return _spoken((names.get(str(one.get("image_id"))), one.get("caption")) for one in annotations)


def _table(root: Path, table: str) -> Said:
    """Those of a .csv or .tsv; raises UserError."""
    rows = rows_of(Local(root), table, ("image", "caption"))
    return _spoken(row.texts for row in rows if len(row.texts) == 2 and row.bad is None)


def _spoken(pairs: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Pairs of a name and a text; what is neither is left out, and a text is cut as a line of a file would be."""
    for name, text in pairs:
        if isinstance(name, str) and isinstance(text, str):
            said = decoded(text.encode("utf-8", "replace")[: 1 << 14])
            if said and "\0" not in said:
                yield name, said


class CaptionLoader:
    """Batches of pictures with their captions; the one that stands in for a bad picture brings its own."""

    def __init__(self, pictures: Loader, said: Reader) -> None:
        self._pictures, self._said = pictures, said
        self.source, self.bad, self.bad_rows = pictures.source, pictures.bad, pictures.bad_rows

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Loaded[Captioned], None, None]:
        """The material of each step's rows (B,), in order. Raises UserError."""
        for rows, canvases in self._pictures.batches(rows_of_steps):
            said = next(self._said.batches([self.shown(rows)])).material
            yield Loaded(rows, Captioned(*canvases, *said))

    def shown(self, rows: Tensor) -> Tensor:
        """The rows (B,) whose pictures stand in a batch that was asked for ``rows``."""
        return self._pictures.shown(rows)
