"""Values to and from JSON and the command line: every field has a path, and a file names no class but those below."""

from __future__ import annotations

import ast
import dataclasses
import json
import types
import typing
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from lookalike.core import dist
from lookalike.core.errors import BAD_DATA, UserError, check_limit, meant
from lookalike.models.image import ResNet, Timm, Torchvision
from lookalike.pretext.image import ImageView
from lookalike.recipes import RECIPES
from lookalike.recipes.parts import PARTS, Backbone, Network, Transform, Transformed
from lookalike.recipes.recipe import Recipe


def _kinds(hint: Any) -> dict[str, type]:
    """The dataclasses that a field of this type may hold, by name."""
    choices = (hint, *typing.get_args(hint))
    return {kind.__name__: kind for kind in choices if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


def _all_kinds(hint: Any) -> dict[str, type]:
    """The same with those in their fields."""
    kinds = _kinds(hint)
    for kind in tuple(kinds.values()):
        for part in typing.get_type_hints(kind).values():
            kinds |= _all_kinds(part)
    return kinds


KINDS = _all_kinds(Recipe)
"""The classes of the package that a file may name; it may also name the registered ones, ``PARTS``."""


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
    name = str(plain.get("kind"))
    kind = KINDS.get(name) or PARTS.get(name)
    if kind is None:
        raise UserError(
            f"unknown kind {plain.get('kind')!r} in a recipe file: if it is a part of your own, import the module that "
            "defines it (decorated with @lookalike.part) before lookalike.load",
            BAD_DATA,
        )
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := plain.keys() - known - {"kind"}:
        raise UserError(f"unknown field {sorted(unknown)[0]!r} of {kind.__name__} in a recipe file", BAD_DATA)
    fields = {field: from_plain(part) for field, part in plain.items() if field != "kind"}
    hints = typing.get_type_hints(kind)
    for field, part in fields.items():
        if not fits(part, hints[field]):
            raise UserError(f"{field} of {kind.__name__} cannot be {part!r} in a recipe file", BAD_DATA)
    try:
        return kind(**fields)
    except UserError as error:
        raise UserError(f"{error} in a recipe file", BAD_DATA) from None
    except TypeError as error:
        raise UserError(f"a field is missing in a recipe file ({error})", BAD_DATA) from None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of a field; a whole number is a float, too, and a registered part its parent."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in choices
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, choice) for choice in choices)
    if origin is tuple:
        each = (choices[0],) * len(value) if isinstance(value, tuple) and choices[-1] is ... else choices
        return isinstance(value, tuple) and len(value) == len(each) and all(map(fits, value, each))
    if PARTS.get(type(value).__name__) is type(value) and isinstance(hint, type):
        return isinstance(value, hint)
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


def refuse_unloadable(recipe: Recipe) -> None:
    """Raise UserError for a recipe that its file could not bring back: before it trains, not after."""
    try:
        if from_plain(json.loads(json.dumps(to_plain(recipe)))) == recipe:
            return
        reason = "a field changes in the file, or a part has the name of one of the package"
    except (UserError, TypeError, ValueError) as error:
        reason = str(error)
    raise UserError(
        f"a run of {recipe.name} could not be opened again ({reason}): a part of your own is a frozen dataclass of "
        "numbers, words, tuples and parts, decorated with @lookalike.part; or give model= and view= to pretrain"
    )


def override(recipe: Recipe, path: str, value: object) -> Recipe:
    """The recipe with the field at ``path`` set; an unknown one is refused with whose it is, or with the nearest."""
    if path not in flat(recipe):
        others = sorted((name for name, other in RECIPES.items() if path in flat(other)), key=_for_processors)
        nearest = meant(path, flat(recipe), "see recipe.json of a run for all fields")
        hint = f"it is one of {', '.join(others[:3])}: --recipe {others[0]}" if others else nearest
        raise UserError(f"recipe {recipe.name} has no field {path!r}; {hint}")
    return typing.cast("Recipe", _replaced(recipe, path.split("."), path, value))


def _for_processors(name: str) -> bool:
    """Sorts recipes of a GPU after those of a processor."""
    return not name.startswith("small")


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


def _replaced(value: Any, names: list[str], path: str, new: object) -> Any:
    """A frozen dataclass with the field at ``names`` set, or read from text."""
    name, *rest = names
    if rest:
        return replace(value, **{name: _replaced(getattr(value, name), rest, path, new)})
    hint = typing.get_type_hints(type(value))[name]
    try:
        field = parsed(new, hint) if isinstance(new, str) else tuple(new) if isinstance(new, list) else new
        if not fits(field, hint):
            raise ValueError(new)
        check_limit(type(value), name, field, f"--{path}")
        return replace(value, **{name: field})
    except (ValueError, KeyError, TypeError, SyntaxError):
        raise UserError(f"--{path} cannot be {new!r}: it is {_readable(hint)}, now {getattr(value, name)!r}") from None


def _readable(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    if kinds := _kinds(hint):
        return f"one of {', '.join(kinds)}, or a part of your own (see lookalike.part)"
    return getattr(hint, "__name__", None) or str(hint)


def parsed(text: str, hint: Any) -> Any:
    """``text`` as the type of a field: bool, int, float, str, Literal, tuple (``64,128``), optional, or a part.

    Whether it fits is checked after.
    """
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal or hint is str:
        return text
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none" and type(None) in choices:
            return None
        if kind := _kinds(hint).get(text) or PARTS.get(text):
            return kind()
        return model_named(text) if Timm in choices else parsed(text, next(c for c in choices if c is not type(None)))
    if origin is tuple:
        items = ast.literal_eval(text if text.startswith(("(", "[")) else f"({text},)")
        return tuple(parsed(str(item), choices[0]) for item in items)
    if hint is bool:
        return {"true": True, "false": False}[text.lower()]
    if hint in (int, float):
        return hint(text)
    raise TypeError(hint)


def model_named(name: str) -> ResNet | Timm | Torchvision:
    """A backbone by its name: ``torchvision:resnet50``, ``timm:convnext_tiny``, or either without its library."""
    library, _, own = name.rpartition(":")
    if library not in ("", "torchvision", "timm"):
        raise UserError(f"model {name!r}: the library is torchvision or timm")
    if library == "torchvision" or (not library and own.startswith(("resnet", "resnext", "wide_resnet"))):
        import torchvision

        if own not in torchvision.models.list_models():
            known = meant(own, torchvision.models.list_models(), "see torchvision.models.list_models()")
            raise UserError(f"model: torchvision has no {own or 'model without a name'}; {known}")
        return ResNet(own) if "resne" in own else Torchvision(own)
    import timm

    if not timm.is_model(own):
        raise UserError(f"model: timm has no {own}; {meant(own, timm.list_models(), 'see timm.list_models()')}")
    return Timm(own)
