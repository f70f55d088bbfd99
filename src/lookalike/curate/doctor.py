"""``lookalike doctor``: what the data is, what is wrong with it, and what training would make of it, in plain words."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.core.errors import UserError
from lookalike.core.files import write_atomically
from lookalike.core.progress import Progress, silent
from lookalike.core.seeding import uniforms
from lookalike.curate.plan import Training, planned
from lookalike.curate.sheet import Tile, sheet, upright
from lookalike.curate.survey import Survey, joined, largest, near, same, survey
from lookalike.data.source import EVERYTHING, Data, PictureSource, name_of, open_source, splits_of
from lookalike.data.video.timeline import video_of

_SHOWN, _TILE = 100, 96  # pictures of the sheet, and their pixels
_PAIRS = 24  # groups of duplicates that are drawn
_STEPS = (32, 64, 128, 224, 448, 896)  # px that divide short sides


@dataclass(frozen=True)
class Found:
    """Everything that was found; ``splits`` number the rows of ``survey`` in turn."""

    data: str
    splits: dict[str, PictureSource]
    survey: Survey
    exact: list[list[int]]
    alike: list[list[int]]
    training: Training | None
    refused: str | None  # why pretraining would not start

    @property
    def paths(self) -> list[str]:
        """(N,) of all splits in turn."""
        return [path for source in self.splits.values() for path in source.paths]

    def split_of(self, row: int) -> str:
        """The name of the split of a row."""
        for name, source in self.splits.items():
            if row < len(source):
                return name
            row -= len(source)
        raise IndexError(row)

    def plain(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        good = self.survey.sizes[self.survey.good]
        return {
            "data": self.data,
            "pictures": len(self.survey.sizes),
            "splits": {name: len(source) for name, source in self.splits.items()},
            "classes": self.classes(),
            "bytes": int(self.survey.lengths.sum()),
            "kinds": dict(self.survey.kinds.most_common()),
            "short_side": _spread(good.min(1)) if len(good) else None,
            "long_side": _spread(good.max(1)) if len(good) else None,
            "gray": int(self.survey.gray[self.survey.good].sum()),
            "broken": {self.paths[row]: reason for row, reason in self.survey.bad.items()},
            "unlisted": {k: v for source in self.splits.values() for k, v in source.unlisted.items()},
            "exact_duplicates": [[self.paths[row] for row in group] for group in self.exact],
            "near_duplicates": [[self.paths[row] for row in group] for group in self.alike],
            "across_splits": sum(self.crosses(group) for group in self.alike or self.exact),
            "training": self.training._asdict() if self.training else None,
            "refused": self.refused,
        }

    def classes(self) -> dict[str, dict[str, int]]:
        """{split: {class: pictures}}."""
        return {
            name: {source.classes[i]: count for i, count in sorted(Counter(source.labels.tolist()).items()) if i >= 0}
            for name, source in self.splits.items()
            if source.classes
        }

    def crosses(self, group: Sequence[int]) -> bool:
        """Whether a group of duplicates has pictures of two splits."""
        return len({self.split_of(row) for row in group}) > 1

    def lines(self) -> Iterator[str]:
        """The report in plain words."""
        counts = ", ".join(f"{len(source):,} {name}" for name, source in self.splits.items() if name != EVERYTHING)
        size = f", {self.survey.lengths.sum() / 1e9:.2f} GB" if self.survey.lengths.any() else ""
        yield f"{self.data}: {len(self.survey.sizes):,} pictures ({counts or 'not divided into splits'}){size}"
        yield from self._class_lines()
        yield from self._picture_lines()
        yield from self._broken_lines()
        yield from self._duplicate_lines()
        yield from self._training_lines()

    def _class_lines(self) -> Iterator[str]:
        found = self.classes()
        if not found:
            yield "classes: none; training needs none, evaluations do (class folders, or a column label)"
        for name, counts in found.items():
            least, most = min(counts, key=lambda c: counts[c]), max(counts, key=lambda c: counts[c])
            where = "" if name == EVERYTHING else f" in {name}"
            yield (
                f"classes{where}: {len(counts)}, from {counts[least]:,} pictures ({least}) to {counts[most]:,} ({most})"
            )

    def _picture_lines(self) -> Iterator[str]:
        good = self.survey.good
        if not len(good):
            return
        short, long = (_spread(side) for side in (self.survey.sizes[good].min(1), self.survey.sizes[good].max(1)))
        yield (
            f"sizes: short side {short['min']} to {short['max']} px, median {short['median']}; "
            f"long side {long['min']} to {long['max']}, median {long['median']}"
        )
        yield f"short sides: {_histogram(self.survey.sizes[good].min(1))}"
        if self.survey.kinds:
            yield "kinds: " + ", ".join(f"{count:,} {kind}" for kind, count in self.survey.kinds.most_common(8))
        gray = int(self.survey.gray[good].sum())
        yield f"gray: {gray:,} ({gray / len(good):.1%})"

    def _broken_lines(self) -> Iterator[str]:
        if not self.survey.bad:
            yield "broken: none"
            return
        yield f"broken: {len(self.survey.bad):,} ({len(self.survey.bad) / len(self.survey.sizes):.2%})"
        for reason, count in Counter(self.survey.bad.values()).most_common(8):
            first = next(row for row, why in self.survey.bad.items() if why == reason)
            yield f"  {count:,} x {reason}, first {self.paths[first]}"
        unlisted = [item for source in self.splits.values() for item in source.unlisted.items()]
        for path, reason in dict(unlisted).items():
            yield f"  passed over {path}: {reason}"

    def _duplicate_lines(self) -> Iterator[str]:
        for name, groups in (("exact duplicates", self.exact), ("near duplicates", self.alike)):
            extra = sum(len(group) - 1 for group in groups)
            if not groups:
                yield f"{name}: none"
                continue
            crossing = sum(self.crosses(group) for group in groups)
            across = f"; {crossing:,} groups lie in two splits, which flatters evaluations" if crossing else ""
            first = " = ".join(self.paths[row] for row in groups[0][:3])
            yield f"{name}: {extra:,} pictures that another is equal or alike to, in {len(groups):,} groups{across}"
            yield f"  first {first}"

    def _training_lines(self) -> Iterator[str]:
        if self.refused is not None:
            yield f"training would not start: {self.refused}"
        if self.training is None:
            return
        made = self.training
        yield (
            f"pretrain would take {made.recipe}: {made.examples:,} pictures, batches of {made.batch}, "
            f"{f'a queue of {made.queue:,}, ' if made.queue else ''}crops of {made.crop} px"
        )
        for reason in made.reasons:
            yield f"  {reason}"

    def write(self, out: Path) -> list[Path]:
        """The sheet, and lists of what is broken and double where anything is; what was written."""
        out.mkdir(parents=True, exist_ok=True)
        files = {"sheet.png": _contact_sheet(self), "duplicates.png": _duplicate_sheet(self)}
        bad = [(self.paths[row], reason) for row, reason in sorted(self.survey.bad.items())]
        files["bad_files.csv"] = _table(("path", "reason"), bad) if bad else b""
        double = [
            (number, kind, self.split_of(row), self.paths[row])
            for kind, groups in (("exact", self.exact), ("near", self.alike))
            for number, group in enumerate(groups)
            for row in group
        ]
        files["duplicates.csv"] = _table(("group", "kind", "split", "path"), double) if double else b""
        written = []
        for name, content in files.items():
            (out / name).unlink(missing_ok=True)  # of an earlier call
            if content:
                write_atomically(out / name, content)
                written.append(out / name)
        return written


def examine(data: Data, split: str | None, workers: int = 2, timed: bool = True, progress: Progress = silent) -> Found:
    """Look at every picture of ``data``; ``timed`` trains for some seconds to say how long an epoch takes."""
    splits = {split: open_source(data, split)} if split else splits_of(data)
    total, done = sum(len(source) for source in splits.values()), 0
    parts = []
    for source in splits.values():

        def more(count: int) -> None:
            nonlocal done
            done += count
            progress("looking at pictures", done, total)

        parts.append(survey(source, workers, more))
    found = joined(parts)
    paths = [path for source in splits.values() for path in source.paths]
    training, refused = None, None
    try:
        training = planned(data, split, timed, workers)
    except UserError as error:
        refused = str(error)
    return Found(
        name_of(data),
        splits,
        found,
        _apart(same(found.content, found.good), paths),
        _apart(near(found, found.good), paths),
        training,
        refused,
    )


def _apart(groups: Sequence[list[int]], paths: Sequence[str]) -> list[list[int]]:
    """Without groups that lie in one video: its frames are alike by nature."""
    return [group for group in groups if len({video_of(paths[row]) for row in group}) > 1]


def _spread(values: npt.NDArray[np.int64]) -> dict[str, int]:
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def _histogram(values: npt.NDArray[np.int64]) -> str:
    """Shares in words: ``5% under 64 px, 95% from 64 to 127``."""
    shares = np.histogram(values, [0, *_STEPS, 1 << 40])[0] / len(values)
    between = [f"{least} to {over - 1}" for least, over in pairwise(_STEPS)]
    names = [f"under {_STEPS[0]} px", *between, f"{_STEPS[-1]} or more"]
    return ", ".join(f"{share:.0%} {name}" for share, name in zip(shares, names) if share >= 0.005)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    return text.getvalue().encode()


def _drawn(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """At most ``most`` of ``rows``, drawn at random but always the same ones, sorted."""
    order = uniforms(0, 0, torch.from_numpy(rows.astype(np.int64)), 5, 1)[:, 0].argsort()[:most].numpy()
    return np.sort(rows[order])


def _tile(found: Found, row: int, words: str) -> Tile:
    """One picture, decoded again."""
    for source in found.splits.values():
        if row < len(source):
            example = source.example(row, largest(source, 2 * _TILE))
            pixels: Tensor = example.pixels
            return Tile(upright(pixels, example.height, example.width, _TILE), words)
        row -= len(source)
    raise IndexError(row)


def _contact_sheet(found: Found) -> bytes:
    """About a hundred pictures with their classes, in the order of the data."""
    names: list[str] = []
    for source in found.splits.values():
        names += [source.classes[i] if 0 <= i < len(source.classes) else "" for i in source.labels.tolist()]
    rows = _drawn(found.survey.good, _SHOWN).tolist()
    tiles = [_tile(found, row, names[row] or found.paths[row]) for row in rows]
    return sheet(tiles, 10, _TILE, f"{len(tiles)} of {len(names):,} pictures") if tiles else b""


def _duplicate_sheet(found: Found) -> bytes:
    """The first groups that look alike, four of each at most."""
    tiles: list[Tile] = []
    for group in found.alike[:_PAIRS]:
        shown = [_tile(found, row, found.paths[row]) for row in group[:4]]
        tiles += [*shown, *[Tile(upright(torch.full((3, 1, 1), 255, dtype=torch.uint8), 1, 1, 1))] * (4 - len(shown))]
    return sheet(tiles, 8, _TILE, "groups of pictures that look alike, up to four of each") if tiles else b""
