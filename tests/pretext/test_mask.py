"""Masked against whole: what is hidden, drawn by counters, never seen, and shown in gray."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lookalike.core.errors import UserError
from lookalike.pretext.image import CIFAR_MEAN, ImageView, Masked, TwoViews
from lookalike.recipes import RECIPES
from lookalike.recipes.recipe import Recipe, meaningless
from lookalike.types import Batch, Canvases

VIEW = ImageView(size=12, mean=CIFAR_MEAN)
MASKED = Masked(VIEW, share=0.6, patch=4)  # 9 patches, of which 4 stay


def canvases(count: int = 6, side: int = 16) -> Canvases:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return Canvases(pixels, torch.full((count, 2), side))


@settings(max_examples=40, deadline=None)
@given(
    share=st.floats(0, 0.99),
    patch=st.sampled_from([1, 2, 3, 4, 6, 12]),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_as_many_patches_stay_in_each_example_as_the_share_says(
    share: float, patch: int, seed: int, epoch: int
) -> None:
    patches = (12 // patch) ** 2
    keep = Masked(VIEW, share=share, patch=patch).keep(torch.arange(5), seed, epoch)
    assert keep.shape == (5, max(1, round((1 - share) * patches)))
    assert bool((keep.diff(dim=1) > 0).all())  # ascending, so none twice
    assert 0 <= int(keep.min()) <= int(keep.max()) < patches


def test_what_stays_is_a_function_of_seed_epoch_and_row_alone() -> None:
    rows = torch.tensor([5, 1, 900_000_000, 7])
    keep = MASKED.keep(rows, 3, 4)
    assert torch.equal(MASKED.keep(rows.flip(0), 3, 4), keep.flip(0))
    assert torch.equal(torch.cat([MASKED.keep(part, 3, 4) for part in rows.split(1)]), keep)
    many = torch.arange(200)
    assert len({tuple(row) for row in MASKED.keep(many, 0, 0).tolist()}) > 60  # of 126
    for other in (MASKED.keep(many, 1, 0), MASKED.keep(many, 0, 1), MASKED.keep(many + 1, 0, 0)):
        assert not torch.equal(other, MASKED.keep(many, 0, 0))


def test_every_patch_stays_equally_often() -> None:
    counts = torch.bincount(MASKED.keep(torch.arange(9000), 0, 0).flatten(), minlength=9)
    assert int(counts.sum()) == 36_000
    assert bool((counts - 4000).abs().max() < 5 * (9000 * 4 / 9 * 5 / 9) ** 0.5)  # five standard deviations


def test_the_views_are_those_without_a_mask_and_the_key_is_whole() -> None:
    rows = torch.arange(6)
    first, second = MASKED(canvases(), rows, 1, 2)
    plain = TwoViews(VIEW)(canvases(), rows, 1, 2)
    assert torch.equal(first["pixels"], plain[0]["pixels"])
    assert torch.equal(second["pixels"], plain[1]["pixels"])
    assert torch.equal(first["keep"], MASKED.keep(rows, 1, 2))
    assert second.keys() == {"pixels"}


def test_one_crop_can_serve_both_sides() -> None:
    first, second = replace(MASKED, same=True)(canvases(), torch.arange(6), 1, 2)
    assert torch.equal(first["pixels"], second["pixels"])
    assert second.keys() == {"pixels"}


def test_evaluations_see_everything() -> None:
    assert MASKED.evaluation(canvases()).keys() == {"pixels"}
    assert torch.equal(MASKED.evaluation(canvases())["pixels"], TwoViews(VIEW).evaluation(canvases())["pixels"])


def test_a_preview_shows_what_is_hidden_in_gray() -> None:
    pair = MASKED(canvases(), torch.arange(6), 0, 0)
    query, key = MASKED.displayable(*pair)
    plain = VIEW.displayable(pair[0])
    for i in range(6):
        for patch in range(9):
            rows, columns = slice(patch // 3 * 4, patch // 3 * 4 + 4), slice(patch % 3 * 4, patch % 3 * 4 + 4)
            seen = patch in pair[0]["keep"][i].tolist()
            expected = plain[i, :, rows, columns] if seen else torch.full((3, 4, 4), 128, dtype=torch.uint8)
            assert torch.equal(query[i, :, rows, columns], expected)
    assert torch.equal(key, VIEW.displayable(pair[1]))


@pytest.mark.parametrize("wrong", [{"patch": 5}, {"share": 1.0}])
def test_a_mask_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"^views of 12 pixels do not divide into patches of [^\n]*$"):
        replace(MASKED, **wrong)(canvases(), torch.arange(6), 0, 0)  # type: ignore[arg-type]


# In a recipe


def small(name: str, **more: object) -> Recipe:
    recipe = RECIPES[name].fitted(50_000, 32)
    model = replace(recipe.model, width=16, depth=1, heads=2)
    return replace(recipe, model=model, batch=8, group=4, **more)  # type: ignore[arg-type]


def batch(recipe: Recipe) -> Batch:
    rows = torch.arange(8)
    return Batch(rows, *recipe.pretext(canvases(8, 32), rows, 0, 0))


def repainted(given: Batch, hidden: bool) -> Batch:
    """The query's pixels changed where they are hidden, or where they are seen."""
    pixels: Tensor = given.first["pixels"].clone()
    across = pixels.shape[-1] // 4
    for example, keep in enumerate(given.first["keep"].tolist()):
        for patch in range(across**2):
            if (patch in keep) != hidden:
                top, left = patch // across * 4, patch % across * 4
                pixels[example, :, top : top + 4, left : left + 4] += 1
    return given._replace(first={**given.first, "pixels": pixels})


def test_a_query_does_not_depend_on_what_is_hidden() -> None:
    recipe = small("small_masked_moco")
    learner, given = recipe.build(1000), batch(recipe)
    query, key = learner(given).pairs[0]
    for hidden in (True, False):
        other = learner(repainted(given, hidden))
        assert torch.equal(other.pairs[0][0], query) == hidden
        assert torch.equal(other.pairs[0][1], key)


def test_only_what_is_seen_is_computed() -> None:
    recipe = small("small_masked_moco")
    learner, sizes = recipe.build(1000), []
    learner.encoder.backbone.blocks[0].register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    learner.keys.twin.backbone.blocks[0].register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    learner(batch(recipe))
    assert sorted(sizes) == [14, 36]  # the query of 24 px, once, whoever paints it too; the key


NONSENSE = {
    "only a ViT leaves patches out": lambda r: replace(r, model=RECIPES["small"].fitted(50_000, 32).model),
    "model.patch must be pretext.patch": lambda r: replace(r, model=replace(r.model, patch=6)),
    "nothing is: the pretext must be Masked": lambda r: replace(r, pretext=TwoViews(VIEW)),
    "a larger share": lambda r: replace(r, pretext=replace(r.pretext, share=0.0)),
    "without keys a decoder teaches alone": lambda r: replace(r, reconstruction=None),
    "the head is MLP": lambda r: replace(r, head=replace(r.head, widths=(8,))),
}


@pytest.mark.parametrize("words", NONSENSE)
def test_what_makes_no_sense_with_a_mask_is_refused_in_words(words: str) -> None:
    found = meaningless(NONSENSE[words](small("small_mae")))
    assert found is not None
    assert words in found
