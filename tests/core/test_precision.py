"""Autocast surrounds networks and nothing else: whatever context a caller holds open, on any kind of device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lookalike.core import devices
from lookalike.core.devices import DEVICE, PRECISION, full_precision, resolved
from lookalike.core.errors import UserError
from lookalike.learn.dictionary import Entries, InBatch, MemoryBank, Neighbours, Queue
from lookalike.learn.objective import DCL, NCE, InfoNCE, Objective, SupCon, log_sum_exp, top1
from lookalike.learn.optim import Muon, orthogonalised
from lookalike.metrics.agreement import spearman
from lookalike.metrics.fewshot import by_means
from lookalike.metrics.knn import Knn, products
from lookalike.metrics.probe import LinearProbe
from lookalike.metrics.retrieval import ranking
from lookalike.models.encoder import Whitening, embed, evaluating, means, settle, unit
from lookalike.models.winograd import convolve, correlate, scheme
from lookalike.pretext import ops
from lookalike.pretext.image import MOCO_V2, MOCO_V3_SECOND, Masked, TwoViews
from lookalike.pretext.video import TwoClips, TwoFrames
from lookalike.recipes import recipe_named
from lookalike.types import Batch, Canvases

B, D, K = 6, 16, 40
KINDS = ("cpu", "cuda", "mps")


@contextmanager
def held_open(kind: str) -> Iterator[None]:
    """What ``with torch.autocast(kind, torch.bfloat16)`` sets, on machines without that device, too."""
    before = torch.get_autocast_dtype(kind)
    torch.set_autocast_dtype(kind, torch.bfloat16)
    torch.set_autocast_enabled(kind, True)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, False)
        torch.set_autocast_dtype(kind, before)


def rows(count: int, seed: int = 0) -> Tensor:
    return unit(torch.randn(count, D, generator=torch.Generator().manual_seed(seed)))


def canvases(side: int, count: int = B) -> Canvases:
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(side))
    return Canvases(pixels.to(torch.uint8), torch.full((count, 2), side))


def entries(drawn: bool = False) -> Entries:
    alike = torch.eye(B, K, dtype=torch.bool)
    return Entries(rows(B, 1), rows(B * K, 2).view(B, K, D) if drawn else rows(K, 2), alike, alike.roll(1, 1))


def with_gradient(objective: Objective, drawn: bool = False) -> tuple[Tensor, Tensor]:
    query = rows(B).requires_grad_()
    loss = objective(query, entries(drawn))
    with full_precision():  # torch's own backward pass takes the caller's context
        return loss.detach(), torch.autograd.grad(loss, query)[0]


def keys_gradient() -> Tensor:
    keys = rows(K, 2).requires_grad_()
    return torch.autograd.grad(log_sum_exp(rows(B), Entries(rows(B, 1), keys), 0.1, 7).sum(), keys)[0]


def views(pretext: Any, side: int, frames: int = 1) -> list[Tensor]:
    found = pretext(canvases(side, B * frames), torch.arange(B), 0, 0)
    return [part for view in found for part in view.values()]


def nce(step: str) -> Any:
    objective = NCE(0.07).build(100)
    if step == "settle":
        objective.settle(rows(B), entries(drawn=True)._replace(alike=None))
        return objective.kept
    return with_gradient(objective, drawn=True)


def muon() -> Tensor:
    layer = torch.nn.Linear(D, D)
    layer.load_state_dict({"weight": torch.randn(D, D, generator=torch.Generator().manual_seed(5)), "bias": rows(1)[0]})
    optimizer = Muon().build(layer, 256)
    layer.weight.grad, layer.bias.grad = rows(D, 3), rows(1, 4)[0]
    optimizer.step()
    return layer.weight.detach()


def absorbed() -> Tensor:
    bank = MemoryBank().build(D, 12)
    bank.absorb(rows(B), rows(B, 1), torch.tensor([0, 3, 3, 5, 7, 0]))
    return bank.rows.clone()


def whitened() -> Tensor:
    layer = Whitening(D)
    layer.fit(rows(200))
    return torch.stack([layer.map, layer(rows(D))])


def learned(name: str) -> Tensor:
    """The loss, the queue and a gradient of one step of a recipe in fp32."""
    recipe = recipe_named(name, 64, 16)
    recipe = replace(recipe, precision="fp32", batch=16, group=8).fitted(64)
    learner = recipe.build(64).train()
    first, second = recipe.pretext(canvases(recipe.canvas, 16), torch.arange(16), 0, 0)
    batch = Batch(torch.arange(16).repeat(recipe.pairs), first, second)
    outcome = learner(batch)
    with full_precision():
        outcome.loss.backward()
    learner.advance(outcome, batch, 0.5)
    gradients = [p.grad.flatten() for p in learner.parameters() if p.grad is not None]
    return torch.cat([outcome.loss.detach()[None], *gradients, *(b.flatten().double() for b in learner.buffers())])


def encoded() -> list[Tensor]:
    recipe = replace(recipe_named("tiny", 64, 16), precision="bf16", whiten=True)
    encoder, whole = recipe.build(64).encoder, [recipe.pretext.evaluation(canvases(16))]
    return [embed(encoder, whole), embed(encoder, whole, "head"), settle(encoder, whole)]


CASES: dict[str, Callable[[], Any]] = {
    "cropped small": lambda: ops.cropped(
        canvases(32).pixels, ops.axes(torch.tensor([[3.0, 4, 20, 25]] * B), (32, 32), 16)
    ),
    "cropped large": lambda: ops.cropped(
        canvases(130).pixels, ops.axes(torch.tensor([[3.0, 4, 90, 99]] * B), (130, 130), 32)
    ),
    "evaluation": lambda: TwoViews(replace(MOCO_V2, size=32)).evaluation(canvases(130))["pixels"],
    "moco v2 views": lambda: views(TwoViews(replace(MOCO_V2, size=32)), 130),
    "moco v3 views": lambda: views(TwoViews(MOCO_V2, replace(MOCO_V3_SECOND, size=32)), 48),
    "masked": lambda: views(Masked(replace(MOCO_V2, size=32), patch=8), 40),
    "frames": lambda: views(TwoFrames(replace(MOCO_V2, size=16)), 20, 2),
    "clips": lambda: views(TwoClips(replace(MOCO_V2, size=16), frames=2), 20, 4),
    "InfoNCE": lambda: with_gradient(InfoNCE(0.07, chunk=7)),
    "InfoNCE drawn": lambda: with_gradient(InfoNCE(0.07), drawn=True),
    "DCL": lambda: with_gradient(DCL(0.07)),
    "SupCon": lambda: with_gradient(SupCon(0.07)),
    "NCE": lambda: nce("score"),
    "NCE settled": lambda: nce("settle"),
    "log_sum_exp by keys": keys_gradient,
    "top1": lambda: top1(rows(B), entries()),
    "neighbours": lambda: list(Neighbours(64).build(D, 99).look_up(rows(B), rows(B, 1), torch.arange(B)))[:2],
    "in batch": lambda: InBatch(queries=True).build(D, 9).look_up(rows(B), rows(B, 1), torch.arange(B))[1],
    "queue": lambda: Queue(64).build(D, 99).look_up(rows(B), rows(B, 1), torch.arange(B))[1],
    "bank": absorbed,
    "orthogonalised": lambda: orthogonalised(rows(9)),
    "muon": muon,
    "whitening": whitened,
    "embeddings": encoded,
    "knn products": lambda: torch.cat([part.clone() for part in products(rows(B), rows(K, 2))]),
    "knn": lambda: Knn(5).predict(rows(K, 2), torch.arange(K) % 3, rows(B)),
    "probe": lambda: LinearProbe((0.1,)).fit(rows(K, 2), torch.arange(K) % 3).scores(rows(B)),
    "fewshot": lambda: torch.tensor(
        by_means(rows(K, 2), torch.arange(K) % 3, rows(99), torch.arange(99) % 3, (1, 2), 3)[2]
    ),
    "retrieval": lambda: torch.tensor(
        ranking(rows(K, 2), torch.arange(K) % 3, rows(9), torch.arange(9) % 3).retrieved().mean_average_precision
    ),
    "means": lambda: means(rows(B), torch.arange(B) % 2, 2),
    "spearman": lambda: torch.tensor(spearman(rows(1)[0], rows(1, 1)[0])),
    "winograd": lambda: convolve(torch.ones(1, 4, 4, 3), torch.ones(36, 3, 2), scheme(4, torch.float32)),
    "winograd's gradient": lambda: correlate(torch.ones(1, 4, 4, 3), torch.ones(1, 4, 4, 2), scheme(4, torch.float32)),
    **{
        f"a step of {name}": lambda name=name: learned(name)
        for name in ("tiny", "small_simclr", "small_nnclr", "small_moco_v3", "small_instdisc")
    },
}


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_network_is_the_same_whatever_context_its_caller_holds_open(name: str) -> None:
    torch.manual_seed(0)
    plain = flat(CASES[name]())
    torch.manual_seed(0)
    with held_open("cpu"):
        inside = flat(CASES[name]())
    for one, other in zip(plain, inside, strict=True):
        assert other.dtype == one.dtype
        assert torch.equal(one, other)


FAKE: dict[str, Callable[[], Any]] = {
    "cropped": lambda: ops.cropped(
        torch.ones(2, 3, 8, 8, dtype=torch.uint8, device="cuda"), ops.axes(torch.ones(2, 4, device="cuda"), (8, 8), 4)
    ),
    "InfoNCE": lambda: InfoNCE()(here(B), Entries(here(B), here(K))),
    "InfoNCE of bf16 rows": lambda: InfoNCE()(here(B), Entries(here(B), here(K).bfloat16())),
    "DCL": lambda: DCL()(here(B), Entries(here(B), here(K))),
    "SupCon": lambda: SupCon()(here(B), Entries(here(B), here(K), truth(), truth())),
    "NCE": lambda: NCE()(here(B), Entries(here(B), here(K))),
    "top1": lambda: top1(here(B), Entries(here(B), here(K))),
    "orthogonalised": lambda: orthogonalised(here(B)),
    "products": lambda: next(iter(products(here(B), here(K)))),
    "an objective of bf16 queries": lambda: InfoNCE()(here(B).bfloat16(), Entries(here(B).bfloat16(), here(K))),
}


def here(count: int) -> Tensor:
    return torch.empty(count, D, device="cuda")


def truth() -> Tensor:
    return torch.empty(B, K, dtype=torch.bool, device="cuda")


@pytest.mark.parametrize("name", FAKE)
def test_on_a_gpu_too_it_is_fp32(name: str) -> None:
    with FakeTensorMode(), held_open("cuda"):
        assert (here(B) @ here(B).T).dtype == torch.bfloat16  # the context is open
        assert all(part.dtype == torch.float32 for part in flat(FAKE[name]()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_is_as_it_was_after(kind: str) -> None:
    with held_open(kind):
        with full_precision():
            assert not torch.is_autocast_enabled(kind)
        assert torch.is_autocast_enabled(kind)
    assert not torch.is_autocast_enabled(kind)


def test_an_encoder_computes_in_its_precision_while_it_trains_and_in_fp32_when_it_is_evaluated() -> None:
    recipe = replace(recipe_named("tiny", 64, 16), whiten=False)
    first, _ = recipe.pretext(canvases(16), torch.arange(B), 0, 0)
    exact, other = (replace(recipe, precision=precision).build(64).encoder for precision in ("fp32", "bf16"))
    trained = [encoder.train()(**first).detach() for encoder in (exact, other)]
    assert trained[0].dtype == trained[1].dtype == torch.float32
    assert 1e-4 < float((trained[0] - trained[1]).abs().max()) < 0.1  # bf16 has 8 bits
    exact.load_state_dict(other.state_dict())  # the running statistics
    assert torch.equal(exact.eval().features(**first), other.eval().features(**first))
    other.evaluated_in = "bf16"
    assert not torch.equal(exact.features(**first), other.features(**first))


def test_on_a_gpu_evaluation_is_not_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = recipe_named("tiny", 64, 16).build(64).encoder
    monkeypatch.setattr(devices, "device", lambda: torch.device("cuda"))
    before = torch.backends.cudnn.allow_tf32
    assert before  # torch's own choice, for convolutions
    with evaluating(encoder):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 is before


def test_the_environment_says_what_auto_is_and_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "bf16"):
        monkeypatch.setenv(PRECISION, precision)
        assert resolved("auto") == precision
        assert resolved("fp32") == "fp32"
    monkeypatch.setenv(PRECISION, "bf-16")
    with pytest.raises(UserError, match=r"LOOKALIKE_PRECISION is 'bf-16'; did you mean bf16\?"):
        resolved("auto")


def test_a_run_records_its_precision_and_says_where_it_goes_on_in_another(
    tmp_path: Path, say: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*more: object) -> tuple[int, str, str]:
        return say("pretrain", "digits", "--out", tmp_path / "run", "--recipe", "tiny", "--steps", 6, *more)

    def recorded() -> tuple[str, list[Any]]:
        recipe, environment = (
            json.loads((tmp_path / "run" / f"{of}.json").read_text()) for of in ("recipe", "environment")
        )
        return recipe["precision"], environment["earlier"]

    monkeypatch.setenv(PRECISION, "fp32")
    assert command("--save-every", 2)[0] == 0
    assert recorded() == ("fp32", [])
    monkeypatch.setenv(PRECISION, "bf16")
    assert command()[0] == 0
    assert recorded() == ("fp32", [])  # it is finished: nothing goes on
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    monkeypatch.delenv(PRECISION)
    code, out, err = command()
    assert code == 0
    assert "other conditions" not in out + err  # auto is what it began in
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    code, out, err = command("--precision", "bf16")
    assert code == 0
    assert "goes on under other conditions, so its bytes are its own: precision bf16 (fp32 before)" in out + err
    precision, earlier = recorded()
    assert (precision, len(earlier)) == ("bf16", 1)


def test_a_run_of_an_older_version_goes_on_without_a_word_of_what_it_did_not_record(
    tmp_path: Path, say: Callable[..., Any]
) -> None:
    command = ("pretrain", "digits", "--out", tmp_path / "run", "--recipe", "tiny", "--steps", 4, "--save-every", 2)
    assert say(*command)[0] == 0
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    for name, change in (
        (
            "environment",
            lambda held: {k: v for k, v in held.items() if k not in ("accelerator", "processes", "earlier")},
        ),
        ("recipe", lambda held: held | {"precision": "auto"}),
    ):
        path = tmp_path / "run" / f"{name}.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    (tmp_path / "run" / "hashes.json").unlink()
    code, out, err = say(*command)
    assert code == 0
    assert "other conditions" not in out + err
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["precision"] in ("fp32", "bf16")


def test_a_device_that_is_not_here_is_one_line(say: Callable[..., Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(DEVICE, "")  # put back after the test: the flag sets it
    code, _, err = say("pretrain", "digits", "--out", tmp_path / "run", "--recipe", "tiny", "--device", "cuda")
    assert code == 2
    assert err == "lookalike: this machine has no CUDA device that torch can use: give --device cpu\n"


def test_clips_are_computed_in_fp32_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRECISION, "bf16")
    monkeypatch.setenv(DEVICE, "cpu")
    recipe = recipe_named("video_moco_clips", 64, 32)
    assert recipe.computes_in() == "fp32"
    with pytest.raises(UserError, match="--precision fp32"):
        replace(recipe, precision="bf16").build(64)
