"""The tutorial's first way runs as it stands there, command by command, on a small copy of what it has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from tests.support.forks import Forks

pytestmark = pytest.mark.any_precision

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"
SECTION = "## Three thousand photos, cleaned, searched and taken along"
SMALLER = {"timm:tf_efficientnet_lite0": "timm:test_efficientnet", "--minutes 10": "--steps 2 --batch 8 --workers 0"}
MADE = (
    "clothes.parquet",
    "clothes_marked.parquet",
    "duplicates.html",
    "labels.csv",
    "adapted/result.json",
    "found.html",
)


def commands() -> list[list[str]]:
    section = PAGE.read_text("utf-8").split(SECTION)[1].split("\n## ")[0]
    found = re.findall(r"^\$ lookalike (.*)$", section, re.MULTILINE)
    for whole, small in SMALLER.items():
        found = [command.replace(whole, small) for command in found]
    return [shlex.split(command) for command in found]


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    """Photos of three things in three splits, one of them in two, and weights beside them."""
    chance = np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 4), ("test", 5)):
        for number, name in enumerate(("dress", "shirt", "shoes")):
            folder = tmp_path / "clothes" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = chance.normal(60 + 60 * number, 25, (12, 10, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).resize((80, 96), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=92)
    twin = tmp_path / "clothes" / "train" / "dress" / "0.jpg"
    (tmp_path / "clothes" / "test" / "dress" / "again.jpg").write_bytes(twin.read_bytes())
    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "lite0.safetensors")
    Image.open(twin).rotate(5).save(tmp_path / "new.jpg")
    return tmp_path


def test_every_command_runs(clothes: Path) -> None:
    assert len(commands()) >= 9
    said = {}
    with Forks() as forks:
        for command in commands():
            ended = forks.run(command, folder=clothes, deadline=300)
            assert ended.code == 0, (command, ended.errors)
            said[command[0]] = ended.printed
    assert "1 of 16 in test" in said["leaks"]
    assert "test/dress/again.jpg" in said["duplicates"]
    for name in MADE:
        assert (clothes / name).exists(), name
