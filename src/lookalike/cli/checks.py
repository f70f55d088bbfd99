"""What verbs ask of their arguments before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lookalike.cli import data_flags, flags
from lookalike.cli.arguments import Verb
from lookalike.core.errors import UserError, meant
from lookalike.core.files import write_json
from lookalike.data.source import DIGITS
from lookalike.exchange.named import is_named
from lookalike.recipes import recipe_of
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import flat
from lookalike.train.run import is_run

LOADED = ("model", "download")
"""Flags of every verb that opens models."""

_FIELDS = [field.name for field in fields(Recipe)]


def picked(command: Verb, *names: str) -> dict[str, Any]:
    """Some of the flags, by name."""
    return {name: getattr(command, name) for name in names}


def refuse_unknown(command: Verb, rest: Sequence[str], others: Iterable[str] = ()) -> None:
    """A flag that the verb does not have, with the nearest that it has, or of ``others``."""
    if rest:
        values = [command, *([command.settings] if isinstance(command, flags.Evaluate) else [])]
        names = [field.name for value in values for field in fields(value) if field.name != "settings"]
        known = [f"--{name.replace('_', '-')}" for name in (*names, *others)]
        raise UserError(f"unknown argument {rest[0]!r}; {meant(rest[0].split('=')[0], known, 'see --help')}")


def overrides(command: flags.Pretrain | data_flags.Preview, rest: Sequence[str]) -> list[tuple[str, str]]:
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
    paths = [path for path in flat(recipe_of(recipe or "small_simclr")) if path.split(".")[-1] == name]
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


def write_record(path: str | None, record: dict[str, Any]) -> None:
    """``--json``."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(path), record)
