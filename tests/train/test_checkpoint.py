"""A checkpoint is exact, whole or refused, and never a program."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lookalike.core import dist
from lookalike.core.devices import module_to_device
from lookalike.core.errors import BAD_DATA, IO, UserError
from lookalike.learn.dictionary import Queue
from lookalike.learn.learner import Learner
from lookalike.learn.optim import SGD, AdamW, Muon
from lookalike.models.encoder import MLP
from lookalike.models.image import SmallResNet
from lookalike.recipes import tiny
from lookalike.recipes.recipe import Recipe
from lookalike.train import checkpoint
from lookalike.train.pretrain import pretrain
from lookalike.train.run import read_recipe
from lookalike.train.trained import load
from lookalike.types import Batch
from tests.support.damage import DAMAGE, FILES, Damage, swap
from tests.support.ranks import ranks

State = tuple[Learner, torch.optim.Optimizer]


def recipe(optimizer: SGD | AdamW | Muon = AdamW()) -> Recipe:  # noqa: B008  (frozen)
    small = SmallResNet(widths=(4, 8), blocks=(1, 1), kernel=2, stride=2)
    return replace(tiny.fitted(64, 8), model=small, head=MLP((16,)), dictionary=Queue(24), optimizer=optimizer)


def begun(spec: Recipe) -> State:
    learner = module_to_device(spec.build(64)).train()
    return learner, spec.optimizer.build(learner.encoder, spec.batch)


def stepped(state: State, step: int) -> torch.Tensor:
    """One step on a batch that the step alone decides; its loss."""
    learner, optimizer = state
    generator = torch.Generator().manual_seed(step)
    views = [{"pixels": torch.randn(16, 3, 8, 8, generator=generator)} for _ in range(2)]
    batch = Batch(torch.randperm(64, generator=generator)[:16], *views)
    outcome = learner(batch)
    optimizer.zero_grad()
    outcome.loss.backward()
    optimizer.step()
    learner.advance(outcome, batch, 0.0)
    return outcome.loss.detach()


def everything(state: State) -> list[torch.Tensor]:
    """All tensors of learner and optimizer, in a fixed order."""
    learner, optimizer = state
    state = optimizer.state_dict()["state"]
    moments = [state[index][name] for index in sorted(state) for name in sorted(state[index])]
    return [*learner.state_dict().values(), *(m for m in moments if isinstance(m, torch.Tensor))]


def channels_last(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def same(one: State, other: State) -> bool:
    """Equal in every byte, and laid out alike in memory."""
    pairs = list(zip(everything(one), everything(other), strict=True))
    return all(torch.equal(a, b) and channels_last(a) == channels_last(b) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), AdamW(lr=0.01), Muon()], ids=["SGD", "AdamW", "Muon"])
def test_the_step_after_a_resume_is_bit_equal(tmp_path: Path, optimizer: SGD | AdamW | Muon) -> None:
    state = begun(recipe(optimizer))
    for step in range(3):
        stepped(state, step)
    path = checkpoint.save(tmp_path, 3, *state)
    resumed = begun(replace(recipe(optimizer), seed=1))
    assert not torch.equal(state[0].dictionary.keys, resumed[0].dictionary.keys)  # type: ignore[arg-type]
    assert checkpoint.load(path, *resumed) == 3
    assert same(state, resumed)
    moments = everything(resumed)[len(resumed[0].state_dict()) :]
    assert any(channels_last(moment) and not moment.is_contiguous() for moment in moments)
    assert int(resumed[0].dictionary.oldest) == 3 * 16 % 24  # type: ignore[arg-type]
    assert torch.equal(stepped(state, 3), stepped(resumed, 3))
    assert same(state, resumed)


def test_before_the_first_step_there_is_no_optimizer_state_and_that_resumes_too(tmp_path: Path) -> None:
    state, resumed = begun(recipe()), begun(replace(recipe(), seed=1))
    assert checkpoint.load(checkpoint.save(tmp_path, 0, *state), *resumed) == 0
    assert torch.equal(stepped(state, 0), stepped(resumed, 0))
    assert same(state, resumed)


def test_a_saved_checkpoint_does_not_change_with_what_it_was_made_of(tmp_path: Path) -> None:
    state, resumed = begun(recipe()), begun(recipe())
    path = checkpoint.save(tmp_path, 1, *state)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    stepped(state, 0)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    checkpoint.load(path, *resumed)
    stepped(resumed, 0)  # nor is it written to through what was read
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    state = begun(recipe())
    for step in (3, 9, 10, 200):
        checkpoint.save(tmp_path, step, *state)
    assert [path.name for path in checkpoint.published(tmp_path)] == ["step-000000200", "step-000000010"]
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-000000200", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000200"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") == (None, [])
    assert checkpoint.newest(tmp_path) == (None, [])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2."""
    folder, state = tmp_path_factory.mktemp("two"), begun(recipe())
    for step in (1, 2):
        stepped(state, step)
        checkpoint.save(folder, step, *state)
    return folder


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_every_damage_is_found_and_the_one_before_taken(two: Path, tmp_path: Path, damage: Damage) -> None:
    folder = Path(shutil.copytree(two, tmp_path / "checkpoints"))
    damage(folder / "step-000000002")
    path, notes = checkpoint.newest(folder)
    assert path == folder / "step-000000001"
    assert len(notes) == 1
    assert "step-000000002" in notes[0]


@pytest.mark.parametrize("name", FILES[:3])
def test_files_swapped_between_steps_leave_none_whole(two: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(two, tmp_path / "checkpoints"))
    swap(folder / "step-000000001" / name, folder / "step-000000002" / name)
    with pytest.raises(UserError, match="no whole checkpoint is left") as refused:
        checkpoint.newest(folder)
    assert refused.value.code == BAD_DATA


def test_a_save_after_a_damaged_one_drops_it_and_leaves_two_whole(two: Path, tmp_path: Path) -> None:
    folder, state = Path(shutil.copytree(two, tmp_path / "checkpoints")), begun(recipe())
    (folder / "step-000000002").rename(folder / "step-000000009")  # of another step than its name says
    path, _ = checkpoint.newest(folder)
    assert path == folder / "step-000000001"
    checkpoint.save(folder, 5, *state)
    assert [path.name for path in checkpoint.published(folder)] == ["step-000000005", "step-000000001"]
    assert [checkpoint.damage(path) for path in checkpoint.published(folder)] == [None, None]


def test_another_model_or_optimizer_is_refused_and_nothing_is_taken_from_it(two: Path) -> None:
    path = checkpoint.newest(two)[0]
    assert path
    others = [
        replace(recipe(), head=MLP((8,))),
        replace(recipe(), dictionary=Queue(25)),
        replace(recipe(), whiten=False),
        recipe(SGD()),
    ]
    for other in others:
        state, untouched = begun(other), begun(other)
        with pytest.raises(UserError) as refused:
            checkpoint.load(path, *state)
        assert refused.value.code == BAD_DATA
        if other.optimizer == recipe().optimizer:
            assert torch.equal(state[0].dictionary.keys, untouched[0].dictionary.keys)  # type: ignore[arg-type]


def rewrite(path: Path, name: str, content: bytes) -> None:
    """Replace a file and its hash, as somebody who means harm would."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {name: checkpoint._sha256(path / name)}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b'{"format": 2, "step": 2, "optimizer": {}}'),
        ("state.json", b'{"format": 1, "step": 2}'),
        ("state.json", b'{"format": 1, "step": 2, "optimizer": {"kind": "posix.system"}}'),
        ("learner.safetensors", b"\x00" * 8),
        ("learner.safetensors", b"\xff" * 64),
        ("learner.safetensors", pickle.dumps(print)),
        ("learner.safetensors", (b := b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}')
         and len(b).to_bytes(8, "little") + b),
    ],
)  # fmt: skip
def test_a_foreign_checkpoint_with_true_hashes_is_refused(two: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = Path(shutil.copytree(two, tmp_path / "checkpoints"))
    rewrite(folder / "step-000000002", name, content)
    with pytest.raises(UserError) as refused:
        checkpoint.load(folder / "step-000000002", *begun(recipe()))
    assert refused.value.code == BAD_DATA


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A disk on which a file cannot grow beyond ``size`` bytes; Python ignores the signal that comes with it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 100, 3000, 20_000])
def test_a_disk_that_refuses_leaves_the_checkpoints_before_whole(two: Path, tmp_path: Path, size: int) -> None:
    folder, state = Path(shutil.copytree(two, tmp_path / "checkpoints")), begun(recipe())
    biggest = max(file.stat().st_size for file in (folder / "step-000000002").iterdir())
    assert biggest > 20_000
    with no_file_above(size), pytest.raises(UserError, match="free some space") as refused:
        checkpoint.save(folder, 3, *state)
    assert refused.value.code == IO
    assert checkpoint.newest(folder) == (folder / "step-000000002", [])
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000001", "step-000000002"]
    assert [checkpoint.damage(path) for path in checkpoint.published(folder)] == [None, None]


_opened: list[object] = []  # what a pickle asked for by name


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if event == "pickle.find_class":
        _opened.append(arguments)


class Bomb:
    """What a pickle makes when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    run, canary = tmp_path / "run", tmp_path / "canary"
    pictures = torch.rand(40, 8, 8)
    finished = pretrain(pictures, run, recipe=tiny, steps=2, workers=0, quiet=True)
    folder = run / "checkpoints" / "step-000000002"
    for name in ("learner.pt", "optimizer.pth", "state.pkl", "data.ckpt", ".metadata", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb(canary)))
        (run / name).write_bytes(pickle.dumps(Bomb(canary)))
    sys.addaudithook(_listen)  # stays, as all audit hooks do
    _opened.clear()
    trained = load(run)
    state = begun(read_recipe(run / "recipe.json"))
    path, damaged = checkpoint.newest(run / "checkpoints")
    assert path is not None
    assert not damaged
    checkpoint.load(path, *state)
    again = pretrain(pictures, run, recipe=tiny, steps=2, workers=0, quiet=True)
    assert _opened == []
    assert not canary.exists()
    pickle.loads(pickle.dumps(Bomb(canary)))  # the ear hears, and the bomb works
    assert canary.is_dir()
    assert _opened
    for encoder in (trained.encoder, state[0].encoder, again.learner.encoder):
        for name, tensor in finished.learner.encoder.state_dict().items():
            assert torch.equal(tensor, encoder.state_dict()[name]), name


# Room on the disk and in memory


def test_the_size_of_a_checkpoint_is_known_before_there_is_one(tmp_path: Path) -> None:
    for optimizer in (SGD(), AdamW(), Muon()):
        state = begun(recipe(optimizer))
        stepped(state, 0)
        path = checkpoint.save(tmp_path, 1, *state)
        written = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        assert 0 <= written - checkpoint.size_of(recipe(optimizer), 64) < 20_000  # names and shapes


def _size_by_the_first_alone(optimizer: Muon) -> int | None:
    return checkpoint.size_of(recipe(optimizer), 64) if dist.first() else None


def test_one_rank_asks_for_the_size_without_a_word_to_the_others() -> None:
    assert ranks(2, _size_by_the_first_alone, Muon()) == [checkpoint.size_of(recipe(Muon()), 64), None]


def test_a_run_that_its_disk_cannot_hold_does_not_begin(tmp_path: Path) -> None:
    vast = {"model.widths": (65_536, 65_536), "head.widths": "16"}  # TB of kernels: only shapes are made
    with pytest.raises(UserError, match=r"needs \d+ bytes for checkpoints and its disk has \d+ free: ") as refused:
        pretrain(torch.rand(40, 8, 8), tmp_path / "run", recipe="tiny", settings=vast, workers=0, quiet=True)
    assert refused.value.code == IO
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_already_counts_as_room(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = int(1.1 * 3 * checkpoint.size_of(recipe(), 64))
    kept = sum(file.stat().st_size for file in two.rglob("*") if file.is_file())
    usage = shutil.disk_usage(two)
    for free, refused in ((needed - kept, False), (needed - kept - 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        with pytest.raises(UserError) if refused else nullcontext():
            checkpoint.refuse_full(two, recipe(), 64)


def test_a_long_queue_is_read_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, resumed = begun(recipe()), begun(replace(recipe(), seed=1))
    path = checkpoint.save(tmp_path, 1, *state)
    stepped(state, 0)
    path = checkpoint.save(tmp_path, 2, *state)
    sizes: list[int] = []
    opened: list[Path] = []
    pieces = checkpoint._pieces

    def listen(tensor: torch.Tensor, first: int) -> Iterator[tuple[torch.Tensor, Any]]:
        for piece, rows in pieces(tensor, first):
            sizes.append(piece.nbytes)
            yield piece, rows

    def mapped(path: Path, kind: str) -> Any:
        opened.append(path)
        return safe_open(path, kind)

    monkeypatch.setattr(checkpoint, "_PIECE", 200)  # of a queue of 24 rows of 64 bytes
    monkeypatch.setattr(checkpoint, "_pieces", listen)
    monkeypatch.setattr(checkpoint, "safe_open", mapped)
    assert checkpoint.load(path, *resumed) == 2
    assert same(state, resumed)
    widest = max(part[0].nbytes for part in everything(state) if part.dim())
    assert max(sizes) <= max(200, widest)
    assert sum(sizes) == sum(part.nbytes for part in everything(state))
    assert len(opened) > sum(sizes) / (200 + max(sizes))  # mapped anew after at most so much
