"""``lookalike pretrain``: from what a person names to a trained run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from lookalike.core import dist
from lookalike.core.devices import Precision, computes_in_bf16, device, named_precision
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import UNFINISHED, write_atomically
from lookalike.core.isolation import isolated
from lookalike.data.fingerprint import Change, changes, from_table, to_table
from lookalike.data.loader import GIB, Loads
from lookalike.data.source import Data, Source, name_of, open_source, reference_and_query
from lookalike.data.text.loader import texts_of
from lookalike.data.text.tokenizer import Tokenizer
from lookalike.learn.labelled import Labelled
from lookalike.recipes import recipe_named
from lookalike.recipes.labelled import with_labels
from lookalike.recipes.modality import TOKENIZER, kept_tokenizer, loader, modality_of, new_tokenizer
from lookalike.recipes.recipe import Length, Recipe
from lookalike.recipes.serialize import from_plain, override, to_plain
from lookalike.train import checkpoint
from lookalike.train.length import Clock, budget, expected, extended, to_the_end
from lookalike.train.loop import Finished
from lookalike.train.monitor import Checkup
from lookalike.train.run import Run, check_same, move_aside, opened, read_recipe
from lookalike.train.screen import Screen
from lookalike.train.trained import labelled

_MANY = 100_000  # examples from which a GPU's default is the paper's recipe


class Asked(NamedTuple):
    """What a person asks of ``pretrain``; nothing here but ``recipe``, its overrides and its length changes weights."""

    data: Data
    out: Path
    recipe: str | Recipe | None = None
    length: Length | None = None
    overrides: Sequence[tuple[str, str]] = ()
    split: str | None = None
    overwrite: bool = False
    init_from: Path | None = None
    max_bad: float = 0.01
    workers: int = 2
    memory: float = 4.0  # GiB
    save_every: int | None = None
    allow_data_change: bool = False
    quiet: bool = False
    supervised: bool = False  # train the recipe's backbone with labels instead
    extend: bool = False  # make the run longer that is there: to so many epochs or steps in all, or by so many minutes


def pretrain(data: Data, out: str | Path, recipe: str | Recipe | None = None, **asked: object) -> Finished:
    """Learn from ``data`` without labels into the run folder ``out``, or continue the run that is there.

    The other arguments are the fields of ``Asked``. Raises UserError. The process keeps the memory that steps free.
    """
    return carry_out(Asked(data, Path(out), recipe, **asked))  # type: ignore[arg-type]


@isolated()
def carry_out(asked: Asked, began: float | None = None) -> Finished:
    """The whole of ``pretrain`` or ``supervised``, with the processes that torchrun started.

    Minutes count from ``began``, by the clock ``time.perf_counter``, or from now.
    """
    began = time.perf_counter() if began is None else began
    with dist.together():
        dist.on_first_rank(lambda: refuse_foreign(asked.out))
        dist.on_first_rank(lambda: refuse_extending(asked))
        source = opened_data(asked)
        recipe = chosen(asked, source)
        if asked.overwrite:
            dist.on_first_rank(lambda: make_room(asked.out))
        quiet, rows = asked.quiet or not dist.first(), modality_of(recipe).examples
        with opened(asked.out) as run, Screen(recipe.name, quiet, rows) as screen:
            return trained(asked, recipe, source, run, screen, began)


def trained(asked: Asked, recipe: Recipe, source: Source, run: Run, screen: Screen, began: float) -> Finished:
    """Begin or continue in an open run folder."""
    run.tell = screen.say
    held = from_plain(dist.on_first_rank(lambda: to_plain(run.recipe())))
    recipe = replace(recipe, precision=going_on(recipe, held))
    if held is not None:
        held = replace(held, precision=recipe.precision)  # not refused where it is another, but said and recorded
        dist.on_first_rank(lambda: refuse_other(asked, recipe, held, source, run))
        recipe = held
    dist.on_first_rank(lambda: checkpoint.refuse_full(run.checkpoints, recipe, len(source)))
    tokenizer = tokens(asked, recipe, source, run, new=held is None)
    reads = load_data(asked, recipe, source, tokenizer, run, screen)
    checkup, clock = Checkup.of(reads, recipe), None
    if held is None:
        recipe, clock = begin(asked, recipe, run, reads, checkup, screen, began)
    elif asked.extend:
        recipe, clock = extended(recipe, asked.length or recipe.length, run, reads, checkup, began)
    if asked.init_from is not None and not dist.agree(bool(checkpoint.published(run.checkpoints))):
        initialise(Path(asked.init_from), recipe, run, reads)
    done = to_the_end(recipe, run, reads, checkup, screen.step, asked.save_every, clock)
    note_all_bad(run, reads)
    screen.say(summary(done, asked.out))
    return done


def opened_data(asked: Asked) -> Source:
    """What to train on; labels are those of the reference part alone, since evaluations ask the others."""
    find = modality_of(asked.recipe).find
    if asked.split is not None or not asked.supervised:
        source = open_source(asked.data, asked.split, find=find)
        return labelled(source, asked.data) if asked.supervised else source
    source, _ = reference_and_query(asked.data, find=find)
    return labelled(source, asked.data)


def make_room(out: Path) -> None:
    """Move an old run aside, but not while somebody trains there."""
    if (out / "recipe.json").exists():
        with Run(out):
            pass
        move_aside(out)


def note_all_bad(run: Run, loader: Loads) -> None:
    """bad_files.csv with what every rank met; one that reads each batch anew meets its own share only."""
    bad: dict[str, str] = {}
    for rank in range(dist.world()):
        bad |= dist.agree(loader.bad, rank)
    run.note_bad_files(bad)


def refuse_foreign(out: Path) -> None:
    """Never write into a folder that holds somebody's other files."""
    # recipe.json comes last when a run begins
    ours = {"run.lock", "bad_files.csv", "train.log", "data.parquet", "environment.json", TOKENIZER}
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out names the folder of the run")
    if (
        out.is_dir()
        and not (out / "recipe.json").exists()
        and {path.name for path in out.iterdir() if not path.name.endswith(UNFINISHED)} - ours
    ):
        raise UserError(f"{out} holds files that are no run of lookalike: choose an empty or new folder for --out")


def refuse_extending(asked: Asked) -> None:
    """Only a run that is there is made longer, by a length that is named."""
    if not asked.extend:
        return
    if asked.overwrite:
        raise UserError("--extend makes a run longer and --overwrite starts it again: choose one")
    if asked.length is None:
        raise UserError("--extend wants to know how long: --epochs or --steps in all, or --minutes more")
    if not (asked.out / "recipe.json").exists():
        raise UserError(f"{asked.out} holds no run that could be made longer: leave out --extend")


def chosen(asked: Asked, source: Source) -> Recipe:
    """The recipe for this data, with the fields that the person set."""
    recipe = asked.recipe
    if not isinstance(recipe, Recipe):
        large = device().type != "cpu" and len(source) >= _MANY
        side = modality_of(recipe).side(source)
        recipe = recipe_named(recipe or ("moco_v2" if large else "small"), len(source), side)
    if asked.supervised and not isinstance(recipe.keys, Labelled):
        recipe = with_labels(recipe, len(torch.unique(source.labels)))
    if asked.length is not None:
        recipe = replace(recipe, length=asked.length)
    for path, text in asked.overrides:
        recipe = override(recipe, path, text)
    return recipe.fitted(len(source))


def going_on(recipe: Recipe, held: Recipe | None) -> Precision:
    """From now on: what is asked for, else what it began in, else what is faster here. Raises UserError."""
    keeps = held is not None and recipe.precision == "auto" and named_precision() is None
    return held.computes_in() if held is not None and keeps else recipe.computes_in()


def check_data(asked: Asked, run: Run, source: Source) -> Change:
    """How the data has changed since the run began, which is refused unless it was asked for."""
    began, changed = run.data(), changes(from_table(run.data_table), source.stamps())
    if changed and not asked.allow_data_change:
        raise UserError(
            f"{run.folder} began with other data ({began['examples']} then, {len(source)} now): {changed}; "
            "give it the same data, choose another --out, or go on with --allow-data-change",
            BAD_DATA,
        )
    return changed


def refuse_other(asked: Asked, recipe: Recipe, held: Recipe, source: Source, run: Run) -> None:
    """Refuse to continue a run on other data, unless that is allowed, or under other settings."""
    changed = check_data(asked, run, source)
    if changed or run.data().get("changed"):
        recipe = adjusted(asked, recipe, held)
    check_same(asked.out, held, as_held(recipe, held, asked.extend))
    if changed:
        run.note(f"goes on with other data: {changed}")
        run.accept(about(asked, source) | {"changed": True}, to_table(source.stamps()))


def about(asked: Asked, source: Source) -> dict[str, object]:
    """What environment.json says of the data; data.parquet says which files it was."""
    return {"data": name_of(asked.data)[:4096], "split": asked.split, "examples": len(source)}


def adjusted(asked: Asked, recipe: Recipe, held: Recipe) -> Recipe:
    """What is asked of a run whose data has changed: what it derived from the data stays as it was when it began."""
    if asked.recipe is not None and recipe.name != held.name:
        return recipe
    same = held if asked.length is None else replace(held, length=asked.length)
    for path, text in asked.overrides:
        same = override(same, path, text)
    return same


def as_held(asked: Recipe, held: Recipe, extend: bool = False) -> Recipe:
    """The recipe asked for, at the length that the run has if it asks for what the run began with, or for more."""
    if extend or asked.length in (held.length.asked, replace(held.length, stages=())):
        return replace(asked, length=held.length)
    return asked


def tokens(asked: Asked, recipe: Recipe, source: Source, run: Run, new: bool) -> Tokenizer | None:
    """Of text: a run keeps its own, which begins as that of the run it starts from, or is trained on its data."""
    if not modality_of(recipe).tokenizes:
        return None
    texts_of(source)  # raises where there are none, before anything is written

    def kept() -> str:
        folder = run.folder if not new else asked.init_from
        found = kept_tokenizer(Path(folder), recipe) if folder is not None else new_tokenizer(recipe, source)
        assert found is not None
        if new:
            write_atomically(run.folder / TOKENIZER, found.json.encode())
        return found.json

    return Tokenizer(dist.on_first_rank(kept))


def load_data(
    asked: Asked, recipe: Recipe, source: Source, tokenizer: Tokenizer | None, run: Run, screen: Screen
) -> Loads:
    """The loader, after decoding everything where it fits into memory."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        screen.work("reading", done, len(source))

    limits = (int(asked.memory * GIB), asked.workers, asked.max_bad)
    return loader(recipe, source, tokenizer, *limits, more, lambda bad: run.note_bad_files(bad))


def begin(
    asked: Asked, recipe: Recipe, run: Run, loader: Loads, checkup: Checkup, screen: Screen, began: float
) -> tuple[Recipe, Clock | None]:
    """Fix what a new run is, record it, and say it; its minutes count from ``began``, and a clock keeps to them."""
    source, clock, about_steps, how_long = loader.source, None, "", ""
    if recipe.length.total(1) is None:
        seconds = budget(recipe, recipe.length, loader, checkup, screen.say, began).enough()
        recipe = replace(recipe, length=replace(recipe.length, steps=seconds.steps))
        clock = Clock(seconds, seconds.steps)
        about_steps, how_long = "about ", f" in {expected(clock.whole)}"
    dist.on_first_rank(lambda: run.begin(recipe, about(asked, source), to_table(source.stamps())))
    processes = f" on {dist.world()} processes" if dist.world() > 1 else ""
    emulated = recipe.precision == "bf16" and not computes_in_bf16(device())
    screen.say(
        f"{recipe.name}: {len(source)} examples, {about_steps}{recipe.length.total(len(source) // recipe.batch):,} "
        f"steps of {recipe.batch}{how_long}{processes}, {recipe.contrast()}, {recipe.pretext.shown()}, "
        f"{recipe.precision}{' (emulated here, slowly: --precision fp32)' if emulated else ''}, into {asked.out}"
    )
    return recipe, clock


def initialise(other: Path, recipe: Recipe, run: Run, loader: Loads) -> None:
    """A checkpoint at step 0 with the backbone of another run, and its head if it is the same; all else starts anew."""
    path, _ = checkpoint.newest(Run(other).checkpoints)
    if path is None:
        raise UserError(f"--init-from {other} has no checkpoint: name the folder of a run that has saved one", BAD_DATA)
    theirs = read_recipe(other / "recipe.json")
    if theirs.model != recipe.model:
        raise UserError(f"--init-from {other} has another model ({theirs.model}): use its recipe")
    donor = theirs.build(len(loader))
    checkpoint.load_learner(path, donor)
    learner = recipe.build(len(loader))
    learner.encoder.backbone.load_state_dict(donor.encoder.backbone.state_dict())
    if theirs.head == recipe.head:
        learner.encoder.head.load_state_dict(donor.encoder.head.state_dict())
    learner.keys = recipe.keys.build(learner.encoder, learner.dictionary)
    checkpoint.save(run.checkpoints, 0, learner, recipe.optimizer.build(learner, recipe.batch))


def summary(done: Finished, out: Path) -> str:
    """The last line of a run."""
    state = "done" if done.step == done.total else "stopped and saved; the same command continues"
    time = f"waited for data {done.waited:.1%} of the time, made views {done.views:.1%}"
    return f"step {done.step} of {done.total}: {state}; {time}; {out}"
