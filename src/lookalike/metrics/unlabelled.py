"""What features tell without a label: the neighbours they give each example, and whether they fill the sphere."""

from __future__ import annotations

import torch
from torch import Tensor

from lookalike.core.devices import full_precision

_CHUNK = 1024


@full_precision()
def neighbours(rows: Tensor, k: int = 10) -> Tensor:
    """(N, k) for each of N unit rows (N, F) the k others that are nearest, or all others where there are fewer."""
    found = list[Tensor]()
    for start in range(0, len(rows), _CHUNK):
        cosines = rows[start : start + _CHUNK] @ rows.T
        cosines[torch.arange(len(cosines)), torch.arange(len(cosines)) + start] = -torch.inf
        found.append(cosines.topk(min(k, len(rows) - 1), dim=1).indices)
    return torch.cat(found)


def shared(first: Tensor, second: Tensor) -> Tensor:
    """(N,) the share of the neighbours (N, k) that both have."""
    return (first[:, :, None] == second[:, None, :]).any(2).double().mean(1)


@full_precision()
def alignment(first: Tensor, second: Tensor) -> float:
    """How far two views of an example lie apart: the mean squared distance of unit rows (N, D), from 0 to 4.

    Wang and Isola, arXiv 2005.10242, section 4.1; two random points of a sphere are 2 apart.
    """
    return float((first.double() - second.double()).square().sum(1).mean())


@full_precision()
def uniformity(rows: Tensor) -> float:
    """How evenly unit rows (N, D) fill the sphere: log of the mean of exp(-2 d²) over pairs; 0 where all are equal.

    The lower the more even: in many dimensions nearly -4 (arXiv 2005.10242, section 4.1).
    """
    if len(rows) < 2:
        return 0.0
    return float(torch.pdist(rows.double()).square().mul(-2).exp().mean().log())
