"""What an earlier version wrote is opened by this one: runs, tables of embeddings, prepared caches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lookalike import load, search
from lookalike.data.source import open_source
from lookalike.train import checkpoint
from lookalike.train.pretrain import pretrain
from lookalike.train.run import read_recipe

VERSIONS = sorted((Path(__file__).parents[1] / "data").glob("v*"))
CLOSE = 1e-5
"""Another processor sums in another order."""


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version wrote: opening is not to change what is kept."""
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def test_a_release_left_something() -> None:
    assert [path.name for path in VERSIONS] == ["v0.1"]
    assert sum(file.stat().st_size for folder in VERSIONS for file in folder.rglob("*")) < 600_000


def test_an_old_run_has_the_features_that_it_had(old: Path) -> None:
    trained, cache = load(old / "run"), open_source(str(old / "cache"))
    features = trained.features(trained.loader(cache, workers=0)).numpy()
    table = pq.read_table(old / "table.parquet")
    assert table.column("path").to_pylist() == list(cache.paths)
    assert np.abs(features - np.array(table.column("embedding").to_pylist())).max() <= CLOSE


def test_an_old_cache_is_read_as_it_was_written(old: Path) -> None:
    cache = open_source(str(old / "cache"))
    assert len(cache) == 24
    assert cache.labels.tolist() == [0] * 12 + [1] * 12


def test_an_old_table_is_searched_by_its_rows_and_by_its_run(old: Path) -> None:
    path = pq.read_table(old / "table.parquet").column("path").to_pylist()[3]
    hits = search(old / "table.parquet", [path])[0]
    assert len({hit.path for hit in hits}) == 10
    assert path not in {hit.path for hit in hits}


def test_an_old_run_goes_on(old: Path) -> None:
    assert checkpoint.newest_step(old / "run" / "checkpoints") == 2
    recipe = read_recipe(old / "run" / "recipe.json")
    done = pretrain(str(old / "cache"), old / "run", recipe=recipe, steps=3, extend=True, workers=0, quiet=True)
    assert (done.step, done.total) == (3, 3)
    assert checkpoint.newest_step(old / "run" / "checkpoints") == 3
