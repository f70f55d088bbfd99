"""The linear probe of the MoCo papers (arXiv 1911.05722, section 4.1; moco/main_lincls.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.devices import moved
from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.learn.optim import SGD, Steps
from lookalike.metrics.probe import Linear
from lookalike.models.encoder import Encoder
from lookalike.models.features import evaluating, width
from lookalike.pretext.image import ImageView
from lookalike.train.fit import Fit


@dataclass(frozen=True)
class PaperProbe:
    """One linear layer on the backbone's output in evaluation mode, by SGD on random crops and mirror images.

    ``lr`` is for 256 examples.
    """

    epochs: int = 100
    lr: float = 30.0
    batch: int = 256
    momentum: float = 0.9
    scale: tuple[float, float] = (0.08, 1.0)  # area of the crops
    seed: int = 0

    def fit(
        self, encoder: Encoder, loader: Loader, view: ImageView, progress: Callable[[int, int], None] = lambda *_: None
    ) -> Linear:
        """To the labelled pictures of ``loader``; nothing of ``encoder`` changes. Whole batches alone, each epoch."""
        classes, numbers = torch.unique(loader.source.labels, return_inverse=True)
        order = Order(len(loader), min(self.batch, len(loader)), self.seed)
        layer = initial(width(encoder, view.size), len(classes), self.seed)
        layer.to(next(encoder.parameters()).device)
        total = self.epochs * order.steps_per_epoch

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            rows, features = batch
            good = torch.tensor([row not in loader.bad_rows for row in rows.tolist()])  # another stands in its place
            logits = layer(features[good.to(features.device)])
            return F.cross_entropy(logits, numbers[rows[good]].to(logits.device))

        optimizer = SGD(self.lr, self.momentum, weight_decay=0.0).build(layer, order.batch)
        batches = partial(self._batches, encoder, loader, view, order, total)
        Fit(layer, optimizer, self.schedule(), total, self.seed, batches, loss).run(progress)
        weight, bias = layer.weight.detach().cpu().double(), layer.bias.detach().cpu().double()
        return Linear(classes, weight, bias, 0.0)

    def schedule(self) -> Steps:
        """A tenth of the rate at the first epoch from three fifths on, a hundredth at that from four fifths on."""
        return Steps(tuple(math.ceil(at * self.epochs) / self.epochs for at in (0.6, 0.8)))

    def _batches(
        self, encoder: Encoder, loader: Loader, view: ImageView, order: Order, total: int, done: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (B,) and their features (B, F), which other crops change in every epoch."""
        view = replace(view, scale=self.scale)
        for step, (rows, canvases) in enumerate(loader.batches(map(order.rows, range(done, total))), done):
            crops = view(moved(canvases), rows, self.seed, order.epoch(step), 0)
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
