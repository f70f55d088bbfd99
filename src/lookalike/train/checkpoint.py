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
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lookalike.core import dist
from lookalike.core.errors import BAD_DATA, IO, UserError
from lookalike.core.files import NOT_THERE, UNFINISHED, cannot_write, json_in, of_system, read_json, sync_folder, whole
from lookalike.learn.dictionary import Dictionary, RowBlock
from lookalike.recipes.recipe import Recipe

KEPT = 2
"""How many checkpoints a run keeps: the newest, and one before it should the newest be damaged."""

FORMAT = 1
_NAME = re.compile(r"step-\d{9}")
_PIECE = 16 << 20  # bytes of a file that are in memory while it is read
_SPARE = 1.1  # for metrics, the report, and what else fills the disk meanwhile


def refuse_full(folder: Path, recipe: Recipe, examples: int) -> None:
    """Raise UserError if the disk has no room for the checkpoints kept and the one that is written beside them."""
    used = sum(file.stat().st_size for path in published(folder) for file in path.glob("*"))
    needed = int(_SPARE * (KEPT + 1) * size_of(recipe, examples)) - used
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise UserError(
            f"{folder} needs {needed} bytes for checkpoints and its disk has {free} free: free some space, "
            "or choose another --out",
            IO,
        )


def size_of(recipe: Recipe, examples: int) -> int:
    """Bytes of the tensors of a checkpoint, counted on a copy of the run that has shapes but no numbers."""
    with torch.device("meta"):
        learner = recipe.build(examples)
        optimizer = recipe.optimizer_of(learner)
        for parameter in learner.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        state = dict(learner.state_dict())
        for name, shard in shards(learner).items():  # without a word to the other ranks, who do not ask
            state[name] = state[name].new_empty(shard.total, *state[name].shape[1:])
    optimizer.step()  # outside: AdamW reads how many steps it has done, which must be a number
    return _bytes(state, optimizer)


def save(folder: Path, step: int, learner: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Publish ``folder/step-NNNNNNNNN`` and drop all but the newest two; a disk that refuses is ``UserError``.

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


def shards(learner: nn.Module) -> dict[str, RowBlock]:
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
        (temporary / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, "optimizer": plain}), "utf-8")
        for name in ("learner", "optimizer"):  # safetensors lets nobody else read them
            shutil.copymode(temporary / "state.json", temporary / f"{name}.safetensors")
        manifest = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2), "utf-8")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(temporary)
        if final.exists():  # damaged: it was passed over
            _remove(final)
        temporary.rename(final)
        sync_folder(folder)
        sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = cannot_write(final, of_system(error) or OSError(0, str(error)), _bytes(state, optimizer))
        raise UserError(f"{reason}; the checkpoints before it are whole", IO) from None
    kept = [path for path in published(folder) if path <= final][:KEPT]  # a later one is damaged: it was passed over
    for path in published(folder):
        if path not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    """A checkpoint, whole or not at all: under its unfinished name the next start takes away what a kill leaves."""
    dropped = path.with_name(f".{path.name}.old{UNFINISHED}")
    with suppress(OSError):  # one that cannot be removed is one too many, no more
        shutil.rmtree(dropped, ignore_errors=True)
        path.rename(dropped)
        shutil.rmtree(dropped) if dropped.is_dir() else dropped.unlink()


def published(folder: Path) -> list[Path]:
    """The checkpoints, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every byte is as it was written, and what is wrong with those passed over.

    Raises UserError where all are damaged, and where one cannot be read, which need not be damaged.
    """
    damaged: list[str] = []
    for path in published(folder):
        reason = damage(path)
        if reason is None:
            return path, damaged
        damaged.append(f"{path}: {reason}")
    if damaged:
        raise UserError(f"no whole checkpoint is left ({'; '.join(damaged)}): start again with --overwrite", BAD_DATA)
    return None, []


def newest_said(folder: Path, say: Callable[[str], object] = warnings.warn) -> Path | None:
    """``newest``; what is used in place of what is always said, by default as a warning, on the standard error."""
    path, damaged = newest(folder)
    if path is not None:
        for reason in damaged:
            say(f"passed over a damaged checkpoint: {reason}; step {step_of(path)} is used")
    return path


def newest_step(folder: Path) -> int:
    """The step of ``newest``, 0 where there is none."""
    path, _ = newest(folder)
    return step_of(path) if path else 0


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Raises UserError where this process cannot read it."""
    try:
        manifest = json_in(whole(path / "manifest.json"))
        expected = {"learner.safetensors", "optimizer.safetensors", "state.json"}
        if not isinstance(manifest, dict) or manifest.keys() != expected:
            return "its manifest names other files"
        wrong = [name for name in sorted(expected) if _sha256(path / name) != manifest[name]]
        if not wrong and json_in(whole(path / "state.json"))["step"] != step_of(path):
            return "it is of another step than its name says"
        unsound = None if wrong else _not_finite(path)
    except OSError as error:
        if error.errno in NOT_THERE:
            return f"it is not whole ({error})"
        advice = "it may be whole: let this user read it, or look at its disk, and give the same command again"
        raise UserError(f"{error.filename or path} cannot be read ({error.strerror}): {advice}", IO) from None
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        return f"it cannot be read ({error})"
    return f"{wrong[0]} is damaged" if wrong else unsound


def _not_finite(path: Path) -> str | None:
    """The first tensor of a checkpoint with a number that is none, as older versions could save."""
    for name in ("learner.safetensors", "optimizer.safetensors"):
        for tensor, shape in _shapes(path / name).items():
            for _, rows in _pieces(torch.empty(shape, device="meta"), 0):
                with safe_open(path / name, "pt") as file:
                    part = file.get_slice(tensor)[rows]
                if part.is_floating_point() and not bool(part.isfinite().all()):
                    return f"{tensor} in it is not finite"
    return None


def load(path: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore a checkpoint in place and return its step; one of another recipe is refused."""
    state = read_json(path / "state.json")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"{path} was written by another version of lookalike: use that version, or --overwrite", BAD_DATA
        )
    _restore(path, state.get("optimizer"), optimizer)
    return load_learner(path, learner)


def load_learner(path: Path, learner: nn.Module) -> int:
    """Restore the learner alone and return the step; names and shapes must be those of the recipe."""
    file, state, parts = path / "learner.safetensors", learner.state_dict(), shards(learner)
    whole = {name: (part.total, *state[name].shape[1:]) for name, part in parts.items()}
    if _shapes(file) != {name: tuple(part.shape) for name, part in state.items()} | whole:
        raise UserError(
            f"{path} does not hold the model of recipe.json beside it: do not mix runs in one folder", BAD_DATA
        )
    _fill(file, state, {name: part.first for name, part in parts.items()})
    return step_of(path)


def step_of(path: Path) -> int:
    """The step that is saved in a checkpoint, by its name."""
    return int(path.name.removeprefix("step-"))


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a file, whose header alone is read."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error})", BAD_DATA) from None


@torch.no_grad()
def _fill(path: Path, into: Mapping[str, Tensor], firsts: Mapping[str, int] = MappingProxyType({})) -> None:
    """Copy the tensors of a file over those of the same names, from row ``firsts`` on where this rank holds a part.

    The file is mapped anew for each piece, since the pages that were read stay in memory while it is: so a long queue
    is in memory once, not twice.
    """
    for name, tensor in into.items():
        for piece, rows in _pieces(tensor, firsts.get(name, 0)):
            with safe_open(path, "pt") as file:
                piece.copy_(file.get_slice(name)[rows])


def _pieces(tensor: Tensor, first: int) -> Iterator[tuple[Tensor, Any]]:
    """A tensor by ``_PIECE`` bytes at a time, and which rows of the file they are; a number is ``...``."""
    if not tensor.dim():
        yield tensor, ...
        return
    for piece in torch.split(tensor, max(1, _PIECE * max(1, len(tensor)) // max(1, tensor.nbytes))):
        yield piece, slice(first, first + len(piece))
        first += len(piece)


def _bytes(state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    return sum(tensor.nbytes for tensor in (*state.values(), *_split(optimizer)[0].values()))


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
        raise UserError(f"{path} does not hold the state of {type(optimizer).__name__}: do not mix runs", BAD_DATA)
    file = path / "optimizer.safetensors"
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    state: dict[int, dict[str, Tensor]] = {}
    for name, shape in _shapes(file).items():
        number, _, part = name.partition(".")
        like = parameters.get(int(number)) if number.isdecimal() else None
        if like is None or (shape and shape != like.shape):
            raise UserError(f"{path} holds {name} of another optimizer: do not mix runs in one folder", BAD_DATA)
        # Moments keep the memory layout of their parameter, so that a resumed step takes the same fused kernel.
        state.setdefault(int(number), {})[part] = torch.empty_like(like) if shape else torch.empty(())
    _fill(file, {f"{number}.{part}": tensor for number, parts in state.items() for part, tensor in parts.items()})
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
