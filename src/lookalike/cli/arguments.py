"""What all verbs have in common, and how arguments become values; nothing here imports torch, which is slow.

The words of ``--help`` are the docstrings, and the docstring or the comment of each field.
"""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from itertools import dropwhile, takewhile
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from lookalike.core.errors import Limit, UserError, check_limits


def shown(metavar: str) -> Any:
    """How a value is named in the help; a default of None, which the text explains, is not repeated there."""
    return arg(metavar=metavar, help_behavior_hint="")


Layer = Annotated[
    Literal["backbone", "head"],
    arg(help="Which features: the backbone's, or the output of the head that was trained on top of it."),
]
Precision = Annotated[
    Literal["fp32", "bf16"],
    arg(
        help="Of the network's products. bf16 is faster on GPUs and on processors that support it; features change by "
        "up to two hundredths."
    ),
]
Workers = Annotated[
    int | None,
    Limit(0, 1024),
    arg(
        metavar="N",
        help="Processes that decode pictures; by default 2, and for a GPU all cores but two, at most 16.",
        help_behavior_hint="",
    ),
]
Data = Positional[Annotated[str, shown("DATA")]]
File = Annotated[str | None, shown("FILE")]
Name = Annotated[str | None, shown("NAME")]


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What every verb takes."""

    device: Annotated[Literal["cpu", "cuda", "mps"] | None, shown("cpu|cuda|mps")] = None
    """Where to compute; by default a GPU if there is one. The environment variable LOOKALIKE_DEVICE sets it for all
    commands."""
    timeout: Annotated[float | None, Limit(0, 1e9, above=True), shown("SECONDS")] = None
    """How long a process that reads or computes may give no sign of life before it is named and the command ends; by
    default 300. The environment variable LOOKALIKE_TIMEOUT sets it for all commands."""
    debug: bool = False  # Show the traceback of an error.

    def __post_init__(self) -> None:
        check_limits(self)


Model = Positional[Annotated[str, shown("MODEL")]]


@dataclass(frozen=True, kw_only=True)
class OfModel(Verb):
    """What every verb takes that opens models: a run, timm:NAME, torchvision:NAME, hf:FOLDER or a file of weights."""

    model: Name = None  # The network that a file of weights is of: timm:NAME or torchvision:NAME.
    download: bool = False  # Fetch a public model that is not on this machine, after saying its size.


def one_of(kinds: Mapping[str, type], flags: Callable[[str], Any], chosen: str | None, whole: bool) -> Any:
    """Subcommands as one type, from their names to the classes that describe them.

    Only the one that is ``chosen`` has flags and all of its description, unless the ``whole`` is needed: a list shows
    the first lines, and reading all flags would take as long as everything else.
    """
    union = []
    for name, kind in kinds.items():
        full = whole or name == chosen
        text = inspect.getdoc(kind) or ""
        note = subcommand(name, description=text if full else text.splitlines()[0])
        union.append(Annotated[flags(name) if full else Verb, note])
    return Union[tuple(union)]  # noqa: UP007  (a type that is built at run time)


def answered(kind: Any, arguments: Sequence[str], **about: Any) -> tuple[Any, list[str]]:
    """What the arguments say, as a value of that kind, and what the parser does not know.

    Raises UserError in a line, where tyro has a box.
    """
    with redirect_stderr(io.StringIO()) as box:
        try:
            value: tuple[Any, list[str]] = tyro.cli(
                kind,
                args=arguments,
                return_unknown_args=True,
                config=(FlagCreatePairsOff,),
                registry=_said_once(),
                **about,
            )
        except SystemExit as stopped:
            if stopped.code:
                raise UserError(_reason(box.getvalue())) from None
            raise
    return value


def _said_once() -> ConstructorRegistry:
    """How tyro shows fields: their text in lines that flow, without a default that the text or the flag itself says."""
    registry, asked = ConstructorRegistry(), set[int]()

    @registry.struct_rule
    def _(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not is_dataclass(info.type) or id(info) in asked:
            return None  # tyro's own rules answer, the second time
        asked.add(id(info))
        spec = ConstructorRegistry.get_struct_spec(info)
        if not isinstance(spec, StructConstructorSpec):
            return None
        return replace(spec, fields=tuple(map(_shown, spec.fields)))

    return registry


def _shown(field: StructFieldSpec) -> StructFieldSpec:
    kind: Any = field.type
    if field.default is None or field.default is False:
        bare, *notes = get_args(kind) if get_origin(kind) is Annotated else (kind,)
        name = next((one.__name__.upper() for one in get_args(bare) if one in (int, float, str)), None)
        kind = Annotated[bare, arg(metavar=name, help_behavior_hint=""), *notes]  # theirs come later, and win
    return replace(field, type=kind, helptext=partial(_flowing, field.helptext))


def _flowing(text: str | Callable[[], str | None] | None) -> str:
    """tyro breaks a line wherever the source of a docstring does, since the next one is indented."""
    read = text() if callable(text) else text
    return re.sub(r"(?<!\n)\n(?!\n)", " ", read or "")


def _reason(box: str) -> str:
    """Without the words of the help, which are indented or follow a rule."""
    rows = (re.sub(r"\x1b\[[0-9;]*m", "", row).strip("│|\n") for row in box.splitlines()[1:])
    reason = takewhile(lambda row: not _is_rule(row), dropwhile(_is_rule, rows))
    return " ".join(row.strip() for row in reason if not row.startswith(" " * 7)).rstrip(".") + "; see --help"


def _is_rule(row: str) -> bool:
    return not row.strip("─-╰╯ ")
