"""A checkpoint is a folder: {step, learner, optimizer} and a manifest of hashes. Nothing else is state.

It is written beside its final name, synced, and published by one rename, so it is whole or absent. Tensors are
safetensors, the rest is JSON: reading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lookalike import dist
from lookalike.learn.entries import Dictionary, Shard
from lookalike.run import UNFINISHED, read_json, sync_folder
from lookalike.trouble import BAD_DATA, IO, Trouble

KEPT = 2
"""How many checkpoints a run keeps: the newest, and one before it should the newest be damaged."""

FORMAT = 1
_NAME = re.compile(r"step-\d{9}")


def save(folder: Path, step: int, learner: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Publish ``folder/step-NNNNNNNNN`` and drop all but the newest two; a disk that refuses is ``Trouble``.

    Every rank calls it, the first one writes: what is kept does not depend on the number of ranks.
    """
    final, state = folder / f"step-{step:09d}", whole_state(learner)
    dist.on_first_rank(lambda: _publish(final, step, state, optimizer))
    return final


def whole_state(learner: nn.Module) -> dict[str, Tensor]:
    """The state of a learner, with the parts that ranks hold of a tensor put together."""
    state = dict(learner.state_dict())
    for name, shard in shards(learner).items():
        padded = nn.functional.pad(state[name], (0, 0, 0, shard.block - len(state[name])))
        state[name] = dist.gather(padded)[: shard.total]
    return state


def shards(learner: nn.Module) -> dict[str, Shard]:
    """The tensors of the state of which this rank holds a part, by name."""
    return {
        f"{prefix}.{name}".lstrip("."): shard
        for prefix, module in learner.named_modules()
        if isinstance(module, Dictionary)
        for name, shard in module.shards().items()
    }


def _publish(final: Path, step: int, state: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    folder = final.parent
    temporary = folder / f".{final.name}{UNFINISHED}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tensors, plain = _split(optimizer)
        save_file({name: part.contiguous() for name, part in state.items()}, temporary / "learner.safetensors")
        save_file(tensors, temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, "optimizer": plain}))
        manifest = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        for path in temporary.iterdir():
            _sync(path)
        sync_folder(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise Trouble(
            f"cannot save {final} ({error}): free some space; the checkpoints before it are whole", IO
        ) from None
    kept = [path for path in found(folder) if path <= final][:KEPT]  # a later one is damaged: it was passed over
    for path in found(folder):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """Published checkpoints, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every byte is as it was written, and what is wrong with those passed over."""
    damaged: list[str] = []
    for path in found(folder):
        reason = damage(path)
        if reason is None:
            return path, damaged
        damaged.append(f"{path}: {reason}")
    if damaged:
        raise Trouble(f"no whole checkpoint is left ({'; '.join(damaged)}): start again with --overwrite", BAD_DATA)
    return None, []


def newest_name(folder: Path) -> tuple[str | None, list[str]]:
    """``newest`` in words that ranks can tell each other."""
    path, damaged = newest(folder)
    return path.name if path else None, damaged


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        expected = {"learner.safetensors", "optimizer.safetensors", "state.json"}
        if not isinstance(manifest, dict) or manifest.keys() != expected:
            return "its manifest names other files"
        wrong = [name for name in sorted(expected) if _sha256(path / name) != manifest[name]]
        if not wrong and json.loads((path / "state.json").read_bytes())["step"] != _step(path):
            return "it is of another step than its name says"
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        return f"it cannot be read ({error})"
    return f"{wrong[0]} is damaged" if wrong else None


def load(path: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore a checkpoint in place and return its step; one of another recipe is refused."""
    state = read_json(path / "state.json")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise Trouble(f"{path} was written by another version of lookalike: use that version, or --overwrite", BAD_DATA)
    _restore(path, state.get("optimizer"), optimizer)
    return load_learner(path, learner)


def load_learner(path: Path, learner: nn.Module) -> int:
    """Restore the learner alone and return the step; names and shapes must be those of the recipe."""
    tensors = _tensors(path / "learner.safetensors")
    expected = learner.state_dict()
    for name, shard in shards(learner).items():
        if name in tensors and len(tensors[name]) == shard.total:
            tensors[name] = tensors[name][shard.first : shard.first + shard.block]
    if tensors.keys() != expected.keys() or any(tensors[name].shape != expected[name].shape for name in expected):
        raise Trouble(
            f"{path} does not hold the model of recipe.json beside it: do not mix runs in one folder", BAD_DATA
        )
    learner.load_state_dict(tensors)
    return _step(path)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise Trouble(f"{path} is damaged ({error})", BAD_DATA) from None


def _split(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors by name; learning rates are the schedule's, not state."""
    state = optimizer.state_dict()["state"]
    tensors = {
        f"{index}.{name}": part.contiguous()
        for index, parts in state.items()
        for name, part in parts.items()
        if isinstance(part, Tensor)
    }
    return tensors, {"kind": type(optimizer).__name__, "parameters": len(state)}


def _restore(path: Path, plain: Any, optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(plain, dict) or plain.get("kind") != type(optimizer).__name__:
        raise Trouble(f"{path} does not hold the state of {type(optimizer).__name__}: do not mix runs", BAD_DATA)
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _tensors(path / "optimizer.safetensors").items():
        number, _, part = name.partition(".")
        like = parameters.get(int(number)) if number.isdecimal() else None
        if like is None or (tensor.dim() and tensor.shape != like.shape):
            raise Trouble(f"{path} holds {name} of another optimizer: do not mix runs in one folder", BAD_DATA)
        # Moments keep the memory layout of their parameter, so that a resumed step takes the same fused kernel.
        layout = torch.empty_like(like if tensor.dim() else tensor)
        state.setdefault(int(number), {})[part] = layout.copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
