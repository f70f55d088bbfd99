"""A small table with its pictures, and the page's server over it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lookalike
from lookalike.core.progress import Progress
from lookalike.curate.table import Finding, Table, open_table
from lookalike.train.embeddings import embed_data, write_embeddings
from lookalike.train.trained import load

pytest.importorskip("starlette", reason="not installed: starlette, pip install 'lookalike[explore]'")
pytest.importorskip("uvicorn", reason="not installed: uvicorn, pip install 'lookalike[explore]'")

from lookalike.explore.decisions import Decisions
from lookalike.explore.queues import Queues
from lookalike.explore.session import Session

HOSTILE = "<img src=x onerror=alert(1)>.png"  # a name that stays text


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of noise around a colour each, in two classes of two splits; two have equal bytes."""
    folder, noise = tmp_path_factory.mktemp("explore") / "photos", np.random.default_rng(0)
    for i in range(24):
        name = HOSTILE if i == 5 else f"{i:02}.png"
        place = folder / ("train" if i < 16 else "test") / ("cats", "dogs")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = noise.normal(noise.uniform(40, 210, 3), 30, (24, 16 + i, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / name)
    shutil.copy(folder / "train" / "cats" / "00.png", folder / "test" / "cats" / "copy.png")
    return folder


@pytest.fixture(scope="session")
def run(photos: Path) -> Path:
    """A run on them."""
    out = photos.parent / "run"
    lookalike.pretrain(str(photos), out, recipe="tiny", steps=3, workers=0, quiet=True)
    return out


@pytest.fixture(scope="session")
def table(photos: Path, run: Path) -> Path:
    """Their embeddings by the run."""
    path = photos.parent / "photos.parquet"
    write_embeddings(embed_data(load(run), str(photos), workers=0), path)
    return path


def equal_bytes(table: Table, progress: Progress) -> list[Finding]:
    """The simplest finder: of pictures with equal bytes all but the first."""
    assert table.pictures is not None
    read = table.pictures.read
    assert read is not None
    first: dict[bytes, int] = {}
    found = []
    for row in range(len(table)):
        progress("reading", row, len(table))
        data = read(row)
        if data in first:
            found.append(Finding(row, 1.0, "equal bytes", (first[data],)))
        first.setdefault(data, row)
    return found


def odd(table: Table, progress: Progress) -> list[Finding]:
    """Any three."""
    return [Finding(row, 0.9 - row / 10, "odd", ((row + 1) % len(table),)) for row in range(3)]


@pytest.fixture
def reopen(table: Path, tmp_path: Path) -> Iterator[Callable[[], Session]]:
    """Opens the table as in one process after another, its map drawn and its queues filled, as after a minute."""
    held: list[Session] = []

    def again() -> Session:
        while held:
            held.pop().decisions.close()
        decisions = Decisions(tmp_path / "photos.decisions.jsonl")
        queues = Queues({"duplicates": equal_bytes, "outliers": odd})
        held.append(Session(open_table(table), decisions, queues, table.with_suffix(".explore")))  # drawn once for all
        held[0].draw()
        return held[0]

    yield again
    while held:
        held.pop().decisions.close()


@pytest.fixture
def session(reopen: Callable[[], Session]) -> Session:
    """Of the first."""
    return reopen()
