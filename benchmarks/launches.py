"""What one step asks of a GPU, counted without one: operators that launch kernels, and where the host waits for them.

    python -m benchmarks.launches [RECIPE] [--batch 256] [--by-operator]

The step is one of ``loop.train`` itself. Tensors of the GPU are torch's fakes, which have shapes and no numbers; those
of the host are real, since the plan of the views decides what runs. What went up to the GPU unchanged may come down
again, and counts as a wait, as does what goes up in a way that waits for its arrival.

An operator counts as one launch, whatever its library makes of it (a convolution may be one to three kernels, a sort
several), those over lists of tensors as the kernels that torch cuts them into, and an operator of the package as many
as it says of itself in ``KERNELS`` of models/norm_triton.py and its like. Backward passes are walked node by node,
since torch's engine wants a GPU for the tensors of one.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from benchmarks.parts import PARTS, marked
from lookalike.data.loader import Loaded
from lookalike.recipes import recipe_named
from lookalike.recipes.recipe import Recipe
from lookalike.train import loop, watch
from lookalike.train.run import Run
from lookalike.types import Canvases

GPU = torch.device("cuda", 0)
EXAMPLES = 1_281_167

aten = torch.ops.aten

FREE = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten._unsafe_view.default, aten.detach.default, aten.lift_fresh.default,
    aten.alias.default, aten._reshape_alias.default, aten.set_.source_Storage, aten.record_stream.default,
    aten.resize_.default, aten.is_pinned.default, aten.as_strided_.default,
}  # fmt: skip
"""Operators that only make room or look at it in another way; those whose schema says so need no name."""

WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.bincount.default,
    aten.repeat_interleave.Tensor, aten.is_nonzero.default, aten.histc.default,
}  # fmt: skip
"""Operators whose result the host must know, so that it waits for everything before them."""

_LISTED = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}  # tensors a launch, by how many lists: ATen's MultiTensorApply.cuh
_BLOCKS, _CHUNK = 320, 65536  # blocks a launch, and elements a block


@dataclass
class Tally:
    """What a step asked for, by part."""

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    operators: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    causes: Counter[tuple[str, str]] = field(default_factory=Counter)  # part and operator of every wait

    def table(self) -> str:
        """As text."""
        rows = [f"{'part':<10} {'launches':>8} {'waits':>6}"]
        rows += [f"{part:<10} {self.launches[part]:>8} {self.waits[part]:>6}" for part in PARTS]
        return "\n".join([*rows, f"{'step':<10} {self.launches.total():>8} {self.waits.total():>6}"])


class Counting(TorchDispatchMode):
    """Runs what concerns the fake GPU on shapes alone and the rest for real; tells ``tally`` of the former."""

    def __init__(self) -> None:
        super().__init__()
        self.tally, self.part = Tally(), "loop"
        self.fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self.held = WeakIdKeyDictionary()  # fake → the host's tensor of which it is an unchanged copy
        self.faking = False

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        fakes = [part for part in flat if isinstance(part, FakeTensor)]
        where = kwargs.get("device")
        if not fakes and (where is None or torch.device(where).type != "cuda"):
            return self._on_host(func, args, kwargs)
        if (known := self._waited(func, args, kwargs, fakes, where)) is not None:
            return known
        self._count(func, args)
        if _blocking_upload(func, args, kwargs):
            self._wait(f"{func}, upload")
        return self._faked(func, args, kwargs, fakes)

    @staticmethod
    def _on_host(func: Any, args: Any, kwargs: Any) -> Any:
        """For real; memory that a GPU may read at any time is had where there is one only."""
        if func in (aten._pin_memory.default, aten.pin_memory.default):
            return args[0].clone()
        return func(*args, **{**kwargs, "pin_memory": False} if kwargs.get("pin_memory") else kwargs)

    def _faked(self, func: Any, args: Any, kwargs: Any, fakes: list[FakeTensor]) -> Any:
        for changed in _written(func, args, kwargs):
            self.held.pop(changed, None)
        if func.name().startswith("aten::_fused_"):  # which have no fake form, and give nothing back
            return None
        self.faking = True
        try:
            with self.fakes:
                result = func(*args, **kwargs)
        finally:
            self.faking = False
        if func in (aten._to_copy.default, aten.clone.default, aten.detach.default, aten.alias.default):
            source = args[0] if not isinstance(args[0], FakeTensor) else self.held.get(args[0])
            if source is not None and source.dtype == result.dtype:
                self.held[result] = source
        return result

    def _waited(self, func: Any, args: Any, kwargs: Any, fakes: list[FakeTensor], where: Any) -> Any:
        """What the host gets from an operator for which it waits; None where it does not."""
        moves = func is aten._to_copy.default and where is not None
        down = moves and fakes and torch.device(where).type == "cpu"
        onto = func is aten.copy_.default and not isinstance(args[0], FakeTensor)
        if onto and (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)):
            return self._known(func, args[:2], {})  # whoever reads it waits for an event, and says so itself
        masks = func is aten.index.Tensor and any(part is not None and part.dtype == torch.bool for part in args[1])
        if not (down or onto or masks or func in WAITS):
            return None
        self._wait(str(func))
        return self._known(func, args, kwargs)

    def _wait(self, cause: str) -> None:
        self.tally.waits[self.part] += 1
        self.tally.causes[self.part, cause] += 1

    def _known(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result from the host's own values; where nobody knows them, that of ones."""

        def real(part: Any) -> Any:
            if not isinstance(part, FakeTensor):
                return part
            held = self.held.get(part)
            return held if held is not None else torch.ones(part.shape, dtype=part.dtype)

        args, kwargs = tree_map(real, args), tree_map(real, {**kwargs, "device": torch.device("cpu")})
        if func is not aten._to_copy.default:
            kwargs.pop("device")
        found = func(*args, **kwargs)
        if not isinstance(found, Tensor) or func in (aten._to_copy.default, aten.copy_.default):
            return found
        with self.fakes:
            return torch.empty(found.shape, dtype=found.dtype, device=GPU)

    def _count(self, func: Any, args: Any) -> None:
        many = kernels(func, args)
        self.tally.launches[self.part] += many
        if many:
            self.tally.operators[self.part][str(func)] += many


def _blocking_upload(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host hands something up and waits until it has arrived, behind all that was asked for before."""
    if func is aten.copy_.default:
        source, idle = args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    elif func is aten._to_copy.default:
        source, idle = args[0], kwargs.get("non_blocking", False)
    else:
        return False
    return not isinstance(source, FakeTensor) and not idle


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[FakeTensor]:
    """The tensors that an operator changes."""
    for number, argument in enumerate(func._schema.arguments):
        given = args[number] if number < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (part for part in tree_flatten(given)[0] if isinstance(part, FakeTensor))


def kernels(func: Any, args: Any) -> int:
    """How many kernels an operator launches."""
    if func.namespace in ("prim", "profiler"):
        return 0
    if func.namespace != "aten":
        return named_kernels().get(func._schema.name, 1)
    if func in FREE or func.is_view:
        return 0
    if func._schema.name.startswith("aten::_foreach") or "_fused_" in func._schema.name:
        return listed(args)
    return 1


def named_kernels() -> dict[str, int]:
    """What operators of the package say of themselves, those that are in use."""
    used = [module for name, module in sys.modules.items() if re.fullmatch(r"lookalike\..*_triton", name)]
    return {name: many for module in used for name, many in getattr(module, "KERNELS", {}).items()}


def listed(args: Any) -> int:
    """Launches of an operator over lists of tensors."""
    lists = [part for part in args if isinstance(part, list | tuple) and part and isinstance(part[0], Tensor)]
    blocks = sum(math.ceil(part.numel() / _CHUNK) for part in lists[0])
    return max(math.ceil(len(lists[0]) / _LISTED[min(5, len(lists))]), math.ceil(blocks / _BLOCKS), 1)


# ---- a backward pass without torch's engine, which wants a GPU for the tensors of one ----


def walked(loss: Tensor) -> None:
    """Every node of the graph once, after all that depend on it; their gradients are added up."""
    root = loss.grad_fn
    assert root is not None
    waiting: Counter[Any] = Counter()
    seen, open_ = {root}, [root]
    while open_:
        for following, _ in open_.pop().next_functions:
            if following is not None:
                waiting[following] += 1
                if following not in seen:
                    seen.add(following)
                    open_.append(following)
    arrived: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    arrived[root][0] = torch.ones_like(loss)
    ready = [root]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            gradients = _applied(node, arrived.pop(node, {}))
            for (following, place), gradient in zip(node.next_functions, gradients):
                if following is None:
                    continue
                if gradient is not None:
                    gradient = _fitted(gradient, following._input_metadata[place])
                    held = arrived[following].get(place)
                    arrived[following][place] = gradient if held is None else held + gradient
                waiting[following] -= 1
                if not waiting[following]:
                    ready.append(following)


def _fitted(gradient: Tensor, about: Any) -> Tensor:
    """In the shape and type that a node takes: what was spread over an axis is summed, as torch's engine does."""
    if gradient.shape != torch.Size(about.shape):
        gradient = gradient.sum_to_size(*about.shape)
    return gradient if gradient.dtype == about.dtype else gradient.to(about.dtype)


def _applied(node: Any, incoming: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    if not incoming:
        return (None,) * len(node.next_functions)
    if hasattr(node, "variable"):  # a leaf: where gradients are kept
        leaf, gradient = node.variable, incoming[0]
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return ()
    metadata = node._input_metadata
    given = [incoming.get(number) for number in range(len(metadata))]
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        filled = [
            torch.zeros(about.shape, dtype=about.dtype, device=GPU) if part is None else part
            for part, about in zip(given, metadata)
        ]
        found = node.apply(*filled)
        return found if isinstance(found, tuple) else (found,)
    found = node(*given)
    return found if isinstance(found, tuple) else (found,)


# ---- the step ----


class Shapes:
    """A loader of canvases that are only shapes; it ends after ``steps``, and tells when it is asked for the next."""

    def __init__(self, examples: int, side: int, steps: int, asked: Callable[[], None]) -> None:
        self.source, self.side, self.steps, self.asked = Nothing(examples), side, steps, asked
        self.bad: dict[str, str] = {}
        self.bad_rows: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Loaded[Canvases], None, None]:
        for rows in islice(rows_of_steps, self.steps):
            self.asked()
            pixels = torch.zeros(1, dtype=torch.uint8).expand(len(rows), 3, self.side, self.side)
            yield Loaded(rows, Canvases(pixels, torch.tensor([[375, 500]]).repeat(len(rows), 1)))

    def shown(self, rows: Tensor) -> Tensor:
        return rows


class Nothing:
    """The source of those."""

    def __init__(self, examples: int) -> None:
        self.labels = torch.zeros(1, dtype=torch.int64).expand(examples)
        self.paths, self.unlisted, self.starts, self.texts = range(examples), {}, None, None

    def __len__(self) -> int:
        return len(self.labels)


def placed(module: nn.Module) -> nn.Module:
    """As ``devices.module_to_device``, which cannot exchange the tensors of a module for fakes."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(_laid(value), value.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _laid(buffer)
    return module


def _laid(value: Tensor) -> Tensor:
    moved = value.detach().to(GPU)
    return moved.to(memory_format=torch.channels_last) if moved.dim() == 4 else moved


def laid_out(x: Tensor, weight: Tensor, _: object) -> torch.memory_format:
    """As cuDNN lays out what a convolution gives, which torch does not know where there is no GPU."""
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return last if any(part.is_contiguous(memory_format=last) for part in (x, weight)) else torch.contiguous_format


class Anything:
    """A stream or an event: where nothing is computed, nothing has to be waited for."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., Anything]:
        return Anything


@contextmanager
def pretended(mode: Counting) -> Iterator[None]:
    """Inside, torch says that there is a GPU which computes in bf16, and backward passes are walked."""

    def available() -> bool:
        return not mode.faking

    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor([...], device=...) passes by the mode, too
    with (
        patch.dict(os.environ, {"LOOKALIKE_DEVICE": "cuda", "LOOKALIKE_PRECISION": "bf16", "LOOKALIKE_GRAPHS": "0"}),
        patch.object(loop, "module_to_device", placed),
        patch.object(optimizer, "_foreach_supported_types", [Tensor, nn.Parameter, FakeTensor]),
        patch.object(_foreach_utils, "_foreach_supported_types", [Tensor, FakeTensor]),
        patch.object(torch._C, "_conv_determine_backend_memory_format", laid_out),
        patch.object(torch.cuda, "_lazy_init", lambda: None),
        patch.object(torch.cuda, "is_available", available),
        patch.object(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
        patch.object(torch.cuda, "current_device", lambda: 0),
        patch.object(watch.Meter, "_add_up", lambda self: None),
        patch.object(torch.cuda, "Stream", Anything),
        patch.object(torch.cuda, "Event", Anything),
        patch.object(torch.cuda, "current_stream", Anything),
        patch.object(torch.cuda, "stream", nullcontext),
        patch.object(torch.Tensor, "record_stream", lambda *_: None),
        patch.object(torch.cuda, "manual_seed_all", lambda seed: None),
        patch.object(torch.Tensor, "backward", lambda self, *_, **__: walked(self)),
    ):
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(before)


def count(recipe: Recipe, examples: int = EXAMPLES) -> Tally:
    """What a step of ``loop.train`` asks for, by part: the second, since the first makes what is made once."""
    mode, found = Counting(), []

    def asked() -> None:
        found.append(mode.tally)
        mode.tally = Tally()

    loader = Shapes(examples, recipe.canvas, 3, asked)
    with ExitStack() as stack:
        run = stack.enter_context(Run(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"))
        for context in (pretended(mode), mode, marked(mode.within)):
            stack.enter_context(context)
        loop.train(recipe, run, loader, save_every=1 << 40)
    return found[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="moco_v2")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--by-operator", action="store_true", help="which operators they are")
    asked = parser.parse_args()
    recipe = replace(recipe_named(asked.recipe, EXAMPLES, 224), batch=asked.batch)
    tally = count(recipe)
    print(f"{recipe.name}, batch {recipe.batch}, one step\n{tally.table()}")
    if asked.by_operator:
        for part in PARTS:
            for name, many in tally.operators[part].most_common():
                print(f"{part:<10} {many:>6} {name}")
    for (part, name), many in tally.causes.most_common():
        print(f"waits: {part:<10} {many:>4} {name}")


if __name__ == "__main__":
    main()
