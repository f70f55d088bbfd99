"""Tar shards in WebDataset's layout: KEY.jpg with KEY.cls, KEY.json, KEY.txt beside it; nothing is ever unpickled.

A key ends at the first dot of the file name. One row a key: its plain picture (KEY.jpg before KEY.png), or else every
picture among its members. Labels are the whole number in KEY.cls, or a label named in KEY.json.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.formats.archives import plain
from lookalike.data.formats.columns import LABELS
from lookalike.data.formats.disk import MAX_BYTES, Disk
from lookalike.data.formats.encoded import Value
from lookalike.data.formats.files import printable
from lookalike.data.formats.tar import Damaged, Member, Window, members
from lookalike.data.image.decode import SUFFIXES, Unreadable

_LARGEST_LABEL = 1 << 20  # bytes of a .cls or .json
_CODE = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".npy", ".npz")  # what WebDataset's own reader may unpickle


class TarShard:
    """One shard and its index, which one walk over the headers makes: 16 bytes a row beside its name."""

    def __init__(self, disk: Disk, path: str) -> None:
        """Raises UserError where the file cannot be opened."""
        self.path, self._file, self._disk = printable(path), path, disk
        walk = _Walk(self.path)
        try:
            with disk.file(path) as file:
                walk.run(Window(file, disk.piece))
        except OSError as error:
            raise UserError(f"{disk.name(path)}: {error.strerror or error}; check the file", BAD_DATA) from None
        self.unlisted = walk.unlisted
        self.names = _one_a_key(walk.pictures)
        labels = walk.described | walk.classes
        self.values = [labels.get(_keyed(name)[0]) for name in self.names]
        self._spans = array("q", (number for name in self.names for number in walk.pictures[name][1:3]))

    def read(self, index: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        start, size = self._spans[2 * index], self._spans[2 * index + 1]
        if size > MAX_BYTES:
            raise Unreadable(f"{size} bytes are more than the limit of {MAX_BYTES}")
        return self._disk.span(self._file, start, size)


class _Walk:
    """What one walk over a shard has found so far; of members of one name the last counts, as in any tar."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pictures: dict[str, Member] = {}
        self.classes: dict[str, Value] = {}  # by key, from .cls
        self.described: dict[str, Value] = {}  # by key, from .json
        self.unlisted: dict[str, str] = {}
        self.code = Counter[str]()

    def run(self, window: Window) -> None:
        """Sort every member; raises OSError."""
        try:
            for member in members(window):
                self.sort(member, window)
        except Damaged as damaged:
            self.unlisted[self.path] = str(damaged)
        for suffix, count in self.code.items():
            self.unlisted[f"{self.path}/*{suffix}"] = f"{count} members may hold code, and are never read"

    def sort(self, member: Member, window: Window) -> None:
        """One member, to where it belongs."""
        name, refused = plain(member.name)
        refused = refused or (member.refused if name else None)
        if refused is not None:
            self.unlisted[f"{self.path}/{member.name}"] = refused
        elif name:
            key, suffix = _keyed(name)
            last = suffix[suffix.rfind(".") :]
            if last in SUFFIXES:
                self.pictures[name] = member
            elif last in _CODE:
                self.code[last] += 1
            elif suffix == ".cls" and (label := _number(_data(member, window))) is not None:
                self.classes[key] = label
            elif suffix == ".json" and (label := _described(_data(member, window))) is not None:
                self.described[key] = label


def _data(member: Member, window: Window) -> bytes:
    """The bytes of a small member; of one that is no label, nothing."""
    return window.read(member.start, member.size) if member.size <= _LARGEST_LABEL else b""


def _keyed(name: str) -> tuple[str, str]:
    """The key of a sample, with its folder, and the rest of the name in lower case."""
    folder, slash, base = name.rpartition("/")
    key, dot, rest = base.partition(".")
    return folder + slash + key, (dot + rest).lower()


def _one_a_key(names: Iterable[str]) -> list[str]:
    """The pictures that are rows, in order."""
    plain_ones: dict[str, tuple[int, str]] = {}
    for name in names:
        key, suffix = _keyed(name)
        if suffix in SUFFIXES:
            best = (SUFFIXES.index(suffix), name)
            plain_ones[key] = min(best, plain_ones.get(key, best))
    return [name for name in names if plain_ones.get(_keyed(name)[0], (0, name))[1] == name]


def _number(data: bytes) -> Value | None:
    """The whole number that a .cls holds as text, else None."""
    text = data.strip()
    return int(text) if text.removeprefix(b"-").isdigit() and len(text) < 20 else None


def _described(data: bytes) -> Value | None:
    """The first label that a .json names, a whole number or a word, else None."""
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    values = [found.get(name) for name in ("cls", *LABELS)] if isinstance(found, dict) else []
    label = next((v for v in values if isinstance(v, int | str) and not isinstance(v, bool)), None)
    return label.encode("utf-8", "backslashreplace").decode()[:200] if isinstance(label, str) else label
