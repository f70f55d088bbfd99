"""The command line: parsing, and how it ends."""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO

import lookalike
from lookalike.cli.arguments import Verb, answered
from lookalike.cli.flags import VERBS, verbs
from lookalike.core.errors import IO, UserError, meant, refuse_platform, visible
from lookalike.core.waiting import TIMEOUT, end_on_second_interrupt, end_where_it_hangs
from lookalike.evaluation.settings import evaluation_named

DEVICE = "LOOKALIKE_DEVICE"
"""As ``devices`` names it, which imports torch."""

PACKAGE = Path(lookalike.__file__).parent
_AS_PYTHON = warnings.formatwarning

PROGRAM = """Learns, without labels, which things look alike.

Begin with: lookalike demo. Then: lookalike pretrain PHOTOS --out runs/first --minutes 10. Each verb has its own --help.

--version prints the version. --tyro-print-completion bash (or zsh, tcsh) prints a script for shell completion."""


def parsed(arguments: Sequence[str]) -> tuple[Verb, list[str]]:
    """The command, and what the parser does not know. Raises UserError for a verb that does not exist."""
    verb, below = (*arguments, None, None)[:2]
    if verb is not None and not verb.startswith("-") and verb not in VERBS:
        hint = meant(verb, VERBS, f"the verbs are {', '.join(VERBS)}; see lookalike --help")
        raise UserError(f"unknown verb {verb!r}; {hint}")
    if verb == "evaluate" and below is not None and not below.startswith("-"):
        evaluation_named(below)
    whole = any(argument.startswith("--tyro-") for argument in arguments)  # a script for shell completion
    return answered(verbs(verb, below, whole), arguments, prog="lookalike", description=PROGRAM)


class Escaped:
    """A stream, where whatever is written, by any library too, only shows: see ``visible``."""

    def __init__(self, stream: TextIO) -> None:
        self.obeyed = stream  # for the live line, which moves the cursor

    def __getattr__(self, name: str) -> Any:
        """Encoding, buffer and all else of the stream itself."""
        return getattr(self.obeyed, name)

    def write(self, text: str) -> int:
        """Lines stay lines."""
        self.obeyed.write("\n".join(map(visible, text.split("\n"))))
        return len(text)


def ready_streams() -> None:
    """Open the standard streams that are closed, lest the next file be taken for one; escape what one cannot encode."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def wait_asleep() -> None:
    """Let OpenMP's threads soon sleep while they wait for each other, unless the person has a say; before torch is in.

    Awake they hold the cores that other programs need, and then wait for those. 2,000 looks cost nothing alone on the
    machine, and beside a busy process a step takes a quarter of the time (docs/results.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


@contextmanager
def shown() -> Iterator[None]:
    """Whatever is printed meanwhile goes through ``Escaped``."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and Escaped(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def complain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback, which quotes what it met."""
    with shown():
        sys.__excepthook__(kind, error, trace)


def drain() -> None:
    """Drop what nobody reads any more (``| head``), of which Python would else complain at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def refused(error: UserError, arguments: Sequence[str]) -> NoReturn:
    """Exit with one line, or with the traceback if there is --debug."""
    if "--debug" in arguments:
        raise error
    print(f"lookalike: {visible(str(error))}", file=sys.stderr)
    sys.exit(error.code)


def notice(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning as a line: this package's own are for the person, who knows no lines of code."""
    if category is UserWarning and Path(filename).is_relative_to(PACKAGE):
        return f"lookalike: {visible(str(message))}\n"
    return _AS_PYTHON(message, category, filename, lineno, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run the verb, and exit with its code; an error is one line unless ``--debug``."""
    began = time.perf_counter()  # before torch is imported, for which a person waits, too
    if own := arguments is None:  # the process is this command's own
        end_on_second_interrupt()
        wait_asleep()
    arguments = sys.argv[1:] if arguments is None else arguments
    ready_streams()
    warnings.formatwarning = notice
    sys.excepthook = complain
    if list(arguments) == ["--version"]:
        print(lookalike.__version__)
        sys.exit(0)
    try:
        command, rest = parsed(arguments)
    except UserError as error:
        refused(error, arguments)
    except BrokenPipeError:  # nobody reads the help any more
        drain()
        sys.exit(0)
    try:
        if command.device is not None:
            os.environ[DEVICE] = command.device
        if command.timeout is not None:
            os.environ[TIMEOUT] = str(command.timeout)
        refuse_platform()
        if own and int(os.environ.get("WORLD_SIZE", "1")) == 1:  # of several ranks one hears of it from the others
            end_where_it_hangs()
        with shown():
            code = importlib.import_module("lookalike.cli.verbs").run(command, rest, began)
        drain()
        sys.exit(code)
    except UserError as error:
        refused(error, arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, MemoryError, RuntimeError) as error:
        what = stopped_by(error)
        if what is None or "--debug" in arguments:
            raise
        print(f"lookalike: {visible(what)}: nothing that was saved is lost; --debug shows where", file=sys.stderr)
        sys.exit(IO)


def stopped_by(error: OSError | MemoryError | RuntimeError) -> str | None:
    """What the machine refused, in words; None where it is a fault of ours. torch has no class for all it says."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)):
        return "there is not enough memory; smaller sizes, or a smaller --batch, take less"
    return None
