"""TensorBoard, by its own reader: every step once, whatever happened in between."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lookalike.cli.main import main
from lookalike.train.run import Run

TAGS = {"train/loss", "train/lr", "train/top1", "val/knn", "perf/examples_per_s", "perf/data_wait"}


def command(out: Path, *more: object) -> list[str]:
    light = ("--model.widths", "4,8", "--head.widths", "16", "--workers", 0, "--quiet")
    return [str(part) for part in ("pretrain", "digits", "--out", out, "--recipe", "tiny", *light, *more)]


def shown(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every tag, as TensorBoard shows them."""
    reader = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def logged(run: Path, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]  # floats of 32 bits


def same_as_the_metrics(run: Path) -> bool:
    found = shown(run)
    assert found.keys() == TAGS
    names = {tag: tag.partition("/")[2] for tag in TAGS if not tag.startswith("perf/")}
    # While the queue has random keys, four steps, top1 is in the metrics alone.
    last = {
        tag: [point for point in logged(run, name) if name != "top1" or point[0] > 4] for tag, name in names.items()
    }
    return all(found[tag] == last[tag] for tag in names)


def test_after_a_kill_every_step_is_shown_once(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(command(tmp_path, "--steps", 8, "--save-every", 4))
        assert same_as_the_metrics(tmp_path)
        assert [step for step, _ in shown(tmp_path)["perf/data_wait"]] == list(range(1, 9))
        shutil.rmtree(tmp_path / "checkpoints" / "step-000000008")  # as if it was killed before its last save
    assert len(list((tmp_path / "tb").iterdir())) == 2


def test_a_torn_last_record_costs_nothing_that_was_before_it(tmp_path: Path) -> None:
    for lost in (1, 7, 20):  # bytes, all of them of step 3
        run = Run(tmp_path / str(lost))
        run.folder.mkdir()
        run.rewind(0)
        for step in (1, 2, 3):
            run.log(step, loss=float(step))
        run.__exit__()
        (file,) = (run.folder / "tb").iterdir()
        file.write_bytes(file.read_bytes()[:-lost])
        again = Run(run.folder)
        again.rewind(2)
        again.log(3, loss=30.0)
        again.log(4, loss=40.0)
        again.__exit__()
        assert shown(run.folder) == {"train/loss": [(1, 1), (2, 2), (3, 30), (4, 40)]}


def test_a_run_that_has_nothing_left_to_do_leaves_no_empty_file(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(command(tmp_path, "--steps", 1))
    assert len(list((tmp_path / "tb").iterdir())) == 1


def test_without_the_extra_there_is_no_folder_and_no_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with pytest.raises(SystemExit) as stopped:
        main(command(tmp_path, "--steps", 1))
    assert (stopped.value.code, capsys.readouterr().err) == (0, "")
    assert not (tmp_path / "tb").exists()
    assert logged(tmp_path, "loss")
