"""The command line: parsing, and how it ends."""

from __future__ import annotations

import importlib
import io
import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated, get_args

import tyro
from tyro.conf import FlagCreatePairsOff, subcommand

from lookalike.cli.data import Doctor, Embed, Prepare, Preview, Search
from lookalike.cli.evaluation import Compare, Evaluation
from lookalike.cli.training import Demo, Pretrain, Supervised
from lookalike.cli.transfer import Transfer
from lookalike.core.errors import IO, USAGE, UserError, meant, refuse_platform

DEVICE = "LOOKALIKE_DEVICE"
"""As ``devices`` names it, which imports torch."""

PROGRAM = """Learns, without labels, which things look alike.

First: lookalike demo. Then: lookalike pretrain PHOTOS --out runs/first --minutes 10. Each verb has its own --help."""

Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Supervised, subcommand("supervised")]
    | Annotated[Evaluation | Transfer, subcommand("evaluate", description="Measure what was learned.")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Embed, subcommand("embed")]
    | Annotated[Search, subcommand("search")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[Doctor, subcommand("doctor")]
    | Annotated[Preview, subcommand("preview")]
)


def refuse_unknown_verb(arguments: Sequence[str]) -> None:
    """Exit with one line that names the nearest verb, where the parser would only list them all."""
    verbs = [option.__metadata__[0].name for option in get_args(Command)]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in verbs:
        hint = meant(arguments[0], verbs, f"there are {', '.join(verbs)}; see lookalike --help")
        print(f"lookalike: unknown verb {arguments[0]!r}; {hint}", file=sys.stderr)
        sys.exit(USAGE)


def ready_streams() -> None:
    """Open the standard streams that are closed, lest the next file be taken for one; escape what one cannot encode."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def drain() -> None:
    """Drop what nobody reads any more (``| head``), of which Python would else complain at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run the verb, and exit with its code; an error is one line unless ``--debug``."""
    began = time.perf_counter()  # before torch is imported, for which a person waits, too
    ready_streams()
    refuse_unknown_verb(sys.argv[1:] if arguments is None else arguments)
    command, rest = tyro.cli(
        Command,
        prog="lookalike",
        description=PROGRAM,
        args=arguments,
        return_unknown_args=True,
        config=(FlagCreatePairsOff,),
    )
    if command.device is not None:
        os.environ[DEVICE] = command.device
    try:
        refuse_platform()
        code = importlib.import_module("lookalike.cli.verbs").run(command, rest, began)
        drain()
        sys.exit(code)
    except UserError as error:
        if command.debug:
            raise
        print(f"lookalike: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if command.debug:
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"lookalike: {what}: nothing that was saved is lost; --debug shows where", file=sys.stderr)
        sys.exit(IO)
