"""Pictures and captions that look for each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import material_to_device, view_to_device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.source import Data, reference_and_query
from lookalike.evaluation import settings
from lookalike.evaluation.result import Resources, Result
from lookalike.metrics.retrieval import Retrieved, retrieval
from lookalike.models.encoder import embed
from lookalike.pretext.text import plain
from lookalike.recipes.modality import CAPTIONED, modality_of
from lookalike.train.trained import Trained, readable
from lookalike.types import Captioned, View

_CHUNK = 500  # pictures that are encoded at a time


class Matched(NamedTuple):
    """Each of N pictures searches all captions, and each of their N * V captions all pictures."""

    captions: Retrieved  # by pictures
    pictures: Retrieved  # by captions
    rows: int
    each: int  # captions a picture: V


def captions(spec: settings.CaptionRetrieval, model: Trained, data: Data, resources: Resources) -> Result:
    """Recall of captions by pictures, and of pictures by captions."""
    both = matched(spec, model, data, resources)
    lines = [
        f"a picture finds one of its captions: {both.captions.words()} of {both.rows * both.each} (step {model.step})",
        f"a caption finds its picture: {both.pictures.words()} of {both.rows} (step {model.step})",
    ]
    numbers = {f"picture_recall_{k}": share for k, share in both.captions.recall.items()}
    numbers |= {f"caption_recall_{k}": share for k, share in both.pictures.recall.items()}
    numbers["recall"] = numbers[f"caption_recall_{spec.at[0]}"]
    return spec.result(numbers, {"step": model.step, "pictures": both.rows, "captions_each": both.each}, lines)


def matched(spec: settings.CaptionRetrieval, model: Trained, data: Data, resources: Resources) -> Matched:
    """On test, else validation, else a fifth, by cosines of the head's outputs; raises UserError."""
    if modality_of(model.recipe) is not CAPTIONED:
        raise UserError(f"{model.recipe.name} was not trained on captions: name a run of moco_captions")
    _, source = reference_and_query(data, find=CAPTIONED.find)
    if source.texts is None:
        raise UserError(f"{data} has no captions: a file with caption in its name, .json, .csv or .tsv", BAD_DATA)
    loader = model.loader(source, resources.workers)
    encoded = partial(embed, model.encoder, layer="head")
    pictures, texts, done = [], [], 0
    for rows, material in loader.batches(torch.split(torch.arange(len(loader)), _CHUNK)):
        material = material_to_device(material)
        pictures.append(encoded([model.recipe.pretext.evaluation(material)]))
        texts.append(torch.stack([encoded([view_to_device(view)]) for view in _captions(material)], 1))
        done += len(rows)
        resources.progress("embedding", done, len(loader))
    good = torch.tensor(readable(loader))
    return _both_ways(torch.cat(pictures)[good], torch.cat(texts)[good], spec.at)


def _captions(material: Captioned) -> list[View]:
    """Each of the V captions of all pictures, whole; nothing drops out."""
    texts = material.captions()
    return [plain(texts, number) for number in range(texts.lengths.shape[1])]


def _both_ways(pictures: Tensor, texts: Tensor, at: Sequence[int]) -> Matched:
    """From unit rows of pictures (N, D) and of their captions (N, V, D)."""
    number, flat = torch.arange(len(pictures)), F.normalize(texts.flatten(0, 1), dim=1)
    owner = number.repeat_interleave(texts.shape[1])
    by_picture = retrieval(flat, owner, pictures, number, at)
    return Matched(by_picture, retrieval(pictures, number, flat, owner, at), len(pictures), texts.shape[1])
