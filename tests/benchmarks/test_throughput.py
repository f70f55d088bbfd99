"""What times the training of ours and of others: every side trains the method it says, on the same pictures."""

from __future__ import annotations

import argparse
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import rivals, throughput
from benchmarks.level import steps
from benchmarks.rivals import Job, Rival
from benchmarks.throughput import METHODS, disturbances, export, flops, places, recipe_of, speed
from lookalike.data.source import Source, open_source

COUNT = 16


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """One file of 16 noisy pictures."""
    pixels = torch.randint(256, (COUNT, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = []
    for picture in pixels:
        Image.fromarray(picture.numpy()).save(content := io.BytesIO(), "PNG")
        rows.append({"image": {"bytes": content.getvalue(), "path": None}})
    (folder := tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-0.parquet")
    return folder


@pytest.fixture
def job(parquet: Path, tmp_path: Path) -> Job:
    files = str(tmp_path / "given")
    export(parquet, Path(files), None)
    numbers = {"threads": 1, "batch": 8, "queue": 24, "group": 4, "warmup": 1, "steps": 2}
    return Job("lookalike", files, files, **numbers, precision="fp32", network="resnet18", method="moco")


@pytest.mark.parametrize("method", METHODS)
def test_ours_trains_so_many_steps_of_each_method(method: str, job: Job) -> None:
    found = throughput.ours(replace(job, method=method))
    assert len(found["seconds_per_step"]) == job.steps
    assert math.isclose(sum(found["seconds_per_step"]) * found["images_per_second"], job.batch * job.steps)
    assert math.isfinite(found["loss"])


@pytest.mark.parametrize("network", rivals.NETWORKS)
def test_ours_is_as_large_as_plain_pytorch(network: str, job: Job) -> None:
    with torch.device("meta"):
        ours = recipe_of(replace(job, network=network), COUNT).build(COUNT).encoder.backbone
    theirs = rivals.backbone(network)
    learned = 65 * 192 if network == "vit_tiny" else 0  # positions of tokens, which ours has as waves
    assert size(ours) + learned == size(theirs)


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("place", ["files", "parquet", "prepared"])
def test_every_place_holds_the_same_pictures(place: str, parquet: Path, tmp_path: Path) -> None:
    asked = argparse.Namespace(data=parquet, examples=None, place=place, network="resnet18")
    files, source = map(open_source, map(str, places(asked, tmp_path)))
    assert torch.equal(pixels(source), pixels(files))


def pixels(source: Source) -> torch.Tensor:
    loaded = throughput.Loader(source, 32, workers=0)
    return torch.cat([part.material.pixels for part in loaded.batches([torch.arange(len(source))])])


def test_a_step_counts_three_passes_of_the_encoder_and_one_of_the_twin(job: Job) -> None:
    counts = []

    def count(layer: nn.Module, _: Any, out: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        counts.append(2 * layer.weight.numel() * out.shape[-1] * out.shape[-2])

    net = rivals.backbone("resnet18")
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    net(torch.zeros(2, 3, 32, 32))
    by_kind = flops(job, count=2)["by_kind"]
    convolutions = sum(number for kind, number in by_kind.items() if "convolution" in kind)
    assert convolutions == 4 * sum(counts) - counts[0]  # pictures need no gradient


def test_a_rate_is_of_the_steps_after_the_warm_up(job: Job) -> None:
    found = speed(job, [0.0, 9.0, 10.0, 12.0], [0.0, 9.0, 9.5, 10.5])
    assert found == {"images_per_second": 8 * 2 / 3, "busy": 0.5, "seconds_per_step": [1.0, 2.0]}


def test_a_round_beside_others_or_of_uneven_steps_is_disturbed() -> None:
    quiet = {"others": 0.05, "seconds_per_step": [1.0, 1.1]}
    found: dict[str, Any] = {"lookalike": quiet, "peaks": {"fp32": {"others": 0.0}}}
    assert disturbances(found, ["lookalike"]) == []
    assert len(disturbances({**found, "lookalike": {**quiet, "others": 0.5}}, ["lookalike"])) == 1
    assert len(disturbances({**found, "lookalike": {**quiet, "seconds_per_step": [1.0, 2.0]}}, ["lookalike"])) == 1


def test_an_hour_of_another_ends_with_the_step_in_which_it_is_over(job: Job) -> None:
    rival = Rival([[torch.zeros(1)], [torch.zeros(1)]], lambda views, rows: torch.ones(()), nn.Identity())  # type: ignore[arg-type]
    rival = rival._replace(loader=[(torch.zeros(2, 3, 4, 4), torch.arange(2))] * 3)  # type: ignore[arg-type]
    assert list(steps(rival, 0)) == [1.0]
