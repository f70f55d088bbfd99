"""Pairs of texts with scores, as an evaluation reads them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.core.devices import uploaded
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION
from lookalike.data.rows import Rows
from lookalike.data.source import EVERYTHING, Data, Source, open_source, splits_of
from lookalike.data.text.source import find_text
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


def scored(trained: Trained, data: Data, split: str | None) -> tuple[Scored, str]:
    """The scored pairs of ``split``, else of test, of validation or all, and which they are; raises UserError.

    A network that was never trained is whitened, where its recipe says so, by texts of train, or of all.
    """
    if modality_of(trained.recipe).inputs != TEXT:
        raise UserError(f"{trained.recipe.name} is for pictures: name a run of a recipe for text, such as simcse")
    find = partial(find_text, pairs=True)
    if split is not None:
        source = open_source(data, split, find=find)
    else:
        sources = splits_of(data, find=find)
        split = next((name for name in (TEST, VALIDATION) if name in sources), next(iter(sources)))
        source = sources[split]
    scores = source.scores
    rows = scores.isfinite().nonzero()[:, 0]
    if len(rows) < 2:
        raise UserError(f"{data} has no scores: name its columns as {data}:first,second,score", BAD_DATA)
    if trained.step == 0:
        singles = splits_of(data, find=find_text)
        whiten_untrained(trained, singles.get(TRAIN) or next(iter(singles.values())))
    return Scored(Rows(source, rows), scores[rows]), split if split != EVERYTHING else "all of them"


def texts_embedded(trained: Trained, pairs: Scored, number: int, layer: Layer) -> Tensor:
    """(N, F) unit rows of the first (0) or second (1) text of each pair."""
    batches = trained.loader(pairs.source).batches(torch.split(torch.arange(len(pairs)), 500))
    return embed(trained.encoder, (uploaded(plain(batch.material, number)) for batch in batches), layer)
