"""Which files a folder holds, and which split each belongs to by its name."""

from __future__ import annotations

import codecs
import copy
import csv
import os
import re
import stat
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TextIO, overload

from lookalike.core.errors import BAD_DATA, UserError

TRAIN, VALIDATION, TEST = "train", "validation", "test"

# The words of the Hugging Face Hub (datasets/data_files.py).
_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}


def limit_cells(longest: int = 1 << 17) -> None:
    """How many letters a cell may have. Python has one limit for all who read tables, so each states its own first."""
    csv.field_size_limit(longest)


@contextmanager
def lines_in(file: Path, errors: str) -> Iterator[TextIO]:
    """The lines of a text or a .csv; raises UserError, also where what reads them raises csv.Error."""
    limit_cells()
    try:
        with open(file, "rb") as raw, TextIOWrapper(raw, encoding_of(raw.peek(4)), errors, newline="") as lines:
            yield lines
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check its permissions", BAD_DATA) from None
    except csv.Error as error:
        raise UserError(f"{file}: no table that can be read ({error}); mend it", BAD_DATA) from None


def encoding_of(start: bytes) -> str:
    """By a byte order mark, or by the zeros of UTF-16 in the first four bytes; else UTF-8."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = [byte == 0 for byte in start[:4]]
    wide = {"utf-16-le": [False, True] * 2, "utf-16-be": [True, False] * 2}
    return next((name for name, places in wide.items() if zeros == places), "utf-8-sig")


class Listing(NamedTuple):
    """The wanted files below a folder: sorted relative POSIX paths, how many others, and what refused, with reasons."""

    files: list[str]
    others: int
    unreadable: dict[str, str]  # folders, and what is called like a wanted file but is none


class Names(Sequence[str]):
    """Many paths in one block of bytes, decoded when asked for: a million of 33 letters take 41 MB instead of 90.

    And they stay one block: Python counts references inside of every string, so that workers which read a list of
    strings get a copy of its memory each, page by page.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        block, self._ends, self._errors = bytearray(), array("q", [0]), "surrogateescape"
        for path in paths:
            block += os.fsencode(path)
            self._ends.append(len(block))
        self._block = bytes(block)

    def shown(self) -> Names:
        """The same as valid Unicode, see printable."""
        other = copy.copy(self)
        other._errors = "backslashreplace"
        return other

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = range(len(self))[row]  # counts from the end, and raises IndexError
        return self._block[self._ends[row] : self._ends[row + 1]].decode("utf-8", self._errors)

    def __iter__(self) -> Iterator[str]:
        for start, end in pairwise(self._ends):
            yield self._block[start:end].decode("utf-8", self._errors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]


def listed(root: Path, suffixes: Sequence[str]) -> Listing:
    """Every file below ``root`` that ends in one of ``suffixes``, in any case of letters.

    Nothing is opened, so a FIFO cannot block. Each folder is visited once, by its inode, real ones before links to
    them: loops end, and a path does not depend on a link.
    """
    walk = _Walk(root, tuple(suffixes))
    walk.run()
    return Listing(sorted(walk.files + walk.fresh_links()), walk.others, walk.unreadable)


class _Walk:
    def __init__(self, root: Path, suffixes: tuple[str, ...]) -> None:
        self.root, self.suffixes = root, suffixes
        self.files: list[str] = []
        self.links: list[str] = []
        self.others = 0
        self.unreadable: dict[str, str] = {}
        self.folders, self.linked = [""], deque[str]()
        # A link to what holds the root would bring in the root again, and the rest of the disk with it.
        self.visited = {_identity(os.stat(parent)) for parent in root.resolve().parents}

    def run(self) -> None:
        """Visit every folder; linked ones when the real ones are done."""
        while self.folders or self.linked:
            folder = self.folders.pop() if self.folders else self.linked.popleft()
            try:
                self.visit(folder)
            except OSError as error:
                self.unreadable[printable(folder) or "."] = error.strerror or type(error).__name__

    def visit(self, folder: str) -> None:
        where = os.path.join(self.root, folder)
        identity = _identity(os.stat(where))
        if identity in self.visited:
            return
        self.visited.add(identity)
        folders: list[str] = []
        with os.scandir(where) as entries:
            for entry in entries:  # never all at once: a million of them would take 300 MB
                if not entry.name.startswith(".") and entry.name != "__MACOSX":
                    self.sort(entry, folder + entry.name, folders)
        self.folders += sorted(folders)

    def sort(self, entry: os.DirEntry[str], path: str, folders: list[str]) -> None:
        """One entry, to where it belongs; what is neither file nor folder (a FIFO, a dead link) is noted."""
        try:
            link, is_folder, is_file = entry.is_symlink(), entry.is_dir(), entry.is_file()
        except OSError:
            link = is_folder = is_file = False
        if is_folder:
            (self.linked if link else folders).append(path + "/")
        elif not path.lower().endswith(self.suffixes):
            self.others += 1
        elif is_file:
            (self.links if link else self.files).append(path)
        else:
            self.unreadable[printable(path)] = _why_no_file(entry)

    def fresh_links(self) -> list[str]:
        """Linked files, without those whose target is listed under its own name (a stat each, so only if any)."""
        if not self.links:
            return []
        listed_files = {_identity(os.stat(os.path.join(self.root, path))) for path in self.files}
        return [path for path in self.links if _identity(os.stat(os.path.join(self.root, path))) not in listed_files]


def _why_no_file(entry: os.DirEntry[str]) -> str:
    """What an entry is that is neither file nor folder, or why nobody can tell."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return f"a link that leads nowhere ({reason})" if entry.is_symlink() else reason
    return "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "not a regular file"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def printable(path: str) -> str:
    """The path as valid Unicode: bytes that are no UTF-8 become escapes, so that tables and reports can hold it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def split_of(name: str) -> str | None:
    """The split that a name begins with, as the Hub reads it: ``val2017`` and ``dev-00000`` are validation."""
    return _WORDS.get(re.split(r"[^a-z]", name.lower(), maxsplit=1)[0])


def folder_split(path: str) -> str | None:
    """The split of a picture: by the first folder of its relative path."""
    return split_of(path.split("/", 1)[0]) if "/" in path else None


def table_split(path: str) -> str | None:
    """The split of a table: by a word of its file's name, else of the folders that hold it, innermost first."""
    for part in reversed(path.lower().removesuffix(".parquet").split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in _WORDS:
                return _WORDS[word]
    return None


def by_split(files: Sequence[str], split: Callable[[str], str | None]) -> dict[str, list[str]]:
    """The files of each split that exists; {} where the data is not divided.

    A class folder may be called ``train`` too. So names count as splits where all of them are, or where train stands
    beside another split; files outside of every split are then left out.
    """
    names = [split(path) for path in files]
    groups = {name: [path for path, own in zip(files, names) if own == name] for name in (TRAIN, VALIDATION, TEST)}
    groups = {name: paths for name, paths in groups.items() if paths}
    return groups if None not in names or (TRAIN in groups and len(groups) > 1) else {}
