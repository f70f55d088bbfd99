"""Evaluations of frozen features: kNN, a linear probe, few labels, retrieval, clusters."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from lookalike.core import dist
from lookalike.data.source import Data
from lookalike.evaluation import settings
from lookalike.evaluation.evaluation import Resources, Result
from lookalike.metrics.accuracy import chance, wilson
from lookalike.metrics.agreement import agreement
from lookalike.metrics.fewshot import Interval, LabelCount, by_means, by_shares, drawn
from lookalike.metrics.knn import Knn
from lookalike.metrics.probe import LinearProbe
from lookalike.metrics.retrieval import retrieval
from lookalike.recipes.modality import modality_of
from lookalike.train.trained import PartFeatures, Trained, parts


class Features(NamedTuple):
    """Unit rows with labels: what is compared with, and the queries."""

    reference: PartFeatures
    query: PartFeatures
    facts: dict[str, int]
    where: str  # "backbone, step 100"
    unit: str  # what a row is, in the plural

    def table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows and labels of the reference, rows and labels of the queries."""
        return self.reference.features, self.reference.labels, self.query.features, self.query.labels


def features(spec: settings.Frozen, model: Trained, data: Data, resources: Resources) -> Features | None:
    """Each process of torchrun embeds a share of the examples; the first one alone gets them."""
    embedded = partial(parts, model, data, spec.layer, resources.workers, resources.progress, spec.clip, resources.say)
    reference, query = resources.once((spec.layer, spec.clip), embedded)
    if not dist.first():
        return None
    if isinstance(spec, settings.Sampled) and spec.share < 1:
        rows = drawn(reference.labels, spec.share, spec.seed)
        paths = [reference.paths[row] for row in rows.tolist()]
        reference = PartFeatures(reference.features[rows], reference.labels[rows], paths)
    unit = "pieces of videos" if spec.clip else modality_of(model.recipe).examples
    say_missing(reference.labels, query.labels, resources, unit)
    facts = {"step": model.step, "queries": len(query.labels), "reference": len(reference.labels)}
    return Features(reference, query, facts, f"{spec.layer}, step {model.step}", unit)


Spec = TypeVar("Spec", bound=settings.Frozen)


def on_features(
    measure: Callable[[Spec, Features, Resources], Result],
) -> Callable[[Spec, Trained, Data, Resources], Result]:
    """From what is measured of features to what is measured of a model; no numbers in processes that only embed."""

    def run(spec: Spec, model: Trained, data: Data, resources: Resources) -> Result:
        table = features(spec, model, data, resources)
        return spec.result({}, {}) if table is None else measure(spec, table, resources)

    return run


def say_missing(reference: Tensor, query: Tensor, resources: Resources, unit: str = "pictures") -> None:
    """Say which classes of the queries the reference does not have, from the labels of both."""
    unknown = ~torch.isin(query, reference)
    if bool(unknown.any()):
        count, classes = int(unknown.sum()), len(torch.unique(query[unknown]))
        resources.say(f"{classes} classes of the queries are not in the reference: their {count} {unit} count as wrong")


def named(amount: float) -> str:
    """``5`` for five labels a class, ``1%`` for a share."""
    return f"{amount:.10g}" if isinstance(amount, int) else f"{100 * amount:g}%"


def halves(intervals: dict[str, Interval]) -> dict[str, float]:
    """The half-widths of those that have one, which takes two draws."""
    return {name: interval.half for name, interval in intervals.items() if not math.isnan(interval.half)}


class Meaning(NamedTuple):
    """What an accuracy means: as facts, and in words."""

    facts: dict[str, Any]
    words: str


def meaning(accuracy: float, truth: Tensor) -> Meaning:
    """The interval of an accuracy over queries with labels ``truth`` (Q,), and chance."""
    bounds, guess = wilson(accuracy, len(truth)), chance(truth)
    facts = {"accuracy_low": bounds.low, "accuracy_high": bounds.high, "chance": guess}
    return Meaning(facts, f"95% interval {bounds:.2%}, {by_chance(guess)}")


def by_chance(guess: float) -> str:
    """``chance 10.03%``: what always answering the most common class would reach."""
    return f"chance {guess:.2%}"


@on_features
def knn(spec: settings.NearestNeighbours, table: Features, resources: Resources) -> Result:
    """Accuracy of k nearest neighbours."""
    rule = Knn(spec.k, spec.temperature)
    accuracy, used = rule.accuracy(*table.table()), rule.neighbours(len(table.reference.labels))
    facts, words = meaning(accuracy, table.query.labels)
    line = (
        f"kNN accuracy {accuracy:.2%} on {table.facts['queries']} {table.unit} against {table.facts['reference']} "
        f"({words}; {neighbours(spec.k, used)}, temperature {spec.temperature:g}, {table.where})"
    )
    return spec.result({"accuracy": accuracy}, table.facts | facts | {"k_used": used}, line)


def neighbours(k: int, used: int) -> str:
    """How many vote, and whether fewer than ``k`` because the reference has no more."""
    return f"k {k}" if used == k else f"k {used}, all of the reference, in place of {k}"


@on_features
def probe(spec: settings.Probe, table: Features, resources: Resources) -> Result:
    """Accuracy of a linear classifier at its optimum."""
    classifier = LinearProbe().fit(table.reference.features, table.reference.labels)
    accuracy = classifier.accuracy(table.query.features, table.query.labels)
    facts, words = meaning(accuracy, table.query.labels)
    line = (
        f"linear probe accuracy {accuracy:.2%} on {table.facts['queries']} {table.unit}, fitted to "
        f"{table.facts['reference']} ({words}; weight decay {classifier.decay:g}, chosen on held-out {table.unit} of "
        f"the reference, {table.where})"
    )
    return spec.result({"accuracy": accuracy, "decay": classifier.decay}, table.facts | facts, line)


@on_features
def fewshot(spec: settings.Fewshot, table: Features, resources: Resources) -> Result:
    """Accuracy for each number of labels, and for each share."""
    more = resources.counter("fitting", spec.draws * len(spec.shares))
    few = by_means(*table.table(), spec.labels, spec.draws, spec.seed)
    shares = by_shares(*table.table(), spec.shares, spec.draws, spec.seed, progress=more)
    known, guess = table.reference.labels, chance(table.query.labels)
    counts = {f"{n} label{'s' if n > 1 else ''} a class": LabelCount.of_each(known, n) for n in few}
    counts |= {f"{named(share)} of the labels": LabelCount.of_share(known, share) for share in shares}
    amounts, values = [named(amount) for amount in (*few, *shares)], [*few.values(), *shares.values()]
    lines = [
        f"{title} ({count}): accuracy {accuracy:.2%} (n = {spec.draws} draws, {by_chance(guess)})"
        for (title, count), accuracy in zip(counts.items(), values)
    ]
    accuracies = dict(zip(amounts, values))
    numbers = {f"accuracy_{name}": accuracy.mean for name, accuracy in accuracies.items()}
    numbers |= halves({f"interval_{name}": accuracy for name, accuracy in accuracies.items()})
    numbers["accuracy"] = next(iter(numbers.values()))
    facts = table.facts | {"chance": guess} | label_facts(dict(zip(amounts, counts.values())))
    return spec.result(numbers, facts, *lines)


def label_facts(counts: dict[str, LabelCount]) -> dict[str, int]:
    """How many labels were drawn for each amount, and how many classes have fewer."""
    return {f"{name}_{amount}": number for amount, count in counts.items() for name, number in count.facts().items()}


@on_features
def retrieve(spec: settings.Retrieve, table: Features, resources: Resources) -> Result:
    """Recall and mean average precision."""
    hits = retrieval(*table.table(), spec.at, resources.counter("sorting", table.facts["queries"]))
    line = (
        f"{hits.words()}, mean average precision {hits.mean_average_precision:.2%} over {hits.queries} queries "
        f"in {table.facts['reference']} {table.unit} ({table.where})"
    )
    numbers = {f"recall_{k}": share for k, share in hits.recall.items()}
    numbers["mean_average_precision"] = hits.mean_average_precision
    return spec.result(numbers, table.facts | {"asked": hits.queries}, line)


@on_features
def clusters(spec: settings.Clusters, table: Features, resources: Resources) -> Result:
    """Agreement of clusters with classes."""
    more = resources.counter("clustering", spec.draws)
    query = table.query
    nmi, ari, classes = agreement(query.features, query.labels, spec.draws, spec.starts, spec.seed, more)
    line = (
        f"NMI {nmi:.3f}, ARI {ari:.3f} of {classes} clusters of "
        f"{table.facts['queries']} {table.unit} (n = {spec.draws} starts, {table.where})"
    )
    numbers = {"nmi": nmi.mean, "ari": ari.mean, **halves({"nmi_interval": nmi, "ari_interval": ari})}
    return spec.result(numbers, table.facts | {"classes": classes}, line)
