"""Pictures and captions that look for each other."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import moved, uploaded
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.progress import Progress
from lookalike.data.source import Data, reference_and_query
from lookalike.metrics.retrieval import Retrieval, Retrieved
from lookalike.models.features import embed
from lookalike.pretext.captions import Captions
from lookalike.pretext.text import plain
from lookalike.recipes.modality import finder
from lookalike.train.trained import Trained, readable
from lookalike.types import Captioned, View

_CHUNK = 500  # pictures that are encoded at a time


class Matched(NamedTuple):
    """Each of N pictures asks all captions, and each of their N * V captions all pictures."""

    captions: Retrieved  # that pictures found
    pictures: Retrieved  # that captions found
    rows: int
    each: int  # captions a picture: V


def matched(trained: Trained, data: Data, workers: int | None, progress: Progress) -> Matched:
    """On test, else validation, else a fifth, by cosines of the head's outputs; raises UserError."""
    if not isinstance(trained.recipe.pretext, Captions):
        raise UserError(f"{trained.recipe.name} knows no captions: name a run of moco_captions")
    _, asked = reference_and_query(data, find=finder(trained.recipe))
    if asked.texts is None:
        raise UserError(f"{data} has no captions: a file with caption in its name, .json, .csv or .tsv", BAD_DATA)
    loader = trained.loader(asked, workers)
    chunks = torch.split(torch.arange(len(loader)), _CHUNK)
    encoded = partial(embed, trained.encoder, layer="head")
    seen, said, done = [], [], 0
    for rows, material in loader.batches(chunks):
        material = moved(material)
        seen.append(encoded([trained.recipe.pretext.evaluation(material)]))
        said.append(torch.stack([encoded([uploaded(view)]) for view in _captions(material)], 1))
        done += len(rows)
        progress("embedding", done, len(loader))
    good = torch.tensor(readable(loader))
    return _both_ways(torch.cat(seen)[good], torch.cat(said)[good])


def _captions(material: Captioned) -> list[View]:
    """Each of the V captions of all pictures, whole; nothing drops out."""
    said = material.said()
    return [plain(said, number) for number in range(said.lengths.shape[1])]


def _both_ways(seen: Tensor, said: Tensor) -> Matched:
    """From unit rows of pictures (N, D) and of their captions (N, V, D)."""
    number, flat = torch.arange(len(seen)), F.normalize(said.flatten(0, 1), dim=1)
    owner = number.repeat_interleave(said.shape[1])
    find = Retrieval().measured
    return Matched(find(flat, owner, seen, number), find(seen, number, flat, owner), len(seen), said.shape[1])
