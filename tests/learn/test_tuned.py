"""Which weights may move, how fast, and when."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lookalike.learn import optim
from lookalike.learn.optim import SGD, AdamW, Cosine, Muon
from lookalike.learn.tuned import Movement, stages
from lookalike.models.norm import GroupedBatchNorm2d


def network() -> nn.Module:
    """Four stages: a convolution, a norm, and two blocks of a sequence."""
    net = nn.Module()
    net.stem = nn.Conv2d(3, 4, 1)
    net.norm = GroupedBatchNorm2d(4, 2)
    net.act = nn.ReLU()
    net.blocks = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    return net


def test_stages_are_children_and_those_of_sequences() -> None:
    net = network()
    assert list(stages(net)) == [net.stem, net.norm, *net.blocks]  # type: ignore[misc]


@pytest.mark.parametrize(("share", "learning"), [(1.0, 4), (0.5, 2), (0.0, 0), (0.7, 3)])
def test_the_last_stages_learn(share: float, learning: int) -> None:
    net = network()
    Movement(share=share).settle(net)
    moves = [all(p.requires_grad for p in part.parameters()) for part in stages(net)]
    assert moves == [False] * (4 - learning) + [True] * learning


def test_norms_alone() -> None:
    net = network()
    Movement(weights="norms").settle(net)
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["norm.weight", "norm.bias"]


@pytest.mark.parametrize("optimizer", [SGD(0.1), AdamW(0.1), Muon(0.1)])
def test_rates_fall_with_depth_and_a_backbone_rests(optimizer: SGD | AdamW | Muon) -> None:
    module = nn.Module()
    module.backbone, module.head = network(), nn.Linear(4, 2)
    plain = optimizer.build(module, 256)
    full = {id(p): group["lr"] for group in plain.param_groups for p in group["params"]}
    spread = Movement(fall=0.5, rest=0.3).spread(optimizer.build(module, 256), module.backbone)
    rates = {id(p): group["lr"] for group in spread.param_groups for p in group["params"]}
    assert rates.keys() == full.keys()
    for depth, part in enumerate(reversed(list(stages(module.backbone)))):
        assert all(rates[id(p)] == full[id(p)] * 0.5**depth for p in part.parameters())
    assert all(rates[id(p)] == full[id(p)] for p in module.head.parameters())
    for progress, resting in ((0.1, True), (0.3, False), (0.8, False)):
        optim.apply(Cosine(), spread, progress)
        now = {id(p): group["lr"] for group in spread.param_groups for p in group["params"]}
        assert all((now[id(p)] == 0) == resting for p in module.backbone.parameters())
        assert all(now[id(p)] > 0 for p in module.head.parameters())


def test_where_nothing_is_asked_the_optimizer_is_as_it_was() -> None:
    module = nn.Module()
    module.backbone = network()
    optimizer = AdamW().build(module, 256)
    groups = optimizer.param_groups
    assert Movement().spread(optimizer, module.backbone).param_groups is groups
    assert all(torch.equal(a, b) for a, b in zip(groups[0]["params"], optimizer.param_groups[0]["params"]))
