"""Evaluations of frozen features: kNN, a linear probe, few labels, retrieval, clusters; and what they are judged by."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core import dist
from lookalike.core.devices import isolated
from lookalike.data.example import Source
from lookalike.data.source import Data
from lookalike.data.video.source import in_videos
from lookalike.evaluation import settings
from lookalike.evaluation.evaluation import Resources, Result
from lookalike.metrics.accuracy import DRAWS, Evidence, chance, wilson
from lookalike.metrics.agreement import agreement
from lookalike.metrics.fewshot import Interval, LabelCount, by_draw, drawn, interval
from lookalike.metrics.knn import PUBLISHED, Knn
from lookalike.metrics.probe import LinearProbe
from lookalike.metrics.retrieval import by_luck, ranking
from lookalike.recipes.modality import PICTURE, modality_of
from lookalike.train.trained import (
    PartFeatures,
    Trained,
    as_begun,
    initial,
    labelled_parts,
    part_loader,
    refuse_other_ranks,
    whiten_untrained,
)

UNTRAINED, START, PIXELS, RAW = "untrained", "start", "pixels", "raw"
WORDS = {
    UNTRAINED: "the untrained network",
    START: "the start",
    PIXELS: "raw pixels",
    RAW: "the same network without its whitening",
}
"""Baselines by their names in records."""

_SIDE = 16  # pixels to which raw pictures are shrunk


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

    def answered(self, guesses: Tensor) -> Evidence:
        """Which labels (Q,) are those of the queries."""
        right, truth = (guesses == self.query.labels).double(), self.query.labels
        return Evidence(right, self.unit, chance(truth), in_videos(self.query.paths))


# ---- the model and its baselines ----


class RawPixels(nn.Module):
    """An encoder that has learned nothing and draws nothing: pictures, shrunk."""

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 768) of (B, 3, S, S)."""
        return F.adaptive_avg_pool2d(pixels.float(), min(_SIDE, pixels.shape[-1])).flatten(1)

    def forward(self, pixels: Tensor) -> Tensor:
        """The same."""
        return self.features(pixels)


@isolated()
def untrained(model: Trained) -> Trained | None:
    """The network of a model with its initial weights; None where it has those."""
    encoder = initial(model.recipe)
    encoder.evaluated_in = model.encoder.evaluated_in
    mine, its = (one.backbone.state_dict().values() for one in (encoder, model.encoder))
    return None if all(map(torch.equal, mine, its)) else model._replace(encoder=encoder, step=0)


def baselines(spec: settings.Judged, model: Trained, reference: Source, query: Source) -> dict[str, Trained]:
    """What the model is measured beside, by name; a network is whitened by ``reference``."""
    found: dict[str, Trained] = {}
    if spec.baselines == "none":
        return found
    if (begun := as_begun(model)) is not None:
        found[START] = begun
    elif (start := untrained(model)) is not None:
        whiten_untrained(start, reference)
        found[UNTRAINED] = start
    if _may_harm(spec, model):
        found[RAW] = model._replace(encoder=copy.deepcopy(model.encoder))
        found[RAW].encoder.whitening = None
    if modality_of(model.recipe).inputs == PICTURE and len(reference) * len(query) <= spec.PIXELS:
        found[PIXELS] = model._replace(encoder=RawPixels(), step=0)  # type: ignore[arg-type]
    return found


def _may_harm(spec: settings.Judged, model: Trained) -> bool:
    """Whether whitening may cost accuracy: few labels cannot tell which of the directions it makes equal are noise.

    Five labels a class had 88 % without and 40 % with it (docs/results.md), and elsewhere less without it.
    """
    few = isinstance(spec, settings.Fewshot) and spec.layer == "backbone"
    return few and getattr(model.encoder, "whitening", None) is not None


@isolated()
def embedded(
    spec: settings.Frozen, model: Trained, data: Data, resources: Resources
) -> dict[str, tuple[PartFeatures, PartFeatures]]:
    """The reference and the queries by the model, whose name is "", and by its baselines; pictures are read once."""
    sources = labelled_parts(model, data, resources.say)
    refuse_other_ranks(model, dict(zip(("the reference", "the queries"), sources)), spec)
    models, found = {"": model} | baselines(spec, model, *sources), dict[str, list[PartFeatures]]()
    for source, what in zip(sources, ("reference", "queries")):
        loader = part_loader(model, source, resources.workers)
        for name, one in models.items():
            mine = resources.beside(WORDS[name]) if name else resources
            part = PartFeatures.read(one, loader, spec.layer, mine.progress, what, mine.say)
            found.setdefault(name, []).append(part.in_clips(spec.clip))
    if PIXELS in found and dist.first():
        found[PIXELS] = standardised(*found[PIXELS])
    return {name: (reference, query) for name, (reference, query) in found.items()}


def standardised(reference: PartFeatures, query: PartFeatures) -> list[PartFeatures]:
    """Unit rows of features that have mean 0 and deviation 1 over the reference."""
    deviation, mean = torch.std_mean(reference.features, 0, correction=0)
    parts = (reference, query)
    return [one._replace(features=F.normalize((one.features - mean) / (deviation + 1e-6), dim=1)) for one in parts]


def features(spec: settings.Frozen, model: Trained, data: Data, resources: Resources) -> dict[str, Features]:
    """Each process of torchrun embeds a share of the examples; the first one alone gets them, the others nothing."""
    key = (spec.layer, spec.clip, spec.baselines, spec.baselines == "all" and _may_harm(spec, model))
    found = resources.once(key, partial(embedded, spec, model, data, resources))
    return {name: of_parts(spec, model, *parts) for name, parts in found.items()} if dist.first() else {}


def of_parts(spec: settings.Frozen, model: Trained, reference: PartFeatures, query: PartFeatures) -> Features:
    """What is measured of a reference, or a share of it, and queries."""
    if isinstance(spec, settings.Sampled) and spec.share < 1:
        rows = drawn(reference.labels, spec.share, spec.seed)
        paths = [reference.paths[row] for row in rows.tolist()]
        reference = PartFeatures(reference.features[rows], reference.labels[rows], paths)
    unit = "pieces of videos" if spec.clip else modality_of(model.recipe).examples
    facts = {"step": model.step, "queries": len(query.labels), "reference": len(reference.labels)}
    return Features(reference, query, facts, f"{spec.layer}, {model.stage}", unit)


Spec = TypeVar("Spec", bound=settings.Frozen)


def on_features(
    measure: Callable[[Spec, Features, Resources], Result],
) -> Callable[[Spec, Trained, Data, Resources], Result]:
    """From what is measured of features to what is measured of a model; no numbers in processes that only embed."""

    def run(spec: Spec, model: Trained, data: Data, resources: Resources) -> Result:
        tables = features(spec, model, data, resources)
        if not tables:
            return spec.result({}, {})
        own = tables.pop("")
        say_missing(own.reference.labels, own.query.labels, resources, own.unit)
        specs = {name: spec.of_pixels() if name == PIXELS else spec for name in tables}
        others = {name: measure(specs[name], table, resources.beside(WORDS[name])) for name, table in tables.items()}
        return judged(measure(spec, own, resources), others)

    return run


def judged(result: Result, others: Mapping[str, Result]) -> Result:
    """With the baselines' numbers, how far it is from each, and a verdict below each line that has one."""
    facts, lines = dict(result.facts), list(result.lines)
    for number, (key, mine) in reversed(list(enumerate(result.scores.items()))):
        beside = {name: other.scores[key] for name, other in others.items() if key in other.scores}
        for name, scores in beside.items():
            gain = mine.gain(scores)
            facts |= {f"{name}_{key}": scores.mean, f"over_{name}_{key}": gain.mean}
            facts |= halves({f"over_{name}_{key}_interval": gain})
        lines[number + 1 : number + 1] = [mine.verdict(scores, WORDS[name]) for name, scores in beside.items()]
    return result._replace(facts=facts, lines=lines)


def say_missing(reference: Tensor, query: Tensor, resources: Resources, unit: str = "pictures") -> None:
    """Say which classes of the queries the reference does not have, from the labels of both."""
    unknown = ~torch.isin(query, reference)
    if bool(unknown.any()):
        count, classes = int(unknown.sum()), len(torch.unique(query[unknown]))
        resources.say(f"{classes} classes of the queries are not in the reference: their {count} {unit} count as wrong")


# ---- what is measured ----


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


def meaning(right: Evidence) -> Meaning:
    """The interval of an accuracy, from which queries are right, and chance."""
    assert right.chance is not None
    bounds, guess = wilson(right.mean, right.independent()), right.chance
    facts: dict[str, Any] = {"accuracy_low": bounds.low, "accuracy_high": bounds.high, "chance": guess}
    among = ""
    if right.videos is not None:
        facts["videos"] = len(torch.unique(right.videos))
        among = f" over {facts['videos']} videos"
    return Meaning(facts, f"95% interval {bounds:.2%}{among}, {by_chance(guess)}")


def by_chance(guess: float) -> str:
    """``chance 10.03%``: what always answering the most common class would reach."""
    return f"chance {guess:.2%}"


@on_features
def knn(spec: settings.NearestNeighbours, table: Features, resources: Resources) -> Result:
    """Accuracy of k nearest neighbours."""
    known = table.reference.labels
    rule = Knn.suited(known, spec.temperature) if spec.k is None else Knn(spec.k, spec.temperature)
    right = table.answered(rule.predict(table.reference.features, known, table.query.features))
    used, (facts, words) = rule.neighbours(len(known)), meaning(right)
    line = (
        f"kNN accuracy {right.mean:.2%} on {table.facts['queries']} {table.unit} against {table.facts['reference']} "
        f"({words}; {neighbours(spec.k, used)}, temperature {spec.temperature:g}, {table.where})"
    )
    facts = table.facts | facts | {"k_used": used}
    return spec.result({"accuracy": right.mean}, facts, line, scores={"accuracy": right})


def neighbours(k: int | None, used: int) -> str:
    """How many vote, and why they are not ``k``, or as many as are usual."""
    wanted, why = k or PUBLISHED, "all of the reference" if k else "the size of an average class"
    return f"k {used}" if used == wanted else f"k {used}, {why}, in place of {wanted}"


@on_features
def probe(spec: settings.Probe, table: Features, resources: Resources) -> Result:
    """Accuracy of a linear classifier at its optimum."""
    classifier = LinearProbe().fit(table.reference.features, table.reference.labels)
    right = table.answered(classifier.predict(table.query.features))
    facts, words = meaning(right)
    line = (
        f"linear probe accuracy {right.mean:.2%} on {table.facts['queries']} {table.unit}, fitted to "
        f"{table.facts['reference']} ({words}; weight decay {classifier.decay:g}, chosen on held-out {table.unit} of "
        f"the reference, {table.where})"
    )
    numbers = {"accuracy": right.mean, "decay": classifier.decay}
    return spec.result(numbers, table.facts | facts, line, scores={"accuracy": right})


@on_features
def fewshot(spec: settings.Fewshot, table: Features, resources: Resources) -> Result:
    """Accuracy for each number of labels, and for each share."""
    more = resources.counter("fitting", spec.draws * (len(spec.labels) + len(spec.shares)))
    known, guess = table.reference.labels, chance(table.query.labels)
    counts, lines = dict[str, LabelCount](), list[str]()
    scores, means = dict[str, Evidence](), dict[str, Interval]()
    for amount in (*spec.labels, *map(float, spec.shares)):
        name, each = named(amount), list[float]()
        for draw in range(spec.draws):
            each.append(by_draw(*table.table(), amount, draw, spec.seed))
            more(1)
        scores[name], means[name] = Evidence(torch.tensor(each).double(), DRAWS, guess), interval(each)
        counts[name] = LabelCount.of_each(known, amount)
        title = f"{name} of the labels" if name.endswith("%") else f"{name} label{'s' if amount > 1 else ''} a class"
        lines.append(
            f"{title} ({counts[name]}): accuracy {means[name]:.2%} (n = {spec.draws} draws, {by_chance(guess)})"
        )
    numbers = {f"accuracy_{name}": mean.mean for name, mean in means.items()}
    numbers |= halves({f"interval_{name}": mean for name, mean in means.items()})
    numbers["accuracy"] = next(iter(numbers.values()))
    facts = table.facts | {"chance": guess} | label_facts(counts)
    return spec.result(numbers, facts, *lines, scores={f"accuracy_{name}": one for name, one in scores.items()})


def label_facts(counts: dict[str, LabelCount]) -> dict[str, int]:
    """How many labels were drawn for each amount, and how many classes have fewer."""
    return {f"{name}_{amount}": number for amount, count in counts.items() for name, number in count.facts().items()}


@on_features
def retrieve(spec: settings.Retrieve, table: Features, resources: Resources) -> Result:
    """Recall and mean average precision."""
    found = ranking(*table.table(), resources.counter("sorting", table.facts["queries"]))
    hits, luck = found.retrieved(spec.at), by_luck(table.reference.labels, table.query.labels, spec.at)
    line = (
        f"{hits.words()}, mean average precision {hits.mean_average_precision:.2%} over {hits.queries} queries "
        f"in {table.facts['reference']} {table.unit} (chance: {luck.words()}, mean average precision "
        f"{luck.mean_average_precision:.2%}; {table.where})"
    )
    numbers = {f"recall_{k}": share for k, share in hits.recall.items()}
    numbers["mean_average_precision"] = hits.mean_average_precision
    facts = table.facts | {"asked": hits.queries, "chance": luck.mean_average_precision}
    facts |= {f"chance_recall_{k}": share for k, share in luck.recall.items()}
    known = torch.isin(table.query.labels, table.reference.labels).tolist()
    videos = in_videos([path for path, one in zip(table.query.paths, known) if one])
    precision = Evidence(found.precision, "queries", luck.mean_average_precision, videos)
    return spec.result(numbers, facts, line, scores={"mean_average_precision": precision} if hits.queries else {})


@on_features
def clusters(spec: settings.Clusters, table: Features, resources: Resources) -> Result:
    """Agreement of clusters with classes."""
    more = resources.counter("clustering", spec.draws)
    query = table.query
    found = agreement(query.features, query.labels, spec.draws, spec.starts, spec.seed, more)
    line = (
        f"NMI {found.nmi:.3f}, ARI {found.ari:.3f} of {found.classes} clusters of "
        f"{table.facts['queries']} {table.unit} (n = {spec.draws} starts, chance NMI {found.chance:.3f}, ARI 0; "
        f"{table.where})"
    )
    numbers = {"nmi": found.nmi.mean, "ari": found.ari.mean}
    numbers |= halves({"nmi_interval": found.nmi, "ari_interval": found.ari})
    scores = {"nmi": Evidence(torch.tensor(found.each).double(), DRAWS, found.chance, form=".3f")}
    return spec.result(numbers, table.facts | {"classes": found.classes, "chance": found.chance}, line, scores=scores)
