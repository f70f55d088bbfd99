"""``lookalike labels``: labels that neighbours and a classifier contradict, most likely first."""

from __future__ import annotations

import torch
from torch import Tensor

from lookalike.core.devices import full_precision
from lookalike.core.errors import UserError
from lookalike.core.progress import Progress, silent
from lookalike.curate.table import Finding, Table
from lookalike.metrics.knn import largest, products
from lookalike.metrics.probe import LinearProbe, folds

K, TEMPERATURE, DECAY = 20, 0.1, 0.1
"""Neighbours that vote, and of the probe: the best on wrong labels planted in clothing160 (docs/results.md)."""

_SAME = 0.95  # cosine of centred rows from which one is taken for a copy of the other, whose label is no evidence
_FOLDS = 5
_FLOOR = 0.02  # what neighbours, who are few, may be wrong about; of the probe a hundredth of it


@torch.no_grad()
def suspicious_labels(table: Table, progress: Progress = silent) -> list[Finding]:
    """The rows whose label seems wrong, with the one that seems right; raises UserError for fewer than two classes.

    A row is listed by confident learning (Northcutt et al. 2021, arXiv 1911.00068, section 3.1): another class has as
    much of it as that class has of its own rows on average, and more than its label has. How much is the geometric
    mean of two estimates that do not see the row's label: the votes of its 20 nearest, without copies of it, and the
    linear probe on other folds. The score is the share of the other class among those two.
    """
    labels, rows = torch.tensor(table.rows.label), table.vectors
    known = (labels >= 0).nonzero()[:, 0]
    classes, numbers = torch.unique(labels[known], return_inverse=True)
    if len(classes) < 2:
        few = "no labels" if not len(classes) else "labels of one class alone"
        raise UserError(f"{table.name} has {few}: two classes are needed, as folders or in a column 'label'")
    share = probabilities(rows[known], numbers, progress)
    place = torch.arange(len(known))
    own = share[place, numbers]
    usual = torch.stack([own[numbers == number].mean() for number in range(len(classes))])
    rivals = torch.where((share >= usual) & (share > own[:, None]), share, 0.0)
    rivals[place, numbers] = 0.0
    best, other = rivals.max(1)
    score = best / (best + own).clamp_min(1e-30)
    near = _beside(rows[known], numbers, other, (best > 0).nonzero()[:, 0])
    found = [
        Finding(int(known[i]), float(score[i]), _words(table, int(classes[other[i]])), tuple(known[beside].tolist()))
        for i, beside in near.items()
    ]
    return sorted(found, key=lambda finding: (-finding.score, finding.row))


def _words(table: Table, label: int) -> str:
    classes = table.rows.classes
    return f"looks like {classes[label] if label < len(classes) else label}"


@full_precision()
def probabilities(rows: Tensor, numbers: Tensor, progress: Progress = silent) -> Tensor:
    """(N, C) how much of each row every class has, from rows (N, F) with labels 0 to C - 1, its own label unseen."""
    count, part = int(numbers.max()) + 1, folds(numbers, 0, _FOLDS)
    probe = torch.full((len(rows), count), 1 / count)
    for fold in range(_FOLDS):
        fit = part != fold
        if bool(fit.any()) and not bool(fit.all()):
            model = LinearProbe().at(DECAY, rows[fit], numbers[fit])
            scores = model.scores(rows[~fit]).softmax(1).float()
            probe[~fit] = torch.zeros(len(scores), count).index_copy_(1, model.classes, scores)
        progress("fitting classifiers", fold + 1, _FOLDS)
    both = (votes(rows, numbers, count) + _FLOOR) * (probe + _FLOOR / 100)
    return both.sqrt() / both.sqrt().sum(1, keepdim=True)


def votes(rows: Tensor, numbers: Tensor, count: int) -> Tensor:
    """(N, C) the share of each class among the 20 nearest others of each row, copies of it left out."""
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    found, start = [], 0
    for cosines in products(rows, rows):
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -torch.inf
        cosines[cosines > _SAME] = -torch.inf
        cosine, near = largest(cosines, min(K, len(rows) - 1))
        top = cosine.amax(1, keepdim=True).clamp_min(-1)
        weight = ((cosine - top) / TEMPERATURE).exp()
        share = torch.zeros(len(near), count).scatter_add_(1, numbers[near], weight)
        found.append(torch.where(share.sum(1, keepdim=True) > 0, share / share.sum(1, keepdim=True), 1 / count))
        start += len(cosines)
    return torch.cat(found)


def _beside(rows: Tensor, numbers: Tensor, other: Tensor, some: Tensor, k: int = 3) -> dict[int, Tensor]:
    """For each of ``some`` rows its nearest of the other class that it seems to be of."""
    beside = {}
    for i, cosines in zip(some.tolist(), (row for block in products(rows[some], rows) for row in block)):
        cosines[numbers != other[i]] = -torch.inf
        beside[i] = cosines.topk(min(k, int((numbers == other[i]).sum()))).indices
    return beside
