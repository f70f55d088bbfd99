"""The verbs of the command line, thin over the functions that do them; imported only when one is run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lookalike.cli import flags
from lookalike.cli.demo import demo
from lookalike.core import dist
from lookalike.core.devices import keep_freed
from lookalike.core.errors import UserError, meant, visible
from lookalike.core.files import refuse_unwritable, write_json
from lookalike.curate import search as searching
from lookalike.curate.diagnosis import about_machine, about_model, diagnose
from lookalike.curate.doctor import examined
from lookalike.curate.doctor import preview as draw_preview
from lookalike.curate.prepare import prepare as make_cache
from lookalike.data.example import PictureSource, unreadable
from lookalike.data.source import DIGITS, open_source, splits_of
from lookalike.evaluation import compare as comparing
from lookalike.evaluation import evaluate as measuring
from lookalike.evaluation.evaluation import Evaluation, Result
from lookalike.evaluation.segment import Segmented
from lookalike.evaluation.settings import configured
from lookalike.exchange.export import refuse_filled
from lookalike.exchange.named import is_named
from lookalike.recipes import recipe_of
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import flat
from lookalike.report.comparison import markdown
from lookalike.report.comparison import write as write_comparison
from lookalike.report.pictures import write_detections, write_hits, write_segmentation
from lookalike.train.embeddings import embed_data, files_of, place_for, size_of, write_embeddings
from lookalike.train.exported import export as export_model
from lookalike.train.pretrain import Request, carry_out, recipe_for
from lookalike.train.run import is_run
from lookalike.train.screen import Screen
from lookalike.train.trained import load

_LOADED = ("model", "download")  # flags of every verb that opens models
_FIELDS = [field.name for field in fields(Recipe)]


def run(command: flags.Verb, rest: Sequence[str], began: float) -> int:
    """Carry out one parsed command, given at ``began``; ``rest`` is what the parser did not know. The exit code."""
    keep_freed()
    if dist.started() > 1 and not isinstance(command, flags.Pretrain | flags.Evaluate | flags.Embed):
        raise UserError(f"{type(command).__name__.lower()} runs in one process: leave out torchrun")
    files, folders = outputs(command)
    for path in (*files, *folders):
        refuse_unwritable(path, folder=path in folders)
    match command:
        case flags.Pretrain():
            return pretrain(command, rest, began)
        case flags.Preview():
            return preview(command, rest)
        case flags.Compare():
            return compare(command, rest)
    refuse_unknown(command, rest)
    match command:
        case flags.Evaluate():
            return evaluate(command)
        case flags.Embed():
            return embed(command)
        case flags.Search():
            return search(command)
        case flags.Export():
            return export(command)
        case flags.Prepare():
            return prepare(command)
        case flags.Doctor():
            return doctor(command)
        case flags.Demo():
            return demo(Path(command.out), command.overwrite)
    raise TypeError(command)


def outputs(command: flags.Verb) -> tuple[list[str], list[str]]:
    """The files, and the folders, that a command will write: no work is done for one that cannot be written.

    Those of pretraining and of prepare are looked at by the functions themselves.
    """
    files = [*(path for name in ("json", "page") if (path := getattr(command, name, None))), *page_of(command)]
    match command:
        case flags.EvaluateFit(out=str(out)) | flags.Compare(out=out):
            return files, [out]
        case flags.Doctor(data=str(data), out=out) if not is_model(data):
            return files, [out]
        case flags.Embed(out=out):
            return [str(file) for file in files_of(Path(out))], []
        case flags.Preview(out=out):
            return [out], []
    return files, []


def picked(command: flags.Verb, *names: str) -> dict[str, Any]:
    """Some of the flags, by name."""
    return {name: getattr(command, name) for name in names}


def refuse_unknown(command: flags.Verb, rest: Sequence[str], others: Iterable[str] = ()) -> None:
    """A flag that the verb does not have, with the nearest that it has, or of ``others``."""
    if rest:
        values = [command, *([command.settings] if isinstance(command, flags.Evaluate) else [])]
        names = [field.name for value in values for field in fields(value) if field.name != "settings"]
        known = [f"--{name.replace('_', '-')}" for name in (*names, *others)]
        raise UserError(f"unknown argument {rest[0]!r}; {meant(rest[0].split('=')[0], known, 'see --help')}")


def overrides(command: flags.Pretrain | flags.Preview, rest: Sequence[str]) -> list[tuple[str, str]]:
    """(path, text) for each ``--FIELD.PATH VALUE`` or ``--FIELD.PATH=VALUE``."""
    pairs, items = [], list(rest)
    while items:
        name = items.pop(0)
        if not name.startswith("--"):
            refuse_unknown(command, [name])
        path, equals, text = name.removeprefix("--").partition("=")
        path = path.replace("-", "_")
        if "." not in path and path not in _FIELDS:
            refuse_short(path, command.recipe)
            refuse_unknown(command, [name], _FIELDS)
        if not equals:
            if not items or items[0].startswith("--"):
                refuse_unknown(command, [name])
            text = items.pop(0)
        pairs.append((path, text))
    return pairs


def refuse_short(name: str, recipe: str | None) -> None:
    """The last word of a field's path, such as ``--lr``, with the whole path."""
    paths = [path for path in flat(recipe_of(recipe or "small")) if path.split(".")[-1] == name]
    if paths:
        raise UserError(f"unknown argument '--{name}'; did you mean {' or '.join(f'--{path}' for path in paths[:3])}?")


def is_model(name: str) -> bool:
    """Whether it is a run or names a public model, rather than data."""
    return name != DIGITS and (is_run(name) or is_named(name))


def refuse_swapped(run: str, data: str) -> None:
    """Raise UserError for MODEL and DATA in the wrong order."""
    if is_model(data) and not is_model(run):
        raise UserError(f"{data} is a run and {run} is data: swap them")


def refuse_run(data: str, verb: str) -> None:
    """Raise UserError for a model where DATA belongs."""
    if is_model(data):
        raise UserError(f"{data} is a run, not data: lookalike {verb} needs pictures, texts or videos")


def pretrain(command: flags.Pretrain, rest: Sequence[str], began: float) -> int:
    """Exit code 0, or 128 and the number of the signal that stopped the run."""
    refuse_run(command.data, "pretrain")
    same = [field.name for field in fields(Request) if hasattr(command, field.name)]
    request = Request(
        settings=dict(overrides(command, rest)),
        supervised=isinstance(command, flags.Supervised),
        **picked(command, *same),
    )
    done = carry_out(request, began)
    return 128 + done.signal if done.signal else 0


def preview(command: flags.Preview, rest: Sequence[str]) -> int:
    """Writes the sheet."""
    refuse_run(command.data, "preview")
    source = open_source(command.data, command.split)
    request = Request(command.data, command.out, recipe=command.recipe, settings=dict(overrides(command, rest)))
    with Screen("preview") as screen:
        recipe = recipe_for(request, source, screen.say)
        count = draw_preview(source, recipe, Path(command.out), command.rows, command.epoch)
        screen.say(f"{count} pictures and their views by {recipe.name} in {command.out}")
    return 0


def evaluate(command: flags.Evaluate[Evaluation]) -> int:
    """Prints and writes what the command measures."""
    spec = command.settings
    page = next(iter(page_of(command)), None)
    refuse_swapped(command.run, command.data)
    with measuring.processes(spec), Screen(spec.NAME, quiet=not dist.first()) as screen:
        out = command.out if isinstance(command, flags.EvaluateFit) else None
        trained = load(command.run, say=screen.say, **picked(command, *_LOADED, "untrained", "weights", "precision"))
        how: dict[str, Any] = {"out": out, "workers": command.workers, "progress": screen.work, "say": screen.say}
        result = measuring.evaluate(trained, command.data, spec, **how)
        screen.say(str(result))
        if page is not None:
            draw(Path(page), command, result)
            screen.say(f"written: {page}")
    if result.numbers:  # which the first process of torchrun has
        about = picked(command, "untrained", "weights", "run", "model", "data", "precision")
        write_record(command.json, result.record() | about)
    return 0


def page_of(command: flags.Verb) -> list[str]:
    """The page that an evaluation with something to look at writes, if it is one."""
    return [command.page or f"{command.settings.NAME}.html"] if isinstance(command, flags.EvaluateScenes) else []


def draw(page: Path, command: flags.Evaluate[Evaluation], result: Result) -> None:
    """The pictures, their annotations and the predictions."""
    if isinstance(result.detail, Segmented):
        write_segmentation(page, f"Segmentation of {command.data} by {command.run}", str(result), result.detail)
        return
    about = {name: str(value) for name, value in result.settings.items()}
    about |= {"run": command.run, "data": command.data, "weights": command.weights or "its own"}
    title = f"{command.settings.NAME} · {Path(command.data).name}"
    shown = result.detail.pictures, result.detail.detections
    write_detections(page, title, str(result), *shown, about)


def compare(command: flags.Compare, rest: Sequence[str]) -> int:
    """Prints and writes the table."""
    spec = settings_of(command, rest)
    with Screen("compare") as screen:
        try:
            same = picked(command, "trials", "weights", "metric", "out", *_LOADED)
            table = comparing.compare(command.runs, command.on, spec, progress=screen.work, say=screen.say, **same)
        except (KeyboardInterrupt, SystemExit):
            screen.say(f"stopped: finished trials are kept in {command.out}, and the same command continues")
            raise
        screen.say("\n" + markdown(table))
        for path in write_comparison(table, Path(command.out)):
            screen.say(f"written: {path}")
    return 0


def settings_of(command: flags.Compare, rest: Sequence[str]) -> Evaluation:
    """The task with the settings that the parser did not know, read as ``lookalike evaluate TASK`` reads them."""
    default = configured(command.task, {}, trials=True)
    spec: Evaluation
    prog = f"lookalike compare --task {command.task}"
    spec, unknown = flags.answered(type(default), rest, default=default, prog=prog)
    if unknown and unknown[0].startswith("--"):
        name = unknown[0].split("=")[0]
        known = [f"--{field.name.replace('_', '-')}" for field in fields(spec)]
        raise UserError(f"{command.task} has no setting {name!r}; {meant(name, known)}")
    refuse_unknown(command, unknown)
    return spec


def embed(command: flags.Embed) -> int:
    """Writes the table."""
    refuse_swapped(command.run, command.data)
    out = Path(command.out)
    with dist.together(), Screen("embed", not dist.first()) as screen:
        trained = load(command.run, say=screen.say, **picked(command, *_LOADED, "precision"))
        place = place_for(trained, command.data)
        if command.clip is None:
            refuse_unwritable(out, size=size_of(trained, place, out, command.layer))
        how = (command.layer, command.workers, screen.work, command.clip, place, screen.say)
        table = embed_data(trained, command.data, *how)
        if dist.first():
            write_embeddings(table, out)
            screen.say(f"{len(table)} embeddings of width {table.vectors.shape[1]} in {command.out}")
    return 0


def search(command: flags.Search) -> int:
    """Prints and writes the hits."""
    if not command.queries:
        raise UserError("name at least one query: a path in the table, a picture file, or a sentence")
    album = pictures_of(command) if command.page else []
    with Screen("search") as screen:
        how = picked(command, "data", *_LOADED)
        answers = searching.search(command.where, command.queries, command.top, command.run, screen.work, **how)
        for query, hits in zip(command.queries, answers):
            screen.say(visible(query))
            for hit in hits:
                screen.say(line_of(hit))
        if command.page:
            write_hits(Path(command.page), command.where, album, command.queries, answers)
            screen.say(f"written: {command.page}")
    rows = [{"query": query, "hits": [hit._asdict() for hit in hits]} for query, hits in zip(command.queries, answers)]
    write_record(command.json, {"found": rows, "where": command.where, "run": command.run})
    return 0


def pictures_of(command: flags.Search) -> list[PictureSource]:
    """What the page of a search shows, opened before the search; raises UserError where it is not there."""
    known = [name for name in (command.where, command.run) if name is not None]
    data = command.data or next((data for name in known if (data := searching.data_of(name))), None)
    if data is None:
        raise UserError(f"--page needs the pictures that {command.where} was made from: name them with --data")
    try:
        return list(splits_of(data).values())
    except UserError as error:
        raise UserError(f"no page: {error}; say with --data where the pictures are", error.code) from None


def line_of(hit: searching.Hit) -> str:
    """A hit on the screen: its cosine, path, and of a text as much as a line shows."""
    text = " ".join((hit.text or "").split())
    return visible(f"  {hit.cosine:.4f}  {hit.path}  {text[:99]}{'…' if len(text) > 99 else ''}".rstrip())


def export(command: flags.Export) -> int:
    """Prints what the other library found."""
    refuse_filled(Path(command.out))
    with Screen("export") as screen:
        trained = load(command.run, say=screen.say, **picked(command, *_LOADED))
        for line in export_model(trained, command.to, command.out, command.numbers).lines:
            screen.say(line)
    return 0


def prepare(command: flags.Prepare) -> int:
    """Writes the cache."""
    refuse_run(command.data, "prepare")
    with Screen("prepare", command.quiet) as screen:
        settings = (command.size, command.split, command.jpeg, command.workers)
        done = make_cache(command.data, Path(command.out), *settings, progress=screen.work, say=screen.say)
        size = f"{sum(shard.bytes for shard in done.shards) / 1e9:.2f} GB in {len(done.shards)} shards"
        screen.say(f"{done.rows} pictures of {done.side} px, {size}, in {command.out}")
        if done.bad:
            screen.say(unreadable(done.bad, f"all of them in {Path(command.out) / 'bad_files.csv'}"))
    return 0


def doctor(command: flags.Doctor) -> int:
    """Prints and writes the findings."""
    with Screen("doctor") as screen:
        if command.data is None:
            record: dict[str, Any] = dict(about_machine())
            lines: Iterable[str] = (f"{name}: {value}" for name, value in record.items())
        elif is_run(command.data):
            diagnosis = diagnose(Path(command.data), command.workers)
            record, lines = diagnosis.plain(), diagnosis.lines()
        elif is_model(command.data) or command.model is not None:
            record = dict(about_model(load(command.data, say=screen.say, **picked(command, *_LOADED))))
            lines = (f"{name}: {value}" for name, value in record.items())
        else:
            examination = examined(command.data, command.split, command.workers, not command.quick, screen.work)
            record = examination.plain()
            lines = (*examination.lines(), *(f"written: {path}" for path in examination.write(Path(command.out))))
        for line in lines:
            screen.say(line)
    write_record(command.json, record)
    return 0


def write_record(path: str | None, record: dict[str, Any]) -> None:
    """``--json``."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(path), record)
