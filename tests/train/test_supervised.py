"""Training with labels: the loss is cross entropy, no queried label is seen, and tuning a network improves on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from lookalike.core.errors import UserError
from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.data.source import open_source, reference_and_query
from lookalike.evaluation.settings import Finetune
from lookalike.evaluation.tuning import tune
from lookalike.learn.labelled import Classes, CrossEntropy
from lookalike.learn.objective import InfoNCE
from lookalike.models.encoder import MLP
from lookalike.pretext.image import OneView
from lookalike.recipes import recipe_named, tiny
from lookalike.recipes.serialize import from_plain, to_plain
from lookalike.train.loop import batches
from lookalike.train.pretrain import Request, carry_out, open_data, recipe_for
from lookalike.train.trained import load


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 12), scale=st.sampled_from([0.0, 1.0, 100.0]))
def test_the_loss_is_cross_entropy_and_so_is_its_gradient(seed: int, classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(9, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (9,), generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    dictionary = Classes(classes).build(classes, 100)
    found = CrossEntropy()(ours, dictionary.look_up(ours, ours.detach(), labels))
    expected = F.cross_entropy(theirs, labels)
    torch.testing.assert_close(found, expected)
    if scale == 0.0:
        assert float(found.detach()) == pytest.approx(CrossEntropy().chance_loss(Classes(classes).negatives(9, 100)))
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", ["small", "moco_v2", "moco_cifar", "simclr", "moco_v3", "instdisc"])
def test_any_recipe_has_a_supervised_twin_with_the_same_backbone(name: str) -> None:
    recipe = recipe_named(name, 50_000, 32)
    twin = recipe.with_labels(7)
    assert (twin.model, twin.optimizer, twin.batch, twin.length) == (
        recipe.model,
        recipe.optimizer,
        recipe.batch,
        recipe.length,
    )
    assert from_plain(to_plain(twin)) == twin
    with torch.device("meta"):
        assert twin.build(100).encoder.head[-1].out_features == 7


def test_a_half_classifier_is_refused() -> None:
    twin = tiny.with_labels(10)
    halves = ({"objective": InfoNCE()}, {"head": MLP((9,))}, {"predictor": MLP((10,))})
    for wrong in (replace(twin, **half) for half in halves):
        with pytest.raises(UserError, match="classifier"):
            wrong.build(100)


def test_labels_that_evaluations_ask_are_never_trained_on(tmp_path: Path) -> None:
    asked = Request("digits", tmp_path, recipe="tiny", supervised=True)
    source, (reference, query) = open_data(asked), reference_and_query("digits")
    assert source.paths == reference.paths
    assert not set(source.paths) & set(query.paths)
    assert recipe_for(asked, source).dictionary == Classes(10)
    assert len(open_data(replace(asked, supervised=False))) == len(open_source("digits"))


def test_tuning_the_whole_network_improves_on_frozen_features(tmp_path: Path) -> None:
    settings = {"recipe": "digits", "batch": 64, "settings": {"checkups": 0}}
    carry_out(Request("digits", tmp_path / "run", steps=60, workers=0, quiet=True, **settings))  # type: ignore[arg-type]
    trained = load(tmp_path / "run")
    loaders = [Loader(part, trained.recipe.canvas, workers=0) for part in reference_and_query("digits")]
    before = {name: part.clone() for name, part in trained.encoder.state_dict().items()}
    spec = Finetune(shares=(0.1,), rates=(1e-3,), steps=100, draws=2)
    found = tune(spec, trained, *loaders, tmp_path / "fits")[0.1]
    assert found.tuned.mean > found.frozen.mean > 0.8
    assert found.labels.labels == pytest.approx(len(loaders[0]) / 10, abs=5)
    assert all(torch.equal(part, before[name]) for name, part in trained.encoder.state_dict().items())
    again = tune(spec, trained, *loaders, tmp_path / "fits")[0.1]  # nothing is left to do
    assert (again.tuned.mean, again.frozen.mean) == (found.tuned.mean, found.frozen.mean)


@pytest.mark.parametrize("budget", [1 << 30, 0])
def test_a_picture_that_stands_in_for_a_bad_one_brings_its_own_label(tmp_path: Path, budget: int) -> None:
    for i in range(24):  # in the order of rows: bright ones, and from the twelfth on dark ones
        path = tmp_path / ("bright", "dark")[i // 12] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (200 - i, 0, 0) if i < 12 else (40 - i, 0, 0)).save(path)
    for i in (3, 10, 11, 23):  # a dark one stands in for the last bright ones, a bright one for the very last
        (tmp_path / ("bright", "dark")[i // 12] / f"{i:02}.png").write_bytes(b"")
    source = open_source(str(tmp_path))
    recipe = replace(tiny.fitted(24), batch=8).with_labels(2)
    recipe = replace(recipe, pretext=OneView(recipe.pretext.crops()))  # whose colours are those of the pictures
    loader = Loader(source, recipe.canvas, budget, workers=0, max_bad=0.5)
    order = Order(24, 8, recipe.seed)
    for batch in batches(loader, recipe, order, 0, 6):
        red = recipe.pretext.first.displayable(batch.first)[:, :2].float().amax((1, 2, 3))
        assert torch.equal(source.labels[batch.index], (red < 100).long())
    plain = torch.cat([batch.index for batch in batches(loader, replace(tiny.fitted(24), batch=8), order, 0, 3)])
    assert sorted(plain.tolist()) == list(range(24))  # without labels every row is itself
