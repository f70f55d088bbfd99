"""Places of videos: files, and pictures that are told to be videos by ``frames:`` before their name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Self

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.data.fingerprint import stamps_of_files
from lookalike.data.formats.disk import Disk, Local
from lookalike.data.formats.encoded import Divided
from lookalike.data.formats.files import Listing
from lookalike.data.formats.lists import PathList
from lookalike.data.image.decode import SUFFIXES, Unreadable
from lookalike.data.video.frames import RATE, FrameFolder, by_folder
from lookalike.data.video.index import indexes
from lookalike.data.video.naming import Footage, Titles
from lookalike.data.video.seek import Readers, VideoFile

Files = Mapping[str, Sequence[str]]
"""Videos by name, with the files that each is made of."""


def video_files(disk: Disk, titles: Titles) -> Divided:
    """Video files, by an index of their frames."""
    known, readers = dict(zip(titles.names, indexes(disk, titles.names))), Readers(disk)

    def opened(name: str) -> VideoFile:
        found = known[name]
        if isinstance(found, str):
            raise Unreadable(found)
        return VideoFile(readers, name, found)

    return _place(disk, Footage(titles, opened), {name: [name] for name in titles.names})


def listed_files(disk: Disk, listed: PathList) -> Divided:
    """The video files of a list."""
    return video_files(disk, _titles(listed))


class Spelled(NamedTuple):
    """``frames:FOLDER`` or ``frames@12.5:LIST.csv``: folders of pictures, each of which is a video."""

    where: str
    rate: float

    @classmethod
    def of(cls, data: str) -> Self | None:
        """None for a name that does not say so; raises UserError."""
        found = re.fullmatch(r"frames(?:@(\d+(?:\.\d+)?))?:(.+)", data, re.DOTALL)
        if found is None:
            return None
        rate = float(found[1] or RATE)
        if not 1e-3 <= rate <= 1e6:
            raise UserError(f"{data}: frames a second must be from 0.001 to 1,000,000", USAGE)
        return cls(found[2], rate)

    def folder(self, disk: Disk, found: Listing) -> Divided:
        """The videos among the pictures that a disk lists."""
        files = by_folder(found.files)
        return self._place(disk, Titles.of(list(files)), files).beside(found.unreadable)

    def listed(self, root: Path, listed: PathList) -> Divided:
        """The videos of a list that lies in a folder."""
        files = {name: _inside(root, name) for name in listed.files}
        return self._place(Local(root), _titles(listed), files)

    def _place(self, disk: Disk, titles: Titles, files: Files) -> Divided:
        return _place(disk, Footage(titles, lambda name: FrameFolder(disk, files[name], self.rate)), files)


def _titles(listed: PathList) -> Titles:
    return Titles(listed.files, listed.labels, listed.classes, listed.splits)


def _inside(root: Path, name: str) -> list[str]:
    """The pictures directly in a folder."""
    found = Local(root / name).listed(SUFFIXES).files if (root / name).is_dir() else []
    return [f"{name}/{path}" for path in found if "/" not in path]


def _place(disk: Disk, store: Footage, files: Files) -> Divided:
    """Videos as a place; raises UserError where none can be used."""
    if not store.paths:
        name, reason = next(iter(store.unlisted.items()))
        others = f", nor can {len(store.unlisted) - 1} others" if len(store.unlisted) > 1 else ""
        raise UserError(f"{disk.name(name)} cannot be used ({reason}){others}; play one by hand", BAD_DATA)
    return Divided(store, store.splits, partial(stamps_of_files, disk.file, list(chain(*files.values()))))
