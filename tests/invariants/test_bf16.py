"""In bf16 each part of a batch rounds anew, so processes and slices are compared by how near they come to the truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lookalike.core import dist
from lookalike.recipes.recipe import Recipe
from lookalike.train.loop import backward
from tests.invariants.test_processes import CASES, EXAMPLES, ONE_OF_EACH, batch_of
from tests.support.ranks import ranks


def gradient(recipe: Recipe, dtype: torch.dtype = torch.float32) -> list[float]:
    """Of the first step, over all ranks."""
    learner = recipe.build(EXAMPLES).to(dtype).train()
    backward(dist.distributed(learner), learner, batch_of(0, dtype, recipe), recipe)
    found: list[float] = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None]).tolist()
    return found


def error(found: list[float], truth: torch.Tensor) -> float:
    return float((torch.tensor(found, dtype=torch.float64) - truth).norm() / truth.norm())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_two_processes_and_slices_come_as_near_to_the_truth_as_one(name: str, smooth: None) -> None:
    """Within twice its error: what is rounded is the same many numbers, in another order."""
    recipe = replace(CASES[name], precision="bf16")
    truth = torch.tensor(gradient(replace(recipe, precision="fp32"), torch.float64), dtype=torch.float64)
    one = error(gradient(recipe), truth)
    assert 1e-4 < one < 0.3  # bf16 has 8 bits; less were another precision, more no gradient
    for found in ranks(2, gradient, recipe):
        assert error(found, truth) < 2 * one
    if name == "small":
        assert error(gradient(replace(recipe, slices=2)), truth) < 2 * one
