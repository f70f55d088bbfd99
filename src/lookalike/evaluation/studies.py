"""The findings of papers as experiments: what is varied, everything else alike, and what numbers would contradict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from lookalike.core.errors import UserError, meant
from lookalike.learn.dictionary import InBatch, MemoryBank, Queue
from lookalike.learn.keys import EndToEnd, Momentum, Stored
from lookalike.learn.objective import NCE, InfoNCE
from lookalike.learn.optim import Cosine, Steps
from lookalike.models.encoder import MLP
from lookalike.pretext.image import MOCO_V1, OneView, TwoViews
from lookalike.recipes import RECIPES
from lookalike.recipes.images import SMALL
from lookalike.recipes.images import small as default
from lookalike.recipes.recipe import Recipe

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Cell(NamedTuple):
    """One recipe of a study, trained once for each seed."""

    series: str  # what is drawn as one line
    x: float | None  # where on the axis; None in a study of names
    recipe: Recipe
    settings: Mapping[str, Any] = NOTHING  # fields by path, set after the recipe was fitted to the data
    share: float = 1.0  # of the study's steps: less where a step costs more, so that the time is alike
    pictures: float = 1.0  # the share of the training pictures that it learns from, others for each seed

    @property
    def name(self) -> str:
        """``queue 4096``."""
        return self.series if self.x is None else f"{self.series} {self.x:g}"


class Claim(NamedTuple):
    """A finding as numbers can contradict it: one cell is better than another."""

    words: str
    better: str
    worse: str


@dataclass(frozen=True)
class Experiment:
    """A question, the paper's answer, and the runs that ask it again."""

    name: str
    question: str
    source: str  # where the answer stands
    cells: tuple[Cell, ...]
    claims: tuple[Claim, ...]
    axis: str = ""  # what x is
    steps: int = 1000  # of each run

    def cell(self, name: str) -> Cell:
        """By its name; raises UserError."""
        found = next((cell for cell in self.cells if cell.name == name), None)
        if found is None:
            raise UserError(f"no cell {name!r} in {self.name}; {meant(name, [cell.name for cell in self.cells])}")
        return found


small = replace(default, model=replace(SMALL, grid=1), directions=None)
"""As it was evaluated when the studies began, by means over whole pictures: the seeds of a study are of one kind."""

_ONE_VIEW = OneView(small.pictures.first, whole=small.pictures.whole)
_UNSHUFFLED = Momentum(0.99, shuffle=False)
_BANK = replace(small, pretext=_ONE_VIEW, keys=Stored(), dictionary=MemoryBank(momentum=0.5))
_HIDDEN = replace(small, head=MLP((256, 128)))
_BATCH = 128  # of ``small`` on data of 2,048 pictures and more
_END_TO_END = replace(small, keys=EndToEnd(symmetric=False), dictionary=InBatch())


def _sizes() -> Iterator[Cell]:
    """Each mechanism at sizes of its dictionary; a batch of keys is one as large, and a bank draws so many rows.

    At equal steps a larger batch has seen more pictures, so it is tried with as many as the others, too.
    """
    for size in (64, 256, 1024, 4096, 16384):
        yield Cell("queue", size, replace(small, dictionary=Queue(size)))
        yield Cell("memory bank", size, replace(_BANK, dictionary=MemoryBank(draws=size, momentum=0.5)))
    for size in (64, 256, 1024):
        yield Cell("end to end", size, _END_TO_END, {"batch": size})
        yield Cell("end to end, as many pictures", size, _END_TO_END, {"batch": size}, share=_BATCH / size)


dictionary_size = Experiment(
    "dictionary_size",
    "Does a larger dictionary help, and which mechanism makes most of it?",
    "MoCo (arXiv 1911.05722), figure 3",
    tuple(_sizes()),
    (
        Claim("a larger queue is better", "queue 4096", "queue 64"),
        Claim("it still is beyond 4,096 keys", "queue 16384", "queue 4096"),
        Claim("a queue is better than a memory bank as large", "queue 4096", "memory bank 4096"),
        Claim("keys of a larger batch are better at equal steps", "end to end 1024", "end to end 64"),
        Claim(
            "and when as many pictures are seen",
            "end to end, as many pictures 1024",
            "end to end, as many pictures 64",
        ),
        Claim("a queue is better than a batch of keys as large", "queue 1024", "end to end, as many pictures 1024"),
    ),
    axis="keys in the dictionary",
)

momentum = Experiment(
    "momentum",
    "How slowly must the twin follow, and why not simply never update it?",
    "MoCo (arXiv 1911.05722), section 4.1: 0 fails, 0.9: 55.2, 0.99: 57.8, 0.999: 59.0, 0.9999: 58.9 %",
    tuple(
        Cell("momentum", value, replace(small, keys=Momentum(value)))
        for value in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)
    ),
    (
        Claim("a twin that follows slowly is better than the encoder itself", "momentum 0.99", "momentum 0"),
        Claim("0.99 is better than 0.9", "momentum 0.99", "momentum 0.9"),
        Claim("a twin that follows is better than one that never moves", "momentum 0.99", "momentum 1"),
    ),
    axis="momentum of the twin",
)


def _waits() -> Iterator[Cell]:
    """4,096 keys that are up to 32 steps old, or wait 32, 64 and 128 steps before, by twins of two speeds."""
    for speed, waits in ((0.9, (0, 4096, 16384)), (0.99, (0, 4096, 8192, 16384))):
        for wait in waits:
            recipe = replace(small, keys=Momentum(speed), dictionary=Queue(4096, wait=wait))
            yield Cell(f"twin at {speed:g}, newer keys", wait, recipe)


age = Experiment(
    "age",
    "Are old keys worse ones, and does a slow twin keep them young?",
    "MoCo (arXiv 1911.05722), section 3.1: keys must come from alike encoders, so that a slow twin allows a long queue",
    tuple(_waits()),
    (
        Claim("young keys are better", "twin at 0.99, newer keys 0", "twin at 0.99, newer keys 16384"),
        Claim("of a fast twin, too", "twin at 0.9, newer keys 0", "twin at 0.9, newer keys 16384"),
        Claim(
            "of old keys those of a slow twin are better",
            "twin at 0.99, newer keys 16384",
            "twin at 0.9, newer keys 16384",
        ),
    ),
    axis="newer keys that are not scored",
)

temperature = Experiment(
    "temperature",
    "How sharply should positives be told from negatives?",
    "MoCo v2 (arXiv 2003.04297), section 3: with an MLP head 0.2 is better than the 0.07 of MoCo, and than 0.5",
    tuple(
        Cell("temperature", value, replace(_HIDDEN, objective=InfoNCE(value)))
        for value in (0.03, 0.07, 0.1, 0.2, 0.5, 1.0)
    ),
    (
        Claim("0.2 is better than 0.07", "temperature 0.2", "temperature 0.07"),
        Claim("0.2 is better than 0.5", "temperature 0.2", "temperature 0.5"),
        Claim("0.2 is better than 1", "temperature 0.2", "temperature 1"),
    ),
    axis="temperature",
)

shuffle = Experiment(
    "shuffle",
    "Do keys have to be normalised in other groups than their queries?",
    "MoCo (arXiv 1911.05722), section 3.3 and figure 4: without shuffled groups the pretext is solved by a leak",
    (
        Cell("shuffled", None, small),
        Cell("not shuffled", None, replace(small, keys=_UNSHUFFLED)),
        Cell("shuffled, groups of 16", None, replace(small, group=16)),
        Cell("not shuffled, groups of 16", None, replace(small, group=16, keys=_UNSHUFFLED)),
    ),
    (
        Claim("shuffling is better", "shuffled", "not shuffled"),
        Claim("also in small groups", "shuffled, groups of 16", "not shuffled, groups of 16"),
    ),
)

objective = Experiment(
    "objective",
    "What is lost by drawing rows of the bank, and by NCE in the place of a softmax?",
    "InstDisc (arXiv 1805.01978), on CIFAR-10: NCE of few rows is poor, of many it equals the full softmax",
    (
        Cell("full softmax", None, replace(_BANK, objective=InfoNCE(0.1))),
        Cell("InfoNCE of 512 rows", None, replace(_BANK, dictionary=MemoryBank(draws=512), objective=InfoNCE(0.1))),
        Cell("NCE of 512 rows", None, replace(_BANK, dictionary=MemoryBank(draws=512), objective=NCE(0.1))),
        Cell("NCE of 16 rows", None, replace(_BANK, dictionary=MemoryBank(draws=16), objective=NCE(0.1))),
    ),
    (
        Claim("more rows are better by NCE", "NCE of 512 rows", "NCE of 16 rows"),
        Claim("NCE of 512 rows does as well as the full softmax, or better", "NCE of 512 rows", "full softmax"),
    ),
)

_VIEW_1 = replace(small.pictures.first, hue=MOCO_V1.hue, jitter=MOCO_V1.jitter, order=MOCO_V1.order)
_V1 = replace(
    small,
    pretext=TwoViews(_VIEW_1, whole=small.pictures.whole),
    objective=InfoNCE(0.07),
    schedule=Steps((0.6, 0.8)),
)
_MLP = replace(_V1, head=MLP((256, 128)), objective=InfoNCE(0.2))
_AUG = replace(_V1, pretext=small.pretext)

v2_steps = Experiment(
    "v2_steps",
    "What does each step from MoCo to MoCo v2 add?",
    "MoCo v2 (arXiv 2003.04297), table 1: 60.6; with an MLP head 62.9, stronger views 63.4, both 67.3, a cosine 67.5 %",
    (
        Cell("v1", None, _V1),
        Cell("with an MLP head", None, _MLP),
        Cell("with v2's views", None, _AUG),  # without blur, which 24 pixels hardly show
        Cell("with both", None, replace(_MLP, pretext=small.pretext)),
        Cell("with both and a cosine", None, replace(_MLP, pretext=small.pretext, schedule=Cosine(warmup=0.05))),
    ),
    (
        Claim("an MLP head helps", "with an MLP head", "v1"),
        Claim("v2's views help", "with v2's views", "v1"),
        Claim("both help more than v1", "with both", "v1"),
        Claim("a cosine helps", "with both and a cosine", "with both"),
    ),
)

symmetric = Experiment(
    "symmetric",
    "Is a step in which both views are queries worth its double cost?",
    "MoCo v3 (arXiv 2104.02057): symmetrised losses; compared there at equal epochs, here at equal compute",
    (
        Cell("one-sided", None, small),
        Cell("symmetric, half the steps", None, replace(small, keys=Momentum(0.99, symmetric=True)), share=0.53),
        Cell("symmetric, equal steps", None, replace(small, keys=Momentum(0.99, symmetric=True))),
    ),
    (
        Claim("at equal steps symmetric is better", "symmetric, equal steps", "one-sided"),
        Claim("at equal compute, too", "symmetric, half the steps", "one-sided"),
    ),
)

masks = Experiment(
    "masks",
    "Does contrast with masked queries learn more than either alone, at equal compute?",
    "the authors of MoCo wish for it (arXiv 1911.05722, section 5); nothing is published",
    (
        Cell("contrast", None, RECIPES["small_moco_v3_vit"], share=0.33),
        Cell("contrast and pixels", None, RECIPES["small_masked_moco"]),
        Cell("pixels", None, RECIPES["small_mae"], share=2.4),
    ),
    (
        Claim("masked contrast is better than contrast of whole views", "contrast and pixels", "contrast"),
        Claim("masked contrast is better than pixels alone", "contrast and pixels", "pixels"),
    ),
)

_BY_ITSELF = RECIPES["small_simclr"]  # which no dictionary keeps from learning from few pictures

more_data = Experiment(
    "more_data",
    "What are more pictures without labels worth, at equal steps?",
    "MoCo (arXiv 1911.05722), section 4.2: a thousand times as many pictures, uncurated, transfer better in every task",
    tuple(
        Cell("percent", 100 * share, _BY_ITSELF, {"batch": _BATCH, "group": _BATCH // 2}, pictures=share)
        for share in (0.01, 0.1, 1.0)
    ),
    (
        Claim("a tenth is better than a hundredth", "percent 10", "percent 1"),
        Claim("all are better than a tenth", "percent 100", "percent 10"),
    ),
    axis="percent of the training pictures",
)

STUDIES = {
    study.name: study
    for study in (
        *(dictionary_size, momentum, age, temperature, shuffle),
        *(objective, v2_steps, symmetric, masks, more_data),
    )
}
"""By their names."""
