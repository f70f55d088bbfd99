"""What features are measured by: kNN, few labels, embeddings, whitening."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.formats.files import listed
from lookalike.data.loader import Loader
from lookalike.data.source import open_source
from lookalike.learn.learner import Learner
from lookalike.metrics.fewshot import by_means, interval
from lookalike.metrics.knn import Knn
from lookalike.models.encoder import MLP, Encoder, Whitening, embed, evaluating, settle
from lookalike.models.image import SmallResNet
from lookalike.recipes import tiny
from lookalike.recipes.recipe import Recipe
from lookalike.train.embeddings import embed_data, write_embeddings
from lookalike.train.trained import Trained, labelled
from lookalike.types import View


def unit(generator: torch.Generator, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=generator), dim=1)


# kNN


def votes(k: int, temperature: float, reference: Tensor, labels: Tensor, query: Tensor) -> dict[int, float]:
    """What each label gets from the k nearest, one by one, in double precision."""
    cosine = (reference @ query).double().numpy()
    nearest = np.argsort(-cosine, kind="stable")[:k]
    found: dict[int, float] = {}
    for row in nearest:
        label = int(labels[row])
        found[label] = found.get(label, 0.0) + math.exp((cosine[row] - cosine[nearest[0]]) / temperature)
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 60),
    k=st.integers(1, 80),
    temperature=st.sampled_from([1e-4, 0.02, 0.1, 1.0]),
    names=st.lists(st.integers(-3, 10**12), min_size=1, max_size=5, unique=True),
    chunk=st.sampled_from([1, 3, 512]),
)
def test_knn_is_the_vote_that_the_definition_counts(
    seed: int, rows: int, k: int, temperature: float, names: list[int], chunk: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference, queries = unit(generator, rows, 4), unit(generator, 7, 4)
    labels = torch.tensor(names)[torch.randint(len(names), (rows,), generator=generator)]
    guesses = Knn(k, temperature).predict(reference, labels, queries, chunk)
    for guess, query in zip(guesses.tolist(), queries, strict=True):
        counted = votes(k, temperature, reference, labels, query)
        # Cosines are rounded to 6e-8 and differ by the order of sums; at temperature 1e-4 that is 1e-3 of a vote.
        assert counted.get(guess, 0.0) >= max(counted.values()) * (1 - 1e-2)


def test_of_equal_votes_the_smallest_label_wins_whatever_the_order() -> None:
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    query = F.normalize(east + north)
    for order in ([7, 3], [3, 7]):
        labels = torch.tensor(order)
        assert Knn(2, 0.1).predict(torch.cat([east, north]), labels, query).item() == 3
    copies = torch.tensor([9, 5, 9, 5])
    assert Knn(4, 0.1).predict(east.repeat(4, 1), copies, query).item() == 5
    assert Knn(200, 0.1).predict(east.repeat(5, 1), torch.tensor([9, 5, 9, 5, 9]), query).item() == 9


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.permutations([0, 1, 2, 3]))
def test_other_numbers_for_the_classes_give_the_same_classes(seed: int, shift: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference, queries = unit(generator, 40, 6), unit(generator, 20, 6)
    labels, other = torch.randint(4, (40,), generator=generator), torch.tensor(shift) * 1000 - 5
    plain = Knn(9, 0.1).predict(reference, labels, queries)
    assert torch.equal(Knn(9, 0.1).predict(reference, other[labels], queries), other[plain])


def test_a_class_that_is_not_in_the_reference_is_never_guessed_and_counts_as_wrong() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, queries = unit(generator, 40, 6), unit(generator, 30, 6)
    labels = torch.tensor([0, 2, 5, 5]).repeat(10)
    truth = torch.tensor([0, 1, 3]).repeat(10)
    guesses = Knn(5).predict(reference, labels, queries)
    assert set(guesses.tolist()) <= {0, 2, 5}
    assert Knn(5).accuracy(reference, labels, queries, truth) == ((guesses == truth) & (truth == 0)).sum().item() / 30


def test_a_low_temperature_is_the_nearest_neighbour() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, queries = unit(generator, 200, 8), unit(generator, 100, 8)
    labels = torch.randint(10, (200,), generator=generator)
    nearest = labels[(queries @ reference.T).argmax(1)]
    assert torch.equal(Knn(50, 1e-6).predict(reference, labels, queries), nearest)


# Few labels


def test_fewshot_draws_exactly_n_of_each_class_and_the_same_whatever_the_features() -> None:
    # One-hot features show which examples were drawn: each query looks for one example, and finds it if it was drawn.
    count, classes, n = 60, 4, 3
    labels = torch.arange(count) % classes
    drawn = []
    for features in (torch.eye(count), torch.eye(count).flip(1)):
        queries = [(features[i : i + 1], labels[i : i + 1]) for i in range(count)]
        hits = [by_means(features, labels, *query, (n,), draws=1, seed=3)[n].mean for query in queries]
        drawn.append([i for i in range(count) if hits[i] == 1.0 and labels[i] != 0])  # class 0 is what a miss guesses
    assert drawn[0] == drawn[1]
    assert [sum(int(labels[i]) == c for i in drawn[0]) for c in range(1, classes)] == [n] * (classes - 1)


def test_fewshot_draws_anew_each_time_and_uses_all_of_a_small_class() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, queries = unit(generator, 200, 4), unit(generator, 100, 4)
    labels, truth = torch.arange(200) % 5, torch.randint(5, (100,), generator=generator)
    table = (reference, labels, queries, truth)
    one = by_means(*table, (1, 40), draws=8)
    assert one[1].half > 0
    assert one[40].half == 0  # all 40 of each class: nothing is left to draw
    assert by_means(*table, (1, 40), draws=8) == one
    assert by_means(*table, (1,), draws=8, seed=1)[1] != one[1]
    means = torch.stack([F.normalize(reference[labels == c].mean(0), dim=0) for c in range(5)])
    assert one[40].mean == pytest.approx(((queries @ means.T).argmax(1) == truth).double().mean().item())


def test_the_interval_is_students() -> None:
    # Quantiles of a table; the series is good to 1 % from three degrees of freedom on.
    for count, quantile in ((4, 3.182), (10, 2.262), (20, 2.093), (100, 1.984)):
        values = [float(i % 2) for i in range(count)]
        mean, half = interval(values)
        assert mean == 0.5
        assert half == pytest.approx(quantile * np.std(values, ddof=1) / math.sqrt(count), rel=0.01)
    assert math.isnan(interval([0.5]).half)


# Embeddings


def encoder(whiten: bool = True) -> Encoder:
    torch.manual_seed(0)
    backbone, features = SmallResNet((8, 16), (1, 1), 2, 2).build(4)
    return Encoder(backbone, MLP((16, 8)).build(features), Whitening(features) if whiten else None)


def views(count: int = 3) -> list[View]:
    generator = torch.Generator().manual_seed(0)
    return [{"pixels": torch.rand(20, 3, 8, 8, generator=generator)} for _ in range(count)]


def state(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def test_evaluating_gives_every_module_its_own_mode_back_even_after_an_error() -> None:
    model = encoder()
    for i, module in enumerate(model.modules()):
        module.training = i % 3 != 0
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
    assert [module.training for module in model.modules()] == before
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("layer", ["backbone", "head"])
def test_embedding_changes_nothing_and_gives_unit_rows_in_order(layer: str) -> None:
    model = encoder().train()
    before = state(model)
    rows = embed(model, views(), layer)  # type: ignore[arg-type]
    assert state(model) == before
    assert all(module.training for module in model.modules())
    assert rows.shape == (60, 16 if layer == "backbone" else 8)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(60), rtol=0, atol=1e-6)
    assert torch.equal(rows, embed(model, views(), layer))  # type: ignore[arg-type]
    one_by_one = [{"pixels": pixels[None]} for view in views() for pixels in view["pixels"]]
    torch.testing.assert_close(rows, embed(model, one_by_one, layer), rtol=0, atol=1e-5)  # type: ignore[arg-type]
    assert not rows.is_inference()  # so that a probe can be trained on it


def test_the_monitor_of_a_training_model_sees_what_a_later_evaluation_sees() -> None:
    model = encoder().train()
    during = settle(model, views())
    torch.testing.assert_close(embed(model.eval(), views()), during, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def trained() -> tuple[Recipe, Learner]:
    recipe = replace(tiny.fitted(1797, 8), model=SmallResNet((8, 16), (1, 1), 2, 2), head=MLP((16, 8)))
    return recipe, recipe.build(1797)


def test_a_folder_with_splits_is_listed_once_and_embedded_split_by_split(
    trained: tuple[Recipe, Learner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, split in enumerate(["test", "train", "val"] * 2):
        (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (40 * i, 0, 0)).save(tmp_path / split / "a" / f"{i}.png")
    listings: list[Path] = []
    monkeypatch.setattr(
        "lookalike.data.formats.disk.listed", lambda root, ends: listings.append(root) or listed(root, ends)
    )
    table = embed_data(Trained(trained[0], trained[1].encoder, 0), tmp_path, workers=0)
    assert listings == [tmp_path]
    assert list(zip(table.split, table.path)) == [
        *(("train", "train/a/1.png"), ("train", "train/a/4.png")),
        *(("validation", "val/a/2.png"), ("validation", "val/a/5.png")),
        *(("test", "test/a/0.png"), ("test", "test/a/3.png")),
    ]


@pytest.mark.parametrize("layer", ["backbone", "head"])
def test_a_table_of_embeddings(trained: tuple[Recipe, Learner], tmp_path: Path, layer: str) -> None:
    recipe, learner = trained
    model = Trained(recipe, learner.encoder, 0)
    before = state(learner)
    table = embed_data(model, "digits", layer, workers=0)  # type: ignore[arg-type]
    assert state(learner) == before
    write_embeddings(table, tmp_path / "a.parquet")
    write_embeddings(embed_data(model, "digits", layer, workers=0), tmp_path / "b.parquet")  # type: ignore[arg-type]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    found = pq.read_table(tmp_path / "a.parquet")
    width = 16 if layer == "backbone" else 8
    assert found.schema.equals(
        pa.schema(
            {name: pa.string() for name in ("path", "split")}
            | {"label": pa.int64(), "class": pa.string(), "embedding": pa.list_(pa.float32(), width)}
        )
    )
    source = open_source("digits")
    assert found["path"].to_pylist() == source.paths
    assert found["label"].to_pylist() == source.labels.tolist()
    assert set(found["split"].to_pylist()) == {"all"}
    vectors = np.stack(found["embedding"].to_pylist())
    assert vectors.shape == (1797, width)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    again = model.features(Loader(source, recipe.canvas, workers=0), torch.tensor([5, 1000, 3]), layer)  # type: ignore[arg-type]
    np.testing.assert_allclose(
        vectors[[5, 1000, 3]], again.numpy(), atol=1e-5
    )  # batches of other sizes round otherwise


class Half:
    """A dataset of which every other item has a label."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 8, 8), self.labels[row]


def test_only_examples_with_a_label_are_evaluated() -> None:
    source = open_source(Half([-1, 4, -1, 7, 4]))
    assert labelled(source, "it").labels.tolist() == [4, 7, 4]
    assert labelled(open_source(Half([1, 0])), "it").labels.tolist() == [1, 0]
    with pytest.raises(UserError, match="it has no labels") as refused:
        labelled(open_source(Half([-1, -1])), "it")
    assert refused.value.code == BAD_DATA


# Whitening


def correlated(count: int = 4000) -> Tensor:
    """Features whose directions differ in scale by a factor of ten."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q * torch.logspace(0, 1, 6)
    return torch.randn(count, 6, generator=generator) @ mix.T + 5


@pytest.mark.parametrize("count", [40, 4000])
def test_whitening_divides_each_variance_by_itself_and_a_ridge_that_grows_where_examples_are_few(count: int) -> None:
    whitening = Whitening(6)
    features = correlated(count)
    assert torch.equal(whitening(features), features)  # until it is fitted
    whitening.fit(features)
    found = whitening(features).double()
    before = torch.cov(features.double().T, correction=0)
    ridge = (0.02 + 2 * 6 / count) * before.diagonal().mean() * torch.eye(6).double()
    torch.testing.assert_close(found.mean(0), torch.zeros(6).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        torch.cov(found.T, correction=0), before @ torch.linalg.inv(before + ridge), rtol=0, atol=1e-5
    )
    assert torch.equal(whitening.map, whitening.map.T)  # nearest to the features as they were


def test_whitening_that_keeps_few_directions_keeps_those_of_most_variance_evenly_and_whatever_their_signs() -> None:
    """Products of rows are those of the whole map along these directions; no column has more variance than another."""
    mix = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(1))).Q
    features = torch.randn(4000, 40, generator=torch.Generator().manual_seed(2)) * torch.logspace(1, -2, 40) @ mix + 3
    whole, few = Whitening(40), Whitening(40, kept=12)
    assert few(features).shape == (4000, 12)
    whole.fit(features)
    few.fit(features)
    found, along = few(features), torch.linalg.eigh(torch.cov(features.T)).eigenvectors[:, -12:]
    expected = whole(features[:50]) @ along
    torch.testing.assert_close(found[:50] @ found[:50].T, expected @ expected.T, rtol=1e-3, atol=1e-3)
    variances = found.var(0)
    assert variances.max() < 1.2 * variances.min()
    other = Whitening(40, kept=12)
    other.fit(features.flip(0))  # rounds otherwise, by which an eigenvector may have the other sign
    torch.testing.assert_close(other.map, few.map, rtol=1e-4, atol=1e-5)
    every = Whitening(40, kept=64)
    every.fit(features)
    assert torch.equal(every.map, whole.map)


@pytest.mark.parametrize("count", [50, 100, 200, 400, 1000])
def test_whitening_of_many_or_few_digits_finds_neighbours_as_well_as_the_features_themselves(count: int) -> None:
    """With a ridge of 1e-4 of the largest variance, 50 of 64 dimensions gave 19 % where the pixels give 83."""
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    pixels, labels = torch.tensor(digits.data).float()[order], torch.tensor(digits.target)[order]
    whitening = Whitening(64)
    whitening.fit(pixels[:count])

    def accuracy(features: Tensor) -> float:
        rows = F.normalize(features, dim=1)
        return Knn(k=5).accuracy(rows[:count], labels[:count], rows[1000:], labels[1000:])

    assert accuracy(whitening(pixels)) >= accuracy(pixels) - 0.01


def test_whitening_is_the_same_in_chunks_and_for_features_in_another_order() -> None:
    features = correlated()
    one, other = Whitening(6), Whitening(6)
    one.fit(features)
    other.fit(features.flip(0))
    torch.testing.assert_close(one(features).square().sum(1), other(features).square().sum(1), rtol=1e-3, atol=1e-3)
    chunks = torch.cat([one(part) for part in features.split(77)])
    torch.testing.assert_close(chunks, one(features), rtol=1e-5, atol=1e-5)


def test_whitening_of_unit_rows_does_not_see_their_norm() -> None:
    features, plain, unit = correlated(), Whitening(6), Whitening(6, unit=True)
    scaled = features * torch.linspace(0.5, 20, len(features))[:, None]
    unit.fit(scaled)
    plain.fit(F.normalize(features, dim=1))
    torch.testing.assert_close(unit(features), unit(scaled), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unit(features), plain(F.normalize(features, dim=1)), rtol=1e-4, atol=1e-4)


def test_whitening_is_not_done_in_half_precision() -> None:
    whitening, features = Whitening(6), correlated()
    whitening.fit(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = whitening(features)
    assert torch.equal(found, whitening(features))


def test_whitening_survives_features_that_are_dead_or_fewer_than_their_width() -> None:
    for features in (torch.zeros(10, 6), correlated(3), F.pad(correlated(50)[:, :3], (0, 3))):
        whitening = Whitening(6)
        whitening.fit(features)
        assert whitening(features).isfinite().all()


def test_whitening_takes_no_part_in_training() -> None:
    plain, whitened = encoder(False).train(), encoder().train()
    assert whitened.whitening is not None
    whitened.whitening.fit(torch.randn(50, 16))
    fitted = copy.deepcopy(whitened.whitening.state_dict())
    assert torch.equal(plain(**views(1)[0]), whitened(**views(1)[0]))
    assert all(torch.equal(value, fitted[name]) for name, value in whitened.whitening.state_dict().items())
    assert not list(whitened.whitening.parameters())
    assert not torch.equal(plain.eval().features(**views(1)[0]), whitened.eval().features(**views(1)[0]))
