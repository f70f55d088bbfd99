"""``lookalike doctor``: what data is like, what is wrong with it, and what training would make of it."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from lookalike.core.devices import accelerator, device, processor, resolved
from lookalike.core.errors import UserError
from lookalike.core.files import write_atomically
from lookalike.core.progress import Progress, silent
from lookalike.curate.plan import TrainingPlan, plan_pretraining
from lookalike.curate.sheet import Tile, random_rows, sheet, upright
from lookalike.curate.survey import Survey, joined, largest, near, same, survey
from lookalike.data.example import PictureSource
from lookalike.data.loader import GIB
from lookalike.data.pool import cores
from lookalike.data.source import EVERYTHING, Data, name_of, open_source, splits_of
from lookalike.data.video.source import video_of

_SHOWN, _TILE = 100, 96  # pictures of the sheet, and their pixels
_GROUPS, _EACH = 24, 4  # groups of duplicates that are drawn, and pictures of each
_EXTRAS = {"tensorboard": "log", "fsspec": "remote", "tokenizers": "text", "av": "video"}


@dataclass(frozen=True)
class Examination:
    """What is known of some data; the rows of ``survey`` are those of all splits in turn."""

    data: str
    splits: dict[str, PictureSource]
    survey: Survey
    duplicates: dict[str, list[list[int]]]  # groups of rows: exact, and near ones
    plan: TrainingPlan | None
    refusal: str | None  # why pretraining would not start

    @cached_property
    def paths(self) -> list[str]:
        """(N,) of all splits in turn."""
        return [path for source in self.splits.values() for path in source.paths]

    def place(self, row: int) -> tuple[str, PictureSource, int]:
        """The split that a row lies in, its source, and the row's number there."""
        for name, source in self.splits.items():
            if row < len(source):
                return name, source, row
            row -= len(source)
        raise IndexError(row)

    def crossing(self, groups: Sequence[Sequence[int]]) -> int:
        """How many groups have pictures of two splits."""
        return sum(len({self.place(row)[0] for row in group}) > 1 for group in groups)

    def named(self, groups: Sequence[Sequence[int]]) -> list[list[str]]:
        """Their paths."""
        return [[self.paths[row] for row in group] for group in groups]

    def classes(self) -> dict[str, dict[str, int]]:
        """{split: {class: pictures}}."""
        return {
            name: {source.classes[i]: count for i, count in sorted(Counter(source.labels.tolist()).items()) if i >= 0}
            for name, source in self.splits.items()
            if source.classes
        }

    def unlisted(self) -> dict[str, str]:
        """Files that are no rows of the data, and why."""
        return {path: reason for source in self.splits.values() for path, reason in source.unlisted.items()}

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
            "short_side": _range(good.min(1)) if len(good) else None,
            "long_side": _range(good.max(1)) if len(good) else None,
            "gray": int(self.survey.gray[self.survey.good].sum()),
            "broken": {self.paths[row]: reason for row, reason in self.survey.bad.items()},
            "unlisted": self.unlisted(),
            **{f"{kind}_duplicates": self.named(groups) for kind, groups in self.duplicates.items()},
            "across_splits": self.crossing(self.duplicates["near"] or self.duplicates["exact"]),
            "training": self.plan._asdict() if self.plan else None,
            "refused": self.refusal,
        }

    def lines(self) -> Iterator[str]:
        """The report for people."""
        counts = ", ".join(f"{len(source):,} in {name}" for name, source in self.splits.items() if name != EVERYTHING)
        size = f", {self.survey.lengths.sum() / 1e9:.2f} GB" if self.survey.lengths.any() else ""
        yield f"{self.data}: {_count(len(self.survey.sizes), 'picture')} ({counts or 'no splits'}){size}"
        yield from self._class_lines()
        yield from self._picture_lines()
        yield from self._unreadable_lines()
        yield from self._duplicate_lines()
        if self.refusal is not None:
            yield f"pretraining would not start: {self.refusal}"
        if self.plan is not None:
            yield from self.plan.lines()

    def _class_lines(self) -> Iterator[str]:
        classes = self.classes()
        if not classes:
            yield "classes: none; training needs none, but evaluations do: folders of classes, or a column 'label'"
        for name, counts in classes.items():
            least, most = min(counts, key=lambda c: counts[c]), max(counts, key=lambda c: counts[c])
            each = f"{counts[least]:,} ({least}) to {counts[most]:,} ({most}) pictures"
            if counts[least] == counts[most]:
                each = _count(counts[least], "picture")
            yield f"classes{'' if name == EVERYTHING else f' in {name}'}: {len(counts)}, each of {each}"

    def _picture_lines(self) -> Iterator[str]:
        good = self.survey.good
        if not len(good):
            return
        sizes = self.survey.sizes[good]
        for name, sides in (("short", sizes.min(1)), ("long", sizes.max(1))):
            least, tenth, median, most = np.percentile(sides, [0, 10, 50, 100], method="lower")
            spread = f"{least} to {most} px, half of them up to {median} px, a tenth up to {tenth} px"
            yield f"{name} sides: {f'{least} px' if least == most else spread}"
        if self.survey.kinds:
            yield "formats: " + ", ".join(f"{count:,} {kind}" for kind, count in self.survey.kinds.most_common(8))
        gray = int(self.survey.gray[good].sum())
        yield f"grayscale: {gray:,} ({gray / len(good):.1%})"

    def _unreadable_lines(self) -> Iterator[str]:
        bad = self.survey.bad
        yield f"unreadable: {len(bad):,} ({len(bad) / len(self.survey.sizes):.2%})" if bad else "unreadable: none"
        for reason, count in Counter(bad.values()).most_common(8):
            first = next(row for row, why in bad.items() if why == reason)
            yield f"  {count:,} × {reason}, first {self.paths[first]}"
        for path, reason in self.unlisted().items():
            yield f"  skipped {path}: {reason}"

    def _duplicate_lines(self) -> Iterator[str]:
        for kind, groups in self.duplicates.items():
            if not groups:
                yield f"{kind} duplicates: none"
                continue
            total, many, crossing = sum(map(len, groups)), _count(len(groups), "group"), self.crossing(groups)
            across = f"; groups across splits, which inflate evaluations: {crossing:,}" if crossing else ""
            yield f"{kind} duplicates: {total:,} pictures in {many}, {total - len(groups):,} redundant{across}"
            yield f"  first {' = '.join(self.named(groups[:1])[0][:3])}"

    def write(self, out: Path) -> list[Path]:
        """Write sheets of pictures and duplicates, and lists of unreadable ones and duplicates; where they are."""
        out.mkdir(parents=True, exist_ok=True)
        bad = [(self.paths[row], reason) for row, reason in sorted(self.survey.bad.items())]
        duplicates = [
            (number, kind, self.place(row)[0], self.paths[row])
            for kind, groups in self.duplicates.items()
            for number, group in enumerate(groups)
            for row in group
        ]
        contents = {
            "sheet.png": _contact_sheet(self),
            "duplicates.png": _duplicate_sheet(self),
            "bad_files.csv": _csv(("path", "reason"), bad),
            "duplicates.csv": _csv(("group", "kind", "split", "path"), duplicates),
        }
        for name, content in contents.items():
            (out / name).unlink(missing_ok=True)  # of an earlier call
            if content:
                write_atomically(out / name, content)
        return [out / name for name, content in contents.items() if content]


def examine(
    data: Data, split: str | None, workers: int = 2, timed: bool = True, progress: Progress = silent
) -> Examination:
    """Look at every picture of ``data``; ``timed`` trains for some seconds to say how long an epoch takes."""
    splits = {split: open_source(data, split)} if split else splits_of(data)
    total, done = sum(len(source) for source in splits.values()), 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress("looking at pictures", done, total)

    pictures = joined([survey(source, workers, more) for source in splits.values()])
    paths = [path for source in splits.values() for path in source.paths]
    name = name_of(data)
    groups = {"exact": same(pictures.content, pictures.good), "near": near(pictures, pictures.good)}
    duplicates = {kind: _apart(some, paths) for kind, some in groups.items()}
    plan, refusal = None, None
    try:
        plan = plan_pretraining(data, split, timed, workers)
    except UserError as error:
        refusal = str(error)
    return Examination(name, splits, pictures, duplicates, plan, refusal)


def about_machine() -> dict[str, str]:
    """Versions and hardware by name, for a report without data."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {
        "lookalike": version("lookalike"),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "processor": f"{cores()} cores, {processor()}",
        "device": f"{accelerator() or device()}, computes in {resolved('auto')}",
        "memory": f"{memory:.1f} GiB",
        "extras": ", ".join(f"{name} {_version_of(name, extra)}" for name, extra in _EXTRAS.items()),
    }


def _version_of(name: str, extra: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return f"missing (pip install 'lookalike[{extra}]')"


def _apart(groups: Sequence[list[int]], paths: Sequence[str]) -> list[list[int]]:
    """Without groups that lie in one video: its frames are alike by nature."""
    return [group for group in groups if len({video_of(paths[row]) for row in group}) > 1]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _range(values: npt.NDArray[np.int64]) -> dict[str, int]:
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """Empty where there are no rows."""
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows] if rows else [])
    return text.getvalue().encode()


def _tile(data: Examination, row: int, words: str) -> Tile:
    """One picture, decoded again."""
    _, source, row = data.place(row)
    example = source.example(row, largest(source, 2 * _TILE))
    return Tile(upright(example.pixels, example.height, example.width, _TILE), words)


def _contact_sheet(data: Examination) -> bytes:
    """About a hundred pictures with their classes, in the order of the data."""
    good = data.survey.good
    tiles = []
    for row in np.sort(good[random_rows(len(good), _SHOWN).numpy()]).tolist():
        _, source, number = data.place(row)
        label = int(source.labels[number])
        tiles.append(_tile(data, row, source.classes[label] if 0 <= label < len(source.classes) else data.paths[row]))
    return sheet(tiles, 10, _TILE, f"{len(tiles)} of {len(data.paths):,} pictures") if tiles else b""


def _duplicate_sheet(data: Examination) -> bytes:
    """The first groups that look alike, four of each at most."""
    tiles, blank = [], Tile(Image.new("RGB", (1, 1), "white"))
    for group in data.duplicates["near"][:_GROUPS]:
        pictures = [_tile(data, row, data.paths[row]) for row in group[:_EACH]]
        tiles += [*pictures, *[blank] * (_EACH - len(pictures))]
    return sheet(tiles, 2 * _EACH, _TILE, f"groups of near duplicates, up to {_EACH} of each") if tiles else b""
