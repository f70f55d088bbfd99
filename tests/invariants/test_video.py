"""Runs on videos: killed they end as one that never was, and two processes do what one does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.data.loader import Loader
from lookalike.data.source import open_source
from lookalike.learn.dictionary import Queue
from lookalike.learn.optim import SGD
from lookalike.models.encoder import MLP
from lookalike.models.image import SmallResNet, SmallVideoResNet
from lookalike.recipes import recipe_named
from lookalike.recipes.recipe import Recipe
from tests.support.films import SIDE, film
from tests.support.forks import Forks, Moment, digest
from tests.support.ranks import ranks
from tests.support.steps import in_double

pytestmark = pytest.mark.exact

NAMES = ("video_moco", "video_moco_clips")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("videos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for i in range(4):
            film(folder / "data" / "ab"[i % 2] / f"{i}.mp4", 16, first=16 * i, gop=5)
        yield folder / "data"


def command(data: Path, out: Path, name: str, *more: object) -> list[object]:
    small = ["--model.widths", "4,8", *(("--model.slow", 1) if "clips" in name else ("--model.blocks", "1,1"))]
    clip = ["--pretext.frames", 3] if "clips" in name else []
    return [
        *("pretrain", data, "--out", out, "--recipe", name, "--steps", 6, "--save-every", 2, "--quiet", *more),
        *("--batch", 16, "--group", 8, "--checkups", 1, "--head.widths", "8", *small, *clip),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_goes_on_with_other_workers_to_the_same_end(
    forks: Forks, videos: Path, tmp_path: Path, name: str
) -> None:
    reference, out = tmp_path / "reference", tmp_path / "run"
    ended = forks.run(command(videos, reference, name, "--workers", 0))
    assert ended.code == 0, ended.errors
    streamed = command(videos, out, name, "--workers", 2, "--memory", 0)
    assert forks.run(streamed, Moment(".step-000000004", 4)).code == -signal.SIGKILL
    ended = forks.run(command(videos, out, name, "--workers", 1, "--memory", 0))
    assert ended.code == 0, ended.errors
    assert digest(out) == digest(reference)


def miniature(name: str) -> Recipe:
    """A few thousand weights."""
    made = recipe_named(name, 64, SIDE)
    clips = name == "video_moco_clips"
    return replace(
        made,
        model=SmallVideoResNet((4, 8), slow=1) if clips else SmallResNet((4, 8), (1, 1)),
        pretext=replace(made.pretext, **({"frames": 3} if clips else {})),
        head=MLP((8,)),
        dictionary=Queue(40),
        optimizer=SGD(lr=0.02),
        canvas=SIDE,
        batch=16,
        group=8,
        whiten=False,
        precision="fp32",
    )


def trained(data: Path, name: str) -> dict[str, Any]:
    """What a rank ends with."""
    return in_double(miniature(name), Loader(open_source(data), SIDE, workers=0), 6)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_do_what_one_does(videos: Path, name: str) -> None:
    alone = trained(videos, name)
    for together in ranks(2, trained, videos, name):
        for part, value in alone.items():
            scale = max(0.1, float(np.abs(value).max()))
            np.testing.assert_allclose(together[part], value, rtol=0, atol=1e-9 * scale, err_msg=part)
    assert np.isfinite(alone["losses"]).all()
