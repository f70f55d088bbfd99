"""The verbs of the command line, thin over the functions that do them; imported only when one is run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from lookalike.cli.data import Doctor, Embed, Prepare, Preview, Search
from lookalike.cli.demo import demo
from lookalike.cli.evaluation import Compare, Measured
from lookalike.cli.evaluations import evaluate, write_report
from lookalike.cli.main import Command
from lookalike.cli.training import Demo, Pretrain, Supervised
from lookalike.core import dist
from lookalike.core.checks import at_least
from lookalike.core.errors import UserError, meant
from lookalike.core.files import refuse_unwritable
from lookalike.curate import search as searching
from lookalike.curate.diagnosis import diagnose
from lookalike.curate.doctor import about_machine, examine
from lookalike.curate.plan import preview as draw_preview
from lookalike.curate.prepare import prepare as make_cache
from lookalike.data.source import open_source
from lookalike.evaluation import compare as comparing
from lookalike.recipes.recipe import Length, Recipe
from lookalike.report.comparison import markdown
from lookalike.report.comparison import write as write_comparison
from lookalike.report.hits import write_page
from lookalike.train.pretrain import Asked, carry_out, chosen
from lookalike.train.screen import Screen
from lookalike.train.trained import embed_data, load, write_embeddings

_FIELDS = [field.name for field in fields(Recipe)]


def run(command: Command, rest: Sequence[str], began: float) -> int:
    """Carry out one parsed command, given at ``began``; ``rest`` is what the parser did not know. The exit code."""
    match command:
        case Pretrain():
            return pretrain(command, rest, began)
        case Preview():
            return preview(command, rest)
        case Compare():
            return compare(command, rest)
    refuse_unknown(command, rest)
    match command:
        case Measured():
            return evaluate(command)
        case Embed():
            return embed(command)
        case Search():
            return search(command)
        case Prepare():
            return prepare(command)
        case Doctor():
            return doctor(command)
        case Demo():
            return demo(Path(command.out), command.overwrite)


def refuse_unknown(command: object, rest: Sequence[str], others: Iterable[str] = ()) -> None:
    """A flag that the verb does not have, with the nearest that it has, or of ``others``."""
    if rest:
        names = [*(field.name for field in fields(command)), *others]  # type: ignore[arg-type]
        known = [f"--{name.replace('_', '-')}" for name in names]
        raise UserError(f"unknown argument {rest[0]!r}; {meant(rest[0].split('=')[0], known, 'see --help')}")


def overrides(command: Pretrain | Preview, rest: Sequence[str]) -> list[tuple[str, str]]:
    """(path, text) for each ``--FIELD.PATH VALUE`` or ``--FIELD.PATH=VALUE``."""
    found, items = [], list(rest)
    while items:
        name = items.pop(0)
        if not name.startswith("--"):
            refuse_unknown(command, [name])
        path, equals, text = name.removeprefix("--").partition("=")
        if "." not in path and path.replace("-", "_") not in _FIELDS:
            refuse_unknown(command, [name], _FIELDS)
        if not equals:
            if not items or items[0].startswith("--"):
                refuse_unknown(command, [name])
            text = items.pop(0)
        found.append((path.replace("-", "_"), text))
    return found


def settings_of(command: Compare, rest: Sequence[str]) -> list[tuple[str, str]]:
    """(name, text) for each ``--NAME VALUE...`` or ``--NAME=VALUE`` of a task; several values are a list."""
    found: list[tuple[str, str]] = []
    for item in rest:
        if item.startswith("--"):
            name, _, text = item.removeprefix("--").partition("=")
            found.append((name.replace("-", "_"), text))
        elif not found:
            refuse_unknown(command, [item])
        else:
            name, text = found[-1]
            found[-1] = name, f"{text},{item}" if text else item
    return found


def pretrain(command: Pretrain, rest: Sequence[str], began: float) -> int:
    """Exit code 0, or 128 and the number of the signal that stopped the run."""
    lengths = [command.epochs, command.minutes, command.steps]
    if sum(value is not None for value in lengths) > 1:
        raise UserError("choose one of --minutes, --epochs and --steps")
    if any(value is not None and not 0 < value < math.inf for value in lengths):
        raise UserError("--minutes, --epochs and --steps must be above 0")
    at_least(command, workers=0, memory=0, max_bad=0, save_every=1)
    done = carry_out(
        Asked(
            data=command.data,
            out=Path(command.out),
            recipe=command.recipe,
            length=Length(*lengths) if any(lengths) else None,  # type: ignore[arg-type]
            overrides=overrides(command, rest),
            split=command.split,
            overwrite=command.overwrite,
            init_from=Path(command.init_from) if command.init_from else None,
            max_bad=command.max_bad,
            workers=command.workers,
            memory=command.memory,
            save_every=command.save_every,
            allow_data_change=command.allow_data_change,
            quiet=command.quiet,
            supervised=isinstance(command, Supervised),
            extend=command.extend,
        ),
        began,
    )
    return 128 + done.signal if done.signal else 0


def compare(command: Compare, rest: Sequence[str]) -> int:
    """Prints and writes the table."""
    at_least(command, trials=1)
    if not command.runs:
        raise UserError("name a run at least: lookalike compare RUN... --on DATA --task knn")
    if dist.started() > 1:
        raise UserError("compare runs in one process: leave out torchrun")
    settings = settings_of(command, rest)
    out = Path(command.out)
    wanted = comparing.asked(
        command.runs, command.on, command.task, settings, command.trials, command.weights, out, command.metric
    )
    with Screen("compare") as screen:
        try:
            found = comparing.compare(wanted, screen.work, screen.say)
        except (KeyboardInterrupt, SystemExit):
            screen.say(f"stopped: finished trials are kept in {command.out}, and the same command goes on")
            raise
        screen.say("\n" + markdown(found))
        for path in write_comparison(found, wanted.out):
            screen.say(f"written: {path}")
    return 0


def embed(command: Embed) -> int:
    """Writes the table."""
    at_least(command, workers=0, clip=1e-3)
    refuse_unwritable(command.out)
    trained = load(command.run, precision=command.precision)
    with dist.together(), Screen("embed", not dist.first()) as screen:
        table = embed_data(trained, command.data, command.layer, command.workers, screen.work, command.clip)
        if dist.first():
            write_embeddings(table, Path(command.out), command.layer)
            screen.say(f"{len(table)} embeddings of width {table.vectors.shape[1]} in {command.out}")
    return 0


def search(command: Search) -> int:
    """Prints what was found, and writes it."""
    at_least(command, top=1)
    refuse_unwritable(command.json)
    refuse_unwritable(command.page)
    if not command.queries:
        raise UserError("name a query at least: a path of the table, a picture file, or a sentence")
    data = (command.data or searching.learned_from(command.where, command.run)) if command.page else None
    if command.page and data is None:
        raise UserError(f"--page wants the pictures that {command.where} was made of: name them with --data")
    with Screen("search") as screen:
        found = searching.search(command.where, command.queries, command.top, command.run, screen.work)
        for query, hits in zip(command.queries, found):
            screen.say(query)
            for hit in hits:
                screen.say(f"  {hit.cosine:.4f}  {hit.path}")
    rows = [{"query": query, "hits": [hit._asdict() for hit in hits]} for query, hits in zip(command.queries, found)]
    write_report(command.json, {"found": rows, "where": command.where, "run": command.run})
    if command.page and data is not None:
        write_page(Path(command.page), command.where, data, command.queries, found)
        screen.say(f"written: {command.page}")
    return 0


def prepare(command: Prepare) -> int:
    """Writes the cache."""
    at_least(command, size=1, jpeg=1, workers=0)
    if command.jpeg is not None and command.jpeg > 95:
        raise UserError("--jpeg must be at most 95: above that files grow and pictures do not change")
    with Screen("prepare", command.quiet) as screen:
        asked = (command.size, command.split, command.jpeg, command.workers)
        done = make_cache(command.data, Path(command.out), *asked, progress=screen.work)
        size = f"{sum(shard.bytes for shard in done.shards) / 1e9:.2f} GB in {len(done.shards)} shards"
        screen.say(f"{done.rows} canvases of {done.side} px, {size}, in {command.out}")
        if done.bad:
            path, reason = next(iter(done.bad.items()))
            where = Path(command.out) / "bad_files.csv"
            screen.say(f"{len(done.bad)} cannot be read, first {path} ({reason}); all of them in {where}")
    return 0


def preview(command: Preview, rest: Sequence[str]) -> int:
    """Writes the sheet."""
    at_least(command, rows=1, epoch=0)
    source = open_source(command.data, command.split)
    asked = Asked(command.data, Path(command.out), command.recipe, overrides=overrides(command, rest))
    recipe = chosen(asked, source)
    count = draw_preview(source, recipe, Path(command.out), command.rows, command.epoch)
    with Screen("preview") as screen:
        screen.say(f"{count} pictures and their views by {recipe.name} in {command.out}")
    return 0


def doctor(command: Doctor) -> int:
    """Prints and writes what was found."""
    at_least(command, workers=0)
    refuse_unwritable(command.json)
    if command.data is None:
        return machine(command.json)
    if (Path(command.data) / "recipe.json").is_file():
        return doctor_of_run(command)
    with Screen("doctor") as screen:
        found = examine(command.data, command.split, command.workers, not command.quick, screen.work)
        for line in found.lines():
            screen.say(line)
        for path in found.write(Path(command.out)):
            screen.say(f"written: {path}")
    write_report(command.json, found.plain())
    return 0


def doctor_of_run(command: Doctor) -> int:
    """What a run is and how it does."""
    found = diagnose(Path(str(command.data)), command.workers)
    with Screen("doctor") as screen:
        for line in found.lines():
            screen.say(line)
    write_report(command.json, found.plain())
    return 0


def machine(json: str | None) -> int:
    """What this machine has."""
    report = about_machine()
    with Screen("doctor") as screen:
        for name, value in report.items():
            screen.say(f"{name}: {value}")
    write_report(json, dict(report))
    return 0
