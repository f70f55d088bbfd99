"""What frozen and tuned networks are judged by: against the definitions written out, and on the command line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from lookalike.cli.main import main
from lookalike.data.loader import Loader
from lookalike.data.source import open_source
from lookalike.evaluation import tuning
from lookalike.evaluation.settings import Probe
from lookalike.metrics.agreement import agreement
from lookalike.metrics.fewshot import drawn
from lookalike.metrics.knn import Knn
from lookalike.metrics.probe import LinearProbe
from lookalike.metrics.retrieval import by_luck, ranking, sorted_hits
from lookalike.models.encoder import raw
from lookalike.recipes import tiny
from lookalike.train.trained import load
from tests.support.forks import digest

Said = tuple[int, str, str]
NAMES = torch.tensor([70, 3, 12])


def blobs(seed: int, rows: int, apart: float = 8.0) -> tuple[Tensor, Tensor]:
    """Rows (N, 5) around three centres, and their classes 0 to 2."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    return apart * torch.eye(5)[labels] + torch.randn(rows, 5, generator=generator), labels


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.sampled_from([1, 7, 60, 301]),
    k=st.sampled_from([1, 2, 5, 18, 400]),
    temperature=st.sampled_from([2.0, 1e30]),
    size=st.sampled_from([1, 40]),
    chunk=st.sampled_from([None, 1, 3, 7]),
)
def test_knn_counts_ties(seed: int, rows: int, k: int, temperature: float, size: int, chunk: int | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers, whose products are exact; at temperature 1e30 so are the votes, each of which is 1.
    reference = torch.randint(-size, size + 1, (rows, 3), generator=generator).float()
    queries = torch.randint(-size, size + 1, (10, 3), generator=generator).float()
    labels = NAMES[torch.randint(3, (rows,), generator=generator)]
    guesses = Knn(k, temperature).predict(reference, labels, queries, chunk)
    for guess, query in zip(guesses.tolist(), queries, strict=True):
        order = sorted(zip((reference @ query).tolist(), labels.tolist()), reverse=True)
        if k < rows and order[k - 1][0] == order[k][0]:
            continue  # the k nearest could be either
        votes = {3: 0.0, 12: 0.0, 70: 0.0}
        for product, label in order[:k]:
            votes[label] += math.exp((product - order[0][0]) / temperature)
        first = max(votes, key=lambda label: votes[label])  # the smallest of equals
        assert guess == first or (temperature == 2 and votes[guess] >= votes[first] * (1 - 1e-9))


def test_a_linear_probe_separates_what_can_be_separated_whatever_the_labels_are_called() -> None:
    (reference, labels), (queries, truth) = blobs(0, 60), blobs(1, 90)
    found = LinearProbe().fit(reference, labels)
    assert found.accuracy(queries, truth) == 1.0
    assert found.decay in LinearProbe().decays
    hard, hard_labels = blobs(2, 60, apart=1.0)
    plain, renamed = LinearProbe().fit(hard, hard_labels), LinearProbe().fit(hard, NAMES[hard_labels])
    assert plain.decay == renamed.decay
    assert torch.equal(NAMES[plain.predict(queries)], renamed.predict(queries))
    some = truth != 1  # a class that nobody asks for
    assert torch.equal(found.predict(queries[some]), found.predict(queries)[some])
    for count in (1, 2):  # classes
        few = LinearProbe().fit(reference[labels < count], labels[labels < count])
        assert few.accuracy(queries[truth < count], truth[truth < count]) == 1.0


def test_the_papers_probe_changes_nothing_of_the_network() -> None:
    source = open_source("digits")
    recipe = tiny.fitted(len(source))
    encoder = recipe.build(len(source)).encoder.train()
    before = {name: part.numpy().tobytes() for name, part in encoder.state_dict().items()}
    loader = Loader(source, recipe.canvas, workers=0)
    found = tuning.fit_linear(Probe(epochs=1), encoder, loader, recipe.pretext.crops())
    assert {name: part.numpy().tobytes() for name, part in encoder.state_dict().items()} == before
    assert all(module.training for module in encoder.modules())
    assert all(part.grad is None for part in encoder.parameters())
    assert found.classes.tolist() == list(range(10))


@pytest.mark.parametrize("rows", [1, 9, 200])
def test_retrieval_is_the_loop_that_the_definition_says(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    reference, queries = (F.normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (rows, 40))
    labels, truth = torch.randint(4, (rows,), generator=generator), torch.randint(6, (40,), generator=generator)
    firsts, precisions = [], []
    for query, label in zip(queries, truth.tolist(), strict=True):
        order = (reference @ query).argsort(descending=True, stable=True).tolist()
        ranks = [rank for rank, row in enumerate(order) if int(labels[row]) == label]
        if ranks:
            firsts.append(ranks[0])
            precisions.append(sum((found + 1) / (rank + 1) for found, rank in enumerate(ranks)) / len(ranks))
    measured = ranking(reference, labels, queries, truth).retrieved((1, 3, 10))
    assert measured.queries == len(firsts) > 0
    assert measured.mean_average_precision == pytest.approx(np.mean(precisions), abs=1e-9)
    for k, recall in measured.recall.items():
        assert recall == pytest.approx(np.mean([first < k for first in firsts]))


@pytest.mark.parametrize("sizes", [(1,), (3, 1), (2, 2, 1)])
def test_luck_is_the_mean_over_all_orders(sizes: tuple[int, ...]) -> None:
    labels, truth = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)]), torch.tensor([0, 0, 9])
    found = []
    for order in permutations(range(len(labels))):
        # One query of class 0, from which rows are as far as the order says.
        places = torch.tensor(order, dtype=torch.float32) * 0.1
        rows = torch.stack([places.cos(), places.sin()], 1)
        found.append(ranking(rows, labels, torch.tensor([[1.0, 0.0]]), truth[:1]).retrieved((1, 2)))
    luck = by_luck(labels, truth, (1, 2))
    assert luck.queries == 2
    assert luck.mean_average_precision == pytest.approx(np.mean([one.mean_average_precision for one in found]))
    assert luck.recall == pytest.approx({k: np.mean([one.recall[k] for one in found]) for k in (1, 2)})
    assert by_luck(labels, truth[2:]).queries == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), columns=st.sampled_from([1, 2, 9, 400]))
def test_hits_are_sorted_as_a_stable_sort_would(seed: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cosines = torch.randint(-3, 4, (3, columns), generator=generator) / 3 * torch.tensor([[1.0], [-0.0], [-1.0]])
    alike = torch.rand(3, columns, generator=generator) < 0.3
    expected = alike.gather(1, cosines.argsort(dim=1, descending=True, stable=True))
    assert torch.equal(sorted_hits(cosines, alike), expected)


def test_classes_that_are_clusters_agree_wholly_and_random_labels_by_chance() -> None:
    features, labels = blobs(0, 90)
    features = F.normalize(features, dim=1)
    for names in (labels, NAMES[labels]):
        found = agreement(features, names, draws=2)
        assert found.classes == 3
        assert (found.nmi.mean, found.ari.mean) == (pytest.approx(1.0), pytest.approx(1.0))
        assert found.nmi.half == pytest.approx(0.0)
    chance = labels[torch.randperm(90, generator=torch.Generator().manual_seed(0))]
    assert abs(agreement(features, chance, draws=2).ari.mean) < 0.1


@pytest.mark.parametrize("share", [1e-6, 0.1, 0.5, 1.0])
def test_a_share_takes_some_of_every_class(share: float) -> None:
    sizes = {-1: 1, 4: 3, 9: 30}
    labels = torch.tensor([label for label, size in sizes.items() for _ in range(size)])
    rows = drawn(labels, share, 7)
    assert torch.equal(rows, rows.unique())
    assert {k: int((labels[rows] == k).sum()) for k in sizes} == {k: max(1, round(share * n)) for k, n in sizes.items()}


# The command line


@pytest.fixture
def say(say: Callable[..., Said]) -> Callable[..., Said]:
    """The same without worker processes."""
    return lambda *arguments: say(*arguments, "--workers", "0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps on digits."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "digits", "--out", str(out), "--recipe", "tiny", "--steps", "20", "--quiet"])
    assert stopped.value.code == 0
    return out


EVALUATIONS = {
    "probe": {"accuracy": 0.3},
    "probe --protocol paper --epochs 12": {"accuracy": 0.2},
    "retrieve": {"recall_1": 0.3, "recall_10": 0.3, "mean_average_precision": 0.12},
    "clusters --draws 2": {"nmi": 0.05, "ari": 0.0},
    "fewshot --draws 4 --shares 0.02 --labels 5": {"accuracy_5": 0.15, "accuracy_2%": 0.15},
    "finetune --steps 2 --draws 2 --shares 0.05 --rates 1e-4 1e-3": {"accuracy_5%": 0.15, "frozen_5%": 0.15},
}


@pytest.mark.parametrize("command", EVALUATIONS)
def test_each_evaluation_prints_and_writes_its_numbers(
    say: Callable[..., Said], trained: Path, tmp_path: Path, command: str
) -> None:
    (verb, *flags), before, file = command.split(), digest(trained), tmp_path / "new" / "found.json"
    code, out, err = say("evaluate", verb, trained, "digits", *flags, "--json", file)
    assert (code, err) == (0, "")
    found = json.loads(file.read_text())
    for name, least in EVALUATIONS[command].items():
        assert least < found[name] <= 1, name
        assert (f"{found[name]:.3f}" if verb == "clusters" else f"{found[name]:.2%}") in out.replace("\n", " ")
    assert found["step"] == 20
    assert digest(trained) == before


def test_finetuning_again_finds_the_same(say: Callable[..., Said], trained: Path, tmp_path: Path) -> None:
    command = ("evaluate", "finetune", trained, "digits", "--out", tmp_path / "fits", "--steps", 2, "--draws", 1)
    command += ("--shares", 0.03, "--rates", 1e-3, "--json")
    assert say(*command, tmp_path / "a.json")[0] == 0
    (fit,) = (tmp_path / "fits").iterdir()
    held = digest(fit)
    assert say(*command, tmp_path / "b.json")[0] == 0
    assert digest(fit) == held
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_finetuning_and_the_probe_agree_on_the_frozen_features(
    say: Callable[..., Said], trained: Path, tmp_path: Path
) -> None:
    fits = ("--steps", 1, "--draws", 1, "--shares", 1.0, "--rates", 1e-4)
    assert say("evaluate", "finetune", trained, "digits", *fits, "--json", tmp_path / "tuned.json")[0] == 0
    assert say("evaluate", "probe", trained, "digits", "--json", tmp_path / "probe.json")[0] == 0
    tuned, probe = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("tuned", "probe"))
    assert tuned["frozen"] == probe["accuracy"]


def test_supervised_training_again_has_nothing_to_do(say: Callable[..., Said], tmp_path: Path) -> None:
    command = ("supervised", "digits", "--out", tmp_path / "run", "--recipe", "tiny", "--steps", 20)
    assert say(*command)[::2] == (0, "")
    held = digest(tmp_path / "run")
    code, out, err = say(*command)
    assert (code, err) == (0, "")
    assert "step 20 of 20: done" in out
    assert "-" not in out.split(";")[1]  # shares of the time
    assert digest(tmp_path / "run") == held


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("exploded",)


def test_weights_are_tensors_or_refused(
    say: Callable[..., Said], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "text.safetensors").touch()
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("bomb.pth", "text.safetensors", "other.safetensors", "absent.pth"):
        code, _, err = say("evaluate", "knn", trained, "digits", "--weights", tmp_path / name)
        assert (code, err.count("\n")) == (65, 1), err
        assert name in err
    assert not (tmp_path / "exploded").exists()
    torch.load(tmp_path / "bomb.pth", weights_only=False)  # it is live
    assert (tmp_path / "exploded").exists()


def test_a_runs_own_weights_from_a_file_give_its_features(trained: Path, tmp_path: Path) -> None:
    own = load(trained)
    tensors = {f"module.encoder_q.{n}": part.contiguous() for n, part in own.encoder.backbone.state_dict().items()}
    save_file(tensors, tmp_path / "own.safetensors")
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "own.pth")
    loader = Loader(open_source("digits"), own.recipe.canvas, workers=0)
    for name in ("own.safetensors", "own.pth"):
        foreign = load(trained, weights=str(tmp_path / name))
        assert foreign.step == 0
        rows = torch.arange(0, len(loader), 7)
        assert torch.equal(*(raw(one.encoder, one.views(loader, rows)) for one in (own, foreign)))
