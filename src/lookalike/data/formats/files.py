"""Which files a folder holds, and which split each belongs to by its name."""

from __future__ import annotations

import codecs
import copy
import csv
import os
import re
import stat
import unicodedata
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import accumulate, pairwise, takewhile
from pathlib import Path
from typing import NamedTuple, TextIO, overload

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import opened
from lookalike.data.decode import EXTRAS

TRAIN, VALIDATION, TEST = "train", "validation", "test"

# The words of the Hugging Face Hub (datasets/data_files.py).
_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}


# Words of folders beside the one for a split.
_CONTENT = re.compile(
    r"(image|img|pic|picture|photo|frame|video|clip|set|split|part|sample|file)s?|jpe?g|png|data|dataset|of|full|all|x|px"
)
_SYSTEM = frozenset(("__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "#recycle", "lost+found"))
_KINDS = 8  # suffixes that are named one by one


def limit_cells(longest: int = 1 << 17) -> None:
    """How many letters a cell may have. Python has one limit for all who read tables, so each states its own first."""
    csv.field_size_limit(longest)


@contextmanager
def lines_in(file: Path, errors: str) -> Iterator[TextIO]:
    """The lines of a text or a .csv; raises UserError, also where what reads them raises csv.Error."""
    limit_cells()
    try:
        with opened(file) as raw, TextIOWrapper(raw, encoding_of(raw.peek(4)), errors, newline="") as lines:
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
    """Wanted files below a folder: sorted relative POSIX paths; others by suffix; and what refused, with reasons."""

    files: list[str]
    others: Counter[str]
    unreadable: dict[str, str]  # folders, and what is called like a wanted file but is none


class Paths(Sequence[str]):
    """Paths that are made when asked for, and equal a list of the same."""

    @abstractmethod
    def _at(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        rows = range(len(self))[row]  # counts from the end, and raises IndexError
        return self._at(rows) if isinstance(rows, int) else [self._at(i) for i in rows]

    def __iter__(self) -> Iterator[str]:
        return map(self._at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]


class Numbered(Paths):
    """``name#row`` of every row of every part that is named: no memory a row."""

    def __init__(self, names: Iterable[str], rows: Iterable[int]) -> None:
        """``rows`` are how many each part has."""
        self._names, self._starts = list(names), list(accumulate(rows, initial=0))

    def _at(self, row: int) -> str:
        part = bisect_right(self._starts, row) - 1
        return f"{self._names[part]}#{row - self._starts[part]}"

    def __len__(self) -> int:
        return self._starts[-1]


class Chosen(Paths):
    """Those of ``paths`` at some rows."""

    def __init__(self, paths: Sequence[str], rows: Sequence[int]) -> None:
        self._paths, self._rows = paths, rows

    def _at(self, row: int) -> str:
        return self._paths[self._rows[row]]

    def __len__(self) -> int:
        return len(self._rows)


class Names(Paths):
    """Many paths in one block of bytes, decoded when asked for: a million of 33 letters take 41 MB instead of 90.

    And they stay one block: Python counts references inside of every string, so that workers which read a list of
    strings get a copy of its memory each, page by page.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        block, self._ends, self._errors = bytearray(), array("q", [0]), "surrogateescape"
        for path in paths:
            block += path.encode("utf-8", "surrogateescape")
            self._ends.append(len(block))
        self._block = bytes(block)

    def shown(self) -> Names:
        """The same as valid Unicode, see printable."""
        other = copy.copy(self)
        other._errors = "backslashreplace"
        return other

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _at(self, row: int) -> str:
        return self._block[self._ends[row] : self._ends[row + 1]].decode("utf-8", self._errors)

    def __iter__(self) -> Iterator[str]:
        for start, end in pairwise(self._ends):
            yield self._block[start:end].decode("utf-8", self._errors)


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
        self.others = Counter[str]()
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
                if not is_hidden(entry.name):
                    self.sort(entry, folder + entry.name, folders)
        self.folders += sorted(folders)

    def sort(self, entry: os.DirEntry[str], path: str, folders: list[str]) -> None:
        """One entry, to where it belongs; what is neither file nor folder (a FIFO, a dead link) is noted."""
        try:
            link, is_folder, is_file = entry.is_symlink(), entry.is_dir(), entry.is_file()
        except OSError:
            link = is_folder = is_file = False
        if is_folder and is_thumbnail(path):
            self.unreadable[printable(path) + "/"] = "thumbnails that a NAS made, no pictures of their own"
        elif is_folder:
            (self.linked if link else folders).append(path + "/")
        elif not path.lower().endswith(self.suffixes):
            self.others[suffix_of(path)] += 1
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


def on_disk(root: Path, path: str) -> bytes:
    """What the system calls a file below ``root``: its own bytes, in whatever locale this process runs."""
    return os.path.join(os.fsencode(root), path.encode("utf-8", "surrogateescape"))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is a system's own, which nobody counts as data."""
    return name.startswith(".") or name in _SYSTEM


def is_thumbnail(path: str) -> bool:
    """Whether a Synology NAS made a file or folder: a copy in small of each picture."""
    return "@eaDir" in path.split("/")


def suffix_of(path: str) -> str:
    """What a name ends in, in small letters, from its last dot on; nothing where that is no known sort of suffix."""
    match = re.search(r"[^/](\.[a-z][a-z0-9_~]{0,9}|\.[0-9][a-z][a-z0-9]?)$", path.lower())
    return match[1] if match else ""


def printable(path: str) -> str:
    """The path as valid Unicode: bytes that are no UTF-8 become escapes, so that tables and reports can hold it."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_of(name: str) -> str | None:
    """The split that a name begins with, as the Hub reads it: ``val2017`` and ``dev-00000`` are validation."""
    return _WORDS.get(re.split(r"[^a-z]", name.lower(), maxsplit=1)[0])


def by_folder(files: Sequence[str]) -> dict[str, list[str]]:
    """The files of each split that the first folders of their paths name; {} where the data is not divided.

    A split is called so alone, or with numbers and with words for what every split holds (``train2017``,
    ``test images``). With another word behind it is a class such as ``train_station``, unless two splits share the
    word: ``train_cropped`` beside ``test_cropped``.
    """
    folders = {path.partition("/")[0] for path in files if "/" in path}
    words = {folder: re.findall(r"[a-z]+", folder.lower())[1:] for folder in folders if split_of(folder)}
    rests = {folder: tuple(word for word in rest if not _CONTENT.fullmatch(word)) for folder, rest in words.items()}
    sharing = Counter(rest for rest, _ in {(rest, split_of(folder)) for folder, rest in rests.items()})
    splits = {folder: split_of(folder) for folder, rest in rests.items() if not rest or sharing[rest] > 1}
    return by_split(files, lambda path: splits.get(path.partition("/")[0]) if "/" in path else None)


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


def beside_splits(paths: Sequence[str], splits: Iterable[str]) -> dict[str, str]:
    """What is left out since it belongs to none of ``splits``: each first folder, or the first file outside of any."""
    names, found = " and ".join(splits), dict[str, list[str]]()
    for path in paths:
        folder, slash, _ = path.partition("/")
        found.setdefault(folder + slash if slash else "", []).append(path)
    return {
        printable(where or some[0]): f"{len(some):,} outside of the {'splits' if ' and ' in names else 'split'} {names}"
        for where, some in found.items()
    }


def class_folder(path: str, below: int) -> str | None:
    """The folder ``below`` others that holds a picture, in one form of Unicode; None where it lies outside of any."""
    parts = path.split("/", below + 1)
    return one_form(parts[below]) if len(parts) > below + 1 else None


def one_form(name: str) -> str:
    """A name as valid Unicode with composed accents, however its system wrote it: macOS takes them apart."""
    return unicodedata.normalize("NFC", printable(name))


def class_names(parts: Iterable[Sequence[str]], below: int) -> list[str]:
    """The classes of pictures: the folders, ``below`` others, in which most pictures of a part lie.

    A few may lie outside of them, without a class. One folder is no class, nor is a folder for each picture where the
    picture lies deeper (``7/images/7.png``).
    """
    folders, direct = Counter[str](), 0
    for part in parts:
        inside = Counter(class_folder(path, below) for path in part)
        if 2 * inside.pop(None, 0) < len(part):
            folders.update({name: count for name, count in inside.items() if name is not None})
            direct += sum(path.count("/") == below + 1 for path in part)
    alone = not direct and max(folders.values(), default=0) == 1
    return [] if len(folders) < 2 or alone else sorted(folders)


def outer_folder(paths: Iterable[str]) -> str:
    """The folders that hold everything, as ``a/b/``, up to one that names a split; nothing where there are several."""
    folders = [folder.split("/") for folder in {path.rpartition("/")[0] for path in paths}]
    pairs = zip(min(folders, default=[]), max(folders, default=[]))  # what these share, all in between do
    outer = takewhile(lambda pair: pair[0] == pair[1] != "" and split_of(pair[0]) is None, pairs)
    return "".join(f"{folder}/" for folder, _ in outer)


def unread(others: Mapping[str, int]) -> dict[str, str]:
    """What is said of files that are not read: how many, and of which suffixes; {} where there are none."""
    if not (total := sum(others.values())):
        return {}
    kinds = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in Counter(others).most_common()]
    more = [f"{len(kinds) - _KINDS} other kinds"] if len(kinds) > _KINDS else []
    hints = sorted({f"{suffix} is read after {EXTRAS[suffix]}" for suffix in others if suffix in EXTRAS})
    files = f"{total:,} other file{'' if total == 1 else 's'} not read"
    return {files: "; ".join([", ".join([*kinds[:_KINDS], *more]), *hints])}
