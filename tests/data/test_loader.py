"""The loader: the same pixels however they are made, and bad pictures made good in one way."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lookalike.core.errors import BAD_DATA, IO, UserError
from lookalike.data.example import Source
from lookalike.data.loader import Loaded, Loader
from lookalike.data.order import Order
from lookalike.data.pool import worker_count
from lookalike.data.source import open_source

COUNT, BAD = 40, (3, 4, 17, 39)
LAZY = 0  # a budget that nothing fits


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


@pytest.fixture
def photos(tmp_path: Path) -> Source:
    """40 small pictures of noise, four of which are broken."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (12 + i, 20, 3), dtype=np.uint8)).save(file, "JPEG")
        data = file.getvalue()
        (tmp_path / f"{i:02}.jpg").write_bytes(data[: len(data) // 2] if i in BAD else data)
    return open_source(tmp_path)


def steps(count: int = 6, batch: int = 8) -> list[Tensor]:
    order = Order(COUNT, batch, seed=0)
    return [order.rows(step) for step in range(count)]


def same(one: list[Loaded], other: list[Loaded]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x.rows, y.rows) and all(torch.equal(a, b) for a, b in zip(x.material, y.material, strict=True))
        for x, y in zip(one, other, strict=True)
    )


def test_the_same_batches_cached_or_not_for_any_workers(photos: Source) -> None:
    wanted = list(Loader(photos, 16, workers=0, max_bad=0.2).batches(steps()))
    assert [batch.material.pixels.shape for batch in wanted] == [(8, 3, 16, 16)] * 6
    assert all(torch.equal(batch.rows, rows) for batch, rows in zip(wanted, steps(), strict=True))
    for budget in (1 << 30, LAZY):
        for workers in (0, 1, 2):
            loader = Loader(photos, 16, budget, workers, max_bad=0.2)
            assert loader.cached == (budget > 0)
            assert same(list(loader.batches(iter(steps()))), wanted)
            assert sorted(loader.bad) == [f"{row:02}.jpg" for row in BAD]


def test_a_run_that_goes_on_at_a_step_gets_what_it_would_have_got(photos: Source) -> None:
    loader = Loader(photos, 16, LAZY, 2, max_bad=0.2)
    assert same(list(loader.batches(steps()[3:])), list(loader.batches(steps()))[3:])


def test_a_bad_picture_gives_way_to_the_next_good_one(photos: Source) -> None:
    for budget in (1 << 30, LAZY):
        loader = Loader(photos, 16, budget, 0, max_bad=0.2)
        batch = next(iter(loader.batches([torch.arange(COUNT)]))).material
        for row, other in ((3, 5), (4, 5), (17, 18), (39, 0)):
            assert torch.equal(batch.pixels[row], batch.pixels[other])
            assert torch.equal(batch.sizes[row], batch.sizes[other])
            assert torch.equal(batch.pixels[row], photos.example(other, 16).pixels)
        assert batch.sizes[5].tolist() == [17, 20]
        assert set(loader.bad_rows) == set(BAD)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("budget", [1 << 30, LAZY])
def test_too_many_bad_pictures(photos: Source, budget: int, workers: int) -> None:
    told: dict[str, str] = {}
    with pytest.raises(UserError, match=r"of 40 pictures .*03\.jpg.*bad_files\.csv.*--max-bad") as caught:
        list(Loader(photos, 16, budget, workers, on_bad=told.update).batches([torch.arange(8)]))
    assert caught.value.code == BAD_DATA
    assert "03.jpg" in told
    Loader(photos, 16, budget, workers, max_bad=0.1)  # a share that is not exceeded


@pytest.mark.parametrize("budget", [1 << 30, LAZY])
def test_nothing_but_bad_pictures(tmp_path: Path, budget: int) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"<html>")
    with pytest.raises(UserError, match="5 of 5"):
        list(Loader(open_source(tmp_path), 16, budget, 0, max_bad=1.0).batches([torch.arange(5)]))


def test_progress_counts_every_row(photos: Source) -> None:
    seen: list[int] = []
    Loader(photos, 16, workers=2, max_bad=0.2, progress=seen.append)
    assert sum(seen) == COUNT


def test_the_budget_is_what_the_canvases_take(photos: Source) -> None:
    need = COUNT * 3 * 16 * 16
    assert Loader(photos, 16, need, 0, max_bad=0.2).cached
    assert not Loader(photos, 16, need - 1, 0, max_bad=0.2).cached


def test_leaving_early_ends_the_workers(photos: Source) -> None:
    loader = Loader(photos, 16, LAZY, 2, max_bad=0.2)
    batches = loader.batches(steps())
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children()
    for _ in loader.batches(steps()):
        break


def test_an_error_in_the_steps_comes_through(photos: Source) -> None:
    def failing() -> Iterator[Tensor]:
        yield torch.arange(8)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(Loader(photos, 16, LAZY, 2, max_bad=0.2).batches(failing()))


def test_the_global_random_state_is_left_alone(photos: Source) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(Loader(photos, 16, LAZY, 2, max_bad=0.2).batches(steps()))
    assert torch.equal(torch.get_rng_state(), before)


def test_killed_workers_are_replaced(photos: Source) -> None:
    wanted = list(Loader(photos, 16, LAZY, 0, max_bad=0.2).batches(steps(12)))
    got = []
    for i, batch in enumerate(Loader(photos, 16, LAZY, 2, max_bad=0.2).batches(steps(12))):
        got.append(batch)
        if i in (1, 4):
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            time.sleep(0.05)
    assert same(got, wanted)


class Deadly:
    """A source whose every row kills the worker that asks for it."""

    paths, labels = ["#0"], torch.zeros(1)
    unlisted: ClassVar[dict[str, str]] = {}

    def __len__(self) -> int:
        return 1

    def example(self, row: int, side: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_three_deaths_in_a_row_are_trouble() -> None:
    with pytest.raises(UserError, match="more memory") as caught:
        list(Loader(Deadly(), 4, LAZY, 1).batches([torch.zeros(1, dtype=torch.long)]))  # type: ignore[arg-type]
    assert caught.value.code == IO


def test_unlisted_folders_are_among_the_bad(photos: Source) -> None:
    photos.unlisted = {"locked/": "Permission denied"}
    assert Loader(photos, 16, workers=0, max_bad=0.2).bad["locked/"] == "Permission denied"


def test_digits_and_tables_in_workers(tmp_path: Path) -> None:
    source = open_source("digits")
    rows = [torch.arange(100, 164), torch.arange(64)]
    assert same(list(Loader(source, 8, LAZY, 2).batches(rows)), list(Loader(source, 8, workers=0).batches(rows)))


@pytest.mark.shared
def test_real_tables_in_workers(shared: Path) -> None:
    source = open_source(shared / "cifar10", "test")
    rows = [torch.randint(0, 10_000, (64,)) for _ in range(4)]
    found = [list(Loader(source, 32, LAZY, workers).batches(rows)) for workers in (0, 2)]
    assert same(*found)


@pytest.mark.slow
@pytest.mark.shared
def test_all_photos_cached_as_streamed(shared: Path) -> None:
    source = open_source(shared / "imagenette128", "train")
    rows = [torch.arange(i, i + 64) for i in range(0, 9000, 640)]
    assert same(list(Loader(source, 64).batches(rows)), list(Loader(source, 64, LAZY, 2).batches(rows)))


@pytest.mark.parametrize(
    ("workers", "kind", "cores", "count"),
    [
        (None, "cpu", 64, 2),
        (None, "cuda", 2, 2),
        (None, "cuda", 16, 14),
        (None, "cuda", 64, 16),
        (0, "cuda", 16, 0),
        (5, "cpu", 2, 5),
    ],
)
def test_a_gpu_gets_most_cores_for_decoding_unless_somebody_says_how_many(
    workers: int | None, kind: str, cores: int, count: int
) -> None:
    assert worker_count(workers, kind, cores) == count


def test_ranks_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count(None, "cuda", 32) == 6
