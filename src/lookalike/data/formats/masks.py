"""Masks among pictures: what their paths have in common with those of photos, and which pictures are no photos."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lookalike.data.decode import Unreadable, opened
from lookalike.data.formats.disk import Disk
from lookalike.data.formats.files import printable

_MASKS = r"annots?|annotations?|masks?|labels?|labelids|gt|gtfine|segmentations?|segmentationclass(raw|aug)?"
_OTHERS = r"segmentationobject|instances?|instanceids|trimaps?|mattes?|semantics?|panoptic"
_PHOTOS = r"images?|imgs?|photos?|pictures?|jpegimages|leftimg8bit|rgb"
_LOOKS = 16  # masks that are looked at before all of them are taken for masks
_VALUES, _SHARE = 32, 0.9  # so many values make up so much of a mask, whose edges may be blurred, and of no photo


class _Words(NamedTuple):
    """What tells masks from photos: a folder is nothing but such a word, or ends in it; a file's name does, set off."""

    folder: tuple[re.Pattern[str], re.Pattern[str]]  # of masks, of photos
    stem: tuple[re.Pattern[str], re.Pattern[str]]

    @classmethod
    def of(cls, masks: str) -> _Words:
        """With these for masks."""
        folder = [re.compile(rf"(?P<rest>.*?)[-_ .]?({words})", re.I) for words in (masks, _PHOTOS)]
        stem = [re.compile(rf"(?P<rest>.+)[-_ .]({words})", re.I) for words in (masks, _PHOTOS)]
        return cls((folder[0], folder[1]), (stem[0], stem[1]))


_CLASSES, _ANY = _Words.of(_MASKS), _Words.of(f"{_MASKS}|{_OTHERS}")
_LIKELY = re.compile(rf"({_MASKS}|{_OTHERS})(/|\.[^./]*$)", re.I)


def common(path: str, words: _Words = _CLASSES) -> tuple[str, bool]:
    """A path without the words that tell photos from masks, and whether one of them says that it is a mask."""
    *folders, stem = path.rpartition(".")[0].split("/")
    parts, masked = [], False
    for part, (masks, photos) in [*((folder, words.folder) for folder in folders), (stem, words.stem)]:
        rest = part
        while match := masks.fullmatch(rest):
            rest, masked = match["rest"], True
        if rest == part and (match := photos.fullmatch(rest)):
            rest = match["rest"]
        parts += [rest] if rest else []
    return "/".join(parts), masked


def masks_among(disk: Disk, pictures: Sequence[str]) -> dict[str, list[str]]:
    """The masks of other pictures, by folder (``masks/``) or what their names end in (``images/*mask.png``).

    Their folders or names say that they are masks, and are else those of photos, or they lie in a folder beside that of
    a photo, as one mask a nucleus does; and few values make up each that is looked at. Raises UserError where a remote
    disk cannot be reached.
    """
    groups: dict[str, list[str]] = {}
    for path in filter(_LIKELY.search, pictures):
        if common(path, _ANY)[1]:
            groups.setdefault(_where(path), []).append(path)
    masks = {path for paths in groups.values() for path in paths}
    if not masks:
        return {}
    photos = {common(path, _ANY)[0] for path in pictures if path not in masks}
    homes = {photo.rpartition("/")[0] for photo in photos}
    fitting = {where: paths for where, paths in groups.items() if _belong(where, paths, photos, homes)}
    every = [path for paths in fitting.values() for path in paths]
    return fitting if every and _are_flat(disk, every[:: -(-len(every) // _LOOKS)]) else {}


def _where(path: str) -> str:
    """The folder of a mask where that says what it is, else the end of its name in it."""
    folder, slash, name = path.rpartition("/")
    if common(f"{folder}/.", _ANY)[1]:
        return folder + slash
    match = _LIKELY.search(name)
    return f"{folder}{slash}*{match[0] if match else name}"


def _belong(where: str, paths: Sequence[str], photos: set[str], homes: set[str]) -> bool:
    """Whether the photos of masks are there: of a quarter by name (others are in colours), or beside their folder."""
    if 4 * sum(common(path, _ANY)[0] in photos for path in paths) >= len(paths):
        return True
    outer, _, folder = where.rstrip("/").rpartition("/")
    match = _ANY.folder[0].fullmatch(folder)
    return match is not None and not match["rest"] and common(f"{outer}/.", _ANY)[0] in homes


def _are_flat(disk: Disk, paths: Iterable[str]) -> bool:
    """Whether few values make up each of the pictures that can be read, of which there is one."""
    looks = []
    for path in paths:
        try:
            with opened(disk.whole(path)) as image:
                values = np.asarray(image)
        except Unreadable:
            continue
        flat = values.reshape(-1, values.shape[2]) if values.ndim == 3 else values.reshape(-1)
        counts = np.sort(np.unique(flat, axis=0, return_counts=True)[1])
        looks.append(counts[-_VALUES:].sum() >= _SHARE * counts.sum())
    return bool(looks) and all(looks)


def named_masks(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What is said of masks that are left out, by folder; those of one name in many folders together."""
    alike: dict[str, list[str]] = {}
    for where in groups:
        alike.setdefault(re.split(r"/(?=.)", where)[-1], []).append(where)
    what = "masks of pictures beside them, which are no photos"
    return {
        printable(folders[0] if len(folders) == 1 else f"*/{name}"): (
            f"{sum(len(groups[folder]) for folder in folders):,} {what}"
        )
        for name, folders in alike.items()
    }
