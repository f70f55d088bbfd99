"""Other trainers' checkpoints, by the names that they write; and files that are damaged or hostile."""

from __future__ import annotations

import argparse
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightly.models.utils import deactivate_requires_grad
from safetensors.torch import save_file
from torch import Tensor, nn

import lookalike
from lookalike.core.errors import BAD_DATA
from lookalike.exchange.weights import load_backbone, read_tensors
from lookalike.models.encoder import Encoder
from lookalike.models.image import ResNet, Timm

State = dict[str, Tensor]


def resnet(value: float) -> nn.Module:
    """A network all of whose weights say which copy they are of."""
    net = torchvision.models.resnet18(weights=None)
    for part in net.state_dict().values():
        part.fill_(value)
    return net


def named(prefix: str, net: nn.Module) -> State:
    return {f"{prefix}{name}": part for name, part in net.state_dict().items()}


def lightly(**nets: nn.Module) -> State:
    """As lightly's examples write it: a Sequential of the children but the last."""
    module = nn.Module()
    for name, net in nets.items():
        module.add_module(name, nn.Sequential(*list(net.children())[:-1]))
    deactivate_requires_grad(module)
    return module.state_dict()


TRAINED, TRAILING = resnet(0.25), resnet(0.5)
CHECKPOINTS: dict[str, tuple[Any, float, str]] = {
    "moco v1 and v2": (
        {
            "epoch": 9,
            "arch": "resnet18",
            "state_dict": named("module.encoder_q.", TRAINED) | named("module.encoder_k.", TRAILING),
        },
        0.25,
        "those of state_dict.module.encoder_q, not those of state_dict.module.encoder_k",
    ),
    "moco v3": (
        {"state_dict": named("module.momentum_encoder.", TRAILING) | named("module.base_encoder.", TRAINED)},
        0.25,
        "state_dict.module.base_encoder, not",
    ),
    "dino": (
        {
            "student": named("module.backbone.", TRAINED),
            "teacher": named("backbone.", TRAILING),
            "args": argparse.Namespace(arch="resnet18", path=Path("/data")),
        },
        0.5,
        "those of teacher.backbone, not those of student.module.backbone",
    ),
    "a teacher alone": ({"teacher": named("backbone.", TRAILING)}, 0.5, "teacher.backbone"),
    "lightly": (
        {"state_dict": lightly(backbone_momentum=TRAILING, backbone=TRAINED)},
        0.25,
        "state_dict.backbone, not",
    ),
    "lightly's dino": (
        {"state_dict": lightly(student_backbone=TRAINED, teacher_backbone=TRAILING)},
        0.5,
        "state_dict.teacher_backbone, not those of state_dict.student_backbone",
    ),
    "lightly-train": (
        {
            "state_dict": named("teacher_embedding_model.wrapped_model._model.", TRAILING)
            | named("student_embedding_model.wrapped_model._model.", TRAINED),
            "lightly_train": argparse.Namespace(models=None),
        },
        0.5,
        "teacher_embedding_model.wrapped_model._model, not",
    ),
    "solo-learn": (
        {"state_dict": named("momentum_backbone.", TRAILING) | named("backbone.", TRAINED)},
        0.25,
        "state_dict.backbone, not those of state_dict.momentum_backbone",
    ),
    "stable-pretraining": (
        {"state_dict": named("backbone.student.", TRAINED) | named("backbone.teacher.", TRAILING)},
        0.5,
        "state_dict.backbone.teacher, not",
    ),
    "byol": (
        {"online_encoder": TRAINED.state_dict(), "target_encoder": TRAILING.state_dict()},
        0.25,
        "those of online_encoder, not those of target_encoder",
    ),
    "an average beside it": (
        {"model": TRAINED.state_dict(), "model_ema": TRAILING.state_dict()},
        0.25,
        "those of model, not those of model_ema",
    ),
    "bare": (TRAINED.state_dict(), 0.25, "100 tensors"),
}


def encoder(spec: ResNet | Timm) -> Encoder:
    return Encoder(spec.build(8)[0], nn.Identity())


@pytest.mark.parametrize("trainer", CHECKPOINTS)
def test_the_copy_that_is_evaluated_is_taken_and_said(trainer: str, tmp_path: Path) -> None:
    content, value, words = CHECKPOINTS[trainer]
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    into = encoder(ResNet("resnet18"))
    assert words in load_backbone(into, tmp_path / "checkpoint.pth.tar")
    counted = {part for name, part in into.backbone.state_dict().items() if "num_batches" not in name}
    assert all(bool((part == value).all()) for part in counted)


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return shutil.copyfile, (__file__, "exploded")


class Settings(dict[str, Any]):
    """Of a trainer that is not installed here."""


def test_settings_of_any_class_are_left_out_and_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": TRAINED.state_dict(), "hyper_parameters": Settings(lr=0.1), "more": [Bomb()]}
    torch.save(content, tmp_path / "weights.ckpt")
    assert len(read_tensors(tmp_path / "weights.ckpt")) == 122
    assert not (tmp_path / "exploded").exists()
    torch.load(tmp_path / "weights.ckpt", weights_only=False)  # it is live
    assert (tmp_path / "exploded").exists()


def cyclic(path: Path) -> None:
    loop: dict[str, Any] = {"state_dict": {}}
    loop["state_dict"]["again"] = loop
    torch.save(loop, path)


def deep(path: Path) -> None:
    content: dict[str, Any] = {}
    for _ in range(300):
        content = {"in": content, "too": content}
    torch.save(content, path)


def huge(path: Path) -> None:
    """40 GB by its header."""
    head = b'{"conv1.weight":{"dtype":"F32","shape":[10000000000],"data_offsets":[0,40000000000]}}'
    path.write_bytes(struct.pack("<Q", len(head)) + head)


def wide(path: Path) -> None:
    """40 GB by strides of 0."""
    torch.save({"conv1.weight": torch.zeros(1).expand(10_000_000_000)}, path)


def spoilt(value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        state = {name: part.clone() for name, part in TRAINED.state_dict().items()}
        state["layer3.0.conv1.weight"][0, 0, 0, 0] = value
        torch.save(state, path)

    return write


def sparse(path: Path) -> None:
    state = {**TRAINED.state_dict(), "bn1.weight": TRAINED.state_dict()["bn1.weight"].to_sparse()}
    torch.save(state, path)


def other(path: Path) -> None:
    torch.save({**TRAINED.state_dict(), "bn1.weight": torch.zeros(65)}, path)


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cycle.pth": (cyclic, "it has no conv1.weight"),
    "deep.pth": (deep, "it has no conv1.weight"),
    "huge.safetensors": (huge, "cannot be read as weights"),
    "wide.pth": (wide, r"conv1.weight is \(10000000000,\), not \(64, 3, 7, 7\)"),
    "nan.pth": (spoilt(float("nan")), "layer3.0.conv1.weight holds values that are no finite numbers"),
    "infinite.pth": (spoilt(float("inf")), "layer3.0.conv1.weight holds values that are no finite numbers"),
    "sparse.pth": (sparse, "bn1.weight holds values that are no finite numbers"),
    "other.pth": (other, r"bn1.weight is \(65,\), not \(64,\)"),
    "fifo.pth": (os.mkfifo, "is no file of weights"),
    "device.pth": (lambda path: path.symlink_to("/dev/zero"), "is no file of weights"),
    "folder.pth": (os.mkdir, "is no file of weights"),
    "empty.pth": (lambda path: path.touch(), "cannot be read as weights"),
    "text.pth": (lambda path: path.write_text("no weights\n" * 99), "is no file of tensors"),
    "cut.pth": (
        lambda path: (torch.save(TRAINED.state_dict(), path), os.truncate(path, 9999)),
        "cannot be read as weights",
    ),
    "bomb.pth": (lambda path: torch.save({"state_dict": Bomb()}, path), "it has no conv1.weight"),
    "old.pth": (
        lambda path: torch.save({"state_dict": Bomb()}, path, _use_new_zipfile_serialization=False),
        "is no file of tensors, or its objects would run code",
    ),
    "numbers.pth": (lambda path: torch.save(list(range(9)), path), "it has no conv1.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write, words = WRONG[name]
    write(tmp_path / name)
    with pytest.raises(lookalike.UserError, match=words) as error:
        load_backbone(encoder(ResNet("resnet18")), tmp_path / name)
    assert error.value.code == BAD_DATA
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert not (tmp_path / "exploded").exists()


def test_an_original_release_is_converted_as_timm_does(tmp_path: Path) -> None:
    into = encoder(Timm("test_vit"))
    state = into.backbone.state_dict()
    released = {name.removeprefix("net."): part.contiguous().clone() for name, part in state.items()}
    released["pos_embed"] = torch.zeros(1, 26, 64)  # of another size of picture
    save_file(released, tmp_path / "released.safetensors")
    load_backbone(into, tmp_path / "released.safetensors")
    assert bool((into.backbone.state_dict()["net.pos_embed"] == 0).all())
