"""Tiny runs for tests that kill and damage them: a third of a second each, forked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.forks import Ended

TINY = ("--recipe", "tiny", "--workers", 0, "--quiet", "--model.widths", "4,8", "--head.widths", "16")


def noise(folder: Path, count: int = 48) -> Path:
    """Pictures of noise, in turn of the classes a and b."""
    chance = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


def command(data: Path, out: Path, *more: object, steps: int = 12, save: int = 3) -> list[object]:
    return ["pretrain", data, "--out", out, "--steps", steps, "--save-every", save, *TINY, *more]


def done(ended: Ended) -> None:
    assert ended.code == 0, ended.errors


def unfinished(folder: Path) -> list[Path]:
    """What was written beside its name and is not published."""
    return list(folder.rglob(".*"))
