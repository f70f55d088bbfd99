"""The linear probe of the MoCo papers (arXiv 1911.05722, section 4.1; moco/main_lincls.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.devices import moved
from lookalike.core.errors import UserError
from lookalike.data.example import Rows, Source, as_pictures
from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.data.source import Data
from lookalike.evaluation import settings
from lookalike.evaluation.lines import say_missing
from lookalike.evaluation.result import Resources, Result
from lookalike.learn.optim import SGD, Steps
from lookalike.metrics.fewshot import drawn
from lookalike.metrics.probe import LinearClassifier
from lookalike.models.encoder import Encoder
from lookalike.models.features import evaluating, raw, width
from lookalike.pretext.image import ImageView
from lookalike.recipes.modality import only_pictures
from lookalike.train.fit import Fit
from lookalike.train.trained import Trained, labelled_parts, readable

_BATCH, _MOMENTUM = 256, 0.9
_AREA = (0.08, 1.0)  # of the crops


def probe(spec: settings.Probe, model: Trained, data: Data, resources: Resources) -> Result:
    """Accuracy on the pictures of the queries that can be read."""
    if spec.layer != "backbone":
        raise UserError("the paper's probe uses the backbone: leave out --layer")
    only_pictures(model.recipe, "the paper's probe")
    reference, query = labelled_parts(model, data)
    if spec.share < 1:
        reference = Rows(reference, drawn(reference.labels, spec.share, spec.seed))
    say_missing(reference.labels, query.labels, resources)
    loaders = [loader_of(source, model, resources.workers) for source in (reference, query)]
    view, progress = model.recipe.crops(), partial(resources.progress, "probing")
    classifier = fit(spec, model.encoder, loaders[0], view, progress)
    features = raw(model.encoder, model.views(loaders[1], torch.arange(len(query)))).cpu()
    good = torch.tensor(readable(loaders[1]))
    accuracy = classifier.accuracy(features[good], query.labels[good])
    line = (
        f"linear probe accuracy {accuracy:.2%} on {len(good)} pictures after {spec.epochs} epochs of {len(reference)} "
        f"(paper's protocol, lr {spec.lr:g}, step {model.step})"
    )
    facts = {"step": model.step, "queries": len(good), "reference": len(reference)}
    return spec.result({"accuracy": accuracy}, facts, [line])


def loader_of(source: Source, model: Trained, workers: int | None) -> Loader:
    """All pictures of ``source``, however many cannot be read."""
    return Loader(as_pictures(source), model.recipe.canvas, workers=workers, max_bad=1.0)


def fit(
    spec: settings.Probe,
    encoder: Encoder,
    loader: Loader,
    view: ImageView,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> LinearClassifier:
    """One linear layer on the backbone's output in evaluation mode, by SGD on random crops and mirror images.

    To the labelled pictures of ``loader``, in whole batches; nothing of ``encoder`` changes.
    """
    classes, numbers = torch.unique(loader.source.labels, return_inverse=True)
    order = Order(len(loader), min(_BATCH, len(loader)), spec.seed)
    layer = initial(width(encoder, view.size), len(classes), spec.seed).to(next(encoder.parameters()).device)
    total = spec.epochs * order.steps_per_epoch

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        rows, features = batch
        good = torch.tensor([row not in loader.bad_rows for row in rows.tolist()])  # another stands in its place
        logits = layer(features[good.to(features.device)])
        return F.cross_entropy(logits, numbers[rows[good]].to(logits.device))

    optimizer = SGD(spec.lr, _MOMENTUM, weight_decay=0.0).build(layer, order.batch)
    batches = partial(_batches, encoder, loader, replace(view, scale=_AREA), order, total)
    Fit(layer, optimizer, schedule(spec.epochs), total, spec.seed, batches, loss).run(progress)
    weight, bias = layer.weight.detach().cpu().double(), layer.bias.detach().cpu().double()
    return LinearClassifier(classes, weight, bias, 0.0)


def schedule(epochs: int) -> Steps:
    """A tenth of the rate at the first epoch from three fifths on, a hundredth at that from four fifths on."""
    return Steps(tuple(math.ceil(at * epochs) / epochs for at in (0.6, 0.8)))


def _batches(
    encoder: Encoder, loader: Loader, view: ImageView, order: Order, total: int, done: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows (B,) and their features (B, F), which other crops change in every epoch."""
    for step, (rows, canvases) in enumerate(loader.batches(map(order.rows, range(done, total))), done):
        crops = view(moved(canvases), rows, order.seed, order.epoch(step), 0)
        with evaluating(encoder):
            features = encoder.raw(**crops).float()
        yield rows, features.clone()  # no tensor of inference takes part in training


def initial(features: int, classes: int, seed: int) -> nn.Linear:
    """Weights of deviation 0.01, no bias."""
    layer = nn.Linear(features, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(classes, features, generator=generator))
        layer.bias.zero_()
    return layer
