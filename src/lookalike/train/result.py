"""The end of a run that began with a model of others: is the result better than the start? The better one is kept.

Judged on pictures that were not trained on: by labels where there are some, else by whether two unseen views of a
picture have the same neighbours (docs/results.md has how well that agrees with labels).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lookalike.core.files import write_atomically, write_json
from lookalike.core.progress import Progress
from lookalike.data.example import Rows, Source
from lookalike.metrics.accuracy import Evidence, chance
from lookalike.metrics.knn import Knn
from lookalike.metrics.unlabelled import agreement
from lookalike.models.encoder import Encoder, embed, settle
from lookalike.recipes.recipe import Recipe
from lookalike.train.loop import views_at
from lookalike.train.trained import RESULT, START, VERDICT, Trained, drawn_whole

_REFERENCE = 2000  # pictures of the training data, at most, among which neighbours are looked for
_EPOCH = (1 << 31) - 1  # whose views no run has seen


class Candidate(NamedTuple):
    """What could be kept, and how good it is."""

    name: str
    share: float  # of the way from the start's weights to the last ones
    whitened: bool
    score: Evidence


class Judge:
    """Scores encoders on held-out pictures, all of them by the same."""

    def __init__(self, recipe: Recipe, source: Source, held_out: Source, progress: Progress) -> None:
        parts = drawn_whole(source.paths, torch.arange(len(source)), draw=6)
        rows = [row for part in parts for row in part][:_REFERENCE]
        self.recipe, self.progress = recipe, progress
        self.reference, self.held_out = Rows(source, torch.tensor(rows)), held_out
        known, asked = self.reference.labels, held_out.labels
        self.by_labels = bool((known >= 0).all()) and bool((asked >= 0).all()) and len(torch.unique(asked)) > 1

    def features(self, encoder: Encoder, whitened: bool, what: str = "result") -> tuple[Tensor, Tensor]:
        """Unit rows of the reference and of the held-out pictures; fits the whitening, or lets it do nothing."""
        trained, whitening = Trained(self.recipe, encoder, 0), encoder.whitening
        known, asked = (trained.loader(part) for part in (self.reference, self.held_out))
        if whitening is not None and not whitened:
            whitening.reset()
        elif whitening is not None:
            settle(encoder, trained.views(known, torch.arange(len(known))))
        first, second = (trained.features(part, progress=self.progress, what=what) for part in (known, asked))
        return first, second

    def score(self, encoder: Encoder, whitened: bool, name: str) -> Evidence:
        """One number for each held-out picture."""
        known, asked = self.features(encoder, whitened, f"judging {name}")
        if self.by_labels:
            labels, truth = self.reference.labels, self.held_out.labels
            right = Knn.suited(labels, self.recipe.monitor.temperature).predict(known, labels, asked) == truth
            return Evidence(right.double(), "held-out pictures", chance(truth))
        loader, rows = Trained(self.recipe, encoder, 0).loader(self.held_out), torch.arange(len(asked))
        whole, own = torch.cat([known, asked]), rows + len(known)
        views = [embed(encoder, [views_at(loader, self.recipe, rows, _EPOCH - i)[0]]) for i in range(2)]
        return Evidence(agreement(views[0], views[1], whole, own), "held-out pictures")


def mixed(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights between two states, ``share`` of the way (WiSE-FT, arXiv 2109.01903); whole numbers are the end's."""
    return {
        name: start[name].to(part.device).lerp(part, share) if part.is_floating_point() else part
        for name, part in end.items()
    }


def candidates(recipe: Recipe, judge: Judge, start: Mapping[str, Tensor], encoder: Encoder) -> Iterator[Candidate]:
    """The start as it was, and whitened, and each mixture of it with the end; ``encoder`` is left as the last one."""
    end = {name: part.clone() for name, part in encoder.backbone.state_dict().items()}
    options = [("the start as it was", 0.0, False), ("the start, whitened", 0.0, True)]
    options += [("the result" if share == 1 else f"{share:.0%} of the way", share, True) for share in recipe.mixtures]
    for name, share, whitened in options:
        encoder.backbone.load_state_dict(mixed(start, end, share))
        yield Candidate(name, share, whitened, judge.score(encoder, whitened, name))
    encoder.backbone.load_state_dict(end)


def conclude(
    recipe: Recipe, folder: Path, step: int, encoder: Encoder, source: Source, held_out: Source, progress: Progress
) -> Iterator[str]:
    """Keep the best candidate as the result of a run, and say which it is and why."""
    encoder.evaluated_in = encoder.precision  # which decides nothing here, and is faster
    judge, start = Judge(recipe, source, held_out, progress), load_file(folder / START)
    found = list(candidates(recipe, judge, start, encoder))
    best, first = max(found, key=lambda one: one.score.mean), found[0]
    end = {name: part.clone() for name, part in encoder.backbone.state_dict().items()}
    encoder.backbone.load_state_dict(mixed(start, end, best.share))
    judge.features(encoder, best.whitened)
    kept = {name: part.contiguous() for name, part in encoder.state_dict().items()}
    encoder.backbone.load_state_dict(end)
    write_atomically(folder / RESULT, save(kept))
    scores = {one.name: one.score.mean for one in found}
    by = "kNN accuracy with their labels" if judge.by_labels else "neighbours that two views of each have in common"
    write_json(folder / VERDICT, {"step": step, "kept": best.name, "by": by, "scores": scores})
    yield f"compared on {len(held_out):,} held-out pictures by {by}:"
    yield "; ".join(f"{one.name} {one.score.mean:.1%}" for one in found)
    yield f"kept: {best.name}" if best is first else f"kept: {best.name}, {best.score.verdict(first.score, first.name)}"
