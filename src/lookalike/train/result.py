"""The end of a run that began with a model of others: is the result better than the start? The better one is kept.

Judged on pictures that were not trained on: by labels where there are some. Else by the neighbours that the start gives
them where it sees them larger, which it knows better: over 17 runs on four sets that ranked results as kNN does (rank
correlation 0.80, docs/results.md), but it favours the start, which shares its own errors. So without labels the result
is kept, unless it has left the start further than any that was better.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from lookalike.core.files import as_json, publish
from lookalike.core.progress import Progress, counted
from lookalike.data.example import Rows, Source
from lookalike.data.order import some_rows
from lookalike.learn.tuned import merge
from lookalike.metrics.accuracy import Evidence, chance
from lookalike.metrics.knn import Knn
from lookalike.metrics.unlabelled import neighbours, shared
from lookalike.models.encoder import Encoder, Whitening, unit, unwhitened
from lookalike.recipes.recipe import Recipe
from lookalike.train.start import flipped, sights
from lookalike.train.trained import RESULT, VERDICT, Trained, begun_as, in_parts

HELD_OUT = "held-out pictures"
LABELLED, UNLABELLED = "kNN accuracy with their labels", "the neighbours that the start sees in larger pictures"

_REFERENCE = 2000  # pictures of the training data, at most, among which neighbours are looked for
_FAR = 0.1  # of those neighbours: runs that gained had up to 0.099 fewer of them than the start


class Candidate(NamedTuple):
    """What could be kept, and how good it is."""

    name: str
    share: float  # of the way from the start's weights to the last ones
    whitening: Whitening
    score: Evidence


class Judge:
    """Scores encoders on held-out pictures, all of them by the same."""

    def __init__(self, recipe: Recipe, source: Source, held_out: Source, progress: Progress) -> None:
        parts = in_parts(source.paths, some_rows(len(source), len(source), draw=6))
        rows = [row for part in parts for row in part][:_REFERENCE]
        self.recipe, self.progress = recipe, progress
        self.reference, self.held_out = Rows(source, torch.tensor(rows)), held_out
        self.count = len(rows) + len(held_out)
        self.expected = torch.empty(0)  # (N, k) the neighbours of held-out pictures
        known, asked = self.reference.labels, held_out.labels
        self.by_labels = bool((known >= 0).all()) and bool((asked >= 0).all()) and len(torch.unique(asked)) > 1

    def rows(self, encoder: Encoder, what: str) -> tuple[Tensor, Tensor]:
        """Features of the reference and of the held-out pictures, as whitening takes them."""
        trained, done = Trained(self.recipe, encoder, 0), counted(self.progress, what, self.count)
        loaders = (trained.loader(part) for part in (self.reference, self.held_out))
        views = (trained.views(loader, torch.arange(len(loader))) for loader in loaders)
        known, asked = (unwhitened(encoder, part, done) for part in views)
        return known, asked

    def expect(self, start: Encoder, whitening: Whitening) -> None:
        """Take the neighbours of held-out pictures from the start, as it sees them larger, or mirrored."""
        *_, (larger, mirror) = sights(Trained(self.recipe, start, 0))
        views = larger.views(larger.loader(self.held_out), torch.arange(len(self.held_out)))
        seen = unwhitened(start, (flipped(view) if mirror else view for view in views))
        self.expected = neighbours(unit(whitening(seen)))

    def score(self, known: Tensor, asked: Tensor) -> Evidence:
        """One number for each held-out picture, from unit rows."""
        if not self.by_labels:
            return Evidence(shared(neighbours(asked), self.expected), HELD_OUT)
        labels, truth = self.reference.labels, self.held_out.labels
        right = Knn.suited(labels, self.recipe.monitor.temperature).predict(known, labels, asked) == truth
        return Evidence(right.double(), HELD_OUT, chance(truth))

    def best(self, found: Sequence[Candidate]) -> Candidate:
        """The last step, unless another is better by an interval or, without labels, it went far from the start.

        A few hundred labels are too few to choose by the highest number.
        """
        last = found[-1]
        if not self.by_labels:
            return last if last.score.mean > found[1].score.mean - _FAR else found[1]
        gains = [(one.score.gain(last.score), one) for one in found[:-1]]
        better = [one for gain, one in gains if gain.mean > gain.half]
        return max(better, key=lambda one: one.score.mean, default=last)


def mixed(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights between two states, ``share`` of the way (WiSE-FT, arXiv 2109.01903); whole numbers are the end's."""
    return {
        name: start[name].to(part.device).lerp(part, share) if part.is_floating_point() else part
        for name, part in end.items()
    }


def candidates(recipe: Recipe, judge: Judge, start: Mapping[str, Tensor], encoder: Encoder) -> Iterator[Candidate]:
    """The start as it was, and whitened, and each mixture of it with the end; ``encoder`` is left as the last one."""
    end = {name: part.clone() for name, part in encoder.backbone.state_dict().items()}
    for share in (0.0, *recipe.mixtures):
        name = {0.0: "the start", 1.0: "the result"}.get(share, f"{share:.0%} of the way")
        encoder.backbone.load_state_dict(mixed(start, end, share))
        known, asked = judge.rows(encoder, f"judging {name}")
        shape = known.shape[1], recipe.unit_rows, recipe.directions
        plain, whitened = (Whitening(*shape).to(known.device) for _ in range(2))
        whitened.fit(known)
        options = {name: whitened}
        if share == 0:
            if not judge.by_labels:
                judge.expect(encoder, whitened)
            options = {"the start as it was": plain, "the start, whitened": whitened}
        for called, whitening in options.items():
            yield Candidate(called, share, whitening, judge.score(unit(whitening(known)), unit(whitening(asked))))
    encoder.backbone.load_state_dict(end)


def conclude(
    recipe: Recipe, folder: Path, step: int, encoder: Encoder, source: Source, held_out: Source, progress: Progress
) -> Iterator[str]:
    """Keep the best candidate as the result of a run, and say which it is and why."""
    encoder.evaluated_in = encoder.precision  # which decides nothing here, and is faster
    merge(encoder.backbone)
    judge, start = Judge(recipe, source, held_out, progress), begun_as(folder)
    found = list(candidates(recipe, judge, start, encoder))
    best, first = judge.best(found), found[0]
    kept = {name: part.contiguous() for name, part in encoder.state_dict().items()}
    kept |= {f"backbone.{name}": part for name, part in mixed(start, encoder.backbone.state_dict(), best.share).items()}
    kept |= {f"whitening.{name}": part for name, part in best.whitening.state_dict().items()}
    data = save({name: part.contiguous() for name, part in kept.items()})
    scores = {one.name: one.score.mean for one in found}
    by = LABELLED if judge.by_labels else UNLABELLED
    verdict = {"step": step, "kept": best.name, "by": by, "scores": scores, "sha256": sha256(data).hexdigest()}
    publish(folder, {RESULT: data, VERDICT: as_json(verdict)})
    yield f"compared on {len(held_out):,} {HELD_OUT} by {by}:"
    yield "; ".join(f"{one.name} {one.score.mean:.1%}" for one in found)
    yield f"kept: {best.name}{said(folder, judge.by_labels, best, first)}"


def said(run: Path, by_labels: bool, best: Candidate, first: Candidate) -> str:
    """How sure that is."""
    if by_labels:
        return (
            ", which is better than the result" if best is first else f", {best.score.verdict(first.score, first.name)}"
        )
    if best.share == 0:
        return ", since the result went far from it: take fewer --steps, or a lower --optimizer.lr"
    return (
        f"; whether it is better than the start, labels tell: lookalike evaluate knn {shlex.quote(str(run))} LABELLED"
    )
