"""Objectives equal those of other libraries where these have the formula right; they are in the extra ``peers``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.learn.dictionary import InBatch, Queue
from lookalike.learn.objective import DCL, InfoNCE, Objective, SupCon

B, D = 12, 16


def views() -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows of two views, and what they were before: peers normalise again, which turns gradients at unit rows."""
    raw = torch.randn(2, B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    return F.normalize(raw[0], dim=1), F.normalize(raw[1], dim=1), raw


def both_directions(objective: Objective, first: Tensor, second: Tensor, index: Tensor) -> Tensor:
    batch = InBatch(queries=True).build(D, B)
    pairs = ((first, second), (second, first))
    return torch.stack([objective(q, batch.look_up(q, k, index)) for q, k in pairs]).sum()


def same(ours: Tensor, theirs: Tensor, raw: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    mine, other = (torch.autograd.grad(loss, raw, retain_graph=True)[0] for loss in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
def test_lightly_nt_xent_in_the_batch_and_against_a_queue() -> None:
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed: it is in [peers]")
    first, second, raw = views()
    ours = both_directions(InfoNCE(0.3, weight=0.5), first, second, torch.arange(B))
    same(ours, loss.NTXentLoss(temperature=0.3)(first, second), raw)

    theirs = loss.NTXentLoss(temperature=0.3, memory_bank_size=(20, D))
    theirs.memory_bank.bank = F.normalize(torch.randn(20, D, dtype=torch.float64), dim=1)
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    queue = Queue(20).build(D, 1000).double()
    queue.keys.copy_(theirs.memory_bank.bank)  # which theirs changes when it is asked
    key = second.detach()
    same(InfoNCE(0.3)(first, queue.look_up(first, key, torch.arange(B))), theirs(first, key), raw)


@pytest.mark.filterwarnings("ignore")
def test_lightly_decoupled_contrast() -> None:
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed: it is in [peers]")
    first, second, raw = views()
    ours = both_directions(DCL(0.3, weight=0.5), first, second, torch.arange(B))
    same(ours, loss.DCLLoss(temperature=0.3)(first, second), raw)


@pytest.mark.filterwarnings("ignore")
def test_pytorch_metric_learning_nt_xent_and_supervised_contrast() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="it is not installed: it is in [peers]")
    first, second, raw = views()
    labels = torch.arange(B)
    theirs = losses.NTXentLoss(temperature=0.3)(torch.cat([first, second]), labels.repeat(2))
    same(both_directions(InfoNCE(0.3, weight=0.5), first, second, labels), theirs, raw)
    labels = torch.arange(B) % 4
    theirs = losses.SupConLoss(temperature=0.3)(torch.cat([first, second]), labels.repeat(2))
    same(both_directions(SupCon(0.3, weight=0.5), first, second, labels), theirs, raw)
