"""A linear classifier on frozen features, as strong as it gets: logistic regression to its optimum."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.devices import full_precision
from lookalike.core.seeding import uniforms

_MANY = 2000  # labels from which one held-out part is enough to choose by
_LARGE = 1 << 27  # numbers in a table from which double precision would take too much memory


class LinearClassifier(NamedTuple):
    """A fitted classifier: the class of x (F,) is that of the largest of ``weight`` x + ``bias``."""

    classes: Tensor  # (C,) the labels, sorted
    weight: Tensor  # (C, F) float64
    bias: Tensor  # (C,)
    decay: float

    def predict(self, queries: Tensor) -> Tensor:
        """Labels (Q,) for rows (Q, F)."""
        return self.classes[self.scores(queries).argmax(1)]

    @full_precision()
    def scores(self, queries: Tensor) -> Tensor:
        """(Q, C) logits."""
        return queries.to(self.weight.dtype) @ self.weight.T + self.bias

    def accuracy(self, queries: Tensor, truth: Tensor) -> float:
        """The share of queries whose label is predicted."""
        return float((self.predict(queries) == truth).double().mean())


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features: mean cross entropy + decay / 2 · ‖weights‖².

    The decay is the best of ``decays`` on a fifth of the reference that the fit does not see (on each fifth in turn
    where there are few labels), never on queries; then all of the reference is fitted.
    """

    decays: tuple[float, ...] = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: the simplest wins a draw
    iterations: int = 300
    seed: int = 0

    def fit(self, reference: Tensor, labels: Tensor) -> LinearClassifier:
        """To rows (N, F) with ``labels`` (N,), whatever numbers those are."""
        decay = self.choose(reference, labels) if len(self.decays) > 1 else self.decays[0]
        return self.at(decay, reference, labels)

    def choose(self, reference: Tensor, labels: Tensor) -> float:
        """The decay that predicts held-out labels best."""
        part = folds(labels, self.seed)
        right = dict.fromkeys(self.decays, 0.0)
        for fold in range(1 if len(labels) >= _MANY else 5):
            fit, held_out = part != fold, part == fold
            if not bool(held_out.any()) or not bool(fit.any()):
                continue
            for decay in self.decays:
                guesses = self.at(decay, reference[fit], labels[fit]).predict(reference[held_out])
                right[decay] += float((guesses == labels[held_out]).sum())
        return max(self.decays, key=lambda decay: right[decay])

    @full_precision()
    def at(self, decay: float, reference: Tensor, labels: Tensor) -> LinearClassifier:
        """Fitted with one decay; in single precision where the table is very large."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        classes, numbers = torch.unique(labels.cpu(), return_inverse=True)
        rows = reference.cpu().to(torch.float32 if reference.numel() > _LARGE else torch.float64)
        mean, scale = rows.mean(0), rows.std(0, correction=0)
        least = 1e-8 * scale.max().clamp_min(1e-30)
        scale = torch.where(scale > least, scale, torch.inf)  # a dead feature says nothing
        if len(classes) == 1:
            return LinearClassifier(classes, torch.zeros(1, rows.shape[1]).double(), torch.zeros(1).double(), decay)
        # scikit-learn's C is one over the decay of the sum, not of the mean.
        model = LogisticRegression(C=1 / (decay * len(rows)), max_iter=self.iterations, tol=1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # weak decays stop early; the held-out part judges them
            model.fit(((rows - mean) / scale).numpy(), numbers.numpy())
        weight, bias = torch.as_tensor(model.coef_).double(), torch.as_tensor(model.intercept_).double()
        if len(classes) == 2:  # one logit, of the second class against the first
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        weight = weight / scale.double()
        return LinearClassifier(classes, weight, bias - weight @ mean.double(), decay)


def folds(labels: Tensor, seed: int, count: int = 5) -> Tensor:
    """(N,) the part of each row, drawn so that every class is spread evenly over the parts."""
    order = uniforms(seed, 0, torch.arange(len(labels)), 0, 1)[:, 0].argsort()
    part = torch.empty(len(labels), dtype=torch.long)
    for label in torch.unique(labels):
        rows = order[labels[order] == label]
        part[rows] = (torch.arange(len(rows)) + rows[0]) % count  # or all classes of one row would share a part
    return part
