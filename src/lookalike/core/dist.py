"""Which of the processes of torchrun this one is, and what they send to each other.

Everything here is plain ``torch.distributed``; with one process each function is the identity and costs nothing.
A rank holds a contiguous share of the global batch, so gathering restores the order of one process.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from importlib.metadata import version
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from lookalike.core.devices import accelerator, device, processor, transfer
from lookalike.core.errors import BAD_DATA, IO, USAGE, UserError
from lookalike.core.rendezvous import CONTINUE, Heartbeat, Lost, alive
from lookalike.core.waiting import patience

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=30)
"""How long a collective may take; whether the other ranks live is known after ``patience()``, by their heartbeats."""

_COMING = timedelta(minutes=1)
"""How long a rank waits at least for the others to start, which import torch from a slow disk, say."""

_WORKING = timedelta(days=7)
"""How long the first rank may work while the others wait for what comes of it."""

HARMLESS = "Grad strides do not match bucket view strides"
"""A warning of a kernel of one pixel, whose strides may be written in two ways: nothing is copied for it."""


# ---- who and where ----


def rank() -> int:
    """The number of this process, from 0."""
    return torch_dist.get_rank() if _together() else 0


def world() -> int:
    """How many processes train together."""
    return torch_dist.get_world_size() if _together() else 1


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def started() -> int:
    """How many processes torchrun has started, whether or not they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


_doing = "its start"
_plain: torch_dist.ProcessGroup | None = None
"""The group for plain data of ``together``, which waits longer than others; None is that of all else."""


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started, if it did (NCCL between GPUs, gloo between processors), and leave.

    Raises UserError, on every rank, for an error of any of them; none is waited for that does not answer.
    """
    global _plain
    if started() == 1 or _together():
        yield
        return
    if device().type == "cuda":
        torch.cuda.set_device(device())
    limit = max(_COMING, timedelta(seconds=patience()))
    try:
        store, number, of = next(rendezvous("env://", timeout=limit))
        met = alive(store, number, of, limit)
        with Heartbeat(met.clone(), number, of, patience(), lambda: _doing) as heartbeat, _losses(heartbeat):
            _join(met, number, of)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", HARMLESS)
                yield
    except torch_dist.DistError as error:
        raise UserError(f"rank {os.environ.get('RANK')} waited for the others: {_line(error)}", IO) from None
    finally:
        _plain = None
        if _together():
            torch_dist.destroy_process_group()


def _join(store: Store, number: int, of: int) -> None:
    global _plain
    # Plain data goes between processors, so that no rank waits for its GPU to send it.
    backend = "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"
    torch_dist.init_process_group(backend, store=store, rank=number, world_size=of, timeout=PATIENCE)
    group = torch_dist.new_group(backend="gloo", timeout=_WORKING)
    _plain = group if isinstance(group, torch_dist.ProcessGroup) else None


@contextmanager
def _losses(heartbeat: Heartbeat) -> Iterator[None]:
    """What a collective says of a rank that is gone, as an error for people: why that is, if it can be known."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch_dist.DistError) or "gloo" in str(error).lower()):  # gloo's own are of no class
            raise
        words, code = heartbeat.reason() or (f"rank {rank()} lost another rank ({_line(error)}): {CONTINUE}", IO)
        raise Lost(words, code) from None


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def doing(words: str) -> None:
    """Where this rank is, which is said of it if it does not answer any more."""
    global _doing
    _doing = words


def distributed(module: nn.Module) -> nn.Module:
    """The module with gradients that are means over ranks; it is itself where there is one rank."""
    if world() == 1:
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 has a new name for broadcast_buffers, 2.10 not yet
        # Every rank builds the same weights from the seed; a bank's rows must not be overwritten by the first rank's.
        return DistributedDataParallel(module, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True)


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, gradients only add up on each rank; the next backward pass outside takes the mean over ranks."""
    parallel = isinstance(module, DistributedDataParallel)
    context: AbstractContextManager[None] = module.no_sync() if parallel else nullcontext()  # type: ignore[operator]
    return context


def _together() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()


# ---- tensors ----


class _Gather(torch.autograd.Function):
    """``torch.distributed.nn.all_gather`` returns wrong gradients on gloo where the incoming one is not contiguous."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _gathered(part)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        torch_dist.all_reduce(grad)  # every rank's loss depends on every rank's rows
        return share(grad)


def gather(part: Tensor) -> Tensor:
    """(B, ...) of every rank → (world · B, ...) in the order of one process, with gradient to each rank's own rows.

    The gradient is the sum over the ranks' losses; DistributedDataParallel then takes the mean, as it does of losses.
    """
    if world() == 1:
        return part
    gathered: Tensor = _Gather.apply(part) if part.requires_grad and torch.is_grad_enabled() else _gathered(part)
    return gathered


def _gathered(part: Tensor) -> Tensor:
    parts = torch.empty(world(), *part.shape, dtype=part.dtype, device=part.device)
    torch_dist.all_gather(list(parts.unbind(0)), part.detach().contiguous())
    return parts.flatten(0, 1)


def share(whole: Tensor, of: int | None = None) -> Tensor:
    """(world · B, ...) → the (B, ...) of this rank, or of another."""
    size, number = len(whole) // world(), rank() if of is None else of
    return whole[number * size : (number + 1) * size]


def exchange(part: Tensor, order: Tensor) -> Tensor:
    """The rows that this rank gets when the global batch is put in ``order`` (world · B,): each row travels once.

    Of several ranks ``order`` is on the host, so that none waits for its GPU to learn what it sends to whom.
    """
    if world() == 1:
        return part[order]
    size, order = len(part), order.cpu()
    mine = share(order)  # positions in the global batch of the rows that this rank gets
    places = [share(order, receiver) for receiver in range(world())]
    leaving = [place[place // size == rank()] % size for place in places]
    counts = [int((mine // size == sender).sum()) for sender in range(world())]
    by_sender = (mine // size).argsort(stable=True)  # rows of one sender arrive in their order in ``mine``
    outgoing, incoming = transfer([torch.cat(leaving), by_sender.argsort()], part.device)
    arrived = torch.empty_like(part, memory_format=torch.contiguous_format)
    torch_dist.all_to_all_single(arrived, part[outgoing].contiguous(), counts, [len(rows) for rows in leaving])
    last = part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
    return arrived[incoming].to(memory_format=torch.channels_last if last else torch.contiguous_format)


def fetch(rows: Tensor, index: Tensor, block: int) -> Tensor:
    """(..., D) rows number ``index`` (...) of a table that ranks hold in blocks of ``block`` rows; no gradient."""
    numbers = index.flatten()
    if world() == 1:
        return rows[numbers].view(*index.shape, -1)
    owner = numbers // block
    order = owner.argsort(stable=True)
    requests = torch.bincount(owner, minlength=world())  # by this rank, of each rank
    answers = torch.empty_like(requests)  # by this rank, to each rank
    torch_dist.all_to_all_single(answers, requests)
    requested = numbers.new_empty(int(answers.sum()))
    torch_dist.all_to_all_single(requested, numbers[order], answers.tolist(), requests.tolist())
    arrived = rows.new_empty(len(numbers), rows.shape[1])
    torch_dist.all_to_all_single(arrived, rows[requested - rank() * block], requests.tolist(), answers.tolist())
    return arrived[order.argsort()].view(*index.shape, -1)


@torch.no_grad()
def mean_(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its mean over ranks, in place, in one message a type."""
    if world() == 1:
        return
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        some = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in some])
        torch_dist.all_reduce(flat)
        for tensor, values in zip(some, torch.split(flat / world(), [tensor.numel() for tensor in some])):
            tensor.copy_(values.view_as(tensor))


def mean(value: Tensor) -> Tensor:
    """The mean over ranks, without gradient."""
    value = value.detach().clone()
    mean_([value])
    return value


@torch.no_grad()
def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Every rank gets the first rank's tensors, in place."""
    if world() > 1:
        for tensor in tensors:
            torch_dist.broadcast(tensor, 0)


def shared(
    work: Callable[[Sequence[Tensor]], list[Tensor]], parts: Sequence[Tensor], costs: Sequence[int]
) -> list[Tensor]:
    """``work`` of the parts, which all ranks hold: done by one rank each, the costly ones first, and sent to all.

    Parts without data (``meta``) are not sent: their shapes are known.
    """
    if world() == 1 or all(part.is_meta for part in parts):
        return work(parts)
    owners, busy = [0] * len(parts), [0] * world()
    for number in sorted(range(len(parts)), key=lambda number: -costs[number]):
        owners[number] = busy.index(min(busy))
        busy[owners[number]] += costs[number]
    mine = iter(work([part for part, owner in zip(parts, owners) if owner == rank()]))
    results = [
        next(mine).contiguous() if owner == rank() else torch.empty(part.shape).to(part)
        for part, owner in zip(parts, owners)
    ]
    messages = [torch_dist.broadcast(part, owner, async_op=True) for part, owner in zip(results, owners)]
    for message in messages:
        if message is not None:
            message.wait()
    return results


# ---- rows of which each rank works on some, and the first one gets all ----


def chunks_of_rank(count: int, chunk: int) -> tuple[int, int]:
    """The first of ``count`` rows that this rank works on and the one after its last: whole chunks, as one process has.

    Kernels may round otherwise for another number of examples at a time, so chunks are never cut.
    """
    chunks = -(-count // chunk)
    start, stop = (-(-chunks * (rank() + i) // world()) * chunk for i in (0, 1))
    return min(start, count), min(stop, count)


def to_first(part: Tensor) -> Tensor:
    """(B, ...) of every rank, B its own → all rows in the order of ranks on the first rank, none on the others.

    The first rank has a row if any has: see ``chunks_of_rank``.
    """
    if world() == 1:
        return part
    counts = [agree(len(part), sender) for sender in range(world())]
    if not first():
        if len(part):
            torch_dist.send(part.to(device()).contiguous(), 0)
        return part[:0]
    parts = [part]
    for sender, count in enumerate(counts[1:], 1):
        if count:
            parts.append(torch.empty(count, *part.shape[1:], dtype=part.dtype, device=device()))
            torch_dist.recv(parts[-1], sender)
    return torch.cat([rows.to(part.device) for rows in parts])


# ---- plain data ----


def agree(value: Value, sender: int = 0) -> Value:
    """The value of one rank, on every rank: plain data, which travels as JSON, never as pickle."""
    if world() == 1:
        return value
    received: Value = json.loads(bytes_of(json.dumps(value).encode(), sender))
    return received


def bytes_of(data: bytes, sender: int) -> bytes:
    """The bytes of one rank, on every rank."""
    if world() == 1:
        return data
    message = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)
    length = torch.tensor(len(message))
    torch_dist.broadcast(length, sender, _plain)
    message = message if rank() == sender else torch.empty(int(length), dtype=torch.uint8)
    torch_dist.broadcast(message, sender, _plain)
    return message.numpy().tobytes()


def refuse_other_ranks(data: Mapping[str, object], settings: Mapping[str, object]) -> None:
    """What ranks must have in common, compared by all of them before they begin, beside the versions they run.

    Weights are never sent: each rank computes them from what all have in common, so none would notice. Raises UserError
    on every rank, which names the one that differs from most, or from the first.
    """
    if world() == 1:
        return
    mine = {name: str(value) for name, value in {**_versions(), **data, **settings}.items()}
    every = [agree((socket.gethostname(), mine), sender) for sender in range(world())]
    for name in dict.fromkeys(name for _, record in every for name in record):
        values = [record.get(name, "nothing") for _, record in every]
        usual = Counter(values).most_common(1)[0][0]  # the first rank's where no value is more common
        for odd, value in enumerate(values):
            if value != usual:
                one, other = (f"rank {number} on {every[number][0]}" for number in (odd, values.index(usual)))
                raise UserError(
                    f"{one} differs in {name}: {value} there, {usual} for {other}: give all ranks the same",
                    BAD_DATA if name in data else USAGE,
                )


def _versions() -> dict[str, object]:
    """What decides the bytes that a rank computes."""
    versions = {"lookalike": version("lookalike"), "torch": torch.__version__, "python": platform.python_version()}
    if device().type != "cpu":
        return {**versions, "accelerator": accelerator()}
    return {**versions, "processor": processor(), "threads": torch.get_num_threads()}


def largest(numbers: Sequence[float]) -> list[float]:
    """Number by number the largest over ranks: how ranks agree to stop or to save."""
    if world() == 1:
        return list(numbers)
    maxima = torch.tensor(numbers, dtype=torch.float64)
    torch_dist.all_reduce(maxima, torch_dist.ReduceOp.MAX, _plain)
    return list(maxima.tolist())


def on_first_rank(work: Callable[[], Value]) -> Value:
    """What ``work`` gives on the first rank (plain data), on every rank; its UserError is raised on every rank."""
    if world() == 1:
        return work()
    value, failure = None, None
    if first():
        try:
            value = work()
        except UserError as error:
            failure = error
    message, code, value = agree((str(failure) if failure else None, failure.code if failure else 0, value))
    if message is not None:
        raise failure or UserError(message, code)
    return value  # type: ignore[return-value]
