"""Where tensors live, and in which precision products are computed: the one place that decides.

Autocast surrounds the calls of encoders, heads, predictors and decoders, and nothing else. Everything that is not a
network (views, objectives, statistics, optimizers, evaluations) is ``full_precision``, whoever calls it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import accumulate
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from lookalike.core.errors import USAGE, UserError, meant
from lookalike.types import Material, Tokens, View

Precision = Literal["fp32", "bf16"]
"""Of the products of a network; its sums, and whatever is computed of its results, are never narrower than fp32."""

Kind = Literal["cpu", "cuda", "mps"]
"""Of a device; mps was never run."""

DEVICE, PRECISION = "LOOKALIKE_DEVICE", "LOOKALIKE_PRECISION"
"""Environment variables: the device, and the precision that ``auto`` stands for."""

Module = TypeVar("Module", bound=nn.Module)
M = TypeVar("M", bound=Material)
_Switch = tuple[Any, str, Any]  # a module of torch, the name of a setting, and what it is to be
_EXACT: tuple[_Switch, ...] = (
    (torch.backends.cudnn, "benchmark", False),  # its choice is a measurement, which another run may not repeat
    (torch.backends.cudnn, "deterministic", True),
    (torch.utils.deterministic, "fill_uninitialized_memory", False),  # a pass over memory that is written anyway
)
_ALIGNED = 256  # bytes, as allocators of GPUs align
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def device() -> torch.device:
    """What ``LOOKALIKE_DEVICE`` names, else this process's GPU, else the processor. Raises UserError."""
    kind = _chosen(DEVICE, get_args(Kind))
    if kind is None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    elif kind == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device that torch can use: give --device cpu", USAGE)
    elif kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("this machine has no Apple GPU that torch can use: give --device cpu", USAGE)
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)


def _chosen(variable: str, choices: tuple[str, ...]) -> str | None:
    """The value of an environment variable, if it is set. Raises UserError."""
    value = os.environ.get(variable, "")
    if value and value not in choices:
        hint = meant(value, choices, f"there are {', '.join(choices)}")
        raise UserError(f"{variable} is {value!r}; {hint}", USAGE)
    return value or None


def module_to_device(module: Module) -> Module:
    """The module on that device, its kernels in the memory layout that convolutions are fastest in."""
    module = module.to(device())
    kernels = {parameter.dim() for parameter in module.parameters()}
    if 5 in kernels:  # of clips; a network has one kind or the other
        return module.to(memory_format=torch.channels_last_3d) if 4 not in kernels else module
    return module.to(memory_format=torch.channels_last)


# ---- memory, and the way from the host to the device, without waiting ----


def refuse_unheld(what: str, size: int, advice: str) -> None:
    """Raise UserError where all of this machine's memory is less than the bytes of what is to be made."""
    if size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        has = f"this machine has {memory / 1e9:,.1f} GB of memory"
        raise UserError(f"{what} take {size / 1e9:,.0f} GB, and {has}: {advice}")


def host_memory(*shape: int, dtype: torch.dtype) -> Tensor:
    """Memory of the host that a GPU reads by itself, while both go on; where there is none, any memory."""
    return torch.empty(*shape, dtype=dtype, pin_memory=device().type == "cuda")


def material_to_device(material: M) -> M:
    """What was read, with its pixels on the device; what plans are made of stays where the plans are made."""
    if isinstance(material, Tokens):
        return material
    return cast("M", material._replace(pixels=material.pixels.to(device(), non_blocking=True)))


def view_to_device(view: View) -> View:
    """A view with all its parts on the device."""
    waiting = {name: part for name, part in view.items() if part.device.type == "cpu"}
    return view | dict(zip(waiting, transfer(list(waiting.values()), device())))


def transfer(parts: Sequence[Tensor], where: torch.device) -> list[Tensor]:
    """The tensors on that device: from the host to a GPU in one copy, for which nobody waits."""
    if where.type != "cuda" or any(part.device.type != "cpu" for part in parts):
        return [part.to(where) for part in parts]
    starts = list(accumulate((-(-part.nbytes // _ALIGNED) * _ALIGNED for part in parts), initial=0))
    host = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    for part, place in zip(parts, _views(host, parts, starts)):
        place.copy_(part)
    return _views(host.to(where, non_blocking=True), parts, starts)


def _views(memory: Tensor, parts: Sequence[Tensor], starts: Sequence[int]) -> list[Tensor]:
    """Parts of some bytes, with the types and shapes of ``parts``."""
    return [memory[start : start + part.nbytes].view(part.dtype).view(part.shape) for part, start in zip(parts, starts)]


class Later:
    """Numbers of a device on their way to the host; reading them waits, nothing before does."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._arrived = numbers, None
        if numbers.device.type == "cuda":
            self._numbers = host_memory(*numbers.shape, dtype=numbers.dtype).copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def ready(self) -> bool:
        """Whether reading them would not wait."""
        return self._arrived is None or bool(self._arrived.query())  # type: ignore[no-untyped-call]

    def values(self) -> list[float]:
        """The numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return list(self._numbers.tolist())


def keep_freed() -> bool:
    """Have malloc reuse large blocks instead of returning them to the system; False where the C library cannot.

    glibc gives back what is large or last, and a training step takes the same dozens of blocks again and again: filling
    a new one of 64 MB took six times as long as filling an old one (docs/results.md). The price is that the process
    stays as large as its largest step, as it does on a GPU.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, musl say
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))


@contextmanager
def one_thread_beside_a_gpu() -> Iterator[None]:
    """Where a GPU computes, operations of torch on the processor run on one thread inside; as many as before after.

    More of them wait for each other, but awake, and whatever else runs takes their turn: with workers that decode,
    2,353 pictures a second became 4,333 on one thread; beside five other processes 44,000 had become 8,000.
    """
    threads = torch.get_num_threads()
    if device().type == "cuda":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ---- precision ----


@contextmanager
def exact(strict: bool = False) -> Iterator[None]:
    """Kernels that give the same bytes twice, and fp32 that is fp32, not TF32; restored after.

    ``strict`` raises where a kernel has no such form, else torch warns, and attention takes a form that is faster and
    not exact. The processor's kernels are deterministic as they are. What it costs stands in docs/results.md.
    """
    if device().type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; else its sums may differ
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches = [*_EXACT, *_no_tf32()]
    values = [getattr(where, name) for where, name, _ in switches]
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    for where, name, value in switches:
        setattr(where, name, value)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        for (where, name, _), value in zip(switches, values):
            setattr(where, name, value)


def _no_tf32() -> list[_Switch]:
    """By the names that the caller has used: after torch's newer ones have been set, the older ones cannot be read."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        _ = matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:
        return [(matmul, "fp32_precision", "ieee"), (cast("Any", cudnn).conv, "fp32_precision", "ieee")]
    return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def computes_in_bf16(where: torch.device) -> bool:
    """Whether products in bf16 are faster there: AVX-512 BF16 or AMX on a processor, Ampere or newer on a GPU.

    Elsewhere a processor emulates them: on AVX2 they were measured at a fifth to a tenth of the speed of fp32.
    """
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if where.type == "mps":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def processor() -> str:
    """The kind of processor, as far as it decides which kernels run: AVX2, or AVX512 with bf16, say."""
    capability = str(torch.backends.cpu.get_cpu_capability())
    return f"{capability} with bf16" if computes_in_bf16(torch.device("cpu")) else capability


def accelerator() -> str | None:
    """The name of the GPU, where one is used. Raises UserError."""
    kind = device().type
    if kind == "cuda" and torch.cuda.device_count():
        return torch.cuda.get_device_name(device())
    return None if kind == "cpu" else kind


def resolved(precision: str) -> Precision:
    """What ``auto`` stands for: ``LOOKALIKE_PRECISION``, else what is faster on the device. Raises UserError."""
    if precision == "auto":
        precision = named_precision() or ("bf16" if computes_in_bf16(device()) else "fp32")
    return cast("Precision", precision)


def named_precision() -> str | None:
    """What ``LOOKALIKE_PRECISION`` says. Raises UserError."""
    return _chosen(PRECISION, get_args(Precision))


def autocast(precision: Precision, kind: str) -> AbstractContextManager[object]:
    """The context in which a network on a ``kind`` of device runs, whatever context its caller is in."""
    return full_precision() if precision == "fp32" else _in_bf16(kind)


@contextmanager
def _in_bf16(kind: str) -> Iterator[None]:
    """As ``torch.autocast``, whose cache of cast weights would outlive a step where a caller holds a context open."""
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled()
    _set_autocast(kind, True, torch.bfloat16, False)
    try:
        yield
    finally:
        _set_autocast(kind, *before)


def _set_autocast(kind: str, enabled: bool, dtype: torch.dtype, cached: bool) -> None:
    torch.set_autocast_enabled(kind, enabled)
    torch.set_autocast_dtype(kind, dtype)
    torch.set_autocast_cache_enabled(cached)


def product_type(factor: Tensor) -> torch.dtype:
    """The type in which products of it are computed here."""
    kind = factor.device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else factor.dtype


@contextmanager
def full_precision() -> Iterator[None]:
    """No autocast inside, on any kind of device. Also a decorator, but not of generators."""
    open_ = [kind for kind in get_args(Kind) if torch.is_autocast_enabled(kind)]
    for kind in open_:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in open_:
            torch.set_autocast_enabled(kind, True)


def wide(numbers: Tensor) -> Tensor:
    """The same in fp32, or in double precision where they are."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()


# ---- a caller's own settings of torch, put aside while this library computes ----


@contextmanager
def isolated() -> Iterator[None]:
    """torch inside as in a fresh process, after as the caller had it; around calls of the Python API, nested or not.

    Put aside are the default dtype and device, disabled gradients, inference mode, autocast, products of float32 in
    fewer bits on a processor, and the state of the global generators. The dtype and the products belong to the whole
    process: other threads see them as they are inside, and whoever draws from the generators in another thread
    changes what is drawn inside. The number of threads stays the caller's; a run that finds fewer faster puts it back.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(full_precision())
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_float32())
        stack.enter_context(_generators())
        yield


@contextmanager
def _float32() -> Iterator[None]:
    """New tensors in float32, and its products computed in it."""
    dtype, mkldnn = torch.get_default_dtype(), cast(Any, torch.backends.mkldnn)
    settings = [(kind, kind.fp32_precision) for kind in (mkldnn.matmul, mkldnn.conv)]
    coarse = [(kind, precision) for kind, precision in settings if precision not in ("none", "ieee")]
    torch.set_default_dtype(torch.float32)
    for kind, _ in coarse:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        for kind, precision in coarse:
            kind.fp32_precision = precision


@contextmanager
def _generators() -> Iterator[None]:
    """The caller's random numbers go on after as if nothing had been drawn or seeded inside."""
    cpu = torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
