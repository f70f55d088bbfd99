"""Nothing that is not finite is saved, kept as the only one, evaluated or exported; a collapse is said."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lookalike
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.curate.diagnosis import diagnose
from lookalike.learn.learner import Learner, Outcome
from lookalike.train import checkpoint, guard
from lookalike.train.guard import Collapse, spread_of
from lookalike.types import Batch
from tests.conftest import Said
from tests.support.forks import digest
from tests.support.ranks import ranks

Say = Callable[..., Said]
LIGHT: dict[str, Any] = {
    "recipe": "tiny",
    "settings": {"model.widths": "4,8", "head.widths": "8"},
    "workers": 0,
    "quiet": True,
    "save_every": 1,
}
SKIPPED = 4
NAN = torch.tensor(float("nan"))


def train(run: Path, steps: int = 6, **changed: Any) -> None:
    lookalike.pretrain("digits", run, steps=steps, **LIGHT | changed)


def bad_tensors(run: Path) -> list[str]:
    """Of all checkpoints of a run."""
    found = []
    for file in run.glob("checkpoints/*/*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = tensors.get_tensor(name)
                if part.is_floating_point() and not part.isfinite().all():
                    found.append(f"{file.parent.name} {name}")
    return found


class Faulty:
    """Spoils one part of a learner in one step, in the forward pass or after it."""

    def __init__(self, patch: pytest.MonkeyPatch, step: int, what: str, rank: int = 0) -> None:
        forward, advance, calls = Learner.forward, Learner.advance, [0]

        def due() -> bool:
            return calls[0] == step and (not torch.distributed.is_initialized() or torch.distributed.get_rank() == rank)

        def run(learner: Learner, batch: Batch, keys: tuple[Tensor, ...] = ()) -> Outcome:
            calls[0] += 1
            if due() and what == "views":
                batch = batch._replace(first={name: part * NAN for name, part in batch.first.items()})
            outcome = forward(learner, batch, keys)
            if due() and what == "loss":
                return outcome._replace(loss=outcome.loss.detach() * NAN + 0 * outcome.loss)
            if due() and what == "gradient":
                outcome.loss.register_hook(lambda grad: grad * NAN)
            return outcome

        def move(learner: Learner, outcome: Outcome, batch: Batch, progress: float) -> None:
            advance(learner, outcome, batch, progress)
            if due():
                for name, part in learner.state_dict().items():
                    if (name.startswith(what) or name.endswith(what)) and part.is_floating_point():
                        part.fill_(float("inf"))

        patch.setattr(Learner, "forward", run)
        patch.setattr(Learner, "advance", move)


STATES = ["running_mean", "running_var", "keys.twin", "dictionary.keys", "encoder.head", "encoder.backbone.stem"]


@pytest.mark.parametrize("what", ["views", "loss", "gradient", *STATES])
def test_it_ends_before_it_is_saved_and_the_same_command_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    train(tmp_path / "sound")
    with monkeypatch.context() as patch:
        Faulty(patch, 4, what)
        with pytest.raises(UserError, match="step 4") as stopped:
            train(tmp_path / "run")
    assert stopped.value.code == BAD_DATA
    assert [path.name for path in checkpoint.published(tmp_path / "run" / "checkpoints")] == [
        "step-000000003",
        "step-000000002",
    ]
    assert bad_tensors(tmp_path / "run") == []
    advice = next(line for line in diagnose(tmp_path / "run").lines() if line.startswith("next: "))
    assert "a lower --optimizer.lr and --overwrite" in advice
    assert ("--skip-bad-steps 10" in advice) == (what not in STATES)
    train(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(tmp_path / "sound")


def test_moments_of_the_optimizer_are_looked_at() -> None:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    watched = guard.Guard(network, optimizer, "advice")
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    watched.check_state(1)
    optimizer.state[network.weight]["momentum_buffer"][0, 0] = float("nan")
    with pytest.raises(UserError, match="the optimizer is not finite after step 2: advice"):
        watched.check_state(2)


def test_what_is_fitted_from_zero_may_grow_to_any_finite_size() -> None:
    """The paper's probe begins at zero, at a rate of 30."""
    network = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(network.weight)
    watched = guard.Guard(network, torch.optim.SGD(network.parameters(), 30), "advice")
    network.weight.data.fill_(1e6)
    watched.check_state(1)
    network.weight.data[0, 0] = float("inf")
    with pytest.raises(UserError, match="weight is not finite after step 2: advice"):
        watched.check_state(2)


@pytest.mark.parametrize("rate", [1e9, 1e30])
def test_weights_that_run_away_leave_the_last_good_checkpoint(say: Say, tmp_path: Path, rate: float) -> None:
    run = tmp_path / "run"
    command = ("pretrain", "digits", "--recipe", "tiny", "--steps", 8, "--save-every", 1, "--optimizer.lr", rate)
    for _ in range(2):  # the same command fails again, and takes nothing away
        code, _, err = say(*command, "--quiet", "--out", run)
        assert code == BAD_DATA
        assert "Traceback" not in err
        assert "lower --optimizer.lr" in err
        assert [path.name for path in checkpoint.published(run / "checkpoints")] == ["step-000000001"]
    code, out, err = say("evaluate", "knn", run, "digits", "--baselines", "none")
    assert code == 0, err
    assert float(out.split("kNN accuracy ")[1].split("%")[0]) > 50, out
    code, out, err = say("doctor", run, "--out", tmp_path / "sheet")
    assert code == 0, err
    assert ": give it with a lower --optimizer.lr and --overwrite:" in out.split("next: ")[1]


def test_the_batch_is_kept_and_the_examples_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Faulty(monkeypatch, 1, "loss")  # before a step is saved: all else of such a run is taken away
    with pytest.raises(UserError, match=r"bad_step\.json"):
        train(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["bad_step.json", "bad_step.safetensors"]
    record = json.loads((tmp_path / "run" / "bad_step.json").read_text())
    views = load_file(tmp_path / "run" / "bad_step.safetensors")
    assert record["step"] == 1
    assert "the loss is nan" in record["what"]
    assert views["index"].tolist() == record["rows"]
    assert len(record["examples"]) == len(views["first.pixels"]) == len(views["second.pixels"]) == 16


@pytest.mark.parametrize("what", ["views", "loss", "gradient"])
def test_a_bad_step_may_be_passed_over_and_leaves_no_trace_in_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    Faulty(monkeypatch, SKIPPED, what)
    train(tmp_path / "run", SKIPPED, skip_bad_steps=1)
    one, other = (
        load_file(path / "learner.safetensors") for path in checkpoint.published(tmp_path / "run/checkpoints")
    )
    fitted = {"encoder.whitening.map", "encoder.whitening.mean"}  # at the end of a run, to features of whole pictures
    assert {name for name in one if not torch.equal(one[name], other[name])} <= fitted
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "skipped" in line] == [SKIPPED]
    assert "skipped a step" in (tmp_path / "run" / "train.log").read_text()


def test_so_many_and_no_more_over_all_parts_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 3):
        with monkeypatch.context() as patch:
            Faulty(patch, step - 1 if step == 3 else step, "loss")  # the second part begins at its step 1
            if step == 2:
                train(tmp_path / "run", 2, skip_bad_steps=1)
            else:
                with pytest.raises(UserError, match="step 4"):
                    train(tmp_path / "run", 6, skip_bad_steps=1, extend=True)


def _one_of_two(run: str, skips: int) -> str:
    patch = pytest.MonkeyPatch()
    Faulty(patch, 3, "loss", rank=1)
    try:
        train(Path(run), 4, skip_bad_steps=skips)
    except UserError as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize("skips", [0, 1])
def test_one_rank_of_two_speaks_for_both(tmp_path: Path, skips: int) -> None:
    said = ranks(2, _one_of_two, str(tmp_path / "run"), skips)
    assert said[0] == said[1]
    assert ("step 3 of rank 1" in said[0]) if skips == 0 else (said[0] == "trained")
    record = json.loads((tmp_path / "run" / "bad_step.json").read_text())
    assert len(record["examples"]) == 8  # those of that rank
    assert bad_tensors(tmp_path / "run") == []


def test_a_checkpoint_of_an_older_version_that_holds_none_is_passed_over_aloud(say: Say, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, 3)
    newest, before = checkpoint.published(run / "checkpoints")
    for name in ("learner", "optimizer"):
        file = newest / f"{name}.safetensors"
        tensors = load_file(file)
        next(part for part in tensors.values() if part.is_floating_point() and part.dim()).view(-1)[0] = float("nan")
        save_file(tensors, file)

    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in newest.iterdir()}
    del files["manifest.json"]
    (newest / "manifest.json").write_text(json.dumps(files))
    with pytest.warns(UserWarning, match="is not finite; step 2 is used"):
        assert say("evaluate", "knn", run, "digits", "--baselines", "none")[0] == 0
    for file in before.iterdir():
        file.unlink()
    code, _, err = say("evaluate", "knn", run, "digits")
    assert code == BAD_DATA
    assert "no whole checkpoint is left" in err


def test_a_collapse_is_said_within_a_hundred_steps_and_once() -> None:
    watch, said = Collapse(), []
    for step in range(300):
        watch.meet(0.4 if step < 100 else 1e-3)
        if line := watch.said():
            said.append((step, line))
    [(step, line)] = said
    assert 100 < step < 200
    assert "collapsed" in line


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_raises_no_alarm(tmp_path: Path, seed: int) -> None:
    train(tmp_path / "run", 120, save_every=None, settings={**LIGHT["settings"], "seed": str(seed)})
    assert not (tmp_path / "run" / "train.log").exists()  # nothing was noted


def test_a_head_that_says_the_same_of_all_pictures_is_a_collapse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Learner.forward

    def flat(learner: Learner, batch: Batch, keys: tuple[Tensor, ...] = ()) -> Outcome:
        outcome = forward(learner, batch, keys)
        return outcome._replace(pairs=[(query * 1e-3 + query[:1].detach(), key) for query, key in outcome.pairs])

    monkeypatch.setattr(Learner, "forward", flat)
    train(tmp_path / "run", 100, save_every=None)
    assert (tmp_path / "run" / "train.log").read_text().count("the features have collapsed") == 1


def test_spread_is_one_of_even_rows_and_nothing_of_equal_ones() -> None:
    def spread(rows: Tensor) -> float:
        return spread_of(float(rows.mean(0).norm()), float(rows.norm()), len(rows))

    rows = torch.nn.functional.normalize(torch.randn(4096, 64, dtype=torch.float64), dim=1)
    assert 0.99 < spread(rows) <= 1
    assert spread(rows[:1].expand(32, -1)) < 1e-6
    assert abs(spread(torch.eye(2).repeat(8, 1)) - 0.5**0.5) < 1e-6
    assert math.isnan(spread(torch.full((8, 2), float("nan"))))
