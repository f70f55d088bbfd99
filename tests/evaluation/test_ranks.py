"""Evaluations by several processes: every example once, and the numbers of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lookalike.core import dist
from lookalike.core.progress import silent
from lookalike.data.source import reference_and_query
from lookalike.evaluation.evaluate import evaluate
from lookalike.train import trained
from lookalike.train.trained import PartFeatures, load
from tests.evaluation.test_compare import pictures, runs  # noqa: F401  (fixtures)
from tests.report.test_report import pictures as noise
from tests.support.ranks import ranks


def measured(*arguments: Any, **settings: Any) -> dict[str, Any]:
    """What this rank finds."""
    result = evaluate(*arguments, workers=0, **settings)
    return {**result.numbers, **result.facts}


@pytest.mark.parametrize("world", [2, 4])
def test_one_process_and_several_find_the_same(
    pictures: Path,  # noqa: F811
    runs: list[str],  # noqa: F811
    world: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trained, "CHUNK", 5)  # 32 and 16 pictures: seven chunks, and four
    for task in ("knn", "retrieve")[: 4 // world]:
        alone = measured(runs[0], str(pictures), task)
        first, *others = ranks(world, measured, runs[0], str(pictures), task)
        assert first == alone
        assert others == [{}] * (world - 1)
        assert (first["queries"], first["reference"]) == (16, 32)


def part(run: str, data: str) -> tuple[list[list[float]], list[int], list[str]]:
    found = load(run)
    made = PartFeatures.of(found, reference_and_query(data)[0], "backbone", 0, silent, "reference")
    return made.features.tolist(), made.labels.tolist(), made.paths


def test_bad_pictures_are_left_out_whoever_meets_them(
    runs: list[str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trained, "CHUNK", 3)
    data = noise(tmp_path, ["a", "b"])
    reference, _ = reference_and_query(str(data))
    for name in (reference.paths[1], *reference.paths[6:9], reference.paths[-1]):  # one, a whole chunk, the last
        (data / name).write_bytes(b"")
    alone = ranks(1, part, runs[0], str(data))[0]  # a thread each, as bits ask for
    assert len(alone[2]) == len(reference) - 5
    for world in (2, 6):  # more processes than chunks, too
        assert ranks(world, part, runs[0], str(data))[0] == alone


@pytest.mark.parametrize("count", [0, 1, 6, 7, 40])
def test_chunks_are_whole_and_shared_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for world in (1, 2, 3, 8):
        monkeypatch.setattr(dist, "world", lambda world=world: world)
        rows = []
        for rank in range(world):
            monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
            start, stop = dist.chunks_of_rank(count, 3)
            assert start % 3 == 0 or start == stop
            rows += torch.arange(start, stop).tolist()
            assert rank or not count or stop > start  # the first has some
        assert rows == list(range(count))
