"""``lookalike.pretrain``: from what a person names to a trained run."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, ParamSpec

import torch
from torch import nn

from lookalike.core import dist
from lookalike.core.devices import Precision, computes_in_bf16, device, isolated, named_precision
from lookalike.core.errors import BAD_DATA, POSITIVE, Limit, UserError, check_limits
from lookalike.core.files import UNFINISHED, publish, refuse_unwritable
from lookalike.core.progress import counted
from lookalike.data.example import Rows, Source, facts, remarks, unreadable
from lookalike.data.fingerprint import changes, from_table, to_table
from lookalike.data.loader import GIB, Loads
from lookalike.data.order import some_rows
from lookalike.data.source import Data, name_of, open_source, reference_and_query
from lookalike.data.text.loader import Tokenizer, texts_of
from lookalike.data.video.source import Timeline
from lookalike.learn.labelled import Labelled
from lookalike.pretext.image import ImageView
from lookalike.pretext.video import TwoMoments
from lookalike.recipes import recipe_of
from lookalike.recipes.modality import TOKENIZER, load_tokenizer, loader, modality_of, new_tokenizer
from lookalike.recipes.parts import Backbone, Transform
from lookalike.recipes.recipe import Length, Recipe
from lookalike.recipes.serialize import flat, from_plain, override, refuse_unloadable, to_plain, with_model, with_view
from lookalike.train import checkpoint
from lookalike.train.learned import doubts, learned, next_command
from lookalike.train.length import Clock, budget, expected, extend, train_to_end
from lookalike.train.loop import Finished
from lookalike.train.result import conclude
from lookalike.train.run import OURS, Run, check_same, is_run, open_run, read_recipe
from lookalike.train.screen import Screen
from lookalike.train.start import Beginning, save_beginning
from lookalike.train.trained import START, Checkup, in_parts, labelled, met_by_all

_HELD_OUT = 1000  # examples at most that a start and its result are compared by
_MANY = 100_000  # examples from which a GPU's default is the paper's recipe
_LONG, _WIDE = 60, 8192  # minutes and examples from which the small default is the wider network: these fill its batch
_DEFAULTS = ("small_simclr", "wide_simclr", "moco_v2")
_SHARED = (
    "overwrite",
    "extend",
    "save_every",
    "skip_bad_steps",
    "max_bad",
)  # settings of a call that every rank acts on
P = ParamSpec("P")


@dataclass(frozen=True)
class Request:
    """Learn from ``data`` without labels into the run folder ``out``, or continue the run that is there.

    ``recipe`` is a name or a value, by default ``small_simclr``, ``wide_simclr`` for 60 minutes and 8,192 examples or
    more, or ``moco_v2`` with a GPU and much data. Its length is one of ``minutes``, ``epochs`` and ``steps``. ``model``
    is ``"timm:NAME"``, ``"torchvision:NAME"``, a part or an ``nn.Module`` that maps (B, 3, S, S) to (B, F); ``view`` is
    a part, or a function from a PIL picture to a view, as torchvision's transforms are; ``settings`` sets other fields
    of the recipe by path, ``{"optimizer.lr": 0.1}``, to a value or its text. The other arguments are as ``lookalike
    pretrain --help`` has them. Raises UserError.
    The process keeps the memory that steps free.
    """

    data: Data
    out: str | Path
    _: KW_ONLY
    recipe: str | Recipe | None = None
    minutes: Annotated[float | None, POSITIVE] = None
    steps: Annotated[int | None, POSITIVE] = None
    epochs: Annotated[float | None, POSITIVE] = None
    batch: int | None = None
    model: str | Backbone | nn.Module | None = None
    view: ImageView | Transform | None = None
    settings: Mapping[str, object] | None = None
    split: str | None = None
    init_from: str | Path | None = None  # a run or a public model, whose weights it begins with
    teacher: str | Path | None = None  # a run or a public model, whose features of whole pictures are the keys
    download: bool = False  # fetch a public model that is not on this machine
    overwrite: bool = False
    extend: bool = False  # make an existing run longer: to so many epochs or steps in all, or by so many minutes
    supervised: bool = False  # train the recipe's backbone with labels instead
    workers: Annotated[int | None, Limit(0, 1024)] = None
    memory: Annotated[float, Limit(0, math.inf)] = 4.0  # GiB
    max_bad: Annotated[float, Limit(0)] = 0.01  # share of pictures that may be unreadable
    save_every: Annotated[int | None, Limit(1)] = None  # steps
    skip_bad_steps: Annotated[int, Limit(0)] = 0  # how many steps may have a loss or gradient that is not finite
    allow_data_change: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        check_limits(self)
        lengths = [value for value in (self.minutes, self.epochs, self.steps) if value is not None]
        if len(lengths) > 1:
            raise UserError("choose one of --minutes, --epochs and --steps")
        if self.extend and self.overwrite:
            raise UserError("--extend makes a run longer and --overwrite starts it again: choose one")
        if self.extend and not lengths:
            raise UserError("--extend needs a length: --epochs or --steps in all, or --minutes more")

    @property
    def folder(self) -> Path:
        """That of the run."""
        return Path(self.out)

    @property
    def length(self) -> Length | None:
        """None where the person names none."""
        length = Length(self.epochs, self.minutes, self.steps)
        return None if length == Length() else length

    @property
    def network(self) -> str | None:
        """What network the files of weights are of that it begins with and learns from, where ``model`` says that."""
        named, files = self.model or (self.settings or {}).get("model"), (self.init_from, self.teacher)
        return named if isinstance(named, str) and any(file and os.path.isfile(file) for file in files) else None

    def change(self, recipe: Recipe) -> Recipe:
        """``recipe`` with the length and the fields that the person set. Raises UserError."""
        recipe = replace(recipe, length=self.length or recipe.length)
        changes = dict(self.settings or {})
        if self.network is not None:  # of the file that it begins with, which the recipe follows
            changes.pop("model", None)
        elif self.model is not None:
            recipe = with_model(recipe, self.model)
        if self.view is not None:
            recipe = with_view(recipe, self.view)
        batch = {} if self.batch is None else {"batch": self.batch}
        for path, value in {**batch, **changes}.items():
            recipe = override(recipe, path, value)
        return recipe


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
        dist.on_first_rank(lambda: refuse_folder(request))
        source = open_data(request)
        sentences = list(remarks(name_of(request.data), {"train": source}))
        start = start_of(request, sentences.append)
        base = base_recipe(request, source, start)
        source, held_out = parted(source, request.change(base).held_out)
        start = start._replace(held_out=held_out)
        if held_out is not None:
            names = modality_of(base).examples
            sentences.append(f"{len(held_out):,} {names} are held out: by them the result is compared with the start")
        recipe = fitted_to(request, base, source, sentences.append)
        refuse_unloadable(recipe)
        if dist.world() > 1:  # what a fingerprint costs
            dist.refuse_other_ranks(facts(source), settings_of(request, recipe))
        quiet, rows = request.quiet or not dist.first(), modality_of(recipe).examples
        opened = open_run(request.folder, request.overwrite)
        with opened as run, Screen(recipe.name, quiet, rows) as screen:
            for sentence in sentences:
                screen.say(sentence)
            return begin_or_continue(request, recipe, source, run, screen, began, start)


def settings_of(request: Request, recipe: Recipe) -> dict[str, object]:
    """What a run depends on but its data, which all ranks must have in common: the recipe's fields by their flags."""
    fields = {f"--{path}": value for path, value in flat(replace(recipe, precision=recipe.computes_in())).items()}
    named = {f"--{name.replace('_', '-')}": getattr(request, name) for name in _SHARED}
    return fields | named


def begin_or_continue(
    request: Request,
    recipe: Recipe,
    source: Source,
    run: Run,
    screen: Screen,
    began: float,
    start: Beginning,
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
    if isinstance(recipe.pretext, TwoMoments):
        Timeline.of(source.paths)  # raises where there are no videos
    tokenizer = tokenizer_of(request, recipe, source, run, new=recorded is None)
    limits = (int(min(request.memory * GIB, sys.maxsize)), request.workers, request.max_bad)
    reads = loader(recipe, source, tokenizer, *limits, counted(screen.work, "reading", len(source)), run.note_bad_files)
    dist.refuse_other_ranks({"unreadable files": len(reads.bad), "first of them": min(reads.bad, default="none")}, {})
    checkup, clock = Checkup.of(reads, recipe), None
    run.restore_threads()
    if recorded is None:
        recipe, clock = begin(request, recipe, run, reads, checkup, screen, began, start)
    elif request.extend:
        recipe, clock = extend(recipe, request.length or recipe.length, run, reads, checkup, began)
    if start.given and not dist.agree(bool(checkpoint.published(run.checkpoints))):
        save_beginning(recipe, start, reads, run, screen.work)
    concludes = start.held_out is not None and (run.folder / START).is_file() and dist.world() == 1
    checkup = checkup._replace(silent=concludes)  # the end has a measure of its own
    how = (screen.step, request.save_every, clock, request.skip_bad_steps)
    done = train_to_end(recipe, run, reads, checkup, *how)
    if bad := met_by_all(reads, source):
        screen.say(unreadable(bad, f"all of them in {run.folder / 'bad_files.csv'}"))
    run.note_bad_files(source.unlisted | bad)
    screen.say(summary(done, request.folder))
    if done.step == done.total and dist.world() == 1:
        for sentence in closing(request, recipe, run, reads, done, start.held_out if concludes else None, screen):
            screen.say(sentence)
    return done


def closing(
    request: Request, recipe: Recipe, run: Run, reads: Loads, done: Finished, held_out: Source | None, screen: Screen
) -> Iterator[str]:
    """What came of a finished run, and the next command; of one that began with a model the better one is kept."""
    encoder = done.learner.encoder
    if held_out is not None:
        yield from conclude(recipe, run.folder, done.step, encoder, reads.source, held_out, screen.work)
    elif not request.quiet:
        yield from learned(recipe, reads, encoder)
    yield next_command(recipe, reads.source, request.data, request.folder)


def parted(source: Source, share: float) -> tuple[Source, Source | None]:
    """What is trained on, and a draw of the examples, at most a thousand, that is not; the data alone decides which."""
    if share == 0:
        return source, None
    drawn, held = in_parts(source.paths, some_rows(len(source), len(source), draw=5)), list[int]()
    while len(drawn) > 1 and len(held) < min(share * len(source), _HELD_OUT):
        held += drawn.pop()
    learned_on = sorted(row for part in drawn for row in part)
    return Rows(source, torch.tensor(learned_on)), Rows(source, torch.tensor(sorted(held)))


def open_data(request: Request) -> Source:
    """What to train on; with labels the reference part alone, since evaluations test on the other."""
    find = modality_of(request.recipe).find
    if request.supervised and request.split is None:
        source, _ = reference_and_query(request.data, find=find)
    else:
        source = open_source(request.data, request.split, find=find)
    return labelled(source, request.data) if request.supervised else source


def refuse_folder(request: Request) -> None:
    """Raise UserError for a folder that holds somebody's other files, or no run to make longer."""
    out, begun = request.folder, is_run(request.folder)
    if os.path.isfile(out):
        raise UserError(f"{out} is a file: --out names the folder of the run")
    refuse_unwritable(out, folder=True)
    names = {path.name for path in out.iterdir() if not path.name.endswith(UNFINISHED)} if out.is_dir() else set()
    if not begun and names - OURS:
        raise UserError(f"{out} holds files that are no run of lookalike: choose an empty or new folder for --out")
    if not begun and request.extend:
        raise UserError(f"{out} holds no run that could be made longer: leave out --extend")


def start_of(request: Request, say: Callable[[str], None]) -> Beginning:
    """The models that a new run begins with and learns from; a run that is begun holds what they gave it."""
    if request.init_from is None and request.teacher is None:
        return Beginning()
    if not request.overwrite and checkpoint.published(Run(request.folder).checkpoints):
        return Beginning()
    return Beginning.opened(request.init_from, request.teacher, request.network, request.download, say)


def base_recipe(request: Request, source: Source, start: Beginning) -> Recipe:
    """The recipe of a request before it is fitted to its data and changed. Raises UserError."""
    named = recipe_of(request.recipe) if isinstance(request.recipe, str) else request.recipe
    if request.init_from is not None and is_run(request.folder) and not request.overwrite:
        recorded = read_recipe(request.folder / "recipe.json")
        return recorded if named is None or named.name == recorded.name else named
    otherwise = named or recipe_of(default_name(request, len(source)))
    recipe = start.recipe(named, otherwise, request.change)
    if request.supervised and not isinstance(recipe.keys, Labelled):
        recipe = recipe.with_labels(len(torch.unique(source.labels)))
    return recipe


def default_name(request: Request, examples: int) -> str:
    """The recipe where none is named: of a run that is begun its own, by whatever minutes it goes on or grows."""
    if is_run(request.folder) and not request.overwrite:
        begun = read_recipe(request.folder / "recipe.json").name.removeprefix("supervised_")
        if begun in _DEFAULTS:
            return begun
    if device().type != "cpu" and examples >= _MANY:
        return "moco_v2"
    given = request.model is not None or "model" in (request.settings or {})  # a network of the person's own
    wide = (request.minutes or 0) >= _LONG and examples >= _WIDE and not given
    return "wide_simclr" if wide else "small_simclr"


def fitted_to(request: Request, recipe: Recipe, source: Source, tell: Callable[[str], None] = lambda _: None) -> Recipe:
    """A recipe as a request changes it, on this data; ``tell`` as ``Recipe.fitted`` takes it. Raises UserError."""
    return recipe.fitted(len(source), modality_of(recipe).side(source), request.change, tell)


def recipe_for(request: Request, source: Source, tell: Callable[[str], None] = lambda _: None) -> Recipe:
    """The recipe of a request that begins with no other model, on this data. Raises UserError."""
    return fitted_to(request, base_recipe(request, source, Beginning()), source, tell)


def precision_for(recipe: Recipe, recorded: Recipe | None) -> Precision:
    """From now on: what the person names, else what the run began in, else what is faster here. Raises UserError."""
    keeps = recorded is not None and recipe.precision == "auto" and named_precision() is None
    return recorded.computes_in() if recorded is not None and keeps else recipe.computes_in()


def refuse_other(request: Request, recipe: Recipe, recorded: Recipe, source: Source, run: Run) -> None:
    """Refuse to continue a run on other data, unless that is allowed, or under other settings."""
    data, changed = run.data(), changes(from_table(run.data_table), source.stamps())
    if changed and not request.allow_data_change:
        raise UserError(
            f"{run.folder} began with other data ({data['examples']} then, {len(source)} now): {changed}; "
            "give it the same data, choose another --out, or go on with --allow-data-change",
            BAD_DATA,
        )
    refuse_other_models(request, data)
    if changed or data.get("changed"):
        # What it derived from the data stays as it was when it began.
        other = request.recipe is not None and recipe.name != recorded.name
        recipe = recipe if other else request.change(recorded)
    if request.extend or recipe.length in (recorded.length.original, replace(recorded.length, stages=())):
        recipe = replace(recipe, length=recorded.length)  # it is to grow, or is as long as when the run began
    check_same(request.folder, recorded, recipe)
    if changed:
        run.note(f"goes on with other data: {changed}")
        run.accept(run.data() | about(request, source) | {"changed": True}, to_table(source.stamps()))


def refuse_other_models(request: Request, data: Mapping[str, object]) -> None:
    """Refuse to begin with, or to learn from, another model than the run does: it would go on with the old one."""
    then = data.get("models")  # older runs did not record it
    for flag, name in models_of(request).items():
        if isinstance(then, dict) and then.get(flag) != name:
            began = f"with {flag} {then[flag]}: name that" if flag in then else f"without {flag}: leave it out"
            raise UserError(f"{request.folder} began {began}, or choose another --out for {name}")


def models_of(request: Request) -> dict[str, str]:
    """By their flags; files and folders by where they are."""
    named = {"--init-from": request.init_from, "--teacher": request.teacher}
    return {flag: os.path.realpath(name) if os.path.exists(name) else str(name) for flag, name in named.items() if name}


def about(request: Request, source: Source) -> dict[str, object]:
    """What environment.json says of the data; data.parquet says which files it was."""
    return {"data": name_of(request.data)[:4096], "split": request.split, "examples": len(source)}


def tokenizer_of(request: Request, recipe: Recipe, source: Source, run: Run, new: bool) -> Tokenizer | None:
    """Of text: a run keeps its own, which begins as that of the run it starts from, or is trained on its data."""
    if not modality_of(recipe).tokenizes:
        return None
    texts_of(source)  # raises where there are none, before anything is written

    def kept() -> str:
        folder = request.init_from if new else run.folder
        tokenizer = load_tokenizer(Path(folder), recipe) if folder is not None else new_tokenizer(recipe, source)
        assert tokenizer is not None
        if new:
            publish(run.folder, {TOKENIZER: tokenizer.json.encode()})
        return tokenizer.json

    return Tokenizer(dist.on_first_rank(kept))


def begin(
    request: Request,
    recipe: Recipe,
    run: Run,
    loader: Loads,
    checkup: Checkup,
    screen: Screen,
    began: float,
    start: Beginning = Beginning(),  # noqa: B008
) -> tuple[Recipe, Clock | None]:
    """Fix what a new run is, record it, and say it; its minutes count from ``began``, and a clock keeps to them."""
    source, clock, about_steps, how_long = loader.source, None, "", ""
    if dist.first() and not (request.quiet or request.init_from or recipe.objective.supervised):
        for doubt in doubts(recipe, loader):
            screen.say(doubt)
    if recipe.length.total(1) is None:
        plan = budget(recipe, recipe.length, loader, checkup, run, began).enough()
        recipe = replace(recipe, length=replace(recipe.length, steps=plan.steps))
        clock = Clock(plan, plan.steps)
        about_steps, how_long = "about ", f" in {expected(clock.whole)}"
    known = about(request, source) | {"models": models_of(request)} | start.about()
    dist.on_first_rank(lambda: run.begin(recipe, known, to_table(source.stamps())))
    processes = f" on {dist.world()} processes" if dist.world() > 1 else ""
    emulated = recipe.precision == "bf16" and not computes_in_bf16(device())
    screen.say(
        f"{recipe.name}: {len(source)} examples, {about_steps}{recipe.length.total(len(source) // recipe.batch):,} "
        f"steps of {recipe.batch}{how_long}{processes}, {recipe.contrast()}, {recipe.pretext.shown()}, "
        f"{recipe.precision}{' (emulated here, slowly: --precision fp32)' if emulated else ''}, into {request.folder}"
    )
    return recipe, clock


def summary(done: Finished, out: Path) -> str:
    """The last line of a run."""
    state = "done" if done.step == done.total else "stopped and saved; the same command continues"
    time = f"waited for data {done.waited:.1%} of the time, made views {done.views:.1%}"
    return f"step {done.step} of {done.total}: {state}; {time}; {out}"
