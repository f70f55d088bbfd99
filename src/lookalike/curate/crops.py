"""Pictures inside of pictures: five parts of each, embedded like pictures of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from lookalike.core.devices import isolated, material_to_device, view_to_device
from lookalike.core.errors import UserError
from lookalike.core.progress import Progress, counted, silent
from lookalike.curate.survey import Numbers
from lookalike.curate.table import Table
from lookalike.data.loader import Loaded
from lookalike.exchange.named import is_named
from lookalike.metrics.knn import largest, products
from lookalike.models.encoder import embed
from lookalike.train.run import is_run
from lookalike.train.trained import Trained, few_at_a_time, load
from lookalike.types import Canvases, View

_SHARE = 0.65  # of each side
_PLACES = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))  # of the room that is left
_NEAREST = 2
_CHUNK = 100  # pictures at a time


@isolated()
def near_crops(table: Table, progress: Progress = silent) -> Numbers:
    """(P, 2) each row beside the 2 that lie nearest to each of its corners and its middle, 65 % of its sides.

    Embeds five times as many pictures as the table has. Raises UserError where the table's model is not there.
    """
    assert table.pictures is not None
    trained, vectors = model_of(table), torch.as_tensor(table.rows.vectors)
    chunks = torch.arange(len(vectors)).split(_CHUNK)
    views = _views(trained, trained.loader(table.pictures, budget=0).batches(chunks))
    done = counted(progress, "embedding parts", len(_PLACES) * len(vectors))
    parts = embed(trained.encoder, views, table.rows.layer, done)
    rows, pairs = torch.cat([chunk.repeat(len(_PLACES)) for chunk in chunks]), []
    for some, cosines in zip(rows.split(len(next(products(parts, vectors)))), products(parts, vectors)):
        cosines[torch.arange(len(some)), some] = -torch.inf
        near = largest(cosines, min(_NEAREST, len(vectors) - 1))[1]
        pairs.append(torch.stack([some[:, None].expand_as(near), near], 2).flatten(0, 1).numpy())
    return np.concatenate(pairs)


def model_of(table: Table) -> Trained:
    """What made a table; raises UserError where that is not there."""
    if table.trained is not None:
        return table.trained
    origin = table.rows.origin
    if origin is None or not (is_run(origin.run) or is_named(origin.run)):
        raise UserError(f"{table.name} does not say which model made it, or it is gone: name MODEL and DATA instead")
    return load(origin.run, model=origin.model or None)


def _views(trained: Trained, batches: Iterable[Loaded[Any]]) -> Iterator[View]:
    """Of each batch the first part of each picture, then the second, and so on, in the size of whole pictures."""
    for _, canvases in batches:
        high, wide = canvases.pixels.shape[2:]
        for top, left in _PLACES:
            down, across = (round(at * (1 - _SHARE) * side) for at, side in ((top, high), (left, wide)))
            part = canvases.pixels[:, :, down:, across:][:, :, : round(_SHARE * high), : round(_SHARE * wide)]
            pixels = interpolate(part.float(), (high, wide), mode="bilinear").round().to(torch.uint8)
            material = material_to_device(Canvases(pixels, canvases.sizes))
            yield from few_at_a_time(view_to_device(trained.recipe.evaluation(material)))
