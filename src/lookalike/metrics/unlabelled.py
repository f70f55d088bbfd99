"""How alike two sets of features are, by the neighbours that they give each example: no label is needed."""

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
