"""What doctor says of a run: whether it ended, learned, collapsed, and how to go on; and it writes nothing."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lookalike.curate.diagnosis import describe_knn, describe_loss, deviation, diagnose, original_command, rank, trend
from lookalike.train.history import collect
from lookalike.train.run import Run
from tests.cli.test_cli import pictures, snapshot, trained  # noqa: F401  (fixtures)
from tests.conftest import Said


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A copy of the run of four steps."""
    return Path(shutil.copytree(trained, tmp_path / "a run"))


def test_a_finished_run_and_nothing_is_written(say: Callable[..., Said], run: Path, tmp_path: Path) -> None:
    before = snapshot(run)
    code, out, err = say("doctor", run, "--workers", 0, "--json", tmp_path / "d.json")
    assert (code, err) == (0, "")
    assert snapshot(run) == before
    found = json.loads((tmp_path / "d.json").read_text())
    assert "finished: step 4 of 4 is saved" in out
    assert (found["ended"], found["step"], found["changed"], found["busy"]) == (True, 4, "", None)
    assert set(found["checkpoints"].values()) == {"whole"}
    assert 0 < found["spread"]["embedding"] <= 1
    assert "data: unchanged" in out
    assert f"next: measure it with lookalike evaluate knn '{run}' DATA" in out


def test_a_run_that_stopped_with_other_data_and_a_damaged_checkpoint(run: Path, pictures: Path) -> None:  # noqa: F811
    newest = run / "checkpoints" / "step-000000004"
    (newest / "learner.safetensors").write_bytes(b"damaged")
    extra = shutil.copy(pictures / "dark" / "01.png", pictures / "dark" / "new.png")
    try:
        with pytest.warns(UserWarning, match="passed over a damaged checkpoint"):
            found = diagnose(run, 0)
    finally:
        Path(extra).unlink()
    text = "\n".join(found.lines())
    assert (found.ended, found.whole) == (False, 3)
    assert "unfinished: step 3 of 4 is saved, the last logged step is 4" in text
    assert "checkpoint of step 4: learner.safetensors is damaged" in text
    assert "changed since the run began: 1 added (dark/new.png)" in text
    assert text.splitlines()[-1].endswith("--allow-data-change")
    (run / "checkpoints" / "step-000000003" / "state.json").unlink()
    found = diagnose(run, 0)
    assert found.spread is None
    assert "start again, because no checkpoint is intact" in "\n".join(found.lines())


def test_collapse_is_said(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        shutil.rmtree(folder) if folder.name != "step-000000004" else None
    path = run / "checkpoints" / "step-000000004"
    tensors = load_file(path / "learner.safetensors")
    for name, part in tensors.items():
        if name.startswith("encoder.head") and name.endswith("weight"):
            part.zero_()
        if name.startswith("encoder.head") and name.endswith("bias"):
            part.fill_(1.0)
    save_file(tensors, path / "learner.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["learner.safetensors"] = hashlib.sha256((path / "learner.safetensors").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    found = diagnose(run, 0)
    assert found.spread is not None
    assert found.spread.embedding == pytest.approx(0, abs=1e-3)
    assert "features: collapsed" in "\n".join(found.lines())


def test_a_run_that_goes_on_is_left_alone(run: Path) -> None:
    with Run(run):
        found = diagnose(run, 0)
        assert "pid" in str(found.busy)
        assert "nothing to do, it is still running" in list(found.lines())[-1]
    assert diagnose(run, 0).busy is None


def test_curves_in_words(run: Path) -> None:
    history = collect(run)
    guess = history.chance_loss()
    falling, level = (
        [(1e6 + i, guess * share) for i in range(1000) for share in (early if i < 900 else late,)]
        for early, late in ((0.9, 0.5), (1.0, 1.0))
    )
    assert "still falling" in describe_loss(history._replace(curves={"loss": falling}))
    assert "nothing learned" in describe_loss(history._replace(curves={"loss": level}))
    assert "1 logged values are not finite" in describe_loss(
        history._replace(curves={"loss": [(1e6, 0.1), (1e6 + 1, float("nan"))]})
    )
    assert describe_loss(history._replace(curves={})) == "nothing was logged"
    assert trend([1.0] * 20, 2) == "no improvement in the last tenth"
    assert trend([1.0] * 18 + [2.0] * 2, 2) == "rising"
    assert describe_knn([]).startswith("not measured")
    assert describe_knn([(1, 0.2), (2, 0.5)]).startswith("up from 20.0% to 50.0%")
    assert describe_knn([(1, 0.2), (2, 0.205)]).startswith("no improvement, 20.0% at first and 20.5% at the end")
    early = history._replace(curves={"loss": [(1, guess / 9)]}, recipe=replace(history.recipe, batch=2))
    assert describe_loss(early).endswith(
        "too early to tell: some keys are still the random ones that a run starts with"
    )
    assert describe_knn([(1, 0.2), (2, 0.5), (3, 0.4)]) == "40.0% at the end, down from 50.0% at step 2"


def test_the_command_is_the_one_that_began_it(run: Path) -> None:
    history = collect(run)
    history.environment["command"] = ["/usr/bin/lookalike", "pretrain", "my photos", "--overwrite", "--out", "a"]
    here = shlex.join(["lookalike", "pretrain", "my photos", "--out", str(run)])
    assert original_command(history) == here
    history.environment["command"] = ["lookalike", "pretrain", "--out=a", "my photos"]
    assert original_command(history) == here
    history.environment["command"] = ["-c"]
    assert original_command(history) == "the same call"


def test_deviation_and_rank_are_of_known_features() -> None:
    generator = torch.Generator().manual_seed(0)
    even = F.normalize(torch.randn(2000, 16, generator=generator), dim=1)
    assert deviation(even) == pytest.approx(1, abs=0.01)
    assert deviation(even[:1].expand(50, -1)) == pytest.approx(0, abs=1e-6)
    assert rank(even) == pytest.approx(16, abs=0.2)
    assert rank(even[:, :3] @ torch.randn(3, 16, generator=generator)) <= 3.001
    assert rank(torch.ones(20, 16)) == 0
