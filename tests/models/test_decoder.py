"""Reconstruction is the formula of masked autoencoders written plainly; what it teaches reaches where it should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.errors import UserError
from lookalike.models.decoder import Decoder, PatchDecoder, normalised, others
from lookalike.models.vit import ViT, positions
from lookalike.recipes.recipe import Recipe
from tests.pretext.test_mask import batch, repainted, small

SPEC = Decoder(width=8, depth=2, heads=2)


def decoder() -> PatchDecoder:
    """In fp64, with no weight at zero, so that nothing is left out unseen."""
    torch.manual_seed(0)
    made = SPEC.build(12, 2).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def plainly(made: PatchDecoder, tokens: Tensor, pixels: Tensor, keep: Tensor) -> Tensor:
    """Section 3 of arXiv 2111.06377, patch by patch: unshuffled tokens, and a loss on the hidden ones alone."""
    rows, columns = pixels.shape[2] // 2, pixels.shape[3] // 2
    where, errors = positions(rows, columns, 8), []
    extra = tokens.shape[1] - keep.shape[1]
    for example, seen in enumerate(keep.tolist()):
        entered = made.enter(tokens[example])
        line = [entered[i] for i in range(extra)]
        for patch in range(rows * columns):
            token = entered[extra + seen.index(patch)] if patch in seen else made.hidden
            line.append(token + where[patch])
        out = made.paint(made.norm(made.blocks(torch.stack(line)[None])))[0, extra:]
        for patch in range(rows * columns):
            if patch not in seen:
                top, left = patch // columns * 2, patch % columns * 2
                true = pixels[example, :, top : top + 2, left : left + 2].flatten()
                true = (true - true.mean()) / (true.var() + 1e-6).sqrt()
                errors += list((out[patch] - true) ** 2)
    return torch.stack(errors).mean()


@pytest.mark.parametrize("extra", [0, 1], ids=["mean", "class token"])
def test_the_error_is_its_formula_value_and_gradient(extra: int) -> None:
    made = decoder()
    pixels = torch.randn(3, 3, 4, 6, dtype=torch.float64)
    keep = torch.tensor([[0, 5], [1, 2], [3, 4]])
    tokens = torch.randn(3, 2 + extra, 12, dtype=torch.float64, requires_grad=True)
    found, expected = made(tokens, pixels, keep), plainly(made, tokens, pixels, keep)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = (tokens, *made.parameters())
    for mine, theirs in zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted)):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_rest_is_what_is_not_kept() -> None:
    keep = torch.tensor([[2, 0], [3, 1]])
    assert others(keep, 5).tolist() == [[1, 3, 4], [0, 2, 4]]


def test_targets_have_mean_zero_and_variance_one_and_flat_patches_are_zero() -> None:
    patches = torch.rand(2, 3, 48, dtype=torch.float64) * 9 - 2
    patches[0, 0] = 0.7
    found = normalised(patches)
    assert float(found[0, 0].abs().max()) < 1e-9
    torch.testing.assert_close(found[1].mean(1), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1].var(1), torch.ones(3).double(), rtol=1e-5, atol=0)
    assert normalised(patches.bfloat16()).dtype == torch.float32


def test_only_hidden_pixels_are_targets() -> None:
    recipe = small("small_mae")
    learner, given = recipe.build(1000), batch(recipe)
    nn.init.normal_(learner.reconstruction.paint.weight)
    tokens = learner.encoder.tokens(**given.first)
    error = learner.reconstruction(tokens, **given.first)
    shown = repainted(given, hidden=False)  # the same tokens: only targets could change
    assert torch.equal(learner.reconstruction(tokens, **shown.first), error)


def test_a_run_begins_at_its_chance_loss_and_learns_to_paint() -> None:
    recipe = small("small_mae")
    learner, given = recipe.build(1000), batch(recipe)
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(30):
        outcome = learner(given)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        losses.append(outcome.loss.item())
    assert losses[0] == pytest.approx(recipe.chance_loss(1000), abs=0.05)
    assert losses[-1] < 0.93 * losses[0]


def without_gradient(recipe: Recipe) -> set[str]:
    learner = recipe.build(1000).train()
    nn.init.normal_(learner.reconstruction.paint.weight, std=0.1) if learner.reconstruction else None
    learner(batch(recipe)).loss.backward()
    return {
        name.split(".")[0]
        for name, p in learner.named_parameters()
        if p.grad is None or not bool(p.grad.abs().sum() > 0)
    }


def test_gradient_reaches_everything_but_the_twin() -> None:
    learned = ViT(width=16, depth=1, heads=2, patch=4, pool="mean")
    assert without_gradient(replace(small("small_mae"), model=learned)) == set()
    assert without_gradient(replace(small("small_masked_moco"), model=learned, reconstruction=SPEC)) == {"keys"}
    assert without_gradient(replace(small("small_masked_moco"), model=learned, reconstruction=None)) == {"keys"}


def test_the_loss_is_contrast_and_weighted_error_of_one_pass() -> None:
    recipe = small("small_masked_moco", reconstruction=replace(SPEC, weight=0.25))
    learner, given = recipe.build(1000), batch(recipe)
    nn.init.normal_(learner.reconstruction.paint.weight)
    outcome = learner(given)
    ((query, _),) = outcome.pairs
    contrast = learner.objective(query, outcome.entries[0])
    with learner.encoder.computing():
        pixels = learner.reconstruction(learner.encoder.tokens(**given.first), **given.first)
    torch.testing.assert_close(outcome.loss, contrast + 0.25 * pixels)
    assert outcome.measures().keys() == {"top1", "pixels"}
    assert torch.equal(outcome.measures()["pixels"], pixels)
    plain = replace(recipe, reconstruction=None).build(1000)
    torch.testing.assert_close(F.cosine_similarity(plain(given).pairs[0][0], query), torch.ones(8))


def test_a_masked_autoencoder_has_neither_a_twin_nor_keys() -> None:
    recipe = small("small_mae")
    learner = recipe.build(1000)
    outcome = learner(batch(recipe))
    assert outcome.pairs == []
    assert outcome.measures().keys() == {"pixels"}
    assert {name.split(".")[0] for name in learner.state_dict()} == {"encoder", "reconstruction"}
    assert recipe.contrast() == "no contrast"


@pytest.mark.parametrize("wrong", [{"width": 10}, {"heads": 3}])
def test_a_decoder_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"^reconstruction\.width [^\n]*must be [^\n]*$"):
        replace(SPEC, **wrong).build(12, 2)
