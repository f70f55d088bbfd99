"""What ours is measured beside must be the real thing: each method of others learns, by the formulas of its paper."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import rivals
from benchmarks.rivals import Job, SplitNorm, plain
from lookalike.learn.dictionary import InBatch, Queue
from lookalike.learn.objective import InfoNCE

COUNT = 16
METHODS = ("moco", "simclr", "moco_v3", "instdisc")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    pixels = torch.randint(256, (COUNT, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for row, picture in enumerate(pixels):
        Image.fromarray(picture.numpy()).save(tmp_path / f"{row}.png")
    numbers = {"threads": 1, "batch": 8, "queue": 24, "group": 4, "warmup": 0, "steps": 0}
    return Job("plain PyTorch", str(tmp_path), "", **numbers, precision="fp32", network="resnet18", method="moco")


@pytest.fixture(autouse=True)
def alike() -> None:
    torch.manual_seed(0)


def of(method: str, job: Job) -> Job:
    return Job(**{**vars(job), "method": method})


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_of_plain_pytorch_learns(method: str, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "WORKERS", 0)
    rival = plain(of(method, job))
    before = copy.deepcopy(rival.backbone.state_dict())
    losses = rival.losses()
    assert all(math.isfinite(next(losses)) for _ in range(3))
    assert [name for name, value in rival.backbone.named_parameters() if torch.equal(value, before[name])] == []


class Given(nn.Module):
    """A network whose output is its parameter, whatever it sees; (2B, D) of two views after each other."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return self.rows[: len(seen)]


def test_its_simclr_has_the_loss_of_ours(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(2 * COUNT, 512)
    monkeypatch.setattr(rivals, "projected", lambda net, *layers: net)
    views = list(torch.zeros(2, COUNT, 3, 32, 32))
    loss = rivals.plain_simclr(job, Given(rows.clone()))(views, torch.arange(COUNT))
    first, second = nn.functional.normalize(rows, dim=1).chunk(2)
    ours, batch = InfoNCE(rivals.TEMPERATURE), InBatch(queries=True).build(512, COUNT)
    both = [
        ours(query, batch.look_up(query, key, torch.arange(COUNT))) for query, key in ((first, second), (second, first))
    ]
    torch.testing.assert_close(loss, torch.stack(both).mean())


def test_its_moco_has_the_loss_of_ours(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "projected", lambda net, *layers: net)
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count))  # a row by its place, not by its picture
    rows = torch.randn(8, rivals.DIM)
    torch.manual_seed(1)
    keys = torch.randn(rivals.DIM, job.queue).T
    torch.manual_seed(1)
    step = rivals.plain_moco(job, Given(rows.clone()))
    loss = step(list(torch.zeros(2, 8, 3, 32, 32)), torch.arange(8))
    queue = Queue(job.queue).build(rivals.DIM, 1000)
    queue.load_state_dict({"keys": nn.functional.normalize(keys, dim=1), "oldest": torch.tensor(0)})
    query = nn.functional.normalize(rows, dim=1)
    torch.testing.assert_close(loss, InfoNCE(rivals.TEMPERATURE)(query, queue.look_up(query, query, torch.arange(8))))


def test_a_split_norm_is_batch_norm_of_each_part() -> None:
    split, whole = SplitNorm(5, splits=2), nn.BatchNorm2d(5)
    seen = torch.randn(8, 5, 3, 3)
    together = split(seen)
    # The view puts every second picture into a part: what is normalised together is a part, whichever it is.
    parts = seen.view(4, 2, 5, 3, 3)
    apart = torch.stack([copy.deepcopy(whole)(parts[:, number]) for number in range(2)], 1).view_as(seen)
    torch.testing.assert_close(together, apart)
    kept = torch.stack([0.1 * parts[:, number].mean((0, 2, 3)) for number in range(2)]).mean(0)
    torch.testing.assert_close(split.running_mean, kept)


def test_lightlys_example_learns(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightly", reason="its example is run by its own parts")
    monkeypatch.setattr(rivals, "WORKERS", 0)
    for method in ("moco", "simclr"):
        rival = rivals.lightly(of(method, job))
        before = copy.deepcopy(rival.backbone.state_dict())
        assert math.isfinite(next(rival.losses()))
        moved = [not torch.equal(value, before[name]) for name, value in rival.backbone.named_parameters()]
        assert any(moved)
