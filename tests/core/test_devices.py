"""No recipe holds a tensor on the wrong device: forward and advance on fake CUDA tensors, without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lookalike.core import devices
from lookalike.core.devices import exact, one_thread_beside_a_gpu
from lookalike.learn.dictionary import MemoryBank
from lookalike.pretext.image import Masked
from lookalike.recipes import RECIPES
from lookalike.recipes.recipe import Recipe
from lookalike.train.loop import has_own_attention
from lookalike.types import Batch

EXAMPLES, BATCH = 5000, 8


def shrunk(recipe: Recipe) -> Recipe:
    """The recipe at a batch and a queue that take no time to pretend."""
    return replace(recipe, batch=BATCH, group=4, dictionary=recipe.dictionary.fitted(64))


def on_fake_cuda(module: nn.Module) -> None:
    """Every parameter and buffer becomes one that has a shape, a type and the device, but no numbers."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device="cuda")
                part._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


NAMES = ["moco_v2", "moco_v3", *(name for name in RECIPES if name.startswith("small"))]  # each mechanism, each model


@pytest.mark.parametrize("name", NAMES)
def test_on_an_accelerator_every_tensor_of_a_step_is_there(name: str) -> None:
    recipe = shrunk(RECIPES[name].fitted(EXAMPLES, 32))
    learner = recipe.build(EXAMPLES).train()
    with FakeTensorMode():
        on_fake_cuda(learner)
        learner.labels = torch.zeros(EXAMPLES, dtype=torch.long, device="cuda")
        side = recipe.pretext.first.size
        views = [{"pixels": torch.empty(BATCH, 3, side, side, device="cuda")} for _ in range(2)]
        if isinstance(recipe.pretext, Masked):
            views[0]["keep"] = torch.zeros(BATCH, recipe.pretext.visible(), dtype=torch.long, device="cuda")
        batch = Batch(torch.zeros(BATCH, dtype=torch.long, device="cuda"), views[0], views[1])
        outcome = learner(batch)
        assert outcome.loss.device.type == "cuda"
        assert all(measure.device.type == "cuda" for measure in outcome.measures().values())
        if not isinstance(recipe.dictionary, MemoryBank):  # which asks how many rows differ: fakes have no numbers
            learner.advance(outcome, batch, 0.5)


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_what_makes_kernels_exact_is_set_and_put_back(
    strict: bool, newer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul = torch.backends.cuda.matmul
    monkeypatch.setattr(devices, "device", lambda: torch.device("cuda"))
    if newer:  # after which torch refuses to tell the older name
        matmul.fp32_precision = "tf32"
    try:
        with exact(strict):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled() is not strict
            assert torch.backends.cudnn.deterministic
            assert matmul.fp32_precision != "tf32"
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.deterministic
        assert (matmul.fp32_precision == "tf32") is newer
    finally:
        matmul.fp32_precision = "ieee"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_beside_a_gpu_the_processor_has_one_thread_which_is_put_back(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "device", lambda: torch.device(kind))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread_beside_a_gpu():
            assert torch.get_num_threads() == (1 if kind == "cuda" else 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "own"), [("moco_captions", True), ("moco_v3_vit", True), ("moco_v2", False)])
def test_attention_is_strict_wherever_a_network_of_ours_has_some(name: str, own: bool) -> None:
    assert has_own_attention(RECIPES[name]) is own
