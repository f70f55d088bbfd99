"""Frozen features: what is chosen and fitted is what the definitions say, and class numbers are only names."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from lookalike.data.loader import Loader
from lookalike.data.source import open_source
from lookalike.evaluation import tuning
from lookalike.evaluation.settings import Probe
from lookalike.metrics.agreement import agreement
from lookalike.metrics.fewshot import by_draw, drawn
from lookalike.metrics.knn import largest, products
from lookalike.metrics.probe import LinearProbe, folds
from lookalike.metrics.retrieval import ranking
from lookalike.models.encoder import Encoder
from lookalike.recipes import tiny
from lookalike.types import Canvases


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int, width: int = 8, classes: int = 4, spread: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows around one centre a class, the same centres for every seed, and their labels."""
    centres = F.normalize(torch.randn(classes, width, generator=generator(99)), dim=1)
    labels = torch.arange(count) % classes
    return F.normalize(centres[labels] + spread * torch.randn(count, width, generator=generator(seed)), dim=1), labels


# The largest of many


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 700),
    k=st.integers(1, 40),
    distinct=st.sampled_from([2, 10, 10**6]),
)
def test_the_largest_by_groups_are_the_largest(seed: int, count: int, k: int, distinct: int) -> None:
    scores = torch.randint(distinct, (3, count), generator=generator(seed)).float()
    values, columns = largest(scores, min(k, count))
    assert torch.equal(values.sort(1).values, scores.topk(min(k, count)).values.sort(1).values)
    assert torch.equal(scores.gather(1, columns), values)
    assert all(len(set(row)) == len(row) for row in columns.tolist())


def test_products_come_in_the_order_of_the_queries_and_fill_no_more_room_than_they_need() -> None:
    queries, reference = torch.randn(10, 4, generator=generator()), torch.randn(7, 4, generator=generator(1))
    found = torch.cat([part.clone() for part in products(queries, reference, chunk=4)])
    torch.testing.assert_close(found, queries @ reference.T)
    assert list(products(queries[:0], reference)) == []


# Linear probe


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), decay=st.sampled_from([1.0, 0.1, 0.01]), classes=st.sampled_from([2, 3, 5]))
def test_the_probe_is_at_the_optimum_of_its_loss(seed: int, decay: float, classes: int) -> None:
    rows, labels = blobs(80, classes=classes, spread=1.0, seed=seed)
    rows = 3 * rows + 5
    probe = LinearProbe(iterations=1000).at(decay, rows, labels)
    mean, scale = rows.double().mean(0), rows.double().std(0, correction=0)
    weight = (probe.weight * scale).requires_grad_()  # those of standardised features
    bias = (probe.bias + probe.weight @ mean).requires_grad_()
    logits = ((rows.double() - mean) / scale) @ weight.T + bias
    # Two classes have one logit, w, in scikit-learn: ±w/2 here have half its squared norm, which decays by half.
    strength = decay if classes > 2 else 2 * decay
    (F.cross_entropy(logits, labels) + strength / 2 * weight.square().sum()).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert weight.grad.abs().max() < 1e-3
    assert bias.grad.abs().max() < 1e-3


def test_the_probe_predicts_what_scikit_learn_does() -> None:
    rows, labels = blobs(300, spread=1.0)
    asked, _ = blobs(200, spread=1.0, seed=1)
    probe = LinearProbe().at(0.1, rows, labels)
    scaled = (rows - rows.mean(0)) / rows.std(0, correction=0)
    peer = LogisticRegression(C=1 / (0.1 * 300)).fit(scaled.double().numpy(), labels.numpy())
    expected = peer.predict(((asked - rows.mean(0)) / rows.std(0, correction=0)).double().numpy())
    assert np.array_equal(probe.predict(asked).numpy(), expected)


def test_the_decay_is_the_one_that_predicts_held_out_labels_best() -> None:
    rows, labels = blobs(120, spread=0.8)
    part, right, probe = folds(labels, 0), {}, LinearProbe((1.0, 1e-2, 1e-5))
    for decay in probe.decays:
        found = [probe.at(decay, rows[part != i], labels[part != i]) for i in range(5)]
        hits = [one.predict(rows[part == i]) == labels[part == i] for i, one in enumerate(found)]
        right[decay] = int(torch.cat(hits).sum())
    assert len(set(right.values())) > 1
    assert right[probe.choose(rows, labels)] == max(right.values())


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), names=st.permutations([0, 1, 2, 3]))
def test_other_numbers_for_the_classes_change_nothing_else(seed: int, names: list[int]) -> None:
    rows, labels = blobs(60, spread=0.7, seed=seed)
    asked, truth = blobs(40, spread=0.7, seed=seed + 1)
    other = torch.tensor(names) * 1000 - 5
    probe = LinearProbe((0.1, 1e-3))
    plain, renamed = probe.fit(rows, labels), probe.fit(rows, other[labels])
    assert plain.decay == renamed.decay
    assert torch.equal(other[plain.predict(asked)], renamed.predict(asked))
    assert torch.equal(folds(labels, 0), folds(other[labels], 0))
    assert torch.equal(drawn(labels, 0.3, 0), drawn(other[labels], 0.3, 0))
    renamed_ranks = ranking(rows, other[labels], asked, other[truth])
    assert ranking(rows, labels, asked, truth).retrieved() == renamed_ranks.retrieved()
    few, many = (agreement(rows, some, 2, 1) for some in (labels, other[labels]))
    assert few.nmi.mean == pytest.approx(many.nmi.mean)
    assert few.ari.mean == pytest.approx(many.ari.mean)


def test_a_class_that_only_queries_have_counts_as_wrong_and_moves_no_other_answer() -> None:
    rows, labels = blobs(200)
    asked, truth = blobs(80, seed=1)
    probe = LinearProbe().fit(rows, labels)
    stranger = torch.where(truth == 3, 77, truth)
    assert probe.accuracy(asked, stranger) == pytest.approx(
        float(((probe.predict(asked) == truth) & (truth != 3)).double().mean())
    )
    known, all_known = (ranking(rows, labels, asked, some).retrieved() for some in (stranger, truth))
    assert (known.queries, all_known.queries) == (60, 80)
    without = ranking(rows, labels, asked[truth != 3], truth[truth != 3]).retrieved()
    assert known.recall == without.recall
    assert known.mean_average_precision == pytest.approx(without.mean_average_precision)


def test_a_probe_of_one_class_or_one_row_a_class_answers() -> None:
    rows, _ = blobs(3)
    assert LinearProbe().fit(rows, torch.full((3,), 7)).predict(rows).tolist() == [7, 7, 7]
    assert LinearProbe().fit(rows, torch.tensor([4, 5, 6])).predict(rows).tolist() == [4, 5, 6]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 13), min_size=1, max_size=6), seed=st.integers(0, 50))
def test_every_class_is_spread_evenly_over_the_parts(sizes: list[int], seed: int) -> None:
    labels = torch.cat([torch.full((size,), 10 * i) for i, size in enumerate(sizes)])
    part = folds(labels, seed)
    for i, size in enumerate(sizes):
        counts = torch.bincount(part[labels == 10 * i], minlength=5)
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1


# Shares of the labels


def test_more_labels_are_worth_more_and_draws_differ() -> None:
    rows, labels = blobs(200, spread=0.8)
    table = (rows, labels, *blobs(200, spread=0.8, seed=1))
    found = {share: [by_draw(*table, share, draw) for draw in range(4)] for share in (0.02, 0.5)}
    assert sum(found[0.5]) > sum(found[0.02])
    assert len(set(found[0.02])) > 1
    assert by_draw(*table, 0.02, 3) == found[0.02][3]
    assert by_draw(*table, 1, 0) != by_draw(*table, 1.0, 0)  # one label a class, and all of them


# Clusters


def test_fewer_pictures_apart_than_classes_are_no_error() -> None:
    assert agreement(torch.ones(6, 3), torch.arange(6), 2).classes == 6


# The paper's probe


class Shades:
    """Bright and dark pictures."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        noise = torch.rand(3, 16, 16, generator=generator(row))
        return (noise + row % 2) / 2, 10 * (row % 2)


def digest(encoder: Encoder) -> str:
    found = hashlib.sha256()
    for name, part in encoder.state_dict().items():
        found.update(name.encode() + part.numpy().tobytes())
    return found.hexdigest()


def test_the_papers_probe_learns_and_leaves_every_byte_of_the_encoder() -> None:
    recipe = tiny.fitted(48, 16)
    encoder = recipe.build(48).encoder.train()
    before = digest(encoder)
    steps: list[tuple[int, int]] = []
    loader = Loader(open_source(Shades()), 16, workers=0)
    spec = Probe(epochs=30, lr=3.0)
    probe = tuning.fit_linear(
        spec, encoder, loader, recipe.pretext.crops(), lambda done, total: steps.append((done, total))
    )
    assert digest(encoder) == before
    assert encoder.training
    assert steps[-1] == (30, 30)
    assert probe.classes.tolist() == [0, 10]
    views = (recipe.pretext.evaluation(batch) for batch in canvases(loader))
    with torch.no_grad():
        encoder.eval()
        features = torch.cat([encoder.backbone(**view) for view in views])
    assert probe.accuracy(features, loader.source.labels) > 0.9
    again = tuning.fit_linear(spec, encoder, loader, recipe.pretext.crops())
    assert torch.equal(again.weight, probe.weight)


def canvases(loader: Loader) -> list[Canvases]:
    return [material for _, material in loader.batches([torch.arange(len(loader))])]


def test_the_papers_rate_falls_at_three_and_four_fifths_of_the_epochs() -> None:
    rates = [30 * tuning.schedule(100).share(epoch / 100) for epoch in (0, 59, 60, 79, 80, 99)]
    assert [round(rate, 9) for rate in rates] == [30, 30, 3, 3, 0.3, 0.3]
    assert tuning.schedule(10).share(0.6) == pytest.approx(0.1)
    assert tuning.schedule(2).share(0.99) == 1  # within an epoch it stays
