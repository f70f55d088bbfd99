"""A run as something to use: its encoder with the weights of a checkpoint, and what follows from features."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor, nn

from lookalike.core import dist
from lookalike.core.devices import Precision, isolated, material_to_device, module_to_device, view_to_device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import known, read_json
from lookalike.core.progress import Progress, counted, silent
from lookalike.data.example import Rows, Source, facts, inner_folder, unreadable
from lookalike.data.loader import GIB, Loads
from lookalike.data.source import Data, Say, name_of, reference_and_query
from lookalike.data.text.loader import Tokenizer
from lookalike.data.video.source import pieces, video_of
from lookalike.exchange.named import Named, is_named, opened
from lookalike.exchange.weights import load_backbone
from lookalike.learn.learner import Learner
from lookalike.learn.tuned import Movement, merge
from lookalike.metrics.knn import Knn
from lookalike.models.encoder import Encoder, Layer, embed, means, settle
from lookalike.models.hugging_face import HuggingFace
from lookalike.recipes.modality import Examples, load_tokenizer, modality_of
from lookalike.recipes.modality import loader as all_rows
from lookalike.recipes.parts import Network
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import flat
from lookalike.train import checkpoint
from lookalike.train.fit import weights_digest
from lookalike.train.run import Run, is_run, read_recipe
from lookalike.types import View

START, RESULT, VERDICT = "start.safetensors", "result.safetensors", "result.json"
"""Files of a run that began with another model: the backbone it began as, the encoder that is kept, and why."""

CHUNK = 500  # pictures that are read at a time
_LARGE, _FEW = 128, 20  # px a side of a picture above which a processor is given so few, which divide a chunk; below 16
# on one thread torch makes 1×1 convolutions without oneDNN, at half the speed


def unsaid(line: str) -> None:
    """Says nothing."""


class Trained(NamedTuple):
    """An encoder and its recipe; ``step`` 0 is a network that this recipe has not trained."""

    recipe: Recipe
    encoder: Encoder
    step: int
    tokenizer: Tokenizer | None = None  # of text
    run: str = ""  # the folder that it was loaded from, or the name of a public model
    named: Named | None = None  # the public model that it is, if it is no run

    def __repr__(self) -> str:
        return f"Trained({self.recipe.name}, {type(self.recipe.model).__name__}, {self.stage})"

    @property
    def stage(self) -> str:
        """How far it was trained, in words."""
        return f"step {self.step}" if self.named is None else "as published"

    @isolated()
    def loader(self, source: Source, workers: int | None = None, budget: int = 4 * GIB) -> Loads:
        """What reads all rows of ``source``, however many are bad; at most ``budget`` bytes are kept."""
        return all_rows(self.recipe, source, self.tokenizer, budget, workers, whole=True)

    def views(self, loader: Loads, rows: Tensor) -> Iterator[View]:
        """The examples at ``rows`` (N,) as the encoder is evaluated: whole, nothing random."""
        return self.views_of(loader, torch.split(rows, CHUNK))

    def views_of(self, loader: Loads, chunks: Iterable[Tensor]) -> Iterator[View]:
        """The same of rows that come some at a time, of which each makes views of its own."""
        whole = Examples(self.recipe, loader).whole
        for _, material in loader.batches(map(whole, chunks)):
            yield from few_at_a_time(view_to_device(self.recipe.evaluation(material_to_device(material))))

    @isolated()
    def features(
        self,
        loader: Loads,
        rows: Tensor | None = None,
        layer: Layer = "backbone",
        progress: Progress = silent,
        what: str = "embedding",
    ) -> Tensor:
        """(N, F) unit rows on the processor: of the examples at ``rows``, else of all in the order of the source."""
        if layer == "head" and self.named is not None:
            raise UserError(f"{self.recipe.name} has no head: leave out --layer head")
        rows = torch.arange(len(loader)) if rows is None else rows
        return embed(self.encoder, self.views(loader, rows), layer, counted(progress, what, len(rows)))


@isolated()
def load(
    run: str | Path,
    untrained: bool = False,
    weights: str | None = None,
    precision: Precision = "fp32",
    model: nn.Module | str | None = None,
    download: bool = False,
    say: Say = unsaid,
) -> Trained:
    """A run with the weights of its newest whole checkpoint, or a public model by its name: see exchange/named.py.

    ``precision`` is that of its products from now on. ``untrained`` gives the network with its initial weights, and
    ``weights`` that of a run with those of a file. ``model`` says which network a file of weights is of
    (``timm:NAME``, ``torchvision:NAME``); a run of one that was handed over wants one of the same shapes, once in a
    process. ``download`` fetches a public model that is not here. Raises UserError.
    """
    if untrained and weights:
        raise UserError("choose one of --untrained and --weights")
    if not is_run(run) and (isinstance(model, str) or is_named(run)):
        if weights is not None or isinstance(model, nn.Module):
            raise UserError(f"{run} is a public model, whose network and weights are its own: leave out --weights")
        trained = _public(opened(run, model, download, say), untrained, say)
    elif isinstance(model, str):
        raise UserError(f"{run} is a run, which knows its network: leave out --model {model}")
    else:
        trained = _of_run(Path(run), untrained, weights, model, say)
    trained.encoder.evaluated_in = precision
    return trained._replace(encoder=module_to_device(trained.encoder))


def _public(named: Named, untrained: bool, say: Say) -> Trained:
    recipe = named.recipe
    encoder = recipe.build(recipe.batch).encoder
    if not untrained:
        say(named.fill(encoder))
    tokenizer = Tokenizer(recipe.model.tokenizer()) if isinstance(recipe.model, HuggingFace) else None
    return Trained(recipe, encoder, 0, tokenizer, named.name, None if untrained else named)


def _of_run(folder: Path, untrained: bool, weights: str | None, model: nn.Module | None, say: Say) -> Trained:
    if not is_run(folder):
        raise UserError(
            f"{folder} is not a run: it holds no recipe.json; lookalike pretrain DATA --out {folder} makes one. "
            "Public models are timm:NAME, torchvision:NAME, hf:FOLDER or a file of weights",
            BAD_DATA,
        )
    recipe = read_recipe(folder / "recipe.json")
    if model is not None and Network.of(model, recipe.pictures.first.size) != recipe.model:
        raise UserError(f"{folder} was trained with another backbone, {recipe.model}: give one of the same shapes")
    learner, step = recipe.build(Run(folder).data()["examples"]), 0
    if weights is None and not untrained:
        path = checkpoint.newest_said(Run(folder).checkpoints)
        if path is None:
            raise UserError(
                f"{folder} has no checkpoint yet: let the run save one, or ask for the untrained network", BAD_DATA
            )
        step = checkpoint.load_learner(path, learner)
    encoder = freed(recipe, learner.encoder)
    if weights is not None:
        if not Path(weights).is_file():
            raise UserError(f"{weights} is no file of weights; a public model is named in place of {folder}", BAD_DATA)
        say(load_backbone(encoder, Path(weights)))
    elif not untrained:
        restore(folder, step, encoder)
    return Trained(recipe, encoder, step, load_tokenizer(folder, recipe), os.path.abspath(folder))


def restore(folder: Path, step: int, encoder: Encoder) -> bool:
    """Give an encoder the weights that were kept at the end of its run, if ``step`` is that end; whether it did."""
    if not (folder / VERDICT).is_file():
        return False
    verdict = read_json(folder / VERDICT)
    if not isinstance(verdict, dict) or verdict.get("step") != step:
        return False
    try:
        data, digests = (folder / RESULT).read_bytes(), verdict.get("sha256")
        if digests is not None and sha256(data).hexdigest() != digests:
            raise ValueError("its bytes are not those that were written")
        encoder.load_state_dict(from_bytes(data))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:200]
        advice = f"without it and {VERDICT} the last step counts"
        raise UserError(f"{folder / RESULT} cannot be used ({reason}): {advice}", BAD_DATA) from None
    return True


def as_begun(model: Trained) -> Trained | None:
    """A run's network with the weights of the model that it began with, not whitened; None where it began with none."""
    if not model.run or not (Path(model.run) / START).is_file():
        return None
    encoder = initial(model.recipe)
    encoder.backbone.load_state_dict(begun_as(Path(model.run)))
    encoder.whitening, encoder.evaluated_in = None, model.encoder.evaluated_in
    return model._replace(encoder=encoder)


def begun_as(folder: Path) -> dict[str, Tensor]:
    """The backbone that a run began with. Raises UserError for a damaged one."""
    try:
        return from_bytes(known(folder / START))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / START} cannot be read ({error}): without it nothing compares", BAD_DATA) from None


def initial(recipe: Recipe) -> Encoder:
    """The encoder of a recipe with its initial weights, which no number of examples changes."""
    return module_to_device(freed(recipe, recipe.build(max(2, recipe.batch)).encoder))


def freed(recipe: Recipe, encoder: Encoder) -> Encoder:
    """An encoder of a recipe as a plain network that nothing holds: what tunes it next, tunes all starts alike."""
    if recipe.tuned == Movement():
        return encoder
    merge(encoder.backbone)
    plain = replace(recipe, tuned=Movement()).build(max(2, recipe.batch)).encoder
    plain.load_state_dict(encoder.state_dict())
    return plain


def few_at_a_time(view: View) -> Iterator[View]:
    """Large pictures so few at a time that a processor's cache holds what a layer makes of them; else all at once."""
    pixels = view.get("pixels")
    if pixels is None or pixels.device.type != "cpu" or pixels.shape[-1] <= _LARGE:
        yield view
        return
    yield from ({"pixels": part} for part in torch.split(pixels, _FEW))


class PartFeatures(NamedTuple):
    """The features of one part of the data, with labels (N,), -1 where there is none."""

    features: Tensor
    labels: Tensor
    paths: list[str]

    @classmethod
    def of(
        cls,
        trained: Trained,
        source: Source,
        layer: Layer,
        workers: int | None,
        progress: Progress,
        what: str,
        say: Say = unsaid,
    ) -> PartFeatures:
        """The readable examples of ``source``; each rank embeds some of them, and the first rank alone gets them."""
        return cls.read(trained, part_loader(trained, source, workers), layer, progress, what, say)

    @classmethod
    def read(
        cls, trained: Trained, loader: Loads, layer: Layer, progress: Progress, what: str, say: Say = unsaid
    ) -> PartFeatures:
        """The same of what a loader reads."""
        source = loader.source
        every = Examples(trained.recipe, loader).evaluated()
        rows = every[slice(*dist.chunks_of_rank(len(every), CHUNK))]
        features = trained.features(loader, rows, layer, progress, f"embedding {what}")
        if bad := met_by_all(loader, source):
            say(unreadable(bad, f"of {what}; lookalike doctor on the data lists all of them"))
        good = torch.tensor([row not in loader.bad_rows for row in rows.tolist()], dtype=torch.bool)
        kept = dist.to_first(rows[good])
        return cls(dist.to_first(features[good]), source.labels[kept], [source.paths[row] for row in kept.tolist()])

    def in_clips(self, seconds: float | None) -> PartFeatures:
        """One row for each piece of a video so many seconds long: the mean of its unit rows, again of unit norm."""
        if seconds is None or not self.paths:
            return self
        names, number = pieces(self.paths, seconds)
        labels = self.labels.new_empty(len(names))
        labels[number] = self.labels  # of a video they are all the same
        return PartFeatures(means(self.features, number, len(names)), labels, names)


def met_by_all(loader: Loads, source: Source) -> dict[str, str]:
    """What could not be read, by path, as every rank met its share, in the order of the rows."""
    bad: dict[int, str] = {}
    for rank in range(dist.world()):
        bad |= {int(row): reason for row, reason in dist.agree(loader.bad_rows, rank).items()}  # JSON's keys are text
    return {source.paths[row]: bad[row] for row in sorted(bad)}


def part_loader(trained: Trained, source: Source, workers: int | None) -> Loads:
    """What reads ``source``; of several ranks none keeps canvases, since it would keep everybody's."""
    return trained.loader(source, workers, 4 * GIB if dist.world() == 1 else 0)


def refuse_other_ranks(trained: Trained, sources: Mapping[str, Source], *settings: object) -> None:
    """What ranks must have in common that embed these examples together; see ``dist.refuse_other_ranks``."""
    if dist.world() == 1:
        return
    every = {name: facts(source) for name, source in sources.items()}
    data = {f"{fact} of {name}": value for name, part in every.items() for fact, value in part.items()}
    model = {"precision": trained.encoder.evaluated_in, "weights": weights_digest(trained.encoder)[:16]}
    recipe = {f"the recipe's {path}": value for path, value in flat(trained.recipe).items()}
    dist.refuse_other_ranks(data, {**model, **recipe, "settings": settings})


def readable(loader: Loads) -> list[int]:
    """The rows that could be read, as far as they were met."""
    return [row for row in range(len(loader)) if row not in loader.bad_rows]


def labelled_parts(trained: Trained, data: Data, say: Say = unsaid) -> tuple[Source, Source]:
    """What an evaluation compares with and its queries, on which what is odd is said.

    Whitens a network that was never trained. Raises UserError where there are no labels.
    """
    both = reference_and_query(data, find=modality_of(trained.recipe).find, say=say)
    reference, query = (labelled(source, data) for source in both)
    if trained.step == 0:
        whiten_untrained(trained, reference)
    return reference, query


def whiten_untrained(trained: Trained, source: Source, most: int = 5000) -> None:
    """Give a network that was never trained its whitening, if any, as training would have: the fair baseline."""
    if not trained.recipe.whiten:
        return
    loader = trained.loader(source, 0, 0)
    rows = Examples(trained.recipe, loader).evaluated()
    settle(trained.encoder, trained.views(loader, rows[:: -(-len(rows) // most)]))


def labelled(source: Source, data: Data) -> Source:
    """The rows that have a label."""
    known = source.labels >= 0
    if bool(known.all()):
        return source
    rows = known.nonzero()[:, 0]
    if len(rows) == 0:
        inner = inner_folder(name_of(data), [source])
        why = next((f" ({reason})" for reason in source.unlisted.values()), "")
        hint = f": did you mean {inner}?" if inner else f"{why}: class folders, or tables with a label column"
        raise UserError(f"{name_of(data)} has no labels to evaluate by{hint}", BAD_DATA)
    return Rows(source, rows)


def in_parts(paths: Sequence[str], rows: Tensor) -> list[list[int]]:
    """The rows in their order; frames of a video are one part."""
    videos: dict[str, list[int]] = {}
    for row in rows.tolist():
        videos.setdefault(video_of(paths[row]), []).append(row)
    return list(videos.values())


class Checkup(NamedTuple):
    """What is done a few times during a run: fit the whitening, and measure kNN where the training data has labels.

    It sees a fixed draw of training examples, a fifth of which are the queries: no test example is looked at.
    """

    loader: Loads
    recipe: Recipe
    rows: Tensor
    queries: int  # how many of them, the first, are the queries
    whole: Loads  # of these rows as evaluations see them
    silent: bool = False  # measures and fits nothing

    @classmethod
    def of(cls, loader: Loads, recipe: Recipe, most: int = 5000) -> Checkup:
        """A draw of at most ``most`` rows that the data alone decides; frames of a video stay on one side."""
        videos = in_parts(loader.source.paths, Examples(recipe, loader).some(most, draw=2))
        sizes = list(accumulate(map(len, videos), initial=0))
        queries = next(size for size in sizes if size >= sizes[-1] // 5)
        rows = torch.tensor([row for part in videos for row in part])
        if recipe.preprocessing is None:
            return cls(loader, recipe, rows, queries, loader)
        return cls(loader, recipe, rows, queries, all_rows(recipe, Rows(loader.source, rows), None, whole=True))

    def __call__(self, learner: Learner) -> dict[str, float]:
        """{"knn": accuracy} of the backbone's features; {} without labels, or where they were trained on."""
        if self.silent:
            return {}
        trained = Trained(self.recipe, learner.encoder, 0)
        rows = self.rows if self.whole is self.loader else torch.arange(len(self.rows))
        features = settle(learner.encoder, trained.views(self.whole, rows))
        labels, count = self.loader.source.labels[self.rows], self.queries
        if count in (0, len(labels)) or self.recipe.objective.supervised or bool((labels < 0).any()):
            return {}
        # As many neighbours of this part of the data as the k of an evaluation would be of the whole.
        monitor = self.recipe.monitor
        k = min(monitor.k, Knn.suited(self.loader.source.labels, monitor.temperature).k)
        knn = replace(monitor, k=max(1, round(k * (len(labels) - count) / len(self.loader))))
        return {"knn": knn.accuracy(features[count:], labels[count:], features[:count], labels[:count])}

    def seconds(self) -> float:
        """How long one call takes, by making one."""
        began = time.perf_counter()
        self(module_to_device(self.recipe.build(len(self.loader))))
        return time.perf_counter() - began
