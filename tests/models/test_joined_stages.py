"""Evaluations may see more stages of a small network than its head does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lookalike.core.errors import UserError
from lookalike.models.encoder import Encoder, evaluating
from lookalike.models.image import SmallResNet, over_cells
from lookalike.recipes import RECIPES
from lookalike.recipes.recipe import Recipe

WIDTHS, BLOCKS = (4, 6, 8), (1, 2, 1)


def recipe(joined: int) -> Recipe:
    return replace(RECIPES["tiny"].fitted(64, 16), model=SmallResNet(WIDTHS, BLOCKS, joined=joined))


def encoder(joined: int) -> Encoder:
    """Of weights that the number of joined stages does not change."""
    return recipe(joined).build(64).encoder


def pixels() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("joined", [1, 2, 3, 4])
def test_the_last_stages_are_joined_and_the_head_sees_the_last(joined: int) -> None:
    model, plain = encoder(joined), encoder(1)
    with evaluating(model), evaluating(plain):
        features = model.unwhitened(pixels=pixels())
        assert features.shape == (5, sum(WIDTHS[-joined:]))
        assert torch.equal(features[:, -WIDTHS[-1] :], model.raw(pixels=pixels()))
        assert torch.equal(model(pixels=pixels()), plain(pixels=pixels()))
        assert model.features(pixels=pixels()).shape == features.shape


def test_an_earlier_stage_is_the_mean_over_positions_of_its_last_block() -> None:
    model = encoder(3)
    seen: list[Tensor] = []
    model.backbone.blocks[2].register_forward_hook(lambda _, __, out: seen.append(out.mean((2, 3))))  # type: ignore[union-attr, index]
    with evaluating(model):
        features = model.unwhitened(pixels=pixels())
    torch.testing.assert_close(features[:, 4:10], seen[0])


@pytest.mark.parametrize(
    ("joined", "grid", "sides"), [(3, 4, (4, 2, 1)), (2, 2, (2, 1)), (3, 2, (2, 1, 1)), (1, 3, (3,))]
)
def test_earlier_stages_are_seen_cell_by_cell(joined: int, grid: int, sides: tuple[int, ...]) -> None:
    """The mean over all cells is the mean over positions, where cells are alike; training sees none of it."""
    model = replace(recipe(joined), model=SmallResNet(WIDTHS, BLOCKS, joined=joined, grid=grid)).build(64).encoder
    plain = encoder(joined)
    with evaluating(model), evaluating(plain):
        features, means = model.unwhitened(pixels=pixels()), plain.unwhitened(pixels=pixels())
        assert torch.equal(model(pixels=pixels()), plain(pixels=pixels()))
    widths = WIDTHS[-joined:]
    parts = features.split([width * side**2 for width, side in zip(widths, sides)], 1)
    for part, mean, width in zip(parts, means.split(list(widths), 1), widths):
        torch.testing.assert_close(part.view(5, width, -1).mean(2), mean)


@pytest.mark.parametrize("trained", [1, 2, 3])
def test_the_head_may_see_several_stages(trained: int) -> None:
    joined = replace(recipe(3), model=SmallResNet(WIDTHS, BLOCKS, joined=3, trained=trained)).build(64).encoder
    with evaluating(joined):
        seen, means = joined.raw(pixels=pixels()), joined.unwhitened(pixels=pixels())
        assert joined(pixels=pixels()).shape == (5, 128)
    assert torch.equal(seen, means[:, -sum(WIDTHS[-trained:]) :])


def test_a_cell_is_the_mean_of_its_part_of_the_picture() -> None:
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    cells = over_cells(x, 2).view(2, 3, 2, 2)
    assert torch.equal(cells[1, 2, 1, 0], x[1, 2, 2:, :3].mean())
    assert torch.equal(over_cells(x, 1), x.mean((2, 3)))


def test_the_last_stage_is_always_seen() -> None:
    with pytest.raises(UserError, match="at least 1"):
        encoder(0)
