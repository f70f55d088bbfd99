"""Weights that others trained, into a backbone: a file is read as tensors, and nothing that it holds is run."""

from __future__ import annotations

import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.models.encoder import Encoder

_TRAILING = {"k", "key", "momentum", "target", "teacher", "twin", "ema"}  # words of copies that follow what was trained


class _Inert:
    """Called for an object of any class that a checkpoint names beside its tensors: settings, paths, numbers."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]  # which torch lets files fill
        """An empty dictionary."""
        return OrderedDict()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors or of torch, by their dotted names; raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} is no file of weights", BAD_DATA)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\3\4"
        others = get_unsafe_globals_in_checkpoint(path) if zipped else []
        with safe_globals([(_Inert, name) for name in others]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(_flat(content, "", set()))
    except UnpicklingError:
        raise UserError(
            f"{path} is no file of tensors, or its objects would run code: export its weights", BAD_DATA
        ) from None
    except Exception as error:  # whatever a damaged or hostile file makes readers of two formats raise
        reason = getattr(error, "strerror", None) or re.split(r"\.\s|\n", str(error))[0][:200] or type(error).__name__
        advice = "give a .safetensors file, or one of tensors that torch.save wrote"
        raise UserError(f"{path} cannot be read as weights ({reason}): {advice}", BAD_DATA) from None


def _flat(content: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its dotted name: checkpoints nest their state under words of their own, and may hold cycles."""
    if isinstance(content, Tensor):
        yield prefix.rstrip("."), content
    elif isinstance(content, Mapping) and id(content) not in seen:
        seen.add(id(content))
        for name, part in content.items():
            yield from _flat(part, f"{prefix}{name}.", seen)


class _Copy(NamedTuple):
    """One place of a file where every weight of a network stands, in its shape."""

    prefix: str
    tensors: dict[str, Tensor]  # by the names of the network

    def words(self) -> set[str]:
        """Those of the prefix."""
        return set(re.split(r"[._]", self.prefix))


def load_backbone(encoder: Encoder, path: Path) -> str:
    """Put the weights of a file into the backbone: all of them by name and shape, whatever stands before the names.

    Heads are left out. Of several copies the trained one is taken, but the teacher where there is a student, since DINO
    and its like evaluate that. Returns in words which copy it was. Raises UserError.
    """
    tensors, net = read_tensors(path), getattr(encoder.backbone, "net", encoder.backbone)
    assert isinstance(net, nn.Module)
    backbone = {name: part for name, part in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    numbers = {name: str(number) for number, (name, _) in enumerate(net.named_children())}
    listed = {
        name: ".".join([numbers.get(top := name.partition(".")[0], top), name.partition(".")[2]]) for name in backbone
    }
    found = [*_copies(dict(zip(backbone, backbone)), backbone, tensors), *_copies(listed, backbone, tensors)]
    if not (found := found or [*_copies(dict(zip(backbone, backbone)), backbone, _converted(net, tensors))]):
        raise UserError(f"{path} does not fit the network ({_misfit(backbone, tensors)}): is it of another?", BAD_DATA)
    copy, others = _chosen(found)
    for name, part in copy.tensors.items():
        if part.layout != torch.strided or part.is_complex() or not bool(part.isfinite().all()):
            raise UserError(f"{path}: {copy.prefix}{name} holds values that are no finite numbers", BAD_DATA)
    with torch.no_grad():
        for name, part in backbone.items():
            part.copy_(copy.tensors[name])
    which = f", those of {copy.prefix.rstrip('.')}" if copy.prefix else ""
    beside = f", not those of {', '.join(other.prefix.rstrip('.') or 'the top' for other in others)}" if others else ""
    return f"weights: {len(backbone)} tensors of {path.name}{which}{beside}"


def _copies(names: Mapping[str, str], backbone: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Iterator[_Copy]:
    """Every copy of the network in a file that calls its weights by ``names``: their own, or as lightly counts them."""
    first = next(iter(names.values()))
    for prefix in [name.removesuffix(first) for name in tensors if f".{name}".endswith(f".{first}")]:
        copy = {name: tensors.get(prefix + there) for name, there in names.items()}
        whole = {name: part for name, part in copy.items() if part is not None and part.shape == backbone[name].shape}
        if len(whole) == len(names):
            yield _Copy(prefix, whole)


def _chosen(found: Sequence[_Copy]) -> tuple[_Copy, list[_Copy]]:
    """The copy to take, and those to leave."""
    taught = any("student" in copy.words() for copy in found)
    taken = min(found, key=lambda copy: "teacher" not in copy.words() if taught else bool(copy.words() & _TRAILING))
    return taken, [copy for copy in found if copy is not taken]


def _converted(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an original release as timm converts them for ``net``; none where it does not."""
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(convert(dict(tensors), net)) if convert else {}
    except Exception:  # it is written for files that are as they should be
        return {}


def _misfit(backbone: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """The first weight that is missing, or has another shape, in words."""
    first = next(iter(backbone))
    there = next((name for name in tensors if f".{name}".endswith(f".{first}")), None)
    for name, part in backbone.items() if there is not None else ():
        here = tensors.get(str(there).removesuffix(first) + name)
        shape = "missing" if here is None else tuple(here.shape)
        if shape != tuple(part.shape):
            return f"{name} is {shape}, not {tuple(part.shape)}"
    return f"it has no {first}"
