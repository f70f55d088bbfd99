"""Schedules and optimizers by their formulas."""

import math

import pytest
import torch
from torch import nn

from lookalike.optimize import SGD, AdamW, Cosine, Muon, Steps, apply, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (16, 40), (40, 16), (1, 5)])
def test_orthogonalised_keeps_singular_vectors_and_levels_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    found = orthogonalised(matrix)
    values = torch.linalg.svdvals(found)
    # Jordan's quintic is tuned for speed: it brings what is not tiny into about 0.68 to 1.13.
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    rotated = left.T @ found @ right.T
    assert float((rotated - rotated.diagonal().diag()).abs().max()) < 1e-9


def test_orthogonalised_equals_the_iteration_written_out() -> None:
    torch.manual_seed(1)
    x = matrix = torch.randn(12, 30, dtype=torch.float64)
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonalised(matrix), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", [SGD(lr=0.03), AdamW(lr=0.01), Muon()])
def test_a_convex_problem_is_solved_and_the_rate_follows_the_schedule(spec: SGD | AdamW | Muon) -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    target = nn.Linear(6, 3).requires_grad_(False)
    inputs = torch.randn(256, 6)
    optimizer = spec.build(net, 256)
    losses = []
    for step in range(600):
        apply(Cosine(), optimizer, step / 600)
        loss = (net(inputs) - target(inputs)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(spec.lr * 0.5 * (1 + math.cos(math.pi * 599 / 600)))


def test_sgd_and_adamw_grow_linearly_with_the_batch_and_muon_by_its_root() -> None:
    net = nn.Linear(2, 2)
    assert SGD(lr=0.03).build(net, 512).param_groups[0]["lr"] == pytest.approx(0.06)
    assert AdamW(lr=0.001).build(net, 128).param_groups[0]["lr"] == pytest.approx(0.0005)
    assert Muon(lr=0.02).build(net, 64).param_groups[0]["lr"] == pytest.approx(0.01)


def test_sgd_decays_every_parameter_and_adamw_only_matrices() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert [group["weight_decay"] for group in SGD(weight_decay=0.1).build(net, 256).param_groups] == [0.1]
    matrices, rest = AdamW(weight_decay=0.1).build(net, 256).param_groups
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() > 1 for p in matrices["params"])
    assert len(rest["params"]) == 3


def test_schedules() -> None:
    assert [Steps((0.6, 0.8)).share(p) for p in (0.0, 0.59, 0.6, 0.8, 1.0)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    cosine = Cosine(warmup=0.1)
    assert [cosine.share(p) for p in (0.0, 0.05, 0.1, 1.0)] == pytest.approx([0, 0.5, 1, 0], abs=1e-12)
    assert cosine.share(0.55) == pytest.approx(0.5)
