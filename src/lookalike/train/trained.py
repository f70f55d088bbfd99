"""A run as something to use: its encoder with the weights of a checkpoint, and what follows from features."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lookalike.core import dist
from lookalike.core.devices import Precision, isolated, material_to_device, module_to_device, view_to_device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.progress import Progress, counted, silent
from lookalike.core.seeding import uniforms
from lookalike.data.example import Rows, Source, inner_folder, unreadable
from lookalike.data.loader import GIB, Loads
from lookalike.data.source import Data, Say, name_of, reference_and_query
from lookalike.data.text.loader import Tokenizer
from lookalike.data.video.source import pieces, video_of
from lookalike.learn.learner import Learner
from lookalike.metrics.knn import Knn
from lookalike.models.encoder import Encoder, Layer, embed, means, settle
from lookalike.recipes.modality import Examples, load_tokenizer, loader, modality_of
from lookalike.recipes.parts import Network
from lookalike.recipes.recipe import Recipe
from lookalike.train import checkpoint
from lookalike.train.run import Run, is_run, read_recipe
from lookalike.exchange.weights import foreign, load_backbone
from lookalike.types import View

_CHUNK = 500  # pictures that are encoded at a time


def unsaid(line: str) -> None:
    """Says nothing."""


class Trained(NamedTuple):
    """An encoder and its recipe; ``step`` 0 is a network that this recipe has not trained."""

    recipe: Recipe
    encoder: Encoder
    step: int
    tokenizer: Tokenizer | None = None  # of text
    run: str = ""  # the folder that it was loaded from

    def __repr__(self) -> str:
        return f"Trained({self.recipe.name}, {type(self.recipe.model).__name__}, step {self.step:,})"

    @isolated()
    def loader(self, source: Source, workers: int | None = None, budget: int = 4 * GIB) -> Loads:
        """What reads all rows of ``source``, however many are bad; at most ``budget`` bytes are kept."""
        return loader(self.recipe, source, self.tokenizer, budget, workers)

    def views(self, loader: Loads, rows: Tensor) -> Iterator[View]:
        """The examples at ``rows`` (N,) as the encoder is evaluated: whole, nothing random."""
        whole = Examples(self.recipe, loader).whole
        for _, material in loader.batches(map(whole, torch.split(rows, _CHUNK))):
            yield view_to_device(self.recipe.pretext.evaluation(material_to_device(material)))

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
        rows = torch.arange(len(loader)) if rows is None else rows
        return embed(self.encoder, self.views(loader, rows), layer, counted(progress, what, len(rows)))


@isolated()
def load(
    run: str | Path,
    untrained: bool = False,
    weights: str | None = None,
    precision: Precision = "fp32",
    model: nn.Module | None = None,
) -> Trained:
    """The encoder of the newest whole checkpoint in a run folder; ``precision`` is that of its products from now on.

    ``untrained`` gives its network with its initial weights, ``weights`` with those of others: see weights.py. A run of
    a network that was handed over wants one of the same shapes, ``model``, once in a process. Raises UserError.
    """
    folder = Path(run)
    if not is_run(folder):
        raise UserError(
            f"{folder} is not a run: it holds no recipe.json; lookalike pretrain DATA --out {folder} makes one",
            BAD_DATA,
        )
    recipe, file = read_recipe(folder / "recipe.json"), None
    if model is not None and Network.of(model, recipe.pictures.first.size) != recipe.model:
        raise UserError(f"{folder} was trained with another backbone, {recipe.model}: give one of the same shapes")
    if weights is not None:
        recipe, file = foreign(recipe, weights)
    learner, step = recipe.build(Run(folder).data()["examples"]), 0
    if file is not None:
        load_backbone(learner.encoder, file)
    elif not untrained:
        path, _ = checkpoint.newest(Run(folder).checkpoints)
        if path is None:
            raise UserError(
                f"{folder} has no checkpoint yet: let the run save one, or ask for the untrained network", BAD_DATA
            )
        step = checkpoint.load_learner(path, learner)
    learner.encoder.evaluated_in = precision
    encoder, where = module_to_device(learner.encoder), os.path.abspath(folder)
    return Trained(recipe, encoder, step, load_tokenizer(folder, recipe), where)


def initial(recipe: Recipe) -> Encoder:
    """The encoder of a recipe with its initial weights, which no number of examples changes."""
    return module_to_device(recipe.build(max(2, recipe.batch)).encoder)


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
        rows = every[slice(*dist.chunks_of_rank(len(every), _CHUNK))]
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
    """Give a network that was never trained its whitening as training would have: the fair baseline."""
    loader = trained.loader(source, 0, 0)
    rows = Examples(trained.recipe, loader).evaluated()
    settle(trained.encoder, trained.views(loader, rows[:: -(-len(rows) // most)]))


def labelled(source: Source, data: Data) -> Source:
    """The rows that have a label."""
    rows = (source.labels >= 0).nonzero()[:, 0]
    if len(rows) == 0:
        inner = inner_folder(name_of(data), [source])
        why = next((f" ({reason})" for reason in source.unlisted.values()), "")
        hint = f": did you mean {inner}?" if inner else f"{why}: class folders, or tables with a label column"
        raise UserError(f"{name_of(data)} has no labels to evaluate by{hint}", BAD_DATA)
    return source if len(rows) == len(source) else Rows(source, rows)


class Checkup(NamedTuple):
    """What is done a few times during a run: fit the whitening, and measure kNN where the training data has labels.

    It sees a fixed draw of training examples, a fifth of which are the queries: no test example is looked at.
    """

    loader: Loads
    recipe: Recipe
    rows: Tensor
    queries: int  # how many of them, the first, are the queries

    @classmethod
    def of(cls, loader: Loads, recipe: Recipe, most: int = 5000) -> Checkup:
        """A draw of at most ``most`` rows that the data alone decides; frames of a video stay on one side."""
        rows = Examples(recipe, loader).evaluated()
        drawn = rows[uniforms(0, 0, rows, 2, 1)[:, 0].argsort()][:most].tolist()
        videos: dict[str, list[int]] = {}
        for row in drawn:
            videos.setdefault(video_of(loader.source.paths[row]), []).append(row)
        sizes = list(accumulate(map(len, videos.values()), initial=0))
        queries = next(size for size in sizes if size >= len(drawn) // 5)
        return cls(loader, recipe, torch.tensor([row for part in videos.values() for row in part]), queries)

    def __call__(self, learner: Learner) -> dict[str, float]:
        """{"knn": accuracy} of the backbone's features; {} without labels, or where they were trained on."""
        trained = Trained(self.recipe, learner.encoder, 0)
        features = settle(learner.encoder, trained.views(self.loader, self.rows))
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
