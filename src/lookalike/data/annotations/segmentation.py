"""Photos with masks beside them: pairs of folders or of names, masks as PNG whose pixels are numbers of classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.annotations.files import image_sets
from lookalike.data.annotations.pictures import Omissions
from lookalike.data.annotations.record import count_repeats
from lookalike.data.decode import MAX_PIXELS, SUFFIXES, Unreadable
from lookalike.data.example import Rows
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import FileStore
from lookalike.data.formats.files import TRAIN, listed, printable, split_of
from lookalike.data.formats.masks import common
from lookalike.data.source import query_split, shared, split_by_hash

MOST = 1 << 16
"""Classes are numbers below this: PNG has 8 or 16 bits."""


class MaskedPhotos(NamedTuple):
    """N photos, each with its mask."""

    source: Rows
    root: Path
    masks: Sequence[str]  # (N,) relative paths

    def __len__(self) -> int:
        return len(self.masks)

    def mask(self, row: int) -> Tensor:
        """int64 (H, W) numbers of classes, from 0 to ``MOST`` - 1; raises Unreadable."""
        return decoded(Local(self.root).whole(self.masks[row]))


class SegmentationParts(NamedTuple):
    """The photos that segmentation is trained and tested on, and those that nobody has drawn a mask for."""

    reference: MaskedPhotos
    query: MaskedPhotos
    unmasked: list[str]
    notes: tuple[str, ...]  # which split is tested on, and what repeats, in words


def decoded(data: bytes) -> Tensor:
    """int64 (H, W) of a PNG with numbers, a palette of them, or three equal colours; raises Unreadable."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unreadable(f"{image.width}x{image.height} pixels are too many")
            numbers = np.asarray(image).astype(np.int64)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"no PNG that can be read ({type(error).__name__})") from None
    if numbers.ndim == 3 and numbers.shape[2] >= 3 and bool((numbers[..., :3] == numbers[..., :1]).all()):
        numbers = numbers[..., 0]
    if numbers.ndim != 2 or numbers.min(initial=0) < 0 or numbers.max(initial=0) >= MOST:
        raise Unreadable("colours instead of numbers of classes: save it as an index PNG")
    return torch.from_numpy(numbers)


def pairs(data: str) -> SegmentationParts:
    """Train against test, else validation, else a fifth by hash; raises UserError where no photo has a mask."""
    root = Path(data)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name one that holds photos and masks", BAD_DATA)
    listing = listed(root, SUFFIXES)
    omissions = Omissions()
    photos, masks = sorted_out(listing.files, omissions)
    both = sorted(photos.keys() & masks.keys())
    if not both:
        raise UserError(
            f"{root}: no photo has a mask; masks are PNG in a folder such as masks/ beside images/, or trainannot/ "
            "beside train/",
            BAD_DATA,
        )
    files = {photos[name]: masks[name] for name in both}
    store = FileStore(Local(root), files, unlisted=listing.unreadable)
    source = store.source()
    *rows, why = _divided(root, store.files, omissions)
    reference, query = (
        MaskedPhotos(Rows(source, some), root, [files[store.files[row]] for row in some.tolist()]) for some in rows
    )
    notes = [why, *omissions.notes(), shared(reference.source, query.source)]
    beside = {name.rpartition("/")[0] for name in both}  # other folders hold what is no photo: instances, previews
    left = sorted(name for name in photos.keys() - masks.keys() if name.rpartition("/")[0] in beside)
    return SegmentationParts(reference, query, [printable(photos[name]) for name in left], tuple(filter(None, notes)))


def sorted_out(files: Sequence[str], omissions: Omissions) -> tuple[dict[str, str], dict[str, str]]:
    """Photos and masks by what their paths have in common; of several of the same the first."""
    photos: dict[str, str] = {}
    masks: dict[str, str] = {}
    for path in files:
        key, is_mask = common(path)
        if is_mask and path.lower().endswith(".png"):
            if (first := masks.setdefault(key, path)) != path:
                omissions.add("masks are left out, whose photo has an earlier mask", f"{path} (after {first})")
        elif not is_mask and (first := photos.setdefault(key, path)) != path:
            omissions.add("photos are left out, which have the name of an earlier one", f"{path} (after {first})")
    return photos, masks


def _divided(root: Path, files: Sequence[str], omissions: Omissions) -> tuple[Tensor, Tensor, str]:
    numbers = {path: row for row, path in enumerate(files)}
    sets = image_sets(root, "Segmentation", numbers, omissions)  # Pascal VOC's lists, where they are
    count_repeats({name: [files[row] for row in rows] for name, rows in sets.items()}, omissions)
    splits = {name: sorted(set(rows)) for name, rows in sets.items() if rows} or _named_splits(files)
    test, why = query_split(dict.fromkeys(splits, True))
    if test is not None:
        return torch.tensor(splits[TRAIN]), torch.tensor(splits[test]), why
    reference, query = split_by_hash([printable(path) for path in files], torch.zeros(len(files), dtype=torch.long))
    if not len(query):
        raise UserError(f"{root}: one photo with a mask is not enough to train and to test on", BAD_DATA)
    return reference, query, why


def _named_splits(files: Sequence[str]) -> dict[str, list[int]]:
    """Rows by the outermost folder that names a split, once the words for photos are gone."""
    splits: dict[str, list[int]] = {}
    for row, path in enumerate(files):
        folders = common(path)[0].split("/")[:-1]
        if name := next((split for folder in folders if (split := split_of(folder))), None):
            splits.setdefault(name, []).append(row)
    return splits
