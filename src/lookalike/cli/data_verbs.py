"""The verbs that look at data, thin over the functions that do them; imported only when one is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lookalike.cli import data_flags
from lookalike.cli.arguments import Verb
from lookalike.cli.checks import LOADED, is_model, overrides, picked, refuse_run, refuse_swapped, write_record
from lookalike.core import dist
from lookalike.core.errors import UserError, visible
from lookalike.core.files import refuse_unwritable
from lookalike.curate import search as searching
from lookalike.curate.diagnosis import about_machine, about_model, diagnose
from lookalike.curate.doctor import examined
from lookalike.curate.doctor import preview as draw_preview
from lookalike.curate.prepare import prepare as make_cache
from lookalike.curate.table import data_of
from lookalike.data.example import PictureSource, unreadable
from lookalike.data.source import open_source, splits_of
from lookalike.report.hits import Answer, write_hits
from lookalike.train.embeddings import embed_data, place_for, size_of, write_embeddings
from lookalike.train.pretrain import Request, recipe_for
from lookalike.train.run import is_run
from lookalike.train.screen import Screen
from lookalike.train.streamed import embed_to
from lookalike.train.trained import load


def preview(command: data_flags.Preview, rest: Sequence[str]) -> int:
    """Writes the sheet."""
    refuse_run(command.data, "preview")
    source = open_source(command.data, command.split)
    request = Request(command.data, command.out, recipe=command.recipe, settings=dict(overrides(command, rest)))
    with Screen("preview") as screen:
        recipe = recipe_for(request, source, screen.say)
        count = draw_preview(source, recipe, Path(command.out), command.rows, command.epoch)
        screen.say(f"{count} pictures and their views by {recipe.name} in {command.out}")
    return 0


def embed(command: data_flags.Embed) -> int:
    """Writes the table."""
    refuse_swapped(command.run, command.data)
    out = Path(command.out)
    streams = out.suffix.lower() == ".parquet" and command.clip is None
    if command.update and not streams:
        raise UserError("--update is for tables in .parquet, without --clip: leave it out, or name another --out")
    with dist.together(), Screen("embed", not dist.first()) as screen:
        trained = load(command.run, say=screen.say, **picked(command, *LOADED, "precision"))
        place = place_for(trained, command.data)
        if command.clip is None:  # parts and the table are there at once, for a moment
            refuse_unwritable(out, size=size_of(trained, place, out, command.layer) * (2 if streams else 1))
        how: dict[str, Any] = {"layer": command.layer, "workers": command.workers, "progress": screen.work}
        how |= {"place": place, "say": screen.say}
        if streams:
            done = embed_to(trained, command.data, out, update=command.update, **how)
            if command.update:
                screen.say(f"{done.new:,} new or changed, {done.kept:,} as they were, {done.dropped:,} gone")
            count, width = done[:2]
        else:
            table = embed_data(trained, command.data, clip=command.clip, **how)
            count, width = table.vectors.shape
            if dist.first():
                write_embeddings(table, out)
        screen.say(f"{count} embeddings of width {width} in {command.out}")
    return 0


def search(command: data_flags.Search) -> int:
    """Prints and writes the hits."""
    if not command.queries:
        raise UserError("name at least one query: a path in the table, a picture file, or a sentence")
    album = pictures_of(command) if command.page else []
    with Screen("search") as screen:
        how = picked(command, "data", *LOADED, "where", "together", "minus", "index")
        asked = (command.table, command.queries, command.top, command.run, screen.work)
        answers = searching.search(*asked, say=screen.say, **how)
        wanted = [command.queries] if command.together else [(query,) for query in command.queries]
        names = [" + ".join(some) + "".join(f" - {one}" for one in command.minus) for some in wanted]
        for name, hits in zip(names, answers):
            screen.say(visible(name))
            for hit in hits:
                screen.say(line_of(hit))
        if command.page:
            shown = [Answer(name, (*some, *command.minus), hits) for name, some, hits in zip(names, wanted, answers)]
            write_hits(Path(command.page), command.table, album, shown)
            screen.say(f"written: {command.page}")
    rows = [{"query": name, "hits": [hit._asdict() for hit in hits]} for name, hits in zip(names, answers)]
    write_record(command.json, {"found": rows, **picked(command, "table", "where", "run")})
    return 0


def pictures_of(command: data_flags.Search) -> list[PictureSource]:
    """What the page of a search shows, opened before the search; raises UserError where it is not there."""
    known = [name for name in (command.table, command.run) if name is not None]
    data = command.data or next((data for name in known if (data := data_of(name))), None)
    if data is None:
        raise UserError(f"--page needs the pictures that {command.table} was made from: name them with --data")
    try:
        return list(splits_of(data).values())
    except UserError as error:
        raise UserError(f"no page: {error}; say with --data where the pictures are", error.code) from None


def line_of(hit: searching.Hit) -> str:
    """A hit on the screen: its cosine, path, and of a text as much as a line shows."""
    text = " ".join((hit.text or "").split())
    return visible(f"  {hit.cosine:.4f}  {hit.path}  {text[:99]}{'…' if len(text) > 99 else ''}".rstrip())


def explore(command: data_flags.Explore) -> int:
    """Serves the page until Ctrl-C."""
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"explore needs {' and '.join(missing)}: pip install 'lookalike[explore]'")
    decisions = None if command.decisions is None else Path(command.decisions)
    with Screen("explore") as screen:
        how = picked(command, "data", "port", *LOADED) | {"browser": not command.no_browser, "decisions": decisions}
        import_module("lookalike.explore.opened").explore(command.where, **how, progress=screen.work, say=screen.say)
    return 0


def prepare(command: data_flags.Prepare) -> int:
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


def doctor(command: data_flags.Doctor) -> int:
    """Prints and writes the findings."""
    with Screen("doctor") as screen:
        if command.data is None:
            record: dict[str, Any] = dict(about_machine())
            lines: Iterable[str] = (f"{name}: {value}" for name, value in record.items())
        elif is_run(command.data):
            diagnosis = diagnose(Path(command.data), command.workers)
            record, lines = diagnosis.plain(), diagnosis.lines()
        elif is_model(command.data) or command.model is not None:
            record = dict(about_model(load(command.data, say=screen.say, **picked(command, *LOADED))))
            lines = (f"{name}: {value}" for name, value in record.items())
        else:
            examination = examined(command.data, command.split, command.workers, not command.quick, screen.work)
            record = examination.plain()
            lines = (*examination.lines(), *(f"written: {path}" for path in examination.write(Path(command.out))))
        for line in lines:
            screen.say(line)
    write_record(command.json, record)
    return 0


ACTIONS: dict[type[Verb], Callable[[Any], int]] = {
    data_flags.Embed: embed,
    data_flags.Search: search,
    data_flags.Explore: explore,
    data_flags.Prepare: prepare,
    data_flags.Doctor: doctor,
}
"""What carries out each but preview, which takes fields of recipes, too."""
