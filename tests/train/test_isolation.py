"""What a caller has set in its process neither changes what is computed, by a bit, nor is changed by it."""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import lookalike
from lookalike.core.devices import isolated
from lookalike.data.source import open_source
from tests.support.forks import digest

pytestmark = pytest.mark.any_precision


class Worked(NamedTuple):
    """All that a caller gets, byte for byte."""

    run: dict[str, bytes]
    vectors: bytes
    features: bytes
    hits: list[list[Any]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(48):
        path = folder / ("ant", "bee")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(path)
    return folder


def work(data: Any, out: Path, workers: int = 0, quiet: bool = True) -> Worked:
    """Every function of the package that computes; ``workers`` decode each batch when it is asked for."""
    settings, memory = {"precision": "fp32"}, 0 if workers else 1
    lookalike.pretrain(
        data, out, recipe="tiny", settings=settings, steps=3, memory=memory, workers=workers, quiet=quiet
    )
    trained = lookalike.load(out)
    table = lookalike.embed(trained, data, workers=workers)
    features = trained.features(trained.loader(open_source(data), workers))
    hits = lookalike.search(out, table.path[:2], top=3) if isinstance(data, str) else []
    return Worked(digest(out), table.vectors.tobytes(), features.numpy().tobytes(), [list(map(tuple, h)) for h in hits])


@pytest.fixture(scope="module")
def plain(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Worked:
    return work(str(pictures), tmp_path_factory.mktemp("plain") / "run")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    yield
    torch.set_default_device(None)


@contextmanager
def coarse_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@contextmanager
def start_method(name: str) -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(name, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@contextmanager
def seeded() -> Iterator[None]:
    torch.manual_seed(7)
    yield


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "device": lambda: torch.device("meta"),
    "default device": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "coarse products": coarse_products,
    "seed": seeded,
}


def state() -> dict[str, Any]:
    """What a caller may have set, and find again."""
    mkldnn: Any = torch.backends.mkldnn
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.empty(0).device,
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "products": (torch.get_float32_matmul_precision(), mkldnn.matmul.fp32_precision, mkldnn.conv.fp32_precision),
        "threads": torch.get_num_threads(),
        "generators": (bytes(torch.get_rng_state().tolist()), random.getstate(), np.random.get_state()[1].tolist()),  # type: ignore[index,union-attr]
        "start method": multiprocessing.get_start_method(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "warnings": list(warnings.filters),
    }


@pytest.mark.parametrize("name", STATES)
def test_a_callers_state_changes_nothing_and_stays(name: str, pictures: Path, plain: Worked, tmp_path: Path) -> None:
    with STATES[name]():
        before = state()
        found = work(str(pictures), tmp_path / "run")
        assert state() == before
    assert found == plain


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_are_forks_however_the_caller_starts_its_own(
    method: str, pictures: Path, plain: Worked, tmp_path: Path
) -> None:
    with start_method(method):
        assert work(str(pictures), tmp_path / "run", workers=1) == plain
        assert multiprocessing.get_start_method() == method


def test_it_works_beside_the_callers_threads_and_in_one_of_them(pictures: Path, plain: Worked, tmp_path: Path) -> None:
    done = threading.Event()
    matrix = torch.ones(64, 64)  # not drawn: the global generator is one for all threads
    busy = threading.Thread(target=lambda: [matrix @ matrix for _ in iter(done.is_set, True)])
    busy.start()
    try:
        with ThreadPoolExecutor(1) as pool, torch.inference_mode():  # which is the main thread's alone
            assert pool.submit(work, str(pictures), tmp_path / "run").result() == plain
    finally:
        done.set()
        busy.join()


@pytest.mark.parametrize("name", ["float64", "inference"])
def test_pictures_made_in_that_state_are_learned_from(name: str, tmp_path: Path) -> None:
    def made() -> Tensor:
        return torch.arange(48 * 3 * 16 * 16).view(48, 3, 16, 16).sin().abs().to(torch.float32)

    with STATES[name]():
        found = work(made(), tmp_path / "run")
    assert found == work(made(), tmp_path / "plain")


def test_what_comes_back_is_of_use_outside_inference_mode(plain: Worked, pictures: Path, tmp_path: Path) -> None:
    work(str(pictures), tmp_path / "run")
    with torch.inference_mode():
        trained = lookalike.load(tmp_path / "run")
    assert not any(parameter.is_inference() for parameter in trained.encoder.parameters())


def test_it_nests_and_restores_after_an_error() -> None:
    with default_dtype(torch.float64), torch.no_grad(), torch.device("meta"):
        before = state()
        with pytest.raises(RuntimeError, match="here"):
            _raise_inside()
        assert state() == before


@isolated()
def _raise_inside() -> None:
    with isolated():
        assert torch.empty(0).dtype == torch.float32
        assert torch.empty(0).device.type == "cpu"
        assert torch.ones(1, requires_grad=True).mul(2).requires_grad
        torch.manual_seed(3)
        raise RuntimeError("here")


class Broken(TextIOWrapper):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("kind", ["none", "closed", "broken", "ascii"])
def test_nobody_needs_to_listen(
    kind: str, pictures: Path, plain: Worked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = BytesIO()
    stream = (Broken if kind == "broken" else TextIOWrapper)(sink, "ascii", write_through=True)  # strict
    if kind == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stdout", None if kind == "none" else stream)
    assert work(str(pictures), tmp_path / "größer → 3", quiet=False) == plain
    assert kind != "ascii" or rb"gr\xf6\xdfer \u2192 3" in sink.getvalue()
