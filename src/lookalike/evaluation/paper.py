"""The linear probe of the MoCo papers (arXiv 1911.05722, section 4.1; moco/main_lincls.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.devices import full_precision, moved
from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.metrics.probe import Linear
from lookalike.models.encoder import Encoder
from lookalike.models.features import evaluating
from lookalike.pretext.image import ImageView


@dataclass(frozen=True)
class PaperProbe:
    """One linear layer on the backbone's output in evaluation mode, by SGD on random crops and mirror images.

    ``lr`` is for 256 examples; it is a tenth from three fifths of the epochs on, and a hundredth from four fifths on.
    """

    epochs: int = 100
    lr: float = 30.0
    batch: int = 256
    momentum: float = 0.9
    scale: tuple[float, float] = (0.08, 1.0)  # area of the crops
    seed: int = 0

    @full_precision()
    def fit(
        self, encoder: Encoder, loader: Loader, view: ImageView, progress: Callable[[int, int], None] = lambda *_: None
    ) -> Linear:
        """To the labelled pictures of ``loader``; nothing of ``encoder`` changes. Whole batches alone, each epoch."""
        classes, numbers = torch.unique(loader.source.labels, return_inverse=True)
        order = Order(len(loader), min(self.batch, len(loader)), self.seed)
        total = self.epochs * order.steps_per_epoch
        layer, optimizer = None, None
        for step, (rows, features) in enumerate(self._batches(encoder, loader, view, order, total)):
            if layer is None or optimizer is None:
                layer = started(features.shape[1], len(classes), self.seed).to(features.device)
                optimizer = torch.optim.SGD(layer.parameters(), self.lr, self.momentum)
            for group in optimizer.param_groups:
                group["lr"] = self.lr * order.batch / 256 * self.share(order.epoch(step))
            good = torch.tensor([row not in loader.bad_rows for row in rows.tolist()])  # another stands in its place
            optimizer.zero_grad()
            logits = layer(features[good.to(features.device)])
            loss = F.cross_entropy(logits, numbers[rows[good]].to(logits.device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress(step + 1, total)
        assert layer is not None
        weight, bias = layer.weight.detach().cpu().double(), layer.bias.detach().cpu().double()
        return Linear(classes, weight, bias, 0.0)

    def share(self, epoch: int) -> float:
        """Of the learning rate."""
        return 0.1 ** ((epoch >= 0.6 * self.epochs) + (epoch >= 0.8 * self.epochs))

    def _batches(
        self, encoder: Encoder, loader: Loader, view: ImageView, order: Order, total: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (B,) and their features (B, F), which other crops change in every epoch."""
        view = replace(view, scale=self.scale)
        for step, (rows, canvases) in enumerate(loader.batches(order.rows(step) for step in range(total))):
            crops = view(moved(canvases), rows, self.seed, order.epoch(step), 0)
            with evaluating(encoder):
                features = encoder.raw(**crops).float()
            yield rows, features.clone()  # no tensor of inference takes part in training


def started(features: int, classes: int, seed: int) -> nn.Linear:
    """Weights of deviation 0.01, no bias."""
    layer = nn.Linear(features, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(classes, features, generator=generator))
        layer.bias.zero_()
    return layer
