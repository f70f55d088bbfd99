"""The verbs of ``lookalike evaluate``, thin over the functions that do them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookalike.cli import evaluation as asked
from lookalike.cli import likeness, transfers
from lookalike.cli.transfer import Detect, Keypoints, Segment
from lookalike.core import dist
from lookalike.core.checks import at_least
from lookalike.core.errors import UserError
from lookalike.core.files import refuse_unwritable, write_json
from lookalike.data.example import Source, as_pictures
from lookalike.data.loader import Loader
from lookalike.evaluation.finetune import Finetune
from lookalike.evaluation.paper import PaperProbe
from lookalike.metrics.clusters import Clusters
from lookalike.metrics.fewshot import Fewshot, Shares
from lookalike.metrics.knn import Knn
from lookalike.metrics.probe import LinearProbe
from lookalike.metrics.retrieval import Retrieval
from lookalike.models.features import raw
from lookalike.recipes.modality import modality_of, only_pictures
from lookalike.train.screen import Screen
from lookalike.train.trained import Part, Trained, labelled_parts, load, parts, readable

Report = dict[str, object]


LIMITS: dict[type, dict[str, float]] = {
    asked.Knn: {"k": 1, "temperature": 1e-6},
    asked.Probe: {"epochs": 1, "lr": 0},
    asked.Fewshot: {"labels": 1, "draws": 4},
    asked.Clusters: {"draws": 1},
    asked.Finetune: {"steps": 1, "batch": 2, "draws": 1, "rates": 1e-12},
}


def evaluate(command: asked.Measured) -> int:
    """Prints and writes what the command measures."""
    at_least(command, workers=0, **LIMITS.get(type(command), {}))
    refuse_unwritable(command.json)
    if command.untrained and command.weights:
        raise UserError("choose one of --untrained and --weights")
    if isinstance(command, asked.Fewshot | asked.Finetune):
        refuse_no_share(command.shares)
    report = measured(command)
    if report is not None:
        also = {"untrained": command.untrained, "weights": command.weights, "run": command.run, "data": command.data}
        write_report(command.json, report | also)
    return 0


def measured(command: asked.Measured) -> Report | None:
    """The numbers; None in a process that only helped."""
    paper = isinstance(command, asked.Probe) and command.protocol == "paper"
    if isinstance(command, asked.Frozen) and not paper and not isinstance(command, asked.Sts):
        return frozen(command)
    if dist.started() > 1:
        raise UserError("this evaluation runs in one process: leave out torchrun")
    match command:
        case asked.Probe():
            return paper_probe(command)
        case asked.Finetune():
            return finetune(command)
        case asked.Sts():
            return likeness.sts(command)
        case asked.Captions():
            return likeness.captions(command)
        case Segment():
            return transfers.segment(command)
        case Detect() | Keypoints():
            return transfers.transferred(command)
    raise TypeError(command)


def frozen(command: asked.Frozen) -> Report | None:
    """On features: each process of torchrun embeds a share of the pictures, and the first one does the rest."""
    at_least(command, clip=1e-3)
    with dist.together(), Screen(type(command).__name__.lower(), quiet=not dist.first()) as screen:
        trained = load(command.run, command.untrained, command.weights, command.precision)
        both = parts(trained, command.data, command.layer, command.workers, screen.work, command.clip)
        found = Embedded(trained, *both, "pieces of videos" if command.clip else modality_of(trained.recipe).examples)
        if not dist.first():
            return None
        say_missing(found.reference.labels, found.query.labels, screen, found.things)
        return FROZEN[type(command)](command, found, screen) | found.counted(command.layer)


def write_report(path: str | None, report: Report) -> None:
    """``--json``: the numbers, and what was done."""
    if path:
        write_json(Path(path), report)


class Embedded(NamedTuple):
    """A network, and its features of the reference and of the queries."""

    trained: Trained
    reference: Part
    query: Part
    things: str  # what a row is, in the plural

    def counted(self, layer: str) -> Report:
        """What every report on frozen features says."""
        sizes = {"queries": len(self.query.labels), "reference": len(self.reference.labels)}
        return {"layer": layer, "step": self.trained.step, **sizes}

    def table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows and labels of the reference, rows and labels of the queries."""
        return self.reference.features, self.reference.labels, self.query.features, self.query.labels


def say_missing(reference: Tensor, query: Tensor, screen: Screen, things: str = "pictures") -> None:
    """Classes that are asked for and cannot be found."""
    unknown = ~torch.isin(query, reference)
    if bool(unknown.any()):
        count, classes = int(unknown.sum()), len(torch.unique(query[unknown]))
        screen.say(f"{classes} classes of the queries are not in the reference: their {count} {things} count as wrong")


def working(screen: Screen, what: str, total: int) -> Callable[[int], None]:
    """Shows that so many more are done."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        screen.work(what, done, total)

    return more


def knn(command: asked.Knn, found: Embedded, screen: Screen) -> Report:
    """The accuracy."""
    trained, reference, query, things = found
    accuracy = Knn(command.k, command.temperature).accuracy(*found.table())
    what = f"k {command.k}, temperature {command.temperature:g}, {command.layer}, step {trained.step}"
    screen.say(f"kNN accuracy {accuracy:.2%} on {len(query.labels)} {things} against {len(reference.labels)} ({what})")
    return {"accuracy": accuracy, "k": command.k, "temperature": command.temperature}


def probe(command: asked.Probe, found: Embedded, screen: Screen) -> Report:
    """The accuracy, and the decay that was chosen."""
    trained, reference, query, things = found
    fitted = LinearProbe().fit(reference.features, reference.labels)
    accuracy = fitted.accuracy(query.features, query.labels)
    what = f"decay {fitted.decay:g}, chosen on held-out {things} of the reference, {command.layer}"
    screen.say(
        f"linear probe accuracy {accuracy:.2%} on {len(query.labels)} {things}, fitted to "
        f"{len(reference.labels)} ({what}, step {trained.step})"
    )
    return {"accuracy": accuracy, "protocol": "strong", "decay": fitted.decay}


def paper_probe(command: asked.Probe) -> Report:
    """The accuracy by the protocol of the papers."""
    if command.layer != "backbone":
        raise UserError("the paper's probe reads the backbone: leave out --layer")
    trained = load(command.run, command.untrained, command.weights, command.precision)
    only_pictures(trained.recipe, "the paper's probe")
    spec, (first, second) = PaperProbe(command.epochs, command.lr), labelled_parts(trained, command.data)
    with Screen("probe") as screen:
        reference, query = (loader_of(source, trained, command.workers) for source in (first, second))
        say_missing(first.labels, second.labels, screen)
        view = trained.recipe.pictures.crops()
        found = spec.fit(trained.encoder, reference, view, lambda done, all: screen.work("probing", done, all))
        features = raw(trained.encoder, trained.views(query, torch.arange(len(query)))).cpu()
        good = torch.tensor(readable(query))
        accuracy = found.accuracy(features[good], second.labels[good])
        screen.say(
            f"linear probe accuracy {accuracy:.2%} on {len(good)} pictures after {spec.epochs} epochs of "
            f"{len(first)} (paper's protocol, lr {spec.lr:g}, step {trained.step})"
        )
    report: Report = {"accuracy": accuracy, "protocol": "paper", "epochs": spec.epochs, "lr": spec.lr}
    return report | {"step": trained.step, "queries": len(good), "reference": len(first)}


def loader_of(source: Source, trained: Trained, workers: int) -> Loader:
    """Of all its pictures, however many are bad."""
    return Loader(as_pictures(source), trained.recipe.canvas, workers=workers, max_bad=1.0)


def fewshot(command: asked.Fewshot, found: Embedded, screen: Screen) -> Report:
    """Mean and interval for each number of labels, and for each share."""
    more = working(screen, "fitting", command.draws * len(command.shares))
    few = Fewshot(tuple(command.labels), command.draws).accuracies(*found.table())
    shares = Shares(tuple(command.shares), command.draws).accuracies(*found.table(), progress=more)
    report: Report = {"draws": command.draws}
    for name, (mean, half) in [*few.items(), *shares.items()]:
        what = f"{name:.0%} of the labels" if isinstance(name, float) else f"{name} labels a class"
        screen.say(f"{what}: accuracy {mean:.2%} ± {half:.2%} (n = {command.draws} draws)")
        report |= {f"accuracy_{key(name)}": mean, f"interval_{key(name)}": half}
    return report


def key(name: float) -> str:
    """``5`` for five labels a class, ``1%`` for a share."""
    return f"{name:.10g}" if isinstance(name, int) else f"{100 * name:g}%"


def refuse_no_share(shares: tuple[float, ...]) -> None:
    """Shares lie above 0 and are at most 1."""
    if any(not 0 < share <= 1 for share in shares):
        raise UserError("--shares must be above 0 and at most 1")


def retrieve(command: asked.Retrieve, found: Embedded, screen: Screen) -> Report:
    """Recall and mean average precision."""
    trained, reference, query, things = found
    done = Retrieval().measured(*found.table(), progress=working(screen, "sorting", len(query.labels)))
    shown = ", ".join(f"recall@{k} {share:.2%}" for k, share in done.recall.items())
    screen.say(
        f"{shown}, mean average precision {done.mean_average_precision:.2%} over {done.asked} queries "
        f"in {len(reference.labels)} {things} ({command.layer}, step {trained.step})"
    )
    recall = {f"recall_{k}": share for k, share in done.recall.items()}
    return {**recall, "mean_average_precision": done.mean_average_precision, "asked": done.asked}


def clusters(command: asked.Clusters, found: Embedded, screen: Screen) -> Report:
    """Agreement of clusters with classes."""
    query = found.query
    more = working(screen, "clustering", command.draws)
    nmi, ari, classes = Clusters(command.draws).agreement(query.features, query.labels, more)
    screen.say(
        f"NMI {nmi.mean:.3f}{plus_minus(nmi.half, '.3f')}, ARI {ari.mean:.3f}{plus_minus(ari.half, '.3f')} of "
        f"{classes} clusters of {len(query.labels)} {found.things} (n = {command.draws} starts, {command.layer}, "
        f"step {found.trained.step})"
    )
    report: Report = {"nmi": nmi.mean, "nmi_interval": nmi.half, "ari": ari.mean, "ari_interval": ari.half}
    return report | {"draws": command.draws, "classes": classes}


def plus_minus(half: float, form: str) -> str:
    """The half-width of an interval, where there are draws enough for one."""
    return "" if math.isnan(half) else f" ± {half:{form}}"


def finetune(command: asked.Finetune) -> Report:
    """Accuracy after training everything, beside a probe with the same labels."""
    trained = load(command.run, command.untrained, command.weights, command.precision)
    only_pictures(trained.recipe, "fine-tuning")
    first, second = labelled_parts(trained, command.data)
    spec = Finetune(command.shares, command.rates, command.steps, command.batch, command.draws)
    kept = nullcontext(command.out) if command.out else tempfile.TemporaryDirectory(prefix="lookalike-")
    with Screen("finetune") as screen, kept as folder:
        say_missing(first.labels, second.labels, screen)
        reference, query = (loader_of(source, trained, command.workers) for source in (first, second))
        found = spec.measured(trained, reference, query, Path(folder), screen.work)
        report: Report = {"step": trained.step, "draws": spec.draws, "steps": spec.steps, "queries": len(second)}
        for share, one in found.items():
            tuned, frozen = one.tuned, one.frozen
            screen.say(
                f"{share:.0%} of the labels ({one.labels}): accuracy {tuned.mean:.2%}"
                f"{plus_minus(tuned.half, '.2%')} fine-tuned (rate {one.rate:g}), {frozen.mean:.2%}"
                f"{plus_minus(frozen.half, '.2%')} frozen (n = {spec.draws} draws)"
            )
            report |= {f"accuracy_{key(share)}": tuned.mean, f"interval_{key(share)}": tuned.half}
            report |= {f"frozen_{key(share)}": frozen.mean, f"rate_{key(share)}": one.rate}
        if 1.0 in found:
            report |= {"accuracy": found[1.0].tuned.mean}
    return report


FROZEN: dict[type, Callable[[Any, Embedded, Screen], Report]] = {
    asked.Knn: knn,
    asked.Probe: probe,
    asked.Fewshot: fewshot,
    asked.Retrieve: retrieve,
    asked.Clusters: clusters,
}
"""What follows from features."""
