"""``lookalike sample``: rows to label next, the typical, the diverse or the uncertain ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lookalike.core.devices import full_precision
from lookalike.core.errors import UserError, meant
from lookalike.curate.labels import DECAY, votes
from lookalike.curate.same import nearest
from lookalike.curate.survey import Numbers
from lookalike.curate.table import Finding, Table
from lookalike.metrics.probe import LinearProbe

How = Literal["typical", "diverse", "uncertain"]

_NEAR = 20  # others whose mean cosine says how typical a row is (arXiv 2202.02794, section 3.1)
_MANY = 10_000  # rows from which k-means goes by batches
_CLUSTERS = 500  # at most: beyond that each holds too few rows for a typical one


@full_precision()
def sampled(table: Table, count: int, how: How) -> list[Finding]:
    """``count`` rows to label, the most useful first: of those without a label where there are any, else of all.

    ``typical``: k-means, and of each group the densest row (TypiClust, Hacohen et al. 2022, arXiv 2202.02794).
    ``diverse``: the row that is farthest from all that were chosen or labelled, again and again (k-center, Sener and
    Savarese 2018, arXiv 1708.00489). ``uncertain``: the smallest margin between the two first classes of the linear
    probe on the rows that have labels; where all have one, of the votes of their neighbours. Raises UserError.
    """
    if how not in _WAYS:
        raise UserError(f"rows are sampled as {', '.join(_WAYS)}, not {how}; {meant(how, _WAYS)}")
    labels = table.rows.label
    rows = np.flatnonzero(labels < 0) if (labels < 0).any() else np.arange(len(labels))
    return _WAYS[how](table, rows, min(count, len(rows)))


def _typical(table: Table, rows: Numbers, count: int) -> list[Finding]:
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    vectors = table.vectors[torch.from_numpy(rows)]
    near = nearest(vectors, _NEAR)
    density = torch.ones(len(rows))
    if near.shape[1]:
        density = torch.stack([(vectors[near[:, k]] * vectors).sum(1) for k in range(near.shape[1])]).mean(0)
    kind = MiniBatchKMeans if len(rows) > _MANY else KMeans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # where fewer rows differ than there are to be groups
        groups = kind(min(count, _CLUSTERS, len(rows)), n_init=1, random_state=0).fit_predict(vectors.numpy())
    queues = [np.flatnonzero(groups == group) for group in np.argsort(-np.bincount(groups), kind="stable")]
    queues = [queue[np.argsort(-density.numpy()[queue], kind="stable")] for queue in queues]
    turns = [(turn, place, queue[turn]) for place, queue in enumerate(queues) for turn in range(len(queue))]
    chosen = [int(row) for _, _, row in sorted(turns)[:count]]
    words = "typical of {:,} rows that are like it"
    score = density.clamp(0, 1).tolist()
    return [Finding(int(rows[i]), score[i], words.format(int((groups == groups[i]).sum()))) for i in chosen]


def _diverse(table: Table, rows: Numbers, count: int) -> list[Finding]:
    every, some = table.vectors, torch.from_numpy(rows)
    vectors, known = every[some], every[torch.from_numpy(np.flatnonzero(table.rows.label >= 0))]
    covered = len(known) if len(rows) < len(every) else 0
    closest = torch.full((len(rows),), -1.0)
    for part in torch.split(known[:covered], 512) if covered else ():
        closest = torch.maximum(closest, (vectors @ part.T).amax(1))
    found, following = [], int(closest.argmin()) if covered else int((vectors @ vectors.mean(0)).argmax())
    for _ in range(count):
        cosine = float(closest[following])
        words = "most in the middle" if cosine < -0.999 else f"cosine to the nearest of those before: {cosine:.2f}"
        found.append(Finding(int(rows[following]), min(1.0, max(0.0, (1 - cosine) / 2)), words))
        closest = torch.maximum(closest, vectors @ vectors[following])
        closest[following] = torch.inf
        following = int(closest.argmin())
    return found


def _uncertain(table: Table, rows: Numbers, count: int) -> list[Finding]:
    labels, vectors = torch.tensor(table.rows.label), table.vectors
    known, some = (labels >= 0).nonzero()[:, 0], torch.from_numpy(rows)
    classes, numbers = torch.unique(labels[known], return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"{table.name} has no labels of two classes to be uncertain between: --how typical needs none")
    if len(known) < len(labels):
        shares = LinearProbe().at(DECAY, vectors[known], numbers).scores(vectors[some]).softmax(1)
    else:
        shares = votes(vectors, numbers, len(classes))
    return _by_margin(table, rows, shares, classes, count)


def _by_margin(table: Table, rows: Numbers, shares: Tensor, classes: Tensor, count: int) -> list[Finding]:
    top, which = shares.topk(2, dim=1)
    margin = (top[:, 0] - top[:, 1]).double().numpy()
    names = {i: table.rows.classes[i] if i < len(table.rows.classes) else i for i in classes.tolist()}
    found = []
    for i in np.argsort(margin, kind="stable")[:count].tolist():
        first, second = (names[int(classes[place])] for place in which[i])
        found.append(Finding(int(rows[i]), 1 - margin[i], f"{first} or {second}"))
    return found


_WAYS: dict[str, Callable[[Table, Numbers, int], list[Finding]]] = {
    "typical": _typical,
    "diverse": _diverse,
    "uncertain": _uncertain,
}
