"""The pictures below a folder, as annotation files name them: a name finds a listed picture or none, never a path."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from lookalike.data.formats.disk import Local
from lookalike.data.formats.files import listed, printable, split_of
from lookalike.data.image.decode import SUFFIXES, Header, Unreadable, header

_HEAD = 1 << 16


class Omissions:
    """Kinds of things that were left out, how many, and where the first one is."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, what: str, where: str, count: int = 1) -> None:
        """``count`` more of a kind, in words."""
        if count:
            self.counts[what] = self.counts.get(what, 0) + count
            self._first.setdefault(what, printable(where))

    def notes(self) -> tuple[str, ...]:
        """One line a kind."""
        return tuple(f"{count} {what}, first {self._first[what]}" for what, count in sorted(self.counts.items()))


class Pictures:
    """Listed once; counts what could not be found or read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = listed(root, SUFFIXES).files
        self.omissions = Omissions()
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in self.paths:
            name = PurePosixPath(path)
            self._by_name.setdefault(name.name, []).append(path)
            self._by_stem.setdefault(name.stem, []).append(path)
        self._sizes: dict[str, tuple[int, int] | None] = {}

    def find(self, name: str, near: str = "") -> str | None:
        """The picture that a file ``near`` calls ``name``: that of most common last parts, then of the same split."""
        called = PurePosixPath(name.replace("\\", "/"))
        return self._nearest(self._by_name.get(called.name, []), called, near)

    def beside(self, path: str) -> str | None:
        """The picture of the same stem as an annotation file of its own."""
        file = PurePosixPath(path)
        return self._nearest(self._by_stem.get(file.stem, []), file, path)

    def _nearest(self, candidates: list[str], called: PurePosixPath, near: str) -> str | None:
        words = splits_in(near)

        def fit(path: str) -> tuple[int, bool]:
            return _common(PurePosixPath(path).parent.parts, called.parent.parts), bool(splits_in(path) & words)

        return max(candidates, key=fit, default=None)

    def size(self, path: str) -> tuple[int, int] | None:
        """Upright (height, width) in pixels; None, and counted, where the picture cannot be read."""
        if path not in self._sizes:
            self._sizes[path] = self._read(path)
        return self._sizes[path]

    def _read(self, path: str) -> tuple[int, int] | None:
        try:
            size = self._header(path)
        except Unreadable as unreadable:
            self.omissions.add("pictures that cannot be read", f"{path} ({unreadable.reason})")
            return None
        return size.height, size.width

    def _header(self, path: str) -> Header:
        """From the first bytes where they are enough: COCO's 118,000 pictures are 19 GB. Raises Unreadable."""
        try:
            with Local(self.root).file(path) as file:
                return header(file.read(_HEAD))
        except (OSError, ValueError, Unreadable):
            return header(Local(self.root).whole(path))


def _common(path: tuple[str, ...], parts: tuple[str, ...]) -> int:
    """How many parts are the same from the end on."""
    count = 0
    for a, b in zip(reversed(path), reversed(parts)):
        if a != b:
            break
        count += 1
    return count


def splits_in(path: str) -> set[str]:
    """The splits that words of a path name: ``instances_val2017.json`` and ``val2017/1.jpg`` are both validation."""
    words = re.split(r"[/_.-]", path)
    return {split for word in words if (split := split_of(word)) is not None}
