"""Rows that several processes work on, each on some, and that the first one gets."""

from __future__ import annotations

import torch
import torch.distributed as torch_dist
from torch import Tensor

from lookalike.core import dist
from lookalike.core.devices import device


def mine(count: int, chunk: int) -> tuple[int, int]:
    """The first and the last but one of ``count`` rows that this rank works on: whole chunks, as one process has them.

    Kernels may round otherwise for another number of examples at a time, so chunks are never cut.
    """
    chunks = -(-count // chunk)
    start, stop = (-(-chunks * (dist.rank() + i) // dist.world()) * chunk for i in (0, 1))
    return min(start, count), min(stop, count)


def to_first(part: Tensor) -> Tensor:
    """(B, ...) of every rank, B its own → all rows in the order of ranks on the first rank, none on the others.

    The first rank has a row if any has: see ``mine``.
    """
    if dist.world() == 1:
        return part
    counts = [dist.agree(len(part), speaker) for speaker in range(dist.world())]
    if not dist.first():
        if len(part):
            torch_dist.send(part.to(device()).contiguous(), 0)
        return part[:0]
    parts = [part]
    for sender, count in enumerate(counts[1:], 1):
        if count:
            parts.append(torch.empty(count, *part.shape[1:], dtype=part.dtype, device=device()))
            torch_dist.recv(parts[-1], sender)
    return torch.cat([some.to(part.device) for some in parts])
