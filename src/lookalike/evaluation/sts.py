"""Semantic textual similarity: pairs of texts with scores."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.devices import uploaded
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.example import Rows, Source
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION
from lookalike.data.source import EVERYTHING, Data, open_source, splits_of
from lookalike.data.text.source import find_text
from lookalike.evaluation import settings
from lookalike.evaluation.result import Resources, Result
from lookalike.metrics.spearman import spearman
from lookalike.models.features import Layer, embed
from lookalike.pretext.text import plain
from lookalike.recipes.modality import TEXT, modality_of
from lookalike.train.trained import Trained, whiten_untrained


class Scored(NamedTuple):
    """Pairs, each with a score (N,): how alike its texts are."""

    source: Source
    scores: Tensor

    def __len__(self) -> int:
        return len(self.scores)


def sts(spec: settings.Sts, model: Trained, data: Data, _: Resources) -> Result:
    """Spearman's rank correlation of cosines with scores."""
    pairs, split = scored(model, data, spec.split)
    first, second = (texts_embedded(model, pairs, number, spec.layer) for number in (0, 1))
    correlation = spearman((first * second).sum(1), pairs.scores)
    line = (
        f"STS: Spearman {correlation:.4f} between cosines and the scores of {len(pairs)} pairs, {split} "
        f"({spec.layer}, step {model.step})"
    )
    facts = {"step": model.step, "pairs": len(pairs), "split": split}
    return spec.result({"spearman": correlation}, facts, [line])


def scored(model: Trained, data: Data, split: str | None) -> tuple[Scored, str]:
    """The scored pairs of ``split``, else of test, of validation or all, and which they are; raises UserError.

    A network that was never trained is whitened, where its recipe says so, by texts of train, or of all.
    """
    if modality_of(model.recipe).inputs != TEXT:
        raise UserError(f"{model.recipe.name} is for pictures: name a run of a recipe for text, such as simcse")
    find = partial(find_text, pairs=True)
    if split is not None:
        source = open_source(data, split, find=find)
    else:
        splits = splits_of(data, find=find)
        split = next((name for name in (TEST, VALIDATION) if name in splits), next(iter(splits)))
        source = splits[split]
    scores = source.scores
    rows = scores.isfinite().nonzero()[:, 0]
    if len(rows) < 2:
        raise UserError(f"{data} has no scores: name its columns as {data}:first,second,score", BAD_DATA)
    if model.step == 0:
        singles = splits_of(data, find=find_text)
        whiten_untrained(model, singles.get(TRAIN) or next(iter(singles.values())))
    return Scored(Rows(source, rows), scores[rows]), split if split != EVERYTHING else "all of them"


def texts_embedded(model: Trained, pairs: Scored, number: int, layer: Layer) -> Tensor:
    """(N, F) unit rows of the first (0) or second (1) text of each pair."""
    batches = model.loader(pairs.source).batches(torch.split(torch.arange(len(pairs)), 500))
    return embed(model.encoder, (uploaded(plain(batch.material, number)) for batch in batches), layer)
