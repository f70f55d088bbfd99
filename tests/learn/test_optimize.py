"""Schedules and optimizers by their formulas."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lookalike.learn import optim
from lookalike.learn.optim import LARS, SGD, AdamW, Cosine, Linear, Muon, Steps, apply, orthogonalised
from lookalike.recipes import RECIPES
from lookalike.train import checkpoint
from tests.support.started import Started


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


@pytest.mark.parametrize("spec", [SGD(lr=0.03), AdamW(lr=0.01), Muon(), LARS(lr=4.0, trust=0.02)])
def test_a_convex_problem_is_solved_and_the_rate_follows_the_schedule(spec: SGD | AdamW | Muon | LARS) -> None:
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


def test_sgd_lars_and_adamw_grow_linearly_with_the_batch_and_muon_by_its_root() -> None:
    net = nn.Linear(2, 2)
    assert SGD(lr=0.03).build(net, 512).param_groups[0]["lr"] == pytest.approx(0.06)
    assert LARS(lr=0.3).build(net, 4096).param_groups[0]["lr"] == pytest.approx(4.8)
    assert AdamW(lr=0.001).build(net, 128).param_groups[0]["lr"] == pytest.approx(0.0005)
    assert Muon(lr=0.02).build(net, 64).param_groups[0]["lr"] == pytest.approx(0.01)


def test_sgd_decays_every_parameter_and_adamw_matrices_or_all() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert [group["weight_decay"] for group in SGD(weight_decay=0.1).build(net, 256).param_groups] == [0.1]
    matrices, rest = AdamW(weight_decay=0.1).build(net, 256).param_groups
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() > 1 for p in matrices["params"])
    assert len(rest["params"]) == 3
    (everything,) = AdamW(weight_decay=0.1, decay="all").build(net, 256).param_groups
    assert everything["weight_decay"] == 0.1
    assert len(everything["params"]) == 4


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    return net.to(memory_format=torch.channels_last)


def stepped(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Each step has a learning rate and a batch of its own."""
    for step in steps:
        apply(Cosine(warmup=0.3), optimizer, step / 10)
        x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x.to(next(net.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def test_lars_equals_its_algorithm_written_out() -> None:
    """You et al., algorithm 1, with the norm of the decayed gradient and vectors left alone, as SimCLR and MoCo v3."""
    net = convolutions().double()
    with torch.no_grad():
        net[3].weight.zero_()  # no norm to trust: its first step is that of the plain gradient
    plain = copy.deepcopy(net)
    spec = LARS(lr=0.4, momentum=0.8, weight_decay=0.01, trust=0.02)
    stepped(net, spec.build(net, 512), range(6))
    momenta = {name: torch.zeros_like(parameter) for name, parameter in plain.named_parameters()}
    for step in range(6):
        x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step)).double()
        grads = torch.autograd.grad(plain(x).square().mean(), list(plain.parameters()))
        for (name, parameter), grad in zip(plain.named_parameters(), grads, strict=True):
            if parameter.dim() > 1:
                value = parameter.detach()
                grad = grad + 0.01 * value
                size, length = math.sqrt(value.square().sum()), math.sqrt(grad.square().sum())
                grad = grad * (0.02 * size / length if size > 0 and length > 0 else 1)
            momenta[name] = 0.8 * momenta[name] + grad
            parameter.data -= 0.8 * Cosine(warmup=0.3).share(step / 10) * momenta[name]
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_lars_continues_bit_for_bit_from_a_checkpoint(tmp_path: Path) -> None:
    spec = LARS(lr=0.4, trust=0.02)
    straight, resumed = convolutions(), convolutions()
    optimizer = spec.build(straight, 512)
    stepped(straight, optimizer, range(3))
    path = checkpoint.save(tmp_path, 3, straight, optimizer)
    again = spec.build(resumed, 512)
    assert checkpoint.load(path, resumed, again) == 3
    for parameter in resumed.parameters():
        assert again.state[parameter].keys() == {"momentum"}
        assert again.state[parameter]["momentum"].stride() == parameter.stride()
    stepped(straight, optimizer, range(3, 6))
    stepped(resumed, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("spec", [LARS(lr=0.4, trust=0.02), Muon()])
def test_many_at_once_as_on_a_gpu_are_what_they_are_one_by_one(
    spec: LARS | Muon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU takes all tensors in one kernel, and matrices of a shape in one product: here a processor does so."""
    single = nn.Sequential(*convolutions(), nn.Linear(5, 5), nn.Linear(5, 5)).double()
    with torch.no_grad():
        single[3].weight.zero_()
    several = copy.deepcopy(single)
    for net, forced in ((single, False), (several, True)):
        if forced:
            monkeypatch.setattr(optim, "_on_gpu", lambda _: True)
        optimizer, random = spec.build(net, 512), torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=random).to(parameter)
            optimizer.step()
    for mine, theirs in zip(several.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
        assert mine.stride() == theirs.stride()


def test_on_a_gpu_lars_starts_as_many_operations_for_many_parameters_as_for_few() -> None:
    started = []
    for depth in (1, 12):
        with FakeTensorMode(), torch.device("cuda"):  # has the shapes of a GPU's tensors, and no data
            net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(depth)))
            optimizer = LARS().build(net, 256)
            for _ in range(2):
                for parameter in net.parameters():
                    parameter.grad = torch.empty_like(parameter)
                with Started() as counted:
                    optimizer.step()
        started.append(sum(counted.operations.values()))
    assert started[0] == started[1] <= 15


def test_lars_leaves_frozen_and_unused_parameters_alone() -> None:
    net = convolutions()
    net[0].weight.requires_grad_(False)
    optimizer = LARS().build(net, 256)
    assert all(parameter is not net[0].weight for parameter in optimizer.param_groups[0]["params"])
    before = net[3].weight.clone()
    net[1](torch.randn(4, 4, 2, 2)).square().sum().backward()
    optimizer.step()
    assert torch.equal(net[3].weight, before)


def test_schedules() -> None:
    assert [Steps((0.6, 0.8)).share(p) for p in (0.0, 0.59, 0.6, 0.8, 1.0)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    cosine = Cosine(warmup=0.1)
    assert [cosine.share(p) for p in (0.0, 0.05, 0.1, 1.0)] == pytest.approx([0, 0.5, 1, 0], abs=1e-12)
    assert cosine.share(0.55) == pytest.approx(0.5)
    floored = Cosine(warmup=0.1, start=0.02, floor=0.001)
    expected = [0.02, 0.51, 1, 0.5005, 0.001]
    assert [floored.share(p) for p in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx(expected, abs=1e-12)
    assert [Linear().share(p) for p in (0.0, 0.25, 1.0)] == [1, 0.75, 0]
    assert [Linear(warmup=0.2).share(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_the_rate_of_supcon_is_that_of_its_code_to_a_hundredth_of_the_full_one() -> None:
    """SupContrast's util.py: ten epochs up to where a cosine over all epochs then is; ours begins after the rise."""
    share = RECIPES["supcon"].fitted(50_000, 32).schedule.share
    floor = 0.1**3

    def cosine(epoch: float) -> float:
        return floor + (1 - floor) * (1 + math.cos(math.pi * epoch / 1000)) / 2

    for epoch in range(1001):
        theirs = cosine(epoch) if epoch > 10 else 0.02 + epoch / 10 * (cosine(10) - 0.02)
        assert share(epoch / 1000) == pytest.approx(theirs, abs=0.01)
