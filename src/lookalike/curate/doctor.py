"""``lookalike doctor`` and ``preview``: what data is like, what is wrong with it, what training would make of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from lookalike.core.devices import device, isolated
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import write_atomically, write_csv
from lookalike.core.progress import Progress, silent
from lookalike.curate.survey import Survey, Tile, largest, near, random_rows, same, sheet, survey, upright
from lookalike.data.example import PictureSource, Rows, Source, TextSource, inner_folder, left_out, only_in_one
from lookalike.data.fingerprint import token_of
from lookalike.data.loader import GIB, Loader
from lookalike.data.source import EVERYTHING, Data, name_of, native_side, open_source, place_of, splits_of
from lookalike.data.text.loader import texts_of
from lookalike.data.text.source import find_captioned, find_text
from lookalike.data.video.source import video_of
from lookalike.learn.dictionary import Queue
from lookalike.recipes.recipe import Recipe
from lookalike.train.length import pace, probe
from lookalike.train.loop import views_at
from lookalike.train.pretrain import Request, recipe_for

_SHOWN, _TILE = 100, 96  # pictures of the sheet, and their pixels
_STRIP = 6  # times as long as wide
_GROUPS, _EACH = 24, 4  # groups of duplicates that are drawn, and pictures of each
_PREVIEW = 160  # px of a picture of a preview


class TrainingPlan(NamedTuple):
    """What pretraining would do by default."""

    recipe: str
    examples: int
    queue: int | None  # keys, where there is a queue
    batch: int
    crop: int
    canvas: int
    gigabytes: float  # of canvases
    minutes_an_epoch: float | None  # as measured, None where it was not
    reasons: list[str]

    def lines(self) -> Iterator[str]:
        """The settings, and a reason for each."""
        queue = f"a queue of {self.queue:,} keys, " if self.queue else ""
        settings = f"batches of {self.batch}, {queue}{self.crop} px crops"
        yield f"by default, pretrain would use recipe {self.recipe}: {settings}"
        yield from (f"  {reason}" for reason in self.reasons)


class Films(NamedTuple):
    """The videos that frames belong to."""

    videos: int
    bytes: int
    seconds: dict[str, float]  # of a video: the shortest, the median, the longest
    rate: float  # frames a second, the median

    @classmethod
    def of(cls, sources: Collection[PictureSource]) -> Films | None:
        """None where the rows are no frames."""
        times: dict[str, list[float]] = {}
        for path in (path for source in sources for path in source.paths):
            if (video := video_of(path)) == path:
                return None
            times.setdefault(video, []).append(float(path.rpartition("=")[2]))
        rates = [(len(some) - 1) / (some[-1] - some[0]) for some in times.values() if some[-1] > some[0]]
        rate = float(np.median(rates)) if rates else 0.0
        seconds = sorted(some[-1] - some[0] + (1 / rate if rate else 0) for some in times.values())
        size = {name: size for source in sources for name, size in zip(*source.stamps()[:2])}
        spread = {"min": seconds[0], "median": float(np.median(seconds)), "max": seconds[-1]}
        return cls(len(times), int(sum(size.values())), spread, rate)

    def words(self) -> str:
        """How many, and how large."""
        return f"{_count(self.videos, 'video')} of {_bytes(self.bytes)}"

    def lines(self) -> Iterator[str]:
        """How long and how dense."""
        shortest, median, longest = self.seconds.values()
        yield f"length: {shortest:.3g} to {longest:.3g} s, half of them up to {median:.3g} s"
        yield f"rate: {self.rate:.4g} frames a second; --recipe video_moco learns from two moments of a video"


@dataclass(frozen=True)
class TextExamination:
    """What sentences are like."""

    data: str
    splits: dict[str, TextSource]
    words: npt.NDArray[np.int64]  # (N,) of each sentence
    repeated: list[list[int]]  # groups of rows with the same text, of all splits in turn

    @classmethod
    def of(cls, data: Data, split: str | None) -> TextExamination:
        """Of text that a path, a name or a list means; raises UserError."""
        opened = {split: open_source(data, split, find=find_text)} if split else splits_of(data, find=find_text)
        splits = {name: cast(TextSource, source) for name, source in opened.items()}
        every = [texts_of(source)(row)[0] for source in splits.values() for row in range(len(source))]
        tokens = np.array([token_of(text.encode("utf-8", "surrogatepass")) for text in every], np.uint64)
        words = np.array([len(text.split()) for text in every], np.int64)
        return cls(name_of(data), splits, words, same(tokens, np.arange(len(every))))

    @cached_property
    def paths(self) -> list[str]:
        """(N,) of all splits in turn."""
        return [path for source in self.splits.values() for path in source.paths]

    def plain(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {
            "data": self.data,
            "sentences": len(self.words),
            "splits": {name: len(source) for name, source in self.splits.items()},
            "classes": _classes(self.splits),
            "words": _range(self.words),
            "repeated": [[self.paths[row] for row in group] for group in self.repeated],
            "across_splits": self._crossing(),
            "unlisted": {path: why for source in self.splits.values() for path, why in source.unlisted.items()},
        }

    def lines(self) -> Iterator[str]:
        """The report for people."""
        longest = int(self.words.argmax())
        yield f"{self.data}: {_count(len(self.words), 'sentence')} ({_parts(self.splits)}), {self.words.sum():,} words"
        spread = f"{self.words.min()} to {self.words.max()} words, half of them up to {int(np.median(self.words))}"
        yield f"lengths: {spread}; the longest is {self.paths[longest]}"
        yield from _class_lines(self.data, self.splits, "sentence")
        total, groups = sum(map(len, self.repeated)), len(self.repeated)
        across = f"; groups across splits, which inflate evaluations: {self._crossing():,}" if self._crossing() else ""
        yield f"repeated: {total:,} in {_count(groups, 'group')}, {total - groups:,} redundant{across}"
        if self.repeated:
            yield f"  first {' = '.join(self.paths[row] for row in self.repeated[0][:3])}"
        left = left_out(self.splits.values())
        yield from (f"left out: {line}" for line in left or ["nothing"])
        yield "pretrain wants a recipe for text: --recipe simcse, or text_pairs where two sentences belong together"

    def _crossing(self) -> int:
        """How many groups have sentences of two splits."""
        ends = np.cumsum([len(source) for source in self.splits.values()])
        return sum(len(set(np.searchsorted(ends, group, "right").tolist())) > 1 for group in self.repeated)

    def write(self, out: Path) -> list[Path]:
        """A list of what is left out, where anything is; where it is."""
        if not (left := self.plain()["unlisted"]):
            return []
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out / "bad_files.csv", ("path", "reason"), left.items())
        return [out / "bad_files.csv"]


@dataclass(frozen=True)
class Examination:
    """What data is like; the rows of ``survey`` are those of all splits in turn."""

    data: str
    splits: dict[str, PictureSource]
    survey: Survey
    duplicates: dict[str, list[list[int]]]  # groups of rows: exact, and near ones
    plan: TrainingPlan | None
    refusal: str | None  # why pretraining would not start
    films: Films | None = None  # of which the rows are frames
    captions: str = ""  # how many there are, in words

    @property
    def noun(self) -> str:
        """What a row is."""
        return "frame" if self.films else "picture"

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
            "videos": self.films._asdict() if self.films else None,
            "classes": _classes(self.splits),
            "bytes": int(self.survey.lengths.sum()),
            "kinds": dict(self.survey.kinds.most_common()),
            "short_side": _range(good.min(1)) if len(good) else None,
            "long_side": _range(good.max(1)) if len(good) else None,
            "gray": int(self.survey.gray[self.survey.good].sum()),
            "broken": {self.paths[row]: reason for row, reason in self.survey.bad.items()},
            "unlisted": self.unlisted(),
            **{
                f"{kind}_duplicates": [[self.paths[row] for row in group] for group in groups]
                for kind, groups in self.duplicates.items()
            },
            "across_splits": self.crossing(self.duplicates["near"] or self.duplicates["exact"]),
            "training": self.plan._asdict() if self.plan else None,
            "refused": self.refusal,
        }

    def lines(self) -> Iterator[str]:
        """The report for people."""
        size = f", {_bytes(int(self.survey.lengths.sum()))}" if self.survey.lengths.any() and not self.films else ""
        films = f"{self.films.words()}, " if self.films else ""
        yield f"{self.data}: {films}{_count(len(self.survey.sizes), self.noun)} ({_parts(self.splits)}){size}"
        if self.films is not None:
            yield from self.films.lines()
        if self.captions:
            yield f"{self.captions}: --recipe moco_captions learns from both"
        yield from _class_lines(self.data, self.splits, self.noun)
        yield from self._picture_lines()
        yield from self._unreadable_lines()
        yield from self._duplicate_lines()
        if self.refusal is not None:
            yield f"pretraining would not start: {self.refusal}"
        if self.plan is not None:
            yield from self.plan.lines()

    def _picture_lines(self) -> Iterator[str]:
        good = self.survey.good
        if not len(good):
            return
        sizes = self.survey.sizes[good]
        for name, sides in (("short", sizes.min(1)), ("long", sizes.max(1))):
            least, tenth, median, most = np.percentile(sides, [0, 10, 50, 100], method="lower")
            spread = f"{least} to {most} px, half of them up to {median} px, a tenth up to {tenth} px"
            yield f"{name} sides: {f'{least} px' if least == most else spread}"
        if self.survey.kinds and not self.films:
            yield "formats: " + ", ".join(f"{count:,} {kind}" for kind, count in self.survey.kinds.most_common(8))
        if strips := int((sizes.max(1) > _STRIP * sizes.min(1)).sum()):
            yield f"strips: {strips:,}, more than {_STRIP} times as long as wide; a canvas squashes them: cut them up"
        gray = int(self.survey.gray[good].sum())
        yield f"grayscale: {gray:,} ({gray / len(good):.1%})"

    def _unreadable_lines(self) -> Iterator[str]:
        bad = self.survey.bad
        yield f"unreadable: {len(bad):,} ({len(bad) / len(self.survey.sizes):.2%})" if bad else "unreadable: none"
        for reason, count in Counter(bad.values()).most_common(8):
            first = next(row for row, why in bad.items() if why == reason)
            yield f"  {count:,} × {reason}, first {self.paths[first]}"
        yield from (f"left out: {line}" for line in left_out(self.splits.values()))

    def _duplicate_lines(self) -> Iterator[str]:
        for kind, groups in self.duplicates.items():
            if not groups:
                yield f"{kind} duplicates: none"
                continue
            total, many, crossing = sum(map(len, groups)), _count(len(groups), "group"), self.crossing(groups)
            across = f"; groups across splits, which inflate evaluations: {crossing:,}" if crossing else ""
            yield f"{kind} duplicates: {total:,} {self.noun}s in {many}, {total - len(groups):,} redundant{across}"
            yield f"  first {' = '.join(self.paths[row] for row in groups[0][:3])}"

    @isolated()
    def write(self, out: Path) -> list[Path]:
        """Write sheets of pictures and duplicates, and lists of unreadable ones and duplicates; where they are."""
        out.mkdir(parents=True, exist_ok=True)
        bad = [(self.paths[row], reason) for row, reason in sorted(self.survey.bad.items())]
        bad += self.unlisted().items()
        duplicates = [
            (number, kind, self.place(row)[0], self.paths[row])
            for kind, groups in self.duplicates.items()
            for number, group in enumerate(groups)
            for row in group
        ]
        paths = [out / name for name in ("sheet.png", "duplicates.png", "bad_files.csv", "duplicates.csv")]
        for path in paths:
            path.unlink(missing_ok=True)  # of an earlier call
        for path, image in zip(paths, (_contact_sheet(self), _duplicate_sheet(self))):
            if image:
                write_atomically(path, image)
        if bad:
            write_csv(paths[2], ("path", "reason"), bad)
        if duplicates:
            write_csv(paths[3], ("group", "kind", "split", "path"), duplicates)
        return [path for path in paths if path.exists()]


@isolated()
def examined(
    data: Data, split: str | None, workers: int | None = None, timed: bool = True, progress: Progress = silent
) -> Examination | TextExamination:
    """``examine`` for whatever ``data`` holds: pictures and videos, else sentences. Raises UserError."""
    try:
        place_of(data)
    except UserError as error:
        try:
            return TextExamination.of(data, split)
        except UserError:
            raise error from None
    return examine(data, split, workers, timed, progress)


@isolated()
def examine(
    data: Data, split: str | None, workers: int | None = None, timed: bool = True, progress: Progress = silent
) -> Examination:
    """Look at every picture of ``data``; ``timed`` trains for some seconds to say how long an epoch takes."""
    splits = {split: open_source(data, split)} if split else splits_of(data)
    pictures = survey(splits.values(), workers, progress)
    paths = [path for source in splits.values() for path in source.paths]
    groups = {"exact": same(pictures.content[pictures.good], pictures.good), "near": near(pictures)}
    duplicates = {  # frames of one video are alike by nature
        kind: [group for group in some if len({video_of(paths[row]) for row in group}) > 1]
        for kind, some in groups.items()
    }
    plan, refusal = None, None
    try:
        plan = plan_pretraining(data, split, timed, workers)
    except UserError as error:
        refusal = str(error)
    films = Films.of(splits.values())
    return Examination(name_of(data), splits, pictures, duplicates, plan, refusal, films, _captions(data))


def _captions(data: Data) -> str:
    """How many captions lie beside pictures, in words; nothing where there are none."""
    try:
        source = find_captioned(data).rows(None)
    except UserError as error:
        return f"captions that cannot be used ({error})"
    return (
        ""
        if source.texts is None
        else f"captions: of {_count(len(source), 'picture')}, up to {len(source.texts(0))} each"
    )


def _parts(splits: Mapping[str, Source]) -> str:
    """``30 in train, 10 in test``."""
    counts = ", ".join(f"{len(source):,} in {name}" for name, source in splits.items() if name != EVERYTHING)
    return counts or "no splits"


def _classes(splits: Mapping[str, Source]) -> dict[str, dict[str, int]]:
    """{split: {class: rows}}."""
    return {
        name: {source.classes[i]: count for i, count in sorted(Counter(source.labels.tolist()).items()) if i >= 0}
        for name, source in splits.items()
        if source.classes
    }


def _class_lines(data: str, splits: Mapping[str, Source], noun: str) -> Iterator[str]:
    """The classes of each split: how many, the smallest and the largest, and what has none."""
    classes = {name: counts for name, counts in _classes(splits).items() if counts}
    if not classes:
        yield "classes: none; training needs none, but evaluations do: folders of classes, or a column 'label'"
    for name, counts in classes.items():
        least, most = min(counts, key=lambda c: counts[c]), max(counts, key=lambda c: counts[c])
        each = f"{counts[least]:,} ({least}) to {counts[most]:,} ({most}) {noun}s"
        if counts[least] == counts[most]:
            each = _count(counts[least], noun)
        without = [row for row, label in enumerate(splits[name].labels.tolist()) if label < 0]
        more = f"; {len(without):,} without a class, first {splits[name].paths[without[0]]}" if without else ""
        yield f"classes{'' if name == EVERYTHING else f' in {name}'}: {len(counts)}, each of {each}{more}"
    yield from only_in_one(splits)
    if inner := inner_folder(data, splits.values()):
        yield f"did you mean {inner}?"


def _bytes(size: int) -> str:
    """``3.6 MB``."""
    unit = next((unit for unit in (("GB", 1e9), ("MB", 1e6)) if size >= unit[1]), ("kB", 1e3))
    return f"{size / unit[1]:.3g} {unit[0]}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _range(values: npt.NDArray[np.int64]) -> dict[str, int]:
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


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


def plan_pretraining(data: Data, split: str | None, timed: bool, workers: int | None) -> TrainingPlan:
    """What pretrain would do; ``timed`` trains for some seconds. Raises UserError where pretrain would refuse."""
    source = open_source(data, split)
    recipe = recipe_for(Request(data, Path()), source)
    minutes = len(source) // recipe.batch * _seconds_per_step(recipe, source, workers) / 60 if timed else None
    size = len(source) * 3 * recipe.canvas**2 / GIB
    queue = recipe.dictionary.size if isinstance(recipe.dictionary, Queue) else None
    settings = queue, recipe.batch, recipe.pictures.first.size, recipe.canvas
    reasons = list(_reasons(recipe, source, queue, size, minutes))
    return TrainingPlan(recipe.name, len(source), *settings, size, minutes, reasons)


def _reasons(
    recipe: Recipe, source: PictureSource, queue: int | None, size: float, minutes: float | None
) -> Iterator[str]:
    """Why these settings."""
    examples = len(source)
    where = "there is no GPU" if device().type == "cpu" else "there is a GPU"
    noun = "picture" if video_of(source.paths[0]) == source.paths[0] else "frame"
    yield f"recipe {recipe.name}: {where}, and there are {examples:,} {noun}s"
    yield f"batches of {recipe.batch}: {examples // recipe.batch:,} steps per epoch"
    if queue is not None:
        share = f"{queue / examples:.0%} of the {noun}s"
        yield f"queue of {queue:,} keys: those of the last {queue / recipe.batch:.0f} steps, {share}"
    crop = f"{recipe.pictures.first.size} px crops, cut from {noun}s stored at {recipe.canvas} px"
    yield f"{crop}: the median short side is {native_side(source)} px"
    keep = "they are kept in memory" if size <= 4 else "prepare them once, or raise --memory above its 4 GiB"
    yield f"all {noun}s at that size take {size:.2f} GiB: {keep}"
    if minutes is not None:
        epochs = recipe.length.epochs or (recipe.length.minutes or 0) / minutes
        time = f"{60 * minutes:.2g} s" if minutes < 1 else f"{minutes:.2g} minutes"
        yield f"an epoch takes about {time} on this machine; the default length is {epochs:,.0f} epochs"


def _seconds_per_step(recipe: Recipe, source: PictureSource, workers: int | None, seconds: float = 5.0) -> float:
    """As minutes are measured, by a throw-away copy of the run on few of the pictures."""
    few = Rows(source, torch.arange(len(source))[: 4 * recipe.batch])
    return pace(probe(replace(recipe, window=None), Loader(few, recipe.canvas, workers=workers, max_bad=1.0), seconds))


@isolated()
def preview(source: PictureSource, recipe: Recipe, out: Path, count: int = 12, epoch: int = 0) -> int:
    """Write a PNG of up to ``count`` rows as (picture, query view, key view), the very views that ``epoch`` draws.

    How many rows it has: which they are, the number of rows decides; unreadable ones are left out. Raises UserError.
    """
    rows = random_rows(len(source), 4 * count)
    few = Loader(Rows(source, rows), recipe.canvas, workers=0, max_bad=1.0)
    good = torch.tensor([i for i in range(len(rows)) if i not in few.bad_rows])[:count]
    if not len(good):
        raise UserError(f"none of {len(rows)} pictures can be read, first {source.paths[int(rows[0])]}", BAD_DATA)
    pictures = next(iter(few.batches([good]))).material
    # From all rows again, since a view may read others than its own.
    loader = Loader(source, recipe.canvas, 0, workers=0, max_bad=1.0)
    views = recipe.pictures.displayable(*views_at(loader, recipe, rows[good], epoch))
    tiles: list[Tile] = []
    for i, row in enumerate(rows[good].tolist()):
        height, width = pictures.sizes[i].tolist()
        tiles.append(Tile(upright(pictures.pixels[i], height, width, _PREVIEW), source.paths[row]))
        tiles += [Tile(upright(v[i].cpu(), 1, 1, _PREVIEW), name) for v, name in zip(views, ("query view", "key view"))]
    size = recipe.pictures.first.size
    title = f"Recipe {recipe.name}, epoch {epoch}: each picture and its two views of {size} px"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, sheet(tiles, 6 if len(good) > 1 else 3, _PREVIEW, title))
    return len(good)
