"""Ten steps give the losses and the queue that the official code gave, as tests/support/oracle.py says."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lookalike.learn.dictionary import Queue
from lookalike.learn.keys import Momentum
from lookalike.learn.learner import Learner
from lookalike.learn.objective import InfoNCE
from lookalike.learn.optim import SGD
from lookalike.models.encoder import MLP, Encoder
from lookalike.models.norm import group_norms
from lookalike.types import Batch
from tests.support import oracle

RECORDED = json.loads((Path(__file__).parents[1] / "support" / "moco_oracle.json").read_text())


def learner(widths: tuple[int, ...]) -> Learner:
    net = oracle.Net(oracle.DIM)
    net.fc = nn.Identity()
    encoder = Encoder(group_norms(net, oracle.BATCH), MLP(widths).build(24)).double()
    oracle.set_parameters(encoder)
    queue = Queue(oracle.SIZE).build(oracle.DIM, 1000).double()
    queue.keys.copy_(F.normalize(oracle.numbers(500, oracle.SIZE, oracle.DIM), dim=1))
    return Learner(encoder, Momentum(0.9).build(encoder), queue, InfoNCE(0.07)).train()


@pytest.mark.parametrize(("name", "widths"), [("linear", (16,)), ("mlp", (24, 16))])
def test_ten_steps_equal_the_official_code(name: str, widths: tuple[int, ...]) -> None:
    model, losses = learner(widths), []
    optimizer = SGD(lr=0.1 * 256 / oracle.BATCH, momentum=0.9, weight_decay=1e-4).build(model.encoder, oracle.BATCH)
    for step in range(oracle.STEPS):
        first, second = oracle.views(step)
        batch = Batch(torch.arange(oracle.BATCH), {"pixels": first}, {"pixels": second})
        outcome = model(batch)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        model.advance(outcome, batch, step / oracle.STEPS)
        losses.append(outcome.loss.item())
    expected = RECORDED[name]
    assert len(set(losses)) == oracle.STEPS
    # Both run in float64, so only the order of sums differs.
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected["losses"]), rtol=1e-9, atol=1e-9)
    queue = torch.tensor(expected["queue"], dtype=torch.float64)
    torch.testing.assert_close(model.dictionary.keys, queue, rtol=1e-8, atol=1e-8)  # type: ignore[arg-type]
