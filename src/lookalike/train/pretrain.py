"""``lookalike.pretrain``: from what a person names to a trained run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, ParamSpec

import torch
from torch import nn

from lookalike.core import dist
from lookalike.core.checks import Limit, check_limits
from lookalike.core.devices import Precision, computes_in_bf16, device, named_precision
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import UNFINISHED, write_atomically
from lookalike.core.isolation import isolated
from lookalike.data.example import Source
from lookalike.data.fingerprint import Change, changes, from_table, to_table
from lookalike.data.loader import GIB, Loads
from lookalike.data.source import Data, name_of, open_source, reference_and_query
from lookalike.data.text.loader import Tokenizer, texts_of
from lookalike.learn.labelled import Labelled
from lookalike.pretext.image import ImageView
from lookalike.recipes import recipe_of
from lookalike.recipes.modality import TOKENIZER, kept_tokenizer, loader, modality_of, new_tokenizer
from lookalike.recipes.parts import Backbone, Network, Transform, Transformed
from lookalike.recipes.recipe import Length, Recipe
from lookalike.recipes.serialize import from_plain, override, refuse_unloadable, to_plain
from lookalike.train import checkpoint
from lookalike.train.length import Clock, budget, expected, extended, to_the_end
from lookalike.train.loop import Finished
from lookalike.train.monitor import Checkup
from lookalike.train.run import Run, check_same, move_aside, opened, read_recipe
from lookalike.train.screen import Screen
from lookalike.train.trained import labelled

_MANY = 100_000  # examples from which a GPU's default is the paper's recipe
P = ParamSpec("P")


@dataclass(frozen=True)
class Request:
    """Learn from ``data`` without labels into the run folder ``out``, or continue the run that is there.

    ``recipe`` is a name or a value, by default ``small``, or ``moco_v2`` with a GPU and much data. Its length is one of
    ``minutes``, ``epochs`` and ``steps``. ``model`` is ``"timm:NAME"``, ``"torchvision:NAME"``, a part or an
    ``nn.Module`` that maps (B, 3, S, S) to (B, F); ``view`` is a part, or a function from a PIL picture to a view, as
    torchvision's transforms are; ``settings`` sets other fields of the recipe by path, ``{"optimizer.lr": 0.1}``, to a
    value or its text. The other arguments are as ``lookalike pretrain --help`` has them. Raises UserError.
    The process keeps the memory that steps free.
    """

    data: Data
    out: str | Path
    _: KW_ONLY
    recipe: str | Recipe | None = None
    minutes: float | None = None
    steps: int | None = None
    epochs: float | None = None
    batch: int | None = None
    model: str | Backbone | nn.Module | None = None
    view: ImageView | Transform | None = None
    settings: Mapping[str, object] | None = None
    split: str | None = None
    init_from: str | Path | None = None
    overwrite: bool = False
    extend: bool = False  # make an existing run longer: to so many epochs or steps in all, or by so many minutes
    supervised: bool = False  # train the recipe's backbone with labels instead
    workers: Annotated[int, Limit(0)] = 2
    memory: Annotated[float, Limit(0)] = 4.0  # GiB
    max_bad: Annotated[float, Limit(0)] = 0.01  # share of pictures that may be unreadable
    save_every: Annotated[int | None, Limit(1)] = None  # steps
    allow_data_change: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        check_limits(self)
        lengths = [value for value in (self.minutes, self.epochs, self.steps) if value is not None]
        if len(lengths) > 1:
            raise UserError("choose one of --minutes, --epochs and --steps")
        if not all(0 < value < math.inf for value in lengths):
            raise UserError("--minutes, --epochs and --steps must be above 0")

    @property
    def folder(self) -> Path:
        """That of the run."""
        return Path(self.out)

    @property
    def length(self) -> Length | None:
        """The one that is named; None where none is."""
        length = Length(self.epochs, self.minutes, self.steps)
        return None if length == Length() else length

    def change(self, recipe: Recipe) -> Recipe:
        """``recipe`` with the length and the fields that the person set. Raises UserError."""
        recipe = replace(recipe, length=self.length or recipe.length)
        if self.batch is not None:
            recipe = override(recipe, "batch", self.batch)
        if self.model is not None:
            recipe = with_model(recipe, self.model)
        if self.view is not None:
            recipe = with_view(recipe, self.view)
        for path, value in (self.settings or {}).items():
            recipe = override(recipe, path, value)
        return recipe


def with_model(recipe: Recipe, model: str | Backbone | nn.Module) -> Recipe:
    """``recipe`` with another backbone, which may be a network that was handed over. Raises UserError."""
    if not isinstance(model, nn.Module):
        return override(recipe, "model", model)
    if dist.world() > 1:
        raise UserError(
            "under torchrun each process would bring a network of its own: register the part, @lookalike.part"
        )
    return replace(recipe, model=Network.of(model, recipe.pictures.first.size))


def with_view(recipe: Recipe, view: ImageView | Transform) -> Recipe:
    """``recipe`` with other views of pictures: a part, or a function that was handed over. Raises UserError."""
    views = recipe.pictures
    first = view if isinstance(view, ImageView) else Transformed.of(view, views.first)
    return replace(recipe, pretext=replace(views, first=first, second=None))


@dataclass(frozen=True, kw_only=True)
class SupervisedRequest(Request):
    """Train the backbone of a recipe with labels, to compare with; the arguments are those of ``pretrain``."""

    supervised: bool = True


def _as_function(request: Callable[P, Request], name: str) -> Callable[P, Finished]:
    """A function of the arguments of a request, which carries it out."""

    @wraps(request, assigned=("__module__", "__doc__"), updated=())
    def run(*args: P.args, **options: P.kwargs) -> Finished:
        return carry_out(request(*args, **options))

    run.__name__ = run.__qualname__ = name
    run.__signature__ = signature(request).replace(return_annotation=Finished)  # type: ignore[attr-defined]
    return run


pretrain = _as_function(Request, "pretrain")
supervised = _as_function(SupervisedRequest, "supervised")


@isolated()
def carry_out(request: Request, began: float | None = None) -> Finished:
    """The whole of ``pretrain`` or ``supervised``, with the processes that torchrun started.

    Minutes count from ``began``, by the clock ``time.perf_counter``, or from now.
    """
    began = time.perf_counter() if began is None else began
    with dist.together():
        dist.on_first_rank(lambda: refuse_foreign(request.folder))
        dist.on_first_rank(lambda: refuse_extending(request))
        source = opened_data(request)
        sentences: list[str] = []
        recipe = recipe_for(request, source, sentences.append)
        refuse_unloadable(recipe)
        if request.overwrite:
            dist.on_first_rank(lambda: make_room(request.folder))
        quiet, rows = request.quiet or not dist.first(), modality_of(recipe).examples
        with opened(request.folder) as run, Screen(recipe.name, quiet, rows) as screen:
            for sentence in sentences:
                screen.say(sentence)
            return begin_or_continue(request, recipe, source, run, screen, began)


def begin_or_continue(
    request: Request, recipe: Recipe, source: Source, run: Run, screen: Screen, began: float
) -> Finished:
    """Begin or continue in an open run folder."""
    run.tell = screen.say
    recorded = from_plain(dist.on_first_rank(lambda: to_plain(run.recipe())))
    recipe = replace(recipe, precision=precision_for(recipe, recorded))
    if recorded is not None:
        recorded = replace(recorded, precision=recipe.precision)  # another is not refused, but said and recorded
        dist.on_first_rank(lambda: refuse_other(request, recipe, recorded, source, run))
        recipe = recorded
    dist.on_first_rank(lambda: checkpoint.refuse_full(run.checkpoints, recipe, len(source)))
    tokenizer = tokenizer_of(request, recipe, source, run, new=recorded is None)
    reads = load_data(request, recipe, source, tokenizer, run, screen)
    checkup, clock = Checkup.of(reads, recipe), None
    if recorded is None:
        recipe, clock = begin(request, recipe, run, reads, checkup, screen, began)
    elif request.extend:
        recipe, clock = extended(recipe, request.length or recipe.length, run, reads, checkup, began)
    if request.init_from is not None and not dist.agree(bool(checkpoint.published(run.checkpoints))):
        initialise(Path(request.init_from), recipe, run, reads)
    done = to_the_end(recipe, run, reads, checkup, screen.step, request.save_every, clock)
    note_all_bad(run, reads)
    screen.say(summary(done, request.folder))
    return done


def opened_data(request: Request) -> Source:
    """What to train on; with labels the reference part alone, since evaluations test on the other."""
    find = modality_of(request.recipe).find
    if request.split is not None or not request.supervised:
        source = open_source(request.data, request.split, find=find)
        return labelled(source, request.data) if request.supervised else source
    source, _ = reference_and_query(request.data, find=find)
    return labelled(source, request.data)


def make_room(out: Path) -> None:
    """Move an old run aside, but not while another process trains it."""
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


def refuse_extending(request: Request) -> None:
    """Raise UserError for what cannot be extended: no run, or by no length."""
    if not request.extend:
        return
    if request.overwrite:
        raise UserError("--extend makes a run longer and --overwrite starts it again: choose one")
    if request.length is None:
        raise UserError("--extend wants to know how long: --epochs or --steps in all, or --minutes more")
    if not (request.folder / "recipe.json").exists():
        raise UserError(f"{request.folder} holds no run that could be made longer: leave out --extend")


def recipe_for(request: Request, source: Source, tell: Callable[[str], None] = lambda _: None) -> Recipe:
    """The recipe of a request on this data; ``tell`` as ``Recipe.fitted`` takes it. Raises UserError."""
    large = device().type != "cpu" and len(source) >= _MANY
    recipe = request.recipe or ("moco_v2" if large else "small")
    recipe = recipe if isinstance(recipe, Recipe) else recipe_of(recipe)
    if request.supervised and not isinstance(recipe.keys, Labelled):
        recipe = recipe.with_labels(len(torch.unique(source.labels)))
    side = modality_of(recipe).side(source)
    return recipe.fitted(len(source), side, request.change, tell)


def precision_for(recipe: Recipe, recorded: Recipe | None) -> Precision:
    """From now on: what the person names, else what the run began in, else what is faster here. Raises UserError."""
    keeps = recorded is not None and recipe.precision == "auto" and named_precision() is None
    return recorded.computes_in() if recorded is not None and keeps else recipe.computes_in()


def check_data(request: Request, run: Run, source: Source) -> Change:
    """How the data has changed since the run began, which is refused unless the person allows it."""
    began, changed = run.data(), changes(from_table(run.data_table), source.stamps())
    if changed and not request.allow_data_change:
        raise UserError(
            f"{run.folder} began with other data ({began['examples']} then, {len(source)} now): {changed}; "
            "give it the same data, choose another --out, or go on with --allow-data-change",
            BAD_DATA,
        )
    return changed


def refuse_other(request: Request, recipe: Recipe, recorded: Recipe, source: Source, run: Run) -> None:
    """Refuse to continue a run on other data, unless that is allowed, or under other settings."""
    changed = check_data(request, run, source)
    if changed or run.data().get("changed"):
        recipe = adjusted(request, recipe, recorded)
    check_same(request.folder, recorded, at_recorded_length(recipe, recorded, request.extend))
    if changed:
        run.note(f"goes on with other data: {changed}")
        run.accept(about(request, source) | {"changed": True}, to_table(source.stamps()))


def about(request: Request, source: Source) -> dict[str, object]:
    """What environment.json says of the data; data.parquet says which files it was."""
    return {"data": name_of(request.data)[:4096], "split": request.split, "examples": len(source)}


def adjusted(request: Request, recipe: Recipe, recorded: Recipe) -> Recipe:
    """The recipe for a run whose data has changed: what it derived from the data stays as it was when it began."""
    return recipe if request.recipe is not None and recipe.name != recorded.name else request.change(recorded)


def at_recorded_length(recipe: Recipe, recorded: Recipe, extend: bool = False) -> Recipe:
    """``recipe`` at the length that the run has, if its own is the one that the run began with, or is to grow."""
    if extend or recipe.length in (recorded.length.original, replace(recorded.length, stages=())):
        return replace(recipe, length=recorded.length)
    return recipe


def tokenizer_of(request: Request, recipe: Recipe, source: Source, run: Run, new: bool) -> Tokenizer | None:
    """Of text: a run keeps its own, which begins as that of the run it starts from, or is trained on its data."""
    if not modality_of(recipe).tokenizes:
        return None
    texts_of(source)  # raises where there are none, before anything is written

    def kept() -> str:
        folder = run.folder if not new else request.init_from
        tokenizer = kept_tokenizer(Path(folder), recipe) if folder is not None else new_tokenizer(recipe, source)
        assert tokenizer is not None
        if new:
            write_atomically(run.folder / TOKENIZER, tokenizer.json.encode())
        return tokenizer.json

    return Tokenizer(dist.on_first_rank(kept))


def load_data(
    request: Request, recipe: Recipe, source: Source, tokenizer: Tokenizer | None, run: Run, screen: Screen
) -> Loads:
    """The loader, after decoding everything where it fits into memory."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        screen.work("reading", done, len(source))

    limits = (int(request.memory * GIB), request.workers, request.max_bad)
    return loader(recipe, source, tokenizer, *limits, more, lambda bad: run.note_bad_files(bad))


def begin(
    request: Request, recipe: Recipe, run: Run, loader: Loads, checkup: Checkup, screen: Screen, began: float
) -> tuple[Recipe, Clock | None]:
    """Fix what a new run is, record it, and say it; its minutes count from ``began``, and a clock keeps to them."""
    source, clock, about_steps, how_long = loader.source, None, "", ""
    if recipe.length.total(1) is None:
        plan = budget(recipe, recipe.length, loader, checkup, screen.say, began).enough()
        recipe = replace(recipe, length=replace(recipe.length, steps=plan.steps))
        clock = Clock(plan, plan.steps)
        about_steps, how_long = "about ", f" in {expected(clock.whole)}"
    dist.on_first_rank(lambda: run.begin(recipe, about(request, source), to_table(source.stamps())))
    processes = f" on {dist.world()} processes" if dist.world() > 1 else ""
    emulated = recipe.precision == "bf16" and not computes_in_bf16(device())
    screen.say(
        f"{recipe.name}: {len(source)} examples, {about_steps}{recipe.length.total(len(source) // recipe.batch):,} "
        f"steps of {recipe.batch}{how_long}{processes}, {recipe.contrast()}, {recipe.pretext.shown()}, "
        f"{recipe.precision}{' (emulated here, slowly: --precision fp32)' if emulated else ''}, into {request.folder}"
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
