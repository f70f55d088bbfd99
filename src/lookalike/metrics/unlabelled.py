"""How good features are, by pictures alone: whether unseen views of a picture lead to where the whole picture leads."""

from __future__ import annotations

import torch
from torch import Tensor

from lookalike.core.devices import full_precision

_CHUNK = 1024


@full_precision()
def neighbours(rows: Tensor, reference: Tensor, k: int, own: Tensor | None = None) -> Tensor:
    """(N, k) the rows of ``reference`` (M, F) that are nearest to unit ``rows`` (N, F), but for ``own`` (N,)."""
    found = list[Tensor]()
    for start in range(0, len(rows), _CHUNK):
        cosines = rows[start : start + _CHUNK] @ reference.T
        if own is not None:
            cosines.scatter_(1, own[start : start + _CHUNK, None], -torch.inf)
        found.append(cosines.topk(min(k, len(reference) - 1), dim=1).indices)
    return torch.cat(found)


def agreement(first: Tensor, second: Tensor, reference: Tensor, own: Tensor, k: int = 10) -> Tensor:
    """(N,) the share of the k nearest of ``reference`` (M, F) that two views (N, F) of a picture have in common.

    The picture itself, row ``own`` (N,), is left out. All rows are of unit norm.
    """
    one, other = (neighbours(rows, reference, k, own) for rows in (first, second))
    return (one[:, :, None] == other[:, None, :]).any(2).double().mean(1)
