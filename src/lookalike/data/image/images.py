"""A folder of pictures in any layout as a source."""

from __future__ import annotations

import copy
import os
import stat
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from lookalike.data.example import Example, broken, whole
from lookalike.data.fingerprint import Stamps, regular, stamps_of_files
from lookalike.data.formats.files import Listing, Names, by_split, folder_split, printable
from lookalike.data.image.decode import Unreadable, decode, header

MAX_BYTES = 1 << 30  # of one file: more is no picture that anybody wants to learn from


class Images:
    """Pictures as files. The first folder below the split is the label if every picture lies in one of two or more."""

    starts: Sequence[int] | None = None
    texts: Callable[[int], tuple[str, ...]] | None = None

    def __init__(self, root: Path, listing: Listing, split: str | None) -> None:
        """``split`` None is every picture; ``listing`` is of the whole root: all splits number classes alike."""
        splits = by_split(listing.files, folder_split)
        below = 1 if splits else 0
        everything = [path for files in splits.values() for path in files] if splits else listing.files
        self.root = root
        files = sorted(everything) if split is None else splits[split]
        self.files = Names(files)
        self.paths = self.files.shown()
        self.unlisted = listing.unreadable
        names, labels = _classes(everything, below), None
        if len(names) > 1:
            labels = _labels(files, below, {name: i for i, name in enumerate(names)})
        self.classes = [] if labels is None else [printable(name) for name in names]
        self.labels: Tensor = torch.full((len(files),), -1) if labels is None else torch.tensor(labels)
        self._labels = array("q", self.labels.numpy().tobytes())  # a tensor takes microseconds to index

    def __len__(self) -> int:
        return len(self.files)

    def example(self, row: int, side: int) -> Example:
        """One picture on a canvas of ``side`` pixels."""
        label, path = self._labels[row], self.paths[row]
        try:
            return whole(decode(self.read(row), side), label, path)
        except Unreadable as unreadable:
            return broken(side, label, path, unreadable.reason)

    def size(self, row: int) -> tuple[int, int]:
        """Upright (height, width) in pixels, from the header; raises Unreadable."""
        found = header(self.read(row))
        return found.height, found.width

    def only(self, files: Sequence[str]) -> Self:
        """These files below the same root, in this order, without labels."""
        other = copy.copy(self)
        other.files = Names(files)
        other.paths, other.classes = other.files.shown(), []
        other.labels = torch.full((len(files),), -1)
        other._labels = array("q", other.labels.numpy().tobytes())
        return other

    def stamps(self) -> Stamps:
        """Names, sizes and content of the files."""
        return stamps_of_files(partial(regular, self.root), self.files)

    def read(self, row: int) -> bytes:
        """The bytes of one file; raises Unreadable."""
        try:
            # Not blocking, should a FIFO have taken the file's place since it was listed.
            number = os.open(os.path.join(self.root, self.files[row]), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            try:
                return _all_of(number)
            finally:
                os.close(number)
        except OSError as error:
            raise Unreadable(error.strerror or type(error).__name__) from None


def _all_of(number: int) -> bytes:
    """What an open file holds, in a third of the time that a file object takes; raises Unreadable and OSError."""
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("not a regular file")
    if found.st_size > MAX_BYTES:
        raise Unreadable(f"{found.st_size} bytes are more than the limit of {MAX_BYTES}")
    data = os.read(number, found.st_size)
    while len(data) < found.st_size and (more := os.read(number, found.st_size - len(data))):
        data += more  # a share may hand over less at a time
    return data


def _class_of(path: str, below: int) -> str | None:
    """The folder that names the class, None where the picture lies outside of any."""
    parts = path.split("/", below + 1)
    return parts[below] if len(parts) > below + 1 else None


def _classes(files: Sequence[str], below: int) -> list[str]:
    """The class folders of all splits, sorted."""
    return sorted({name for path in files if (name := _class_of(path, below)) is not None})


def _labels(files: Sequence[str], below: int, numbers: dict[str, int]) -> list[int] | None:
    """A label for each file, or None where one lies outside of the class folders."""
    labels = [numbers.get(_class_of(path, below) or "", -1) for path in files]
    return None if -1 in labels else labels
