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
from lookalike.pretext.text import plain
from lookalike.recipes.modality import CAPTIONED, modality_of
from lookalike.train.trained import Trained, readable
from lookalike.types import Captioned, View

_CHUNK = 500  # pictures that are encoded at a time


class Matched(NamedTuple):
    """Each of N pictures asks all captions, and each of their N * V captions all pictures."""

    captions: Retrieved  # by pictures
    pictures: Retrieved  # by captions
    rows: int
    each: int  # captions a picture: V


def matched(trained: Trained, data: Data, workers: int | None, progress: Progress) -> Matched:
    """On test, else validation, else a fifth, by cosines of the head's outputs; raises UserError."""
    if modality_of(trained.recipe) is not CAPTIONED:
        raise UserError(f"{trained.recipe.name} knows no captions: name a run of moco_captions")
    _, source = reference_and_query(data, find=CAPTIONED.find)
    if source.texts is None:
        raise UserError(f"{data} has no captions: a file with caption in its name, .json, .csv or .tsv", BAD_DATA)
    loader = trained.loader(source, workers)
    chunks = torch.split(torch.arange(len(loader)), _CHUNK)
    encoded = partial(embed, trained.encoder, layer="head")
    pictures, captions, done = [], [], 0
    for rows, material in loader.batches(chunks):
        material = moved(material)
        pictures.append(encoded([trained.recipe.pretext.evaluation(material)]))
        captions.append(torch.stack([encoded([uploaded(view)]) for view in _captions(material)], 1))
        done += len(rows)
        progress("embedding", done, len(loader))
    good = torch.tensor(readable(loader))
    return _both_ways(torch.cat(pictures)[good], torch.cat(captions)[good])


def _captions(material: Captioned) -> list[View]:
    """Each of the V captions of all pictures, whole; nothing drops out."""
    captions = material.captions()
    return [plain(captions, number) for number in range(captions.lengths.shape[1])]


def _both_ways(pictures: Tensor, captions: Tensor) -> Matched:
    """From unit rows of pictures (N, D) and of their captions (N, V, D)."""
    number, flat = torch.arange(len(pictures)), F.normalize(captions.flatten(0, 1), dim=1)
    owner = number.repeat_interleave(captions.shape[1])
    measured = Retrieval().measured
    return Matched(
        measured(flat, owner, pictures, number),
        measured(pictures, number, flat, owner),
        len(pictures),
        captions.shape[1],
    )
