"""Commands on a device that is no processor: what is read, made, scored and kept meets on one side."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from lookalike.cli.main import main
from lookalike.core import devices
from tests.support.commands import World, built
from tests.support.elsewhere import another_device

pytestmark = pytest.mark.any_precision

SHORT = "--steps 2 --workers 0 --batch 8 --quiet"
NARROW = f"{SHORT} --model.widths 4,8,8,8"
VIT = f"{SHORT} --model.width 16 --model.depth 2 --model.heads 2"
TEXT = f"{SHORT} --model.width=16 --model.vocabulary=300"
COMMANDS = {
    **{
        f"pretrain {name}": f"pretrain {{pictures}} --out {{new}} --recipe {name} {NARROW}"
        for name in (
            "small",
            "small_instdisc",
            "small_instdisc_softmax",
            "small_simclr",
            "small_nnclr",
            "small_moco_v3",
        )
    },
    **{
        f"pretrain {name}": f"pretrain {{pictures}} --out {{new}} --recipe {name} {VIT}"
        for name in ("small_moco_v3_vit", "small_masked_moco", "small_mae")
    },
    **{f"pretrain {name}": f"pretrain {{text}} --out {{new}} --recipe {name} {TEXT}" for name in ("simcse", "mlm")},
    "pretrain with lora": f"pretrain {{pictures}} --out {{new}} --recipe small_moco_v3_vit --tuned.lora 4 {VIT}",
    "pretrain moco_captions": f"pretrain {{captions}} --out {{new}} --recipe moco_captions {SHORT} "
    "--model.text.vocabulary=300 --dictionary.size=16",
    "supervised": f"supervised {{pictures}} --out {{new}} --recipe small {NARROW}",
    **{
        f"pretrain {name}": f"pretrain {{pictures}} --out {{new}} --init-from {{run}} --recipe {name} {SHORT} "
        "--held-out 0.3"
        for name in ("adapt", "adapt_moco", "adapt_instances", "adapt_neighbours", "adapt_simclr")
    },
    **{
        f"evaluate {task}": f"evaluate {task} {{run}} {{pictures}} --workers 0"
        for task in ("knn", "probe", "fewshot", "retrieve", "clusters")
    },
    "evaluate finetune": "evaluate finetune {run} {pictures} --steps 1 --shares 1.0 --draws 1 --batch 4 --workers 0",
    "evaluate detect": "evaluate detect {run} {scenes} --steps 1 --workers 0",
    "evaluate keypoints": "evaluate keypoints {run} {scenes} --steps 1 --workers 0",
    "evaluate segment": "evaluate segment {run} {masks} --steps 1 --workers 0",
    "evaluate sts": "evaluate sts {text_run} {pairs}",
    "evaluate captions": "evaluate captions {captions_run} {captions} --workers 0",
    "embed": "embed {run} {pictures} --out {new}.parquet --workers 0",
    "search": "search {run} bright/00.png",
    "duplicates": "duplicates {run} {pictures}",
    "leaks": "leaks {run} {pictures}",
    "labels": "labels {run} {pictures}",
    "doctor": "doctor {run}",
    "outliers": "outliers {run} {pictures}",
    "sample": "sample {run} {pictures} --n 3",
    "report": "report {run} --out {new}.html",
    "compare": "compare {run} --on {pictures} --task knn --trials 1 --out {new}",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with patch.dict("os.environ", {"LOOKALIKE_PRECISION": "fp32"}):  # as it will go on
        yield built(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_runs_on_another_device(
    command: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(world.run, tmp_path / "run")  # what a command adds to a run, it adds to this one
    places = world._asdict() | {"run": run, "text": world.pairs.parent / "text.txt", "new": tmp_path / "new"}
    with another_device(), pytest.raises(SystemExit) as stopped:
        main(command.format(**places).split())
    assert stopped.value.code == 0, capsys.readouterr().err


def test_what_is_elsewhere_does_not_meet_what_is_here() -> None:
    with another_device():
        there, here = torch.ones(2, device=devices.device()), torch.ones(2)
        assert (there + 1).device == there.device != here.device
        assert (there + here.to(there.device)).tolist() == [2.0, 2.0]
        assert torch.equal((there * 3).cpu(), here * 3)
        assert torch.equal(there[here.long()].cpu(), here)
        with pytest.raises(RuntimeError, match="device"):
            there + here
        with pytest.raises(RuntimeError, match="device"):
            here[there.long()]
        with pytest.raises(TypeError, match="device"):
            there.numpy()
