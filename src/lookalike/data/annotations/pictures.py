"""The pictures of a folder as annotation files name them, and what was left out, in words.

A name finds the picture that it means or none, never another one that is called alike: folders that a name states,
or in which a file of labels lies, must agree with the picture's, words such as ``images`` and ``labels`` apart.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import combinations, takewhile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from lookalike.data.decode import SUFFIXES, Header, Unreadable, header
from lookalike.data.formats.disk import Local
from lookalike.data.formats.files import listed, printable, split_of

_HEAD = 1 << 16  # bytes of a picture that hold its header, as a rule
_MASKS = r"masks?|gt|segmentations?|segmentationclass(?:raw|aug)?|segmentationobject|instances?|depth"
_WORDS = (
    r"images?|imgs?|photos?|pics?|pictures?|jpegimages|leftimg8bit|rgb|frames|data|labels?|annots?|annotations?|anns?"
    r"|captions?|xmls?|txts?|jsons?|csvs?|bbox(?:es)?|box(?:es)?|coco|voc|yolo|keypoints"
)
_KINDS = re.compile(rf"(?<![^-_ .])(?:{_MASKS}|{_WORDS})(?![^-_ .])", re.I)
_MASK = re.compile(rf"(?<![^-_ ./])(?:{_MASKS})(?![^-_ ./])", re.I)


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
    """Those below a folder, as annotation files name them: a name finds a listed picture or none, never a path.

    Listed once; counts what could not be found or read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = listed(root, SUFFIXES).files
        self.omissions = Omissions()
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        self._folders = {
            "/".join(parts[:i]) for path in self.paths for parts in [path.split("/")] for i in range(len(parts))
        }
        for path in self.paths:
            name = PurePosixPath(path)
            self._by_name.setdefault(same_name(name.name), []).append(path)
            self._by_stem.setdefault(same_name(name.stem), []).append(path)
        self._sizes: dict[str, tuple[int, int] | None] = {}
        self._ambiguous: set[tuple[str, str]] = set()

    def find(self, name: str, near: str = "") -> str | None:
        """The picture that a file ``near`` calls ``name``: that of most common last folders, then of the same split.

        A name without a folder means a picture below that of the file, where that holds pictures.
        """
        called = PurePosixPath(name.replace("\\", "/"))
        alike = self._by_name.get(same_name(called.name), [])
        exact = [path for path in alike if PurePosixPath(path).name == called.name]
        candidates = exact or alike
        home = os.path.dirname(near)
        if not folders(called.as_posix()):
            if folders(near) and home in self._folders:
                candidates = [path for path in candidates if path.startswith(f"{home}/")]
            splits = splits_in(near)
            candidates = [path for path in candidates if not splits or (_split_folders(path) or splits) & splits]
        path = self._nearest(candidates, called.as_posix(), near)
        if path is not None and not exact:
            self.omissions.add("names that are written otherwise (capitals, %20, accents)", f"{name} ({path})")
        return path

    def find_all(self, names: Iterable[str], near: str) -> list[str | None]:
        """The picture of each name; none for names of several folders that would reach the same one.

        Where a.png and A.png would, the one that the picture has literally does.
        """
        names = list(names)
        paths = [self.find(name, near) for name in names]
        places: dict[str, set[tuple[str, ...]]] = {}
        calls: dict[str, set[str]] = {}
        for name, path in zip(names, paths):
            if path is not None:
                places.setdefault(path, set()).add(folders(name))
                calls.setdefault(path, set()).add(_last(name))
        contested = {path for path, some in places.items() if any(_differ(*pair) for pair in combinations(some, 2))}
        for path in sorted(contested):
            self.omissions.add(f"pictures that {near} names in several folders", path)

        def belongs(name: str, path: str) -> bool:
            return path not in contested and (len(calls[path]) == 1 or _last(name) == _last(path))

        return [path if path is not None and belongs(name, path) else None for name, path in zip(names, paths)]

    def beside(self, path: str, name: str = "") -> str | None:
        """The picture of the same stem as an annotation file of its own; of several the one that is called ``name``."""
        stem = PurePosixPath(path).stem
        alike = self._by_stem.get(same_name(stem), [])
        candidates = [candidate for candidate in alike if PurePosixPath(candidate).stem == stem] or alike
        exact = [candidate for candidate in candidates if PurePosixPath(candidate).name == name]
        return self._nearest(exact or candidates, path, os.path.dirname(path))

    def _nearest(self, candidates: list[str], name: str, near: str) -> str | None:
        """The best of the candidates whose folders do not contradict those of ``name``; None where two are equal."""
        stated, splits, close = folders(name), splits_in(near), near.split("/")

        def fit(path: str) -> tuple[int, int, bool, bool, int]:
            own = PurePosixPath(path).parent.as_posix()
            literal = _common(reversed(own.split("/")), reversed(name.split("/")[:-1]))
            split = bool(splits_in(own) & splits)
            return _common(folders(path), stated), literal, split, not _MASK.search(own), _common(own.split("/"), close)

        ranked = sorted(((fit(path), path) for path in candidates if not _differ(folders(path), stated)), reverse=True)
        if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
            if (name, near) not in self._ambiguous:
                self._ambiguous.add((name, near))
                self.omissions.add("names that fit several pictures", name)
            return None
        return ranked[0][1] if ranked else None

    def agreement(self, file: str, path: str) -> int:
        """How many of the last folders of a file and of a picture are the same."""
        return _common(folders(file), folders(path))

    def relative(self, file: Path) -> str:
        """A file as its path below the folder, or its name where it lies elsewhere."""
        inside = Path(os.path.relpath(file.resolve(), self.root.resolve()))
        return file.name if ".." in inside.parts else inside.as_posix()

    def size(self, path: str) -> tuple[int, int] | None:
        """Upright (height, width) in pixels; None, and counted, where the picture cannot be read."""
        if path not in self._sizes:
            try:
                head = self._header(path)
                self._sizes[path] = head.height, head.width
            except Unreadable as unreadable:
                self.omissions.add("pictures that cannot be read", f"{path} ({unreadable.reason})")
                self._sizes[path] = None
        return self._sizes[path]

    def _header(self, path: str) -> Header:
        """From the first bytes where they are enough: COCO's 118,000 pictures are 19 GB. Raises Unreadable."""
        try:
            with Local(self.root).file(path) as file:
                return header(file.read(_HEAD))
        except (OSError, ValueError, Unreadable):
            return header(Local(self.root).whole(path))


def one_file_each(pictures: Pictures, found: Iterable[tuple[str, str | None, bool]]) -> list[tuple[str, str]]:
    """(picture, file) of files, their pictures and whether these share their stem: one file a picture, the nearest."""
    origins: dict[str, str] = {}
    ranked = sorted(
        (not own, Path(file).stem != Path(path or "").stem, -pictures.agreement(file, path or ""), file, path)
        for file, path, own in found
    )
    for *_, file, path in ranked:
        if path is None:
            pictures.omissions.add("files whose picture is not in the folder", file)
        elif (first := origins.setdefault(path, file)) != file:
            where = f"{file}: {path} is that of {first}"
            pictures.omissions.add("files whose picture has a file of its own or an earlier one", where)
    return sorted(origins.items())


def _last(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def same_name(name: str) -> str:
    """What is common to a name as systems and tools write it: small letters, composed accents, unquoted, .jpg, .tif."""
    plain = unicodedata.normalize("NFC", unquote(name)).casefold()
    return re.sub(r"\.tiff$", ".tif", re.sub(r"\.jpe?g?$", ".jpg", plain))


def folders(path: str) -> tuple[str, ...]:
    """The folders of a path, innermost first, without words for what lies in them: x/train/images/1.png is train, x."""
    parts = [
        part
        for part in posixpath.normpath(unicodedata.normalize("NFC", path).replace("\\", "/")).split("/")[:-1]
        if part not in ("", ".", "..") and part[-1] != ":"
    ]
    words = (_KINDS.sub("", part).strip("-_ .") for part in reversed(parts))
    return tuple(word for word in words if word)


def _differ(one: Sequence[str], other: Sequence[str]) -> bool:
    return any(a != b for a, b in zip(one, other))


def _common(one: Iterable[str], other: Iterable[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))


def _split_folders(path: str) -> set[str]:
    """The splits that whole folders of a path are: val2017, not train_station."""
    names = (folder for folder in folders(path) if re.fullmatch(r"[A-Za-z]+\d*", folder))
    return {split for name in names if (split := split_of(name)) is not None}


def splits_in(path: str) -> set[str]:
    """The splits that words of a path name: ``instances_val2017.json`` and ``val2017/1.jpg`` are both validation."""
    words = re.split(r"[/_.-]", path)
    return {split for word in words if (split := split_of(word)) is not None}
