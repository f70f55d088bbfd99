"""Pairs that belong together: sentences with scores of similarity, and pictures with captions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.devices import material_to_device, view_to_device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.example import Rows, Source
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION
from lookalike.data.source import EVERYTHING, Data, open_source, reference_and_query, splits_of
from lookalike.data.text.source import find_text
from lookalike.evaluation import settings
from lookalike.evaluation.evaluation import Resources, Result
from lookalike.evaluation.frozen import UNTRAINED, WORDS, halves, judged, untrained
from lookalike.metrics.accuracy import Evidence
from lookalike.metrics.agreement import influences, spearman
from lookalike.metrics.fewshot import Interval
from lookalike.metrics.retrieval import by_luck, ranking, words_of
from lookalike.models.encoder import Layer, embed
from lookalike.pretext.text import plain
from lookalike.recipes.modality import CAPTIONED, TEXT, modality_of
from lookalike.train.trained import Trained, readable, whiten_untrained

_CHUNK = 500  # rows that are encoded at a time


class Scored(NamedTuple):
    """Pairs of sentences, each with a score (N,): how alike they are."""

    source: Source
    scores: Tensor
    split: str
    why: str = ""  # this split was taken, where nobody named one


Spec = TypeVar("Spec", bound=settings.Judged)
Measure = Callable[[Spec, Trained, Data, Resources], Result]


def beside_untrained(measure: Measure[Spec]) -> Measure[Spec]:
    """Of a model, and of its network with initial weights to judge it by."""

    def run(spec: Spec, model: Trained, data: Data, resources: Resources) -> Result:
        result, start = measure(spec, model, data, resources), None if spec.baselines == "none" else untrained(model)
        beside = resources.beside(WORDS[UNTRAINED])
        return judged(result, {} if start is None else {UNTRAINED: measure(spec, start, data, beside)})

    return run


@beside_untrained
def sts(spec: settings.Sts, model: Trained, data: Data, resources: Resources) -> Result:
    """Spearman's rank correlation of cosines with scores."""
    pairs = scored(model, data, spec.split)
    if pairs.why:
        resources.say(pairs.why)
    first, second = (sentences_embedded(model, pairs.source, number, spec.layer) for number in (0, 1))
    cosines = (first * second).sum(1)
    each = Evidence(influences(cosines, pairs.scores), "pairs", 0.0, form=".4f")
    correlation = Interval(spearman(cosines, pairs.scores), each.half())
    line = (
        f"STS: Spearman {correlation:.4f} between cosines and the scores of {len(pairs.scores)} pairs, {pairs.split} "
        f"(chance 0; {spec.layer}, {model.stage})"
    )
    facts: dict[str, Any] = {"step": model.step, "pairs": len(pairs.scores), "split": pairs.split, "chance": 0.0}
    facts |= halves({"interval": correlation})
    return spec.result({"spearman": correlation.mean}, facts, line, scores={"spearman": each})


def scored(model: Trained, data: Data, split: str | None) -> Scored:
    """The scored pairs of ``split``, else of test, of validation or all; raises UserError.

    A network that was never trained is whitened, where its recipe says so, by texts of train, or of all.
    """
    if modality_of(model.recipe).inputs != TEXT:
        raise UserError(f"{model.recipe.name} is for pictures: name a run of a recipe for text, such as simcse")
    find, why = partial(find_text, pairs=True), ""
    if split is not None:
        source = open_source(data, split, find=find)
    else:
        splits = splits_of(data, find=find)
        having = {name: bool(part.scores.isfinite().any()) for name, part in splits.items()}
        tests = [name for name in (TEST, VALIDATION) if name in splits]
        split = next((name for name in tests if having[name]), next(iter(splits)))
        source, missing = splits[split], "test has no scores" if TEST in splits else "there is no test split"
        why = f"tested on {split}" + ("" if split == TEST else f": {missing}")
    rows = source.scores.isfinite().nonzero()[:, 0]
    if len(rows) < 2:
        raise UserError(f"{data} has no scores: name its columns as {data}:first,second,score", BAD_DATA)
    if model.step == 0:
        singles = splits_of(data, find=find_text)
        whiten_untrained(model, singles.get(TRAIN) or next(iter(singles.values())))
    return Scored(Rows(source, rows), source.scores[rows], split if split != EVERYTHING else "all of them", why)


def sentences_embedded(model: Trained, pairs: Source, number: int, layer: Layer) -> Tensor:
    """(N, F) unit rows of the first (0) or second (1) sentence of each pair."""
    batches = model.loader(pairs).batches(torch.split(torch.arange(len(pairs)), _CHUNK))
    return embed(model.encoder, (view_to_device(plain(batch.material, number)) for batch in batches), layer)


@beside_untrained
def captions(spec: settings.CaptionRetrieval, model: Trained, data: Data, resources: Resources) -> Result:
    """Recall of captions by pictures, and of pictures by captions, by cosines of the head's outputs."""
    pictures, texts = captioned(model, data, resources)
    total, each = texts.shape[:2]
    number, flat = torch.arange(total), F.normalize(texts.flatten(0, 1), dim=1)
    owner = number.repeat_interleave(each)
    firsts = ranking(flat, owner, pictures, number).first, ranking(pictures, number, flat, owner).first
    lucks = by_luck(owner, number, spec.at), by_luck(number, owner, spec.at)
    titles = f"a picture finds one of its {total * each} captions", f"a caption finds its picture among {total}"
    lines, numbers, scores = [], dict[str, float](), dict[str, Evidence]()
    for name, title, first, luck in zip(("picture_recall", "caption_recall"), titles, firsts, lucks):
        recall = {k: float((first < k).double().mean()) for k in spec.at}
        numbers |= {f"{name}_{k}": share for k, share in recall.items()}
        lines.append(f"{title}: {words_of(recall)} (chance: {words_of(luck.recall)}; {model.stage})")
        scores[name] = Evidence((first < spec.at[0]).double(), f"{name.partition('_')[0]}s", luck.recall[spec.at[0]])
    numbers["recall"], scores["recall"] = numbers[f"caption_recall_{spec.at[0]}"], scores.pop("caption_recall")
    facts = {"step": model.step, "pictures": total, "captions_each": each, "chance": lucks[1].recall[spec.at[0]]}
    return spec.result(numbers, facts, *lines, scores=scores)


def captioned(model: Trained, data: Data, resources: Resources) -> tuple[Tensor, Tensor]:
    """Unit rows of pictures (N, D), test, else validation, else a fifth, and captions (N, V, D); raises UserError."""
    if modality_of(model.recipe) is not CAPTIONED:
        raise UserError(f"{model.recipe.name} was not trained on captions: name a run of moco_captions")
    _, source = reference_and_query(data, find=CAPTIONED.find, say=resources.say)
    if source.texts is None:
        raise UserError(f"{data} has no captions: a file with caption in its name, .json, .csv or .tsv", BAD_DATA)
    loader = model.loader(source, resources.workers)
    encoded = partial(embed, model.encoder, layer="head")
    more = resources.counter("embedding", len(loader))
    pictures, texts = [], []
    for rows, material in loader.batches(torch.split(torch.arange(len(loader)), _CHUNK)):
        material = material_to_device(material)
        pictures.append(encoded([model.recipe.evaluation(material)]))
        sentences = material.captions()
        views = [plain(sentences, number) for number in range(sentences.lengths.shape[1])]
        texts.append(torch.stack([encoded([view_to_device(view)]) for view in views], 1))
        more(len(rows))
    good = torch.tensor(readable(loader))
    return torch.cat(pictures)[good], torch.cat(texts)[good]
