"""``forward`` is pure, ``advance`` moves twin and queue, and the twin is the closed-form average of the encoder."""

import copy

import pytest
import torch

from lookalike.learn.dictionary import Queue
from lookalike.learn.keys import Momentum, shuffled
from lookalike.learn.learner import Learner
from lookalike.learn.objective import InfoNCE
from lookalike.learn.optim import SGD
from lookalike.models.encoder import MLP, Encoder
from lookalike.models.image import SmallResNet
from lookalike.types import Batch


def learner(momentum: float = 0.9, symmetric: bool = False, shuffle: bool = True, group: int = 4) -> Learner:
    torch.manual_seed(0)
    backbone, features = SmallResNet(widths=(8, 16), blocks=(1, 1)).build(group)
    encoder = Encoder(backbone, MLP((16, 8)).build(features))
    return Learner(
        encoder, Momentum(momentum, symmetric, shuffle).build(encoder), Queue(50).build(8, 1000), InfoNCE(0.2)
    )


def batch(step: int = 0, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(step)
    views = [{"pixels": torch.randn(size, 3, 16, 16, generator=generator)} for _ in range(2)]
    return Batch(torch.randperm(1000, generator=generator)[:size], *views)


def test_forward_changes_nothing_but_batchnorm_statistics() -> None:
    model = learner().train()
    before = copy.deepcopy(model.state_dict())
    model(batch()).loss.backward()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed
    assert all(name.endswith(("running_mean", "running_var")) for name in changed)


def test_forward_twice_gives_the_same_loss_and_keys() -> None:
    model = learner().train()
    first, second = model(batch()), model(batch())
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.pairs[0][1], second.pairs[0][1])


def test_the_twin_starts_equal_in_every_parameter_and_gets_no_gradient() -> None:
    model = learner().train()
    twin = dict(model.keys.twin.named_parameters())  # type: ignore[union-attr,operator]
    assert twin.keys() == dict(model.encoder.named_parameters()).keys()
    assert all(torch.equal(value, twin[name]) for name, value in model.encoder.named_parameters())
    model(batch()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in twin.values())
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_the_twin_is_the_closed_form_average() -> None:
    momentum, steps = 0.9, 7
    model = learner(momentum).double().train()
    optimizer = SGD(lr=0.5).build(model.encoder, 16)
    history = [copy.deepcopy(list(model.encoder.parameters()))]
    for step in range(steps):
        given = batch(step)
        given = Batch(given.index, *({"pixels": view["pixels"].double()} for view in given[1:]))
        outcome = model(given)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        model.advance(outcome, given, step / steps)
        history.append(copy.deepcopy(list(model.encoder.parameters())))
    for i, twin in enumerate(model.keys.twin.parameters()):  # type: ignore[union-attr,operator]
        expected = momentum**steps * history[0][i]
        for n in range(1, steps + 1):
            expected = expected + (1 - momentum) * momentum ** (steps - n) * history[n][i]
        torch.testing.assert_close(twin.data, expected.data, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("symmetric", [False, True])
def test_advance_absorbs_each_key_once_and_in_order(symmetric: bool) -> None:
    model = learner(symmetric=symmetric).train()
    outcome = model(batch())
    model.advance(outcome, batch(), 0.0)
    keys = torch.cat([key for _, key in outcome.pairs])
    assert len(keys) == (32 if symmetric else 16)
    assert torch.equal(model.dictionary.keys[: len(keys)], keys)  # type: ignore[index]
    assert int(model.dictionary.oldest) == len(keys)  # type: ignore[arg-type]


def test_keys_come_back_in_the_order_of_their_queries() -> None:
    # With one group for the whole batch the shuffle changes no statistics, so keys must not change.
    plain, mixed = learner(shuffle=False, group=16).train(), learner(shuffle=True, group=16).train()
    torch.testing.assert_close(mixed(batch()).pairs[0][1], plain(batch()).pairs[0][1], rtol=1e-4, atol=1e-5)


def test_the_shuffle_is_a_permutation_of_the_rows_alone() -> None:
    rows = torch.randperm(10_000)[:256]
    order = shuffled(rows)
    assert torch.equal(order.sort().values, torch.arange(256))
    assert torch.equal(order, shuffled(rows))
    assert not torch.equal(order, shuffled(rows + 1))
    assert not torch.equal(order, torch.arange(256))
