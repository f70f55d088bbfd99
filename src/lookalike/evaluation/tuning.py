"""Evaluations that train on pictures: the linear probe of the MoCo papers, and fine-tuning the whole network."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.devices import material_to_device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.progress import Progress, silent
from lookalike.data.example import Rows, Source, as_pictures
from lookalike.data.fingerprint import to_table
from lookalike.data.loader import Loaded, Loader
from lookalike.data.order import Order
from lookalike.data.source import Data
from lookalike.evaluation import settings
from lookalike.evaluation.evaluation import Resources, Result
from lookalike.evaluation.frozen import by_chance, halves, label_facts, meaning, named, say_missing
from lookalike.learn.learner import Learner
from lookalike.learn.optim import SGD, AdamW, Cosine, Steps
from lookalike.learn.tuned import Movement
from lookalike.metrics.accuracy import Evidence, chance
from lookalike.metrics.fewshot import Interval, LabelCount, drawn, interval
from lookalike.metrics.probe import LinearClassifier, LinearProbe, folds
from lookalike.models.encoder import Encoder, embed, evaluating, raw, width
from lookalike.pretext.image import ImageView, OneView
from lookalike.recipes.modality import only_pictures
from lookalike.recipes.recipe import Length, Recipe
from lookalike.train import checkpoint
from lookalike.train.fit import Fit
from lookalike.train.loop import train
from lookalike.train.run import Run, check_same
from lookalike.train.trained import Trained, labelled_parts, readable
from lookalike.train.watch import leave
from lookalike.types import Canvases

_BATCH, _MOMENTUM = 256, 0.9  # of the paper's probe
_AREA = (0.08, 1.0)  # of its crops


# The linear probe of the MoCo papers (arXiv 1911.05722, section 4.1; moco/main_lincls.py)


def paper_probe(spec: settings.Probe, model: Trained, data: Data, resources: Resources) -> Result:
    """Accuracy on the pictures of the queries that can be read."""
    if spec.layer != "backbone":
        raise UserError("the paper's probe uses the backbone: leave out --layer")
    only_pictures(model.recipe, "the paper's probe")
    reference, query = labelled_parts(model, data, resources.say)
    if spec.share < 1:
        reference = Rows(reference, drawn(reference.labels, spec.share, spec.seed))
    say_missing(reference.labels, query.labels, resources)
    training, test = loader_of(reference, model, resources.workers), model.loader(query, resources.workers)
    classifier = fit_linear(spec, model.encoder, training, model.recipe.crops(), partial(resources.progress, "probing"))
    features = raw(model.encoder, model.views(test, torch.arange(len(query)))).cpu()
    good = torch.tensor(readable(test))
    truth = query.labels[good]
    right = Evidence((classifier.predict(features[good]) == truth).double(), "pictures", chance(truth))
    facts, words = meaning(right)
    line = (
        f"linear probe accuracy {right.mean:.2%} on {len(good)} pictures after {spec.epochs} epochs of "
        f"{len(reference)} ({words}; paper's protocol, lr {spec.lr:g}, {model.stage})"
    )
    facts |= {"step": model.step, "queries": len(good), "reference": len(reference)}
    return spec.result({"accuracy": right.mean}, facts, line)


def loader_of(source: Source, model: Trained, workers: int | None) -> Loader:
    """All pictures of ``source`` to train on, however many cannot be read."""
    return Loader(as_pictures(source), model.recipe.canvas, workers=workers, max_bad=1.0)


def fit_linear(
    spec: settings.Probe,
    encoder: Encoder,
    loader: Loader,
    view: ImageView,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> LinearClassifier:
    """One linear layer on the backbone's output, by SGD on random crops and mirror images of labelled pictures."""
    classes, numbers = torch.unique(loader.source.labels, return_inverse=True)
    order = Order(len(loader), min(_BATCH, len(loader)), spec.seed)
    layer = initial_layer(width(encoder, view.size), len(classes), spec.seed).to(next(encoder.parameters()).device)
    total = spec.epochs * order.steps_per_epoch

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        rows, features = batch
        good = torch.tensor([row not in loader.bad_rows for row in rows.tolist()])  # another stands in its place
        logits = layer(features[good.to(features.device)])
        return F.cross_entropy(logits, numbers[rows[good]].to(logits.device))

    optimizer = SGD(spec.lr, _MOMENTUM, weight_decay=0.0).build(layer, order.batch)
    batches = partial(_batches, encoder, loader, replace(view, scale=_AREA), order, total)
    Fit(layer, optimizer, schedule(spec.epochs), total, spec.seed, batches, loss).run(progress)
    weight, bias = (part.detach().cpu().double() for part in (layer.weight, layer.bias))
    return LinearClassifier(classes, weight, bias, decay=0.0)


def schedule(epochs: int) -> Steps:
    """A tenth of the rate at the first epoch from three fifths on, a hundredth at that from four fifths on."""
    return Steps(tuple(math.ceil(at * epochs) / epochs for at in (0.6, 0.8)))


def _batches(
    encoder: Encoder, loader: Loader, view: ImageView, order: Order, total: int, done: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows (B,) and their features (B, F), which other crops change in every epoch."""
    for step, (rows, canvases) in enumerate(loader.batches(map(order.rows, range(done, total))), done):
        crops = view(material_to_device(canvases), rows, order.seed, order.epoch(step), 0)
        with evaluating(encoder):
            features = encoder.raw(**crops).float()
        yield rows, features.clone()  # no tensor of inference takes part in training


def initial_layer(features: int, classes: int, seed: int) -> nn.Linear:
    """Weights of deviation 0.01, no bias."""
    layer = nn.Linear(features, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(classes, features, generator=generator))
        layer.bias.zero_()
    return layer


# Fine-tuning: each fit is a run of its own, so that it can be continued


class Tuned(NamedTuple):
    """With one share of the labels."""

    frozen: Interval  # accuracy of a probe on the frozen features
    tuned: Interval  # after fine-tuning
    rate: float
    labels: LabelCount


class Some(Loader):
    """Some rows of a loader: nothing is decoded twice."""

    def __init__(self, loader: Loader, rows: Tensor) -> None:
        self.source, self._loader, self._rows = Rows(loader.source, rows), loader, rows
        self.bad, self.bad_rows = loader.bad, {}

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Loaded[Canvases], None, None]:
        """The pixels of each step's rows (B,), which count among these."""
        steps = list(rows_of_steps)
        for rows, loaded in zip(steps, self._loader.batches(self._rows[rows] for rows in steps)):
            yield Loaded(rows, loaded.material)


def finetune(spec: settings.Finetune, model: Trained, data: Data, resources: Resources) -> Result:
    """Accuracy for each share of the labels, beside a linear probe with the same labels.

    The head starts as a linear probe of the backbone (arXiv 2202.10054), then everything learns. The rate is
    the one that predicts best a fifth of the labels that the fit did not see, in the first draw of a share.
    """
    only_pictures(model.recipe, "fine-tuning")
    reference, query = labelled_parts(model, data, resources.say)
    say_missing(reference.labels, query.labels, resources)
    loaders = loader_of(reference, model, resources.workers), loader_of(query, model, resources.workers)
    with nullcontext(resources.folder) if resources.folder else TemporaryDirectory(prefix="lookalike-") as folder:
        results = tune(spec, model, *loaders, Path(folder), resources.progress)
    guess = chance(query.labels[torch.tensor(readable(loaders[1]))])
    lines = [
        f"{named(share)} of the labels ({one.labels}): accuracy {one.tuned:.2%} fine-tuned (rate {one.rate:g}), "
        f"{one.frozen:.2%} frozen (n = {spec.draws} draws, {by_chance(guess)})"
        for share, one in results.items()
    ]
    numbers = halves({f"interval_{named(share)}": one.tuned for share, one in results.items()})
    for share, one in reversed(results.items()):  # the last ones are those of the first share
        values = {"accuracy": one.tuned.mean, "frozen": one.frozen.mean, "rate": one.rate}
        numbers |= {f"{name}_{named(share)}": value for name, value in values.items()} | values
    counts = label_facts({named(share): one.labels for share, one in results.items()})
    return spec.result(numbers, {"step": model.step, "queries": len(query), "chance": guess} | counts, *lines)


def tune(
    spec: settings.Finetune, model: Trained, reference: Loader, query: Loader, folder: Path, progress: Progress = silent
) -> dict[float, Tuned]:
    """For each share, from the labelled pictures of ``reference`` to those of ``query``; fits stay in ``folder``."""
    training, test = (LabelledPictures.of(model, loader) for loader in (reference, query))
    tuning = Tuning(spec, model, folder, progress)
    return {share: tuning.share(share, training, test) for share in spec.shares}


class LabelledPictures(NamedTuple):
    """Pictures that can be read."""

    loader: Loader  # what a fit reads
    whole: Loader  # what evaluations read of the same rows
    output: Tensor  # (N, F) of the backbone, which is what a head sees
    features: Tensor  # (N, E) unit rows, as every evaluation of frozen features has them
    labels: Tensor  # (N,)

    @classmethod
    def of(cls, model: Trained, loader: Loader) -> LabelledPictures:
        """All that can be read of a loader."""
        every, whole = torch.arange(len(loader)), loader
        if model.recipe.preprocessing is not None:
            whole = cast(Loader, model.loader(loader.source, loader.workers))
        output, features = raw(model.encoder, model.views(whole, every)).cpu(), model.features(whole, every)
        return cls(loader, whole, output, features, loader.source.labels).rows(torch.tensor(readable(whole)))

    def rows(self, rows: Tensor) -> LabelledPictures:
        """Some of them."""
        loaders = Some(self.loader, rows), Some(self.whole, rows)
        return LabelledPictures(*loaders, self.output[rows], self.features[rows], self.labels[rows])

    def probe(self) -> LinearClassifier:
        """Fitted to the frozen features: what ``evaluate probe`` fits."""
        return LinearProbe().fit(self.features, self.labels)

    def head(self) -> LinearClassifier:
        """Fitted to the output of the backbone."""
        return LinearProbe().fit(self.output, self.labels)


class Tuning(NamedTuple):
    """What all fits share."""

    spec: settings.Finetune
    model: Trained
    folder: Path
    progress: Progress

    def share(self, share: float, reference: LabelledPictures, query: LabelledPictures) -> Tuned:
        """With a share of the labels of ``reference``."""
        seeds = range(self.spec.seed, self.spec.seed + self.spec.draws)
        draws = [reference.rows(drawn(reference.labels, share, seed)) for seed in seeds]
        rate = self.rate(share, draws[0])
        before, after = [], []
        for draw, labelled in enumerate(draws):
            head = labelled.head()
            learner = self.fit(head, labelled, rate, draw, f"{share:g} of the labels, draw {draw + 1}")
            before.append(labelled.probe().accuracy(query.features, query.labels))
            after.append(self.accuracy(learner, head.classes, query))
        return Tuned(interval(before), interval(after), rate, LabelCount.of_share(reference.labels, share))

    def rate(self, share: float, labelled: LabelledPictures) -> float:
        """The best on a held-out fifth; where that would be nothing, the lowest."""
        rates, held_out = self.spec.rates, folds(labelled.labels, self.spec.seed) == 0
        if len(rates) == 1 or not bool(held_out.any()) or bool(held_out.all()):
            return min(rates)
        fitted, others = (labelled.rows(some.nonzero()[:, 0]) for some in (~held_out, held_out))
        head, accuracy = fitted.head(), {}
        for rate in sorted(rates):
            learner = self.fit(head, fitted, rate, 0, f"{share:g} of the labels, choosing the rate, {rate:g}")
            accuracy[rate] = self.accuracy(learner, head.classes, others)
        return max(accuracy, key=lambda rate: accuracy[rate])

    def fit(self, head: LinearClassifier, labelled: LabelledPictures, rate: float, draw: int, what: str) -> Learner:
        """The network tuned to these pictures, from the backbone and ``head`` on."""
        seed = self.spec.seed + draw
        recipe = classifier(self.spec, self.model.recipe, len(head.classes), len(labelled.labels), rate, seed)
        weights = {f"backbone.{name}": part for name, part in self.model.encoder.backbone.state_dict().items()}
        weights |= {"head.0.weight": head.weight.float(), "head.0.bias": head.bias.float()}
        folder = self.folder / what.replace(" ", "-").replace(",", "")
        with opened_fit(folder, recipe, labelled.loader, weights) as run:
            done = train(recipe, run, labelled.loader, watch=lambda at: self.progress(what, at.step, at.total))
        if done.signal:
            leave(done.signal)
        return done.learner

    def accuracy(self, learner: Learner, classes: Tensor, query: LabelledPictures) -> float:
        """The share of pictures whose label the whole network predicts."""
        views = self.model.views(query.whole, torch.arange(len(query.labels)))
        logits = embed(learner.encoder, views, "head")  # of unit norm, which moves no maximum
        return float((classes[logits.argmax(1)] == query.labels).double().mean())


def classifier(spec: settings.Finetune, recipe: Recipe, classes: int, examples: int, rate: float, seed: int) -> Recipe:
    """One fit: the model of ``recipe`` as a classifier, by AdamW on the first view's crops and mirror images."""
    batch = max(2, min(spec.batch, examples))
    return replace(
        recipe.with_labels(classes),
        name=f"finetuned_{recipe.name}",
        pretext=OneView(recipe.crops()),
        tuned=Movement(),
        whiten=False,
        optimizer=AdamW(rate * 256 / batch, spec.decay),
        schedule=Cosine(warmup=0.1),
        length=Length(steps=spec.steps),
        batch=batch,
        window=None,
        group=max(2, min(recipe.group, batch // 2)),
        slices=1,
        checkups=0,
        seed=seed,
    ).fitted(examples)


@contextmanager
def opened_fit(folder: Path, recipe: Recipe, loader: Loader, weights: dict[str, Tensor]) -> Iterator[Run]:
    """The open run of a fit, new with a checkpoint at step 0 or as it was left; other settings are refused."""
    start = hashlib.sha256("\n".join(loader.source.paths).encode("utf-8", "surrogatepass"))
    for name, part in weights.items():
        if name.startswith("backbone."):  # the head follows from it
            start.update(part.cpu().numpy().tobytes())
    about = {"examples": len(loader), "start": start.hexdigest()}
    with Run(folder) as run:
        recorded = run.recipe()
        if recorded is None:
            learner = recipe.build(len(loader))
            learner.encoder.load_state_dict(weights)
            checkpoint.save(run.checkpoints, 0, learner, recipe.optimizer_of(learner))
            run.begin(recipe, about, to_table(loader.source.stamps()))
        else:
            check_same(folder, recorded, recipe)
            if {name: run.data().get(name) for name in about} != about:
                raise UserError(f"{folder} began from other weights or labels: choose another --out", BAD_DATA)
        yield run
