"""A run that is killed and continued ends as one that never was, byte for byte, from every kind of place."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.forks import Forks, Moment, digest
from tests.support.packs import KINDS, Picture, pack, pictures
from tests.support.ranges import served


@pytest.fixture(scope="module")
def given() -> list[Picture]:
    return pictures(32)


@pytest.fixture(scope="module")
def uninterrupted(forks: Forks, given: list[Picture], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The learner that ``tiny`` makes of the pictures, whatever they lie in."""
    folder = tmp_path_factory.mktemp("reference")
    assert forks.run(command(pack("folder", given, folder / "data"), folder / "run")).code == 0
    return digest(folder / "run")["learner.safetensors"]


def command(data: object, out: Path, workers: int = 0) -> list[object]:
    return [
        *("pretrain", data, "--out", out, "--recipe", "tiny", "--steps", 4, "--save-every", 2, "--checkups", 0),
        *("--workers", workers, "--memory", 0, "--quiet", "--model.widths", "4,8", "--head.widths", "16"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_continued(
    kind: str, forks: Forks, given: list[Picture], uninterrupted: bytes, tmp_path: Path
) -> None:
    killed_and_continued(pack(kind, given, tmp_path / "data"), forks, uninterrupted, tmp_path)


def test_killed_and_continued_over_http(
    forks: Forks, given: list[Picture], uninterrupted: bytes, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    pack("tars", given, tmp_path / "data")
    with served(tmp_path) as server:
        killed_and_continued(f"{server.url}/data", forks, uninterrupted, tmp_path)


def killed_and_continued(data: object, forks: Forks, uninterrupted: bytes, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "run"
    ended = forks.run(command(data, out, workers=1), Moment(".step-000000004", 4))
    assert ended.code == -signal.SIGKILL, ended.errors
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name[0] != "."] == ["step-000000002"]
    ended = forks.run(command(data, out))
    assert ended.code == 0, ended.errors
    assert digest(out)["learner.safetensors"] == uninterrupted
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and out not in path.parents}
    assert after == before  # the data is never written
