"""Weights that others trained, into a backbone: a file is read as tensors or not at all."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.models.encoder import Encoder

_FOLLOWERS = ("encoder_k", "momentum", "twin", "ema")  # names of copies that trail what was trained


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a ``.pth`` of tensors and plain values; raises UserError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split(".")[0][:200]
        advice = "give a .safetensors file, or a .pth that holds nothing but tensors"
        raise UserError(f"{path} cannot be read as weights ({reason}): {advice}", BAD_DATA) from None
    return dict(_flat(content, ""))


def _flat(content: Any, prefix: str) -> list[tuple[str, Tensor]]:
    """Every tensor by its dotted name: checkpoints nest their state under words of their own."""
    if isinstance(content, Tensor):
        return [(prefix.rstrip("."), content)]
    if not isinstance(content, Mapping):
        return []
    return [named for name, part in content.items() for named in _flat(part, f"{prefix}{name}.")]


def load_backbone(encoder: Encoder, path: Path) -> str:
    """Put the weights of a file into the backbone: all of them by name and shape, whatever stands before the names.

    The head of the file is left out, and so are copies that followed what was trained. Raises UserError.
    """
    tensors = read_tensors(path)
    net = getattr(encoder.backbone, "net", encoder.backbone)
    assert isinstance(net, nn.Module)
    backbone = {name: part for name, part in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    prefix = _prefix(backbone, tensors, path)
    with torch.no_grad():
        for name, part in backbone.items():
            part.copy_(tensors[prefix + name])
    return f"{len(backbone)} tensors of {path.name}" + (f", those of {prefix.rstrip('.')}" if prefix else "")


def _prefix(backbone: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> str:
    """What stands before every name of the backbone; raises UserError that names the first misfit."""
    first = next(iter(backbone))
    prefixes = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    prefixes.sort(key=lambda prefix: any(word in prefix for word in _FOLLOWERS))
    shapes = {name: tuple(part.shape) for name, part in tensors.items()}
    reason = f"it has no {first}"
    for prefix in prefixes:
        misfits = [name for name, part in backbone.items() if shapes.get(prefix + name) != part.shape]
        if not misfits:
            return prefix
        shape, fitting = shapes.get(prefix + misfits[0]), tuple(backbone[misfits[0]].shape)
        reason = f"{misfits[0]} is {shape or 'missing'}, not {fitting}"
    raise UserError(f"{path} does not fit the backbone of the run ({reason}): name a run with its model", BAD_DATA)
