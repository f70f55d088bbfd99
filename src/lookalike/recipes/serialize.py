"""Values to and from JSON and the command line: every field has a path, and a file names no class but those below."""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from dataclasses import replace
from typing import Any, Literal

from lookalike.core.errors import BAD_DATA, UserError, meant
from lookalike.learn.dictionary import InBatch, MemoryBank, Neighbours, Queue, QueueEach
from lookalike.learn.keys import Alone, EndToEnd, Momentum, Stored
from lookalike.learn.labelled import Classes, CrossEntropy, Labelled
from lookalike.learn.objective import DCL, NCE, InfoNCE, SupCon
from lookalike.learn.optim import LARS, SGD, AdamW, Cosine, Linear, Muon, Steps
from lookalike.metrics.knn import Knn
from lookalike.models.decoder import Decoder, Words
from lookalike.models.heads import MLP
from lookalike.models.hugging_face import HuggingFace
from lookalike.models.image import ResNet, SmallResNet, Timm
from lookalike.models.text import Transformer
from lookalike.models.towers import TwoTowers
from lookalike.models.video import SmallVideoResNet, VideoResNet
from lookalike.models.vit import ViT
from lookalike.pretext.captions import Captions
from lookalike.pretext.image import ImageView, OneView, TwoViews
from lookalike.pretext.mask import Masked
from lookalike.pretext.text import Cloze, Pairs, SameSentence
from lookalike.pretext.video import TwoClips, TwoFrames
from lookalike.recipes.recipe import Length, Recipe, Stage

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Recipe, Length, Stage, TwoViews, OneView, Masked, TwoFrames, TwoClips, ImageView, SameSentence, Pairs, Cloze,
        ResNet, SmallResNet, ViT, Timm, Words, VideoResNet, SmallVideoResNet,
        Transformer, HuggingFace, TwoTowers, Captions, QueueEach, MLP, Decoder, Momentum,
        EndToEnd, Stored, Alone, Queue, InBatch, MemoryBank, Neighbours, InfoNCE, DCL, SupCon, NCE, Labelled, Classes,
        CrossEntropy, SGD, LARS, AdamW, Muon, Cosine, Linear, Steps, Knn,
    )
}  # fmt: skip
"""The only classes a file may name."""


def to_plain(value: Any) -> Any:
    """The value as what JSON holds; a dataclass becomes its kind and fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    return [to_plain(item) for item in value] if isinstance(value, tuple) else value


def from_plain(plain: Any) -> Any:
    """The inverse of ``to_plain``; an unknown kind or field is refused."""
    if isinstance(plain, list):
        return tuple(from_plain(item) for item in plain)
    if not isinstance(plain, dict):
        return plain
    kind = KINDS.get(str(plain.get("kind")))
    if kind is None:
        raise UserError(
            f"unknown kind {plain.get('kind')!r} in a recipe file: was it written by a newer version?", BAD_DATA
        )
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := plain.keys() - known - {"kind"}:
        raise UserError(f"unknown field {sorted(unknown)[0]!r} of {kind.__name__} in a recipe file", BAD_DATA)
    fields = {name: from_plain(part) for name, part in plain.items() if name != "kind"}
    hints = typing.get_type_hints(kind)
    for name, part in fields.items():
        if not fits(part, hints[name]):
            raise UserError(f"{name} of {kind.__name__} cannot be {part!r} in a recipe file", BAD_DATA)
    try:
        return kind(**fields)
    except TypeError as error:
        raise UserError(f"a field is missing in a recipe file ({error})", BAD_DATA) from None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of a field; a whole number is a float, too."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in choices
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, choice) for choice in choices)
    if origin is tuple:
        each = (choices[0],) * len(value) if isinstance(value, tuple) and choices[-1] is ... else choices
        return isinstance(value, tuple) and len(value) == len(each) and all(map(fits, value, each))
    return type(value) is hint or (hint is float and type(value) is int)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every field by its dotted path, for showing and comparing."""
    plain: dict[str, Any] = {}
    for name, part in to_plain(value).items():
        inner = getattr(value, name, None)
        if name != "kind" and dataclasses.is_dataclass(inner):
            plain |= {prefix + name: part["kind"]} | flat(inner, f"{prefix}{name}.")
        elif name != "kind":
            plain[prefix + name] = part
    return plain


def differences(before: Recipe, after: Recipe) -> list[str]:
    """One line per field that differs."""
    old, new = flat(before), flat(after)
    paths = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    return [f"{path}: {old.get(path)} -> {new.get(path)}" for path in paths]


def override(recipe: Recipe, path: str, text: str) -> Recipe:
    """The recipe with the field at ``path`` read from ``text``; an unknown path is refused with the nearest one."""
    if path not in flat(recipe):
        hint = meant(path, flat(recipe), "see recipe.json of a run for all fields")
        raise UserError(f"recipe {recipe.name} has no field {path!r}; {hint}")
    return typing.cast("Recipe", replaced(recipe, path, text))


def replaced(value: Any, path: str, text: str) -> Any:
    """A frozen dataclass with the field at ``path``, which it has, read from ``text``; raises UserError."""
    return _replaced(value, path.split("."), path, text)


def _replaced(value: Any, parts: list[str], path: str, text: str) -> Any:
    name, *rest = parts
    if rest:
        return replace(value, **{name: _replaced(getattr(value, name), rest, path, text)})
    hint = typing.get_type_hints(type(value))[name]
    try:
        found = parsed(text, hint)
        if not fits(found, hint):
            raise ValueError(text)
        return replace(value, **{name: found})
    except (ValueError, TypeError, SyntaxError):
        raise UserError(f"--{path} cannot be {text!r}: it is {_readable(hint)}, now {getattr(value, name)!r}") from None


def _readable(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    if any(dataclasses.is_dataclass(part) for part in (hint, *typing.get_args(hint))):
        return "a kind, which only another recipe changes"
    return getattr(hint, "__name__", None) or str(hint)


def parsed(text: str, hint: Any) -> Any:
    """``text`` as the type of a field: bool, int, float, str, Literal, tuple (``64,128``), or optional."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if text not in choices:
            raise ValueError(text)
        return text
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none" and type(None) in choices:
            return None
        return parsed(text, next(choice for choice in choices if choice is not type(None)))
    if origin is tuple:
        items = ast.literal_eval(text if text.startswith(("(", "[")) else f"({text},)")
        return tuple(parsed(str(item), choices[0]) for item in items)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if hint in (int, float, str):
        return hint(text)
    raise TypeError(hint)
