"""A device that this machine does not have: tensors on it compute as on the processor, and do not mix with its own.

What a GPU would refuse is refused here: an operation on tensors of both places, an index from elsewhere. The package
takes the way of every device that is no processor, by torch's plain operations (kernels of our own are CUDA's).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lookalike.core import devices, kernels

NAME = "meta"  # the one name of a device that every build of torch takes, and whose gradients are the processor's
_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default}


class Elsewhere(Tensor):
    """A tensor of the other device; ``numbers`` holds its numbers."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> Elsewhere:
        with torch.inference_mode(False):  # whose tensors have no views of a wrapped one
            made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, real.shape, real.stride(), real.storage_offset(), dtype=real.dtype, device=NAME
            )
        made.numbers = real
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({tuple(self.shape)})"

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("NumPy cannot read what is on another device: .cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Factories that name the device make tensors there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class FromNumbers(TorchFunctionMode):
    """What is made of Python's numbers is made here and moved, since torch would not ask the other mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in (torch.tensor, torch.as_tensor) or kwargs.get("device") is None:
            return func(*args, **kwargs)
        where = kwargs.pop("device")
        return func(*args, **kwargs).to(where)


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """On the processor, and wrapped where it belongs."""
    if func.overloadpacket is torch.ops.aten.to:  # comes whole where no gradient is recorded
        with Mode():
            return func.decompose(*args, **kwargs)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    places = {isinstance(one, Elsewhere) for one in tensors if one.dim() or func in _MOVES}
    named = kwargs.get("device")
    if named is not None:
        place = torch.device(named).type == NAME
        kwargs = {**kwargs, "device": "cpu"}
    else:
        place = any(isinstance(one, Elsewhere) for one in tensors) and func not in _READS
    by_index = func in _INDEXED and isinstance(args[0], Elsewhere)  # a GPU takes rows by numbers of the processor
    if len(places) > 1 and func not in _MOVES and not by_index:
        raise RuntimeError(f"{func} of tensors on two devices: {[(type(t).__name__, tuple(t.shape)) for t in tensors]}")
    if func is torch.ops.aten.copy_.default:
        _real(args[0]).copy_(_real(args[1]))
        return args[0]
    plain_args, plain = pytree.tree_map(_real, args), pytree.tree_map(_real, kwargs)
    plain.pop("pin_memory", None)
    found = func(*plain_args, **plain)
    known = {id(_real(one)): one for one in tensors}
    if func is torch.ops.aten._to_copy.default and place is isinstance(tensors[0], Elsewhere) is False:
        return found
    return pytree.tree_map(lambda one: known.get(id(one)) if id(one) in known else _placed(one, place), found)


def _real(one: Any) -> Any:
    return one.numbers if isinstance(one, Elsewhere) else one


def _placed(one: Any, place: bool) -> Any:
    return Elsewhere(one) if place and isinstance(one, Tensor) else one


@contextmanager
def another_device() -> Iterator[None]:
    """Inside, the package computes on this machine's GPU, or as if there were one, in fp32: that has no autocast."""
    if torch.cuda.is_available():
        yield
        return
    chosen, find = devices._chosen, importlib.util.find_spec

    def device_or(name: str, choices: tuple[str, ...]) -> str | None:
        return NAME if name == devices.DEVICE else chosen(name, choices)

    def but_triton(name: str, *rest: Any) -> Any:
        return None if name == "triton" else find(name, *rest)

    with ExitStack() as inside:
        inside.enter_context(patch.object(devices, "_chosen", device_or))
        inside.enter_context(patch.object(importlib.util, "find_spec", but_triton))
        inside.enter_context(patch.dict("os.environ", {devices.PRECISION: "fp32"}))
        inside.enter_context(Mode())
        inside.enter_context(FromNumbers())
        kernels.load.cache_clear()
        inside.callback(kernels.load.cache_clear)
        yield
