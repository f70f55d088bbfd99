"""Every command line that could be given something, read off the command line's own classes.

So a new verb, or a new argument, is met by all that is tried with them.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from PIL import Image
from tyro.conf import Positional

from lookalike.cli import flags
from lookalike.cli.main import main
from lookalike.evaluation.settings import EVALUATIONS
from lookalike.recipes.images import tiny
from lookalike.recipes.serialize import to_plain
from tests.support import scenery
from tests.support.hostile import DEEP, Given, folder, png


class Argument(NamedTuple):
    """A place of a command line that takes words."""

    words: tuple[str, ...]  # the verb, and the evaluation
    name: str
    metavar: str
    positional: bool
    needed: bool
    owner: str  # the class whose field it is

    def __str__(self) -> str:
        return " ".join((*self.words, self.name))

    def wants(self) -> str:
        """The name in ``World`` of the data that the verb is for."""
        scenes = {"detect": "scenes", "keypoints": "scenes", "segment": "masks", "sts": "pairs", "captions": "captions"}
        return scenes.get(self.words[-1], "pictures")


NAMES = {"NAME", "RECIPE", "TASK", None}
"""How arguments are called that are no paths."""


def commands() -> Iterator[tuple[tuple[str, ...], list[type]]]:
    """Each verb, and evaluation, and the classes whose fields it takes."""
    for verb, kind in flags.VERBS.items():
        if verb == "explore":  # which serves until it is stopped; it opens tables as search does
            continue
        if verb != "evaluate":
            yield (verb,), [kind]
            continue
        for name, settings in EVALUATIONS.items():
            yield (verb, name), [typing.get_origin(flags.evaluation_flags(name)), settings]


def takes_words(hint: Any) -> bool:
    return hint is str or (typing.get_origin(hint) is not typing.Literal and any(map(takes_words, get_args(hint))))


def notes(hint: Any) -> Iterator[Any]:
    yield from getattr(hint, "__metadata__", ())
    for part in get_args(hint):
        yield from notes(part)


def arguments() -> list[Argument]:
    """Every one that takes words, of every verb."""
    return [argument for words, kinds in commands() for kind in kinds for argument in _of_class(words, kind)]


def _of_class(words: tuple[str, ...], kind: type) -> Iterator[Argument]:
    hints, plain = typing.get_type_hints(kind, include_extras=True), typing.get_type_hints(kind)
    mark = next(notes(Positional[int]))
    for field in dataclasses.fields(kind):
        if not takes_words(plain[field.name]):
            continue
        found = list(notes(hints[field.name]))
        metavar = next((note.metavar for note in found if hasattr(note, "metavar")), None)
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        owner = next(base.__name__ for base in kind.__mro__ if field.name in inspect.get_annotations(base))
        yield Argument(words, field.name, str(metavar), mark in found, needed, owner)


class World(NamedTuple):
    """What is as it should be: one of each."""

    pictures: Path
    scenes: Path
    masks: Path
    pairs: Path
    captions: Path
    run: Path
    text_run: Path
    captions_run: Path
    table: Path

    def of_verb(self, verb: str) -> dict[str, object]:
        """What some verbs call otherwise."""
        of = {"report": {"RUN": self.run}, "study": {"NAME": "shuffle"}}
        return dict(of.get(verb, {}))

    def usual(self, argument: Argument, fresh: Path) -> str:
        """What a command is given where it needs something, and this is not what is tried."""
        wanted = argument.wants()
        known = {
            "MODEL": {"pairs": self.text_run, "captions": self.captions_run}.get(wanted, self.run),
            "DATA": getattr(self, wanted),
            "TABLE|MODEL": self.table,
            "QUERY": "bright/00.png",
            "TASK": "knn",
            "LIBRARY": "timm",
        } | self.of_verb(argument.words[0])
        suffix = ".parquet" if argument.metavar == "FILE" else ""
        return str(known.get(argument.metavar, fresh / f"fresh{suffix}"))


FAST = {
    "pretrain": ("--recipe", "tiny", "--steps", "1", "--workers", "0", "--batch", "8", "--model.widths", "4,8"),
    "evaluate": ("--workers", "0"),
    "compare": ("--trials", "1"),
    "embed": ("--workers", "0"),
    "prepare": ("--workers", "0"),
    "doctor": ("--quick", "--workers", "0"),
    "study": ("--steps", "1", "--seeds", "1", "--workers", "0"),
    "preview": ("--rows", "1"),
    **dict.fromkeys(("detect", "keypoints", "segment"), ("--steps", "1")),
    "finetune": ("--steps", "1", "--shares", "1.0", "--draws", "1", "--batch", "4"),
    "fewshot": ("--draws", "1"),
}
FAST["supervised"] = FAST["pretrain"]


def command_line(argument: Argument, given: str, world: World, fresh: Path) -> list[str]:
    """A command that is well but for ``argument``."""
    of_same = [other for other in arguments() if other.words == argument.words]
    line = list(argument.words)
    for other in of_same:
        if other.name == argument.name or other.needed:
            value = given if other.name == argument.name else world.usual(other, fresh)
            line += [value] if other.positional else [f"--{other.name.replace('_', '-')}={value}"]
    if argument.words == ("export",):
        line += ["--to", "timm"]
    if argument.words == ("doctor",) and argument.name != "data":
        line += [str(world.pictures)]
    quick = [word for name in argument.words for word in FAST.get(name, ())]
    if argument.words[0] in ("pretrain", "supervised", "preview") and argument.name == "recipe":
        quick = [word for word in quick if word not in ("--recipe", "tiny")]
    return line + quick


# ---- a world in which commands work ----


def built(root: Path) -> World:
    """Small things that are as they should be."""
    noise = np.random.default_rng(0)

    def picture(path: Path, low: int, high: int, *shape: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(low, high, shape).astype(np.uint8)).save(path)

    for i in range(16):
        picture(
            root / "pictures" / ("bright", "dark")[i % 2] / f"{i:02}.png", 150 * (i % 2), 100 + 150 * (i % 2), 16, 16, 3
        )
        picture(root / "captions" / f"{i:02}.png", 0, 255, 16, 16, 3)
        picture(root / "masks" / "images" / f"{i}.png", 0, 255, 24, 24, 3)
        picture(root / "masks" / "masks" / f"{i}.png", 0, 3, 24, 24)
    scenery.made(root / "scenes")
    sentences = [f"a sentence of number {i}" for i in range(24)]
    (root / "text.txt").write_text("\n".join(sentences) + "\n")
    pairs = "".join(f"{words},{words} b,{i % 5}\n" for i, words in enumerate(sentences))
    (root / "pairs.csv").write_text(f"sentence1,sentence2,score\n{pairs}")
    captions = "".join(f"{i:02}.png,{words}\n" for i, words in enumerate(sentences[:16]))
    (root / "captions" / "captions.csv").write_text(f"image,caption\n{captions}")
    light = "--steps 2 --workers 0 --quiet --checkups 0"
    done(f"pretrain {root}/pictures --out {root}/run --recipe tiny --model.widths 4,8 {light}")
    text = "--model.width=16 --model.vocabulary=300 --batch=8 --whiten false"
    done(f"pretrain {root}/text.txt --out {root}/text_run --recipe simcse {text} {light}")
    towers = "--batch=8 --model.text.vocabulary=300 --dictionary.size=16"
    done(f"pretrain {root}/captions --out {root}/captions_run --recipe moco_captions {towers} {light}")
    done(f"embed {root}/run {root}/pictures --out {root}/table.parquet --workers 0")
    data = (root / name for name in ("pictures", "scenes", "masks", "pairs.csv", "captions"))
    return World(*data, root / "run", root / "text_run", root / "captions_run", root / "table.parquet")


def done(command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert stopped.value.code == 0


# ---- folders that look like runs ----


def run_with(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A run folder whose recipe.json is a recipe with one thing changed."""

    def make(path: Path) -> None:
        path.mkdir()
        (path / "checkpoints").mkdir()
        (path / "recipe.json").write_text(json.dumps(change(to_plain(tiny))))

    return make


def runs() -> dict[str, Given]:
    """Folders that look like runs."""
    records: dict[str, Callable[[Any], Any]] = {
        "null": lambda _: None,
        "list": lambda _: [],
        "bare": lambda _: {},
        "whole": lambda record: record,
        "no name": lambda record: {name: value for name, value in record.items() if name != "name"},
        "name of escapes": lambda record: record | {"name": "\x1b[2J"},
        "batch -5": lambda record: record | {"batch": -5},
        "batch 1e12": lambda record: record | {"batch": 10**12},
        "batch null": lambda record: record | {"batch": None},
        "canvas nan": lambda record: record | {"canvas": float("nan")},
        "head 1e12": lambda record: record | {"head": record["head"] | {"widths": [10**12]}},
        "head wide": lambda record: record | {"head": record["head"] | {"widths": [65536] * 9}},
        "kind": lambda record: record | {"model": {"kind": "os.system"}},
        "no kind": lambda record: record | {"model": {"kind": ["a"]}},
        "another kind": lambda record: record | {"model": record["head"]},
        "unknown field": lambda record: record | {"\x1b[2Jfield": 1},
        "seed": lambda record: record | {"seed": 10**400},
        "folder": lambda record: record | {"model": {"kind": "HuggingFacePictures", "folder": "/dev/zero"}},
    }  # fmt: skip
    return {
        **{f"run: {name}": Given(run_with(change), "run") for name, change in records.items()},
        "run: deep": Given(folder(("recipe.json", DEEP), ("checkpoints/x", "")), "run"),
        "run: empty": Given(folder(("recipe.json", ""), ("checkpoints/x", "")), "run"),
        "run: png": Given(folder(("recipe.json", png()), ("metrics.jsonl", png()), ("checkpoints/x", "")), "run"),
    }
