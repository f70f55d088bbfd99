"""A recipe: the frozen value that names everything a run depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch

from lookalike.core.devices import Precision, device, resolved
from lookalike.core.errors import BAD_DATA, POSITIVE, Bounded, Count, Limit, PixelSide, Probability, UserError, Width
from lookalike.core.seeding import reseed
from lookalike.data.preprocessing import Preprocessing, Side
from lookalike.learn.dictionary import InBatch, MemoryBank, Neighbours, Queue, QueueEach
from lookalike.learn.keys import Alone, EndToEnd, Momentum, Stored
from lookalike.learn.labelled import Classes, CrossEntropy, Labelled
from lookalike.learn.learner import Learner
from lookalike.learn.objective import DCL, NCE, InfoNCE, Objective, PolyView, SupCon
from lookalike.learn.optim import LARS, SGD, AdamW, Cosine, Linear, Muon, Steps
from lookalike.learn.tuned import Movement
from lookalike.metrics.knn import Knn
from lookalike.models.decoder import Decoder, Words
from lookalike.models.encoder import MLP, Encoder, Whitening
from lookalike.models.hugging_face import HuggingFace, HuggingFacePictures
from lookalike.models.image import ResNet, SmallResNet, SmallVideoResNet, Timm, Torchvision, VideoResNet
from lookalike.models.text import Transformer, TwoTowers
from lookalike.models.vit import ViT
from lookalike.pretext.image import ImageView, Masked, OneView, TwoViews
from lookalike.pretext.text import Captions, Cloze, Pairs, SameSentence
from lookalike.pretext.video import TwoClips, TwoFrames, TwoMoments
from lookalike.recipes.parts import PARTS, Backbone, DictionaryPart, adapted
from lookalike.types import Canvases, Material, View

Pretext = TwoViews | OneView | Masked | TwoFrames | TwoClips | SameSentence | Pairs | Cloze | Captions
Model = (
    ResNet
    | SmallResNet
    | ViT
    | Timm
    | Torchvision
    | HuggingFacePictures
    | VideoResNet
    | SmallVideoResNet
    | Transformer
    | HuggingFace
    | TwoTowers
    | Backbone
)
DictionaryValue = Queue | InBatch | MemoryBank | Neighbours | QueueEach | Classes | DictionaryPart


@dataclass(frozen=True)
class Stage(Bounded):
    """A run's length as it was changed: it is ``total`` steps long from the step that follows ``after`` on."""

    after: Annotated[int, Limit(0)]
    total: Count
    minutes: Annotated[float | None, POSITIVE] = None  # by how many it was made longer, if it was by minutes


@dataclass(frozen=True)
class Length(Bounded):
    """How long a run is: ``epochs``, or exactly ``steps``, or as many steps as ``minutes`` allow.

    Minutes are turned into steps when the run starts, and ``steps`` records the answer. ``stages`` records, oldest
    first, how its length was changed later: what a step does is a function of the length that counts for it.
    """

    epochs: Annotated[float | None, POSITIVE] = None
    minutes: Annotated[float | None, POSITIVE] = None
    steps: Count | None = None
    stages: tuple[Stage, ...] = ()

    def total(self, steps_per_epoch: int) -> int | None:
        """Steps of the whole run, or None where minutes have not been measured yet."""
        if self.stages:
            return self.stages[-1].total
        if self.steps is not None:
            return self.steps
        return None if self.epochs is None else max(1, round(self.epochs * steps_per_epoch))

    def total_at(self, steps_per_epoch: int, step: float = math.inf) -> int:
        """The steps of the whole run as they count for ``step``, from 1 on, or for the last; measured by now."""
        begun = [stage for stage in self.stages if stage.after < step]
        total = replace(self, stages=tuple(begun)).total(steps_per_epoch)
        if total is None:
            raise ValueError("minutes are measured before training: see length.py")
        return total

    def changed(self, after: int, total: int, minutes: float | None = None) -> Length:
        """The length of a run that is to be ``total`` steps long from the step that follows ``after`` on."""
        return replace(self, stages=(*self.stages, Stage(after, total, minutes)))

    def longer_by(self) -> float | None:
        """The minutes by which it was last made longer, None where it never was by minutes."""
        return next((stage.minutes for stage in reversed(self.stages) if stage.minutes is not None), None)

    @property
    def original(self) -> Length:
        """As the person set it when the run began."""
        return Length(minutes=self.minutes) if self.minutes is not None else replace(self, stages=())


@dataclass(frozen=True)
class Recipe(Bounded):
    """What is learned, how, and for how long; two runs of one recipe on the same data and machine are equal."""

    name: str
    pretext: Pretext
    canvas: PixelSide = 256  # side in pixels at which pictures are kept before they are cropped
    preprocessing: Preprocessing | None = None  # how evaluations see pictures; None: as the pretext says
    model: Model = ResNet()  # noqa: RUF009
    head: MLP = MLP()  # noqa: RUF009
    whiten: bool = False  # the backbone ends in a map, fitted without labels, that decorrelates its features
    unit_rows: bool = False  # that map takes rows of unit norm
    directions: Width | None = None  # of most variance, which that map keeps; None: as many as there are features
    predictor: MLP | None = None  # between the query's head and the query (MoCo v3)
    reconstruction: Decoder | Words | None = None  # rebuilds what the query does not see (MAE, BERT)
    keys: Momentum | EndToEnd | Stored | Labelled | Alone = Momentum()  # noqa: RUF009
    dictionary: DictionaryValue = Queue()  # noqa: RUF009
    objective: InfoNCE | DCL | PolyView | SupCon | NCE | CrossEntropy | Objective = InfoNCE()  # noqa: RUF009
    optimizer: SGD | LARS | AdamW | Muon = SGD()  # noqa: RUF009
    schedule: Cosine | Linear | Steps = Steps()  # noqa: RUF009
    tuned: Movement = Movement()  # noqa: RUF009
    length: Length = Length(epochs=200)
    batch: Annotated[int, Limit(2)] = 256  # examples a step, over all processes
    window: Count | None = None  # shards whose rows are shuffled together; None: everything at once
    group: Count = 32  # examples that share BatchNorm statistics
    slices: Count = 1  # parts in which a batch is worked on: less memory, the same mathematics
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of products; auto: bf16 where the device computes in it
    monitor: Knn = Knn()  # noqa: RUF009
    held_out: Annotated[float, Limit(0, 0.9)] = 0.0
    """Share of the examples that are kept from training, by which a start and the result compare."""
    mixtures: tuple[Probability, ...] = ()  # shares of the way from a start to the end, that may be kept as the result
    checkups: Annotated[int, Limit(0)] = 10  # how often the monitor runs, evenly over the run
    seed: Annotated[int, Limit(0, 2**63 - 1)] = 0

    def build(self, examples: int) -> Learner:
        """A learner with the initial weights that ``seed`` decides; same seed, same weights. Raises UserError."""
        if nonsense := meaningless(self):
            raise UserError(f"recipe {self.name} makes no sense: {nonsense}")
        reseed(self.seed, 0)
        backbone, features = self.model.build(self.group)
        if type(self.model) in PARTS.values():
            backbone = adapted(backbone, self.group)
        self.tuned.settle(backbone)
        evaluated = int(getattr(backbone, "evaluated_width", features))
        whitening = Whitening(evaluated, self.unit_rows, self.directions) if self.whiten else None
        encoder = Encoder(backbone, self.head.build(features, self.group), whitening, self.computes_in())
        dim = self.head.widths[-1] if self.head.widths else features
        dictionary = self.dictionary.build(dim, examples)
        keys = self.keys.build(encoder, dictionary)
        predictor = self.predictor.build(dim, self.group) if self.predictor else None
        decoder = self.reconstruction.build(features, self._hidden()) if self.reconstruction else None
        return Learner(encoder, keys, dictionary, self.objective.build(examples), predictor, decoder)

    def optimizer_of(self, learner: Learner) -> torch.optim.Optimizer:
        """What steps the weights that learn."""
        return self.tuned.spread(self.optimizer.build(learner, self.batch), learner.encoder.backbone)

    def computes_in(self) -> Precision:
        """What ``precision`` is here. Raises UserError.

        Clips are computed in fp32 on processors: the gradients of bf16 kernels over two frames came out as infinities,
        or as other numbers each time (oneDNN, as torch 2.10 to 2.14 have it; docs/results.md).
        """
        if not isinstance(self.model, VideoResNet | SmallVideoResNet) or device().type != "cpu":
            return resolved(self.precision)
        if self.precision == "bf16":
            raise UserError(
                "clips cannot be learned in bf16 on a processor, whose gradients are wrong: --precision fp32"
            )
        return "fp32"

    @property
    def pairs(self) -> int:
        """Of views that an example gives in a step."""
        return self.pretext.pairs if isinstance(self.pretext, TwoViews) else 1

    @property
    def whole_canvas(self) -> Side:
        """What evaluations read of a picture."""
        return self.preprocessing or self.canvas

    def evaluation(self, material: Material) -> View:
        """What evaluations encode, of whole canvases; nothing is random."""
        if self.preprocessing is None:
            return self.pretext.evaluation(material)  # type: ignore[arg-type]  # of its own modality
        assert isinstance(material, Canvases)
        return self.preprocessing.view(material.pixels)

    @property
    def pictures(self) -> TwoViews | TwoClips:
        """The pretext of a recipe for pictures or frames of videos; raises UserError for another."""
        if not isinstance(self.pretext, TwoViews | TwoClips):
            raise UserError(f"{self.name} makes no two views of a picture, and this is made for pictures")
        return self.pretext

    def crops(self) -> ImageView:
        """What classifiers of pictures are trained on; raises UserError where the encoder takes none."""
        if not isinstance(self.pictures, TwoViews):
            raise UserError(
                "this encoder takes clips, and the evaluation trains on crops of pictures: take knn or probe"
            )
        return self.pictures.crops()

    def fitted(
        self,
        examples: int,
        side: int = 32,
        change: Callable[[Recipe], Recipe] = lambda recipe: recipe,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Recipe:
        """The recipe for this many examples, whose pictures have a median short side of ``side`` pixels.

        What depends on the data is decided here alone. ``change`` applies what a person sets, which holds against the
        recipe's own numbers; ``tell`` gets a sentence for each of either that cannot stay. Raises UserError.
        """
        advised = 2 ** max(1, (examples // 4).bit_length() - 1)
        default = self
        if self.batch > examples >= 4:
            default = replace(self, batch=advised, group=min(self.group, max(2, advised // 2)))
        recipe = change(default)
        if recipe.batch > examples:
            advice = f"try --batch {advised}" if examples >= 4 else "add examples"
            message = f"a batch of {recipe.batch} is larger than the data, {examples} examples: {advice}"
            raise UserError(message, BAD_DATA)
        if recipe.batch == default.batch < self.batch:
            tell(f"batches of {recipe.batch}, not {self.batch} as {self.name} has them: there are {examples} examples")
        dictionary = recipe.dictionary.fitted(examples)
        if default.dictionary != recipe.dictionary != dictionary:
            tell(f"{dictionary}, not {recipe.dictionary}: a query must not meet an earlier key of its own example")
        return replace(recipe, dictionary=dictionary)

    def with_labels(self, classes: int) -> Recipe:
        """The recipe as a classifier: its model, first view, batches, optimizer, schedule and length, but one linear
        layer and cross entropy. A step sees one view of each example, where momentum contrast encodes two.
        """
        return replace(
            self,
            name=f"supervised_{self.name}",
            pretext=OneView(self.pictures.first, whole=self.pictures.whole),
            head=MLP((classes,)),
            predictor=None,
            reconstruction=None,
            keys=Labelled(),
            dictionary=Classes(classes),
            objective=CrossEntropy(),
        )

    def chance_loss(self, examples: int) -> float:
        """The loss of scoring all entries alike, and of painting nothing: what a run starts near."""
        negatives = self.dictionary.negatives(self.batch, examples) * self.pairs  # several are in the batch alone
        contrast = self.keys.directions * self.objective.chance_loss(negatives)
        return contrast + (self.reconstruction.chance_loss(self._hidden()) if self.reconstruction else 0.0)

    def filling(self, examples: int) -> int:
        """Steps that meet random keys, which a queue and a memory bank start with, easily told from real ones."""
        if isinstance(self.dictionary, MemoryBank):
            return 0 if self.dictionary.filled else examples // self.batch
        if not isinstance(self.dictionary, Queue):
            return 0
        views = 1 if isinstance(self.dictionary, QueueEach | Neighbours) else self.keys.directions
        return math.ceil((self.dictionary.size + self.dictionary.wait) / (self.batch * max(1, views)))

    def _hidden(self) -> int:
        """What a decoder must know of what is hidden: the side of patches, or how many tokens there are."""
        return self.model.vocabulary if isinstance(self.model, Transformer) else self.pretext.patch  # type: ignore[union-attr]

    def contrast(self) -> str:
        """What a query is scored against, in words."""
        return str(self.dictionary) if self.keys.directions else "no contrast"


def meaningless(recipe: Recipe) -> str | None:
    """Why the parts of a recipe do not fit together, in words; None where they do."""
    checks = (_labels, _contrast, _modalities, _reconstruction)
    return next((words for check in checks for words in check(recipe)), None)


def _labels(recipe: Recipe) -> Iterator[str]:
    """What a classifier and supervised contrast require of the other parts."""
    keys, dictionary, objective = recipe.keys, recipe.dictionary, recipe.objective
    parts = (isinstance(keys, Labelled), isinstance(dictionary, Classes), isinstance(objective, CrossEntropy))
    ends = (recipe.head.widths[-1:], recipe.predictor)
    if any(parts) and not all(parts):
        yield "a classifier is all of Labelled, Classes and CrossEntropy"
    if isinstance(dictionary, Classes) and ends != ((dictionary.count,), None):
        yield "the head of a classifier ends in one number for each class, and no predictor follows"
    if isinstance(objective, SupCon) and not isinstance(dictionary, InBatch):
        yield "supervised contrast must know the labels of its entries: the dictionary is InBatch"
    if isinstance(objective, PolyView) and not isinstance(dictionary, InBatch):
        yield "several positives of a query are views of its batch: the dictionary is InBatch"
    if recipe.pairs > 1 and not (isinstance(objective, PolyView) and type(recipe.pretext) is TwoViews):
        yield "several pairs of views of a picture are positives of each other: pretext TwoViews, objective PolyView"
    if isinstance(recipe.pretext, OneView) and not isinstance(keys, Stored) and not any(parts):
        yield "one view a step is only enough where its key is stored from before: use TwoViews"


def _contrast(recipe: Recipe) -> Iterator[str]:
    """What keys, dictionary and objective require of each other."""
    keys, dictionary, nce = recipe.keys, recipe.dictionary, isinstance(recipe.objective, NCE)
    made_in_step = isinstance(keys, EndToEnd) or isinstance(dictionary, InBatch | Neighbours)
    if isinstance(keys, Stored) and not isinstance(dictionary, MemoryBank):
        yield "stored keys are rows of a memory bank, which alone has one for every example"
    near, fits = isinstance(dictionary, MemoryBank) and dictionary.neighbours, type(recipe.objective) is InfoNCE
    if near and not (fits and dictionary.filled):  # type: ignore[union-attr]
        yield "neighbours are those of a start, and InfoNCE alone takes them: dictionary.filled, and InfoNCE"
    if nce and isinstance(dictionary, MemoryBank) and dictionary.draws is None:
        yield "NCE stands for a softmax that is too long to sum: give the memory bank draws, or take InfoNCE"
    if recipe.predictor is not None and recipe.predictor.widths[-1:] != recipe.head.widths[-1:]:
        yield "the predictor ends in another width than the head, so queries and keys cannot be compared"
    if recipe.slices > 1 and made_in_step and not isinstance(keys, Alone):
        yield "slices need entries from before the batch: those of a queue or a bank, and keys without gradient"
    if recipe.slices > 1 and nce:
        yield "the Z of NCE comes from the first batch whole: it cannot be worked on in slices"


def _modalities(recipe: Recipe) -> Iterator[str]:
    """What pretext and model require of each other."""
    pretext, model, keys = recipe.pretext, recipe.model, recipe.keys
    text, clips = isinstance(pretext, SameSentence), isinstance(pretext, TwoClips)
    if text != isinstance(model, Transformer | HuggingFace):
        yield "views of text are for encoders of text, and those of pictures for encoders of pictures"
    if text and isinstance(keys, Momentum) and keys.shuffle:
        yield "keys of text are not shuffled, since no BatchNorm compares them: keys.shuffle is false"
    if clips != isinstance(model, VideoResNet | SmallVideoResNet):
        yield "clips are for encoders of videos, and frames for encoders of pictures"
    if isinstance(pretext, Captions) != isinstance(model, TwoTowers):
        yield "a picture and its caption go through two towers, which are for nothing else: model is TwoTowers"
    if isinstance(recipe.dictionary, QueueEach) and keys.directions != 2:
        yield "a queue for each direction needs two directions: keys must be Momentum, and symmetric"
    if isinstance(pretext, TwoMoments) and not 0 <= pretext.near <= pretext.farthest():
        yield "the two moments lie pretext.near to pretext.far seconds apart, with 0 <= near <= far"
    if isinstance(pretext, Masked) and not (isinstance(model, ViT) and model.patch == pretext.patch):
        yield "only a ViT leaves patches out, those of its own size: model.patch must be pretext.patch"


def _reconstruction(recipe: Recipe) -> Iterator[str]:
    """What a decoder requires of the other parts, and they of it."""
    pretext, decoder, alone = recipe.pretext, recipe.reconstruction, isinstance(recipe.keys, Alone)
    words = (isinstance(pretext, Cloze), isinstance(decoder, Words))
    if any(words) and not (all(words) and isinstance(recipe.model, Transformer) and alone):
        yield "words are named where tokens are hidden, alone: Cloze, a Transformer, Words and Alone belong together"
    if isinstance(decoder, Decoder) and not (isinstance(pretext, Masked) and pretext.visible() < pretext.patches()):
        yield "a decoder paints what is hidden, and nothing is: the pretext must be Masked, with a larger share"
    bare = recipe.head.widths == () and recipe.predictor is None and isinstance(recipe.dictionary, InBatch)
    if alone and not (decoder is not None and bare):
        yield "without keys a decoder teaches alone: the head is MLP(()), with no predictor, and InBatch stores nothing"


def uneven(recipe: Recipe, world: int) -> str | None:
    """Why a batch cannot be shared by ``world`` processes with the same mathematics; None where it can."""
    if world * recipe.slices == 1:
        return None
    part = recipe.group * world * recipe.slices
    if recipe.batch % part == 0:
        return None
    fits = [n for n in range(1, 65) if recipe.batch % (recipe.group * n * recipe.slices) == 0]
    return (
        f"a batch of {recipe.batch} is not whole groups of {recipe.group} in {recipe.slices} slices on {world} "
        f"processes: give --batch a multiple of {part}, or start {' or '.join(map(str, fits)) or 'fewer'} processes"
    )
