"""A recipe: the frozen value that names everything a run depends on, to and from JSON and the command line."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, replace
from typing import Any, Literal

from lookalike.evaluate.knn import Knn
from lookalike.learn.alone import Alone
from lookalike.learn.dictionary import InBatch, MemoryBank, Neighbours, Queue
from lookalike.learn.keys import EndToEnd, Momentum, Stored
from lookalike.learn.labelled import Classes, CrossEntropy, Labelled
from lookalike.learn.learner import Learner
from lookalike.learn.objective import DCL, NCE, InfoNCE, SupCon
from lookalike.models.decoder import Decoder
from lookalike.models.encoder import Encoder
from lookalike.models.heads import MLP
from lookalike.models.hugging_face import HuggingFace
from lookalike.models.image import ResNet, SmallResNet, Timm
from lookalike.models.text import Transformer
from lookalike.models.video import SmallVideoResNet, VideoResNet
from lookalike.models.vit import ViT
from lookalike.models.whitening import Whitening
from lookalike.models.words import Words
from lookalike.optimize import LARS, SGD, AdamW, Cosine, Muon, Steps
from lookalike.pretext.image import ImageView, OneView, TwoViews
from lookalike.pretext.mask import Masked
from lookalike.pretext.text import Cloze, Pairs, SameSentence
from lookalike.pretext.video import TwoClips, TwoFrames
from lookalike.seeding import reseed
from lookalike.trouble import BAD_DATA, Trouble


@dataclass(frozen=True)
class Length:
    """How long a run is: ``epochs``, or exactly ``steps``, or as many steps as ``minutes`` allow.

    Minutes are turned into steps once, when the run starts, and ``steps`` records the answer.
    """

    epochs: float | None = None
    minutes: float | None = None
    steps: int | None = None

    def total(self, steps_per_epoch: int) -> int | None:
        """Steps of the whole run, or None where minutes have not been measured yet."""
        if self.steps is not None:
            return self.steps
        return None if self.epochs is None else max(1, round(self.epochs * steps_per_epoch))


@dataclass(frozen=True)
class Recipe:
    """What is learned, how, and for how long; two runs of one recipe on the same data and machine are equal."""

    name: str
    pretext: TwoViews | OneView | Masked | TwoFrames | TwoClips | SameSentence | Pairs | Cloze
    canvas: int = 256  # side in pixels at which pictures are kept before they are cropped
    model: ResNet | SmallResNet | ViT | Timm | VideoResNet | SmallVideoResNet | Transformer | HuggingFace = ResNet()  # noqa: RUF009
    head: MLP = MLP()  # noqa: RUF009
    whiten: bool = False  # the backbone ends in a map, fitted without labels, that decorrelates its features
    predictor: MLP | None = None  # between the query's head and the query (MoCo v3)
    reconstruction: Decoder | Words | None = None  # rebuilds what the query does not see (MAE, BERT)
    keys: Momentum | EndToEnd | Stored | Labelled | Alone = Momentum()  # noqa: RUF009
    dictionary: Queue | InBatch | MemoryBank | Neighbours | Classes = Queue()  # noqa: RUF009
    objective: InfoNCE | DCL | SupCon | NCE | CrossEntropy = InfoNCE()  # noqa: RUF009
    optimizer: SGD | LARS | AdamW | Muon = SGD()  # noqa: RUF009
    schedule: Cosine | Steps = Steps()  # noqa: RUF009
    length: Length = Length(epochs=200)
    batch: int = 256  # examples a step, over all processes
    window: int | None = None  # shards whose rows are shuffled together; None: everything at once
    group: int = 32  # examples that share BatchNorm statistics
    slices: int = 1  # parts in which a batch is worked on: less memory, the same mathematics
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of products; auto: bf16 where the device computes in it
    monitor: Knn = Knn()  # noqa: RUF009
    checkups: int = 10  # how often the monitor runs, evenly over the run
    seed: int = 0

    def build(self, examples: int) -> Learner:
        """A learner with the initial weights that ``seed`` decides; same seed, same weights. Raises Trouble."""
        if nonsense := meaningless(self):
            raise Trouble(f"recipe {self.name} makes no sense: {nonsense}")
        reseed(self.seed, 0)
        backbone, features = self.model.build(self.group)
        encoder = Encoder(backbone, self.head.build(features, self.group), Whitening(features) if self.whiten else None)
        dim = self.head.widths[-1] if self.head.widths else features
        dictionary = self.dictionary.build(dim, examples)
        keys = self.keys.build(encoder, dictionary)
        predictor = self.predictor.build(dim, self.group) if self.predictor else None
        decoder = self.reconstruction.build(features, self._hidden()) if self.reconstruction else None
        return Learner(encoder, keys, dictionary, self.objective.build(examples), predictor, decoder)

    @property
    def pictures(self) -> TwoViews:
        """The pretext of a recipe for pictures; raises Trouble for another, which what asks is not made for."""
        if not isinstance(self.pretext, TwoViews):
            raise Trouble(f"{self.name} is for text, and this is made for pictures")
        return self.pretext

    def fitted(self, examples: int) -> Recipe:
        """The recipe for this many examples; refuses what cannot work."""
        if self.batch > examples:
            advice = f"try --batch {2 ** max(1, (examples // 4).bit_length() - 1)}" if examples >= 4 else "add examples"
            raise Trouble(f"a batch of {self.batch} is larger than the data, {examples} examples: {advice}", BAD_DATA)
        for name, least in {"batch": 2, "group": 1, "canvas": 1, "checkups": 0, "slices": 1}.items():
            if getattr(self, name) < least:
                raise Trouble(f"{name} must be at least {least}")
        return replace(self, dictionary=self.dictionary.fitted(examples))

    def guess(self, examples: int) -> float:
        """The loss of scoring all entries alike, and of painting nothing: what a run starts near."""
        contrast = self.keys.directions * self.objective.guess(self.dictionary.negatives(self.batch, examples))
        return contrast + (self.reconstruction.guess(self._hidden()) if self.reconstruction else 0.0)

    def _hidden(self) -> int:
        """What a decoder must know of what is hidden: the side of patches, or how many tokens there are."""
        return self.model.vocabulary if isinstance(self.model, Transformer) else self.pretext.patch  # type: ignore[union-attr]

    def contrast(self) -> str:
        """What a query is scored against, in words."""
        return str(self.dictionary) if self.keys.directions else "no contrast"


def meaningless(recipe: Recipe) -> str | None:
    """Why the parts of a recipe do not fit together, in words; None where they do."""
    keys, dictionary, objective = recipe.keys, recipe.dictionary, recipe.objective
    stored, bank, batch = isinstance(keys, Stored), isinstance(dictionary, MemoryBank), isinstance(dictionary, InBatch)
    text = (isinstance(recipe.pretext, SameSentence), isinstance(recipe.model, Transformer | HuggingFace))
    alone, decoder, masked = isinstance(keys, Alone), recipe.reconstruction, isinstance(recipe.pretext, Masked)
    labelled = (isinstance(keys, Labelled), isinstance(dictionary, Classes), isinstance(objective, CrossEntropy))
    clips = (isinstance(recipe.pretext, TwoClips), isinstance(recipe.model, VideoResNet | SmallVideoResNet))
    refusals = {
        "stored keys are rows of a memory bank, which alone has one for every example": stored and not bank,
        "a classifier is all of Labelled, Classes and CrossEntropy": any(labelled) and not all(labelled),
        "the head of a classifier ends in one number for each class, and no predictor follows": (
            isinstance(dictionary, Classes)
            and (recipe.head.widths[-1:] != (dictionary.count,) or recipe.predictor is not None)
        ),
        "views of text are for encoders of text, and those of pictures for encoders of pictures": text[0] != text[1],
        "keys of text are not shuffled, since no BatchNorm compares them: keys.shuffle is false": (
            text[0] and isinstance(keys, Momentum) and keys.shuffle
        ),
        "clips are for encoders of videos, and frames for encoders of pictures": clips[0] != clips[1],
        "the two moments lie pretext.near to pretext.far seconds apart, from 0 on and the second not below the first": (
            isinstance(recipe.pretext, TwoFrames) and not 0 <= recipe.pretext.near <= recipe.pretext.farthest()
        ),
        "a clip has 2 frames or more, some seconds apart": (
            isinstance(recipe.pretext, TwoClips) and not (recipe.pretext.frames > 1 and recipe.pretext.every > 0)
        ),
        "one view a step is only enough where its key is stored from before: use TwoViews": (
            isinstance(recipe.pretext, OneView) and not stored and not any(labelled)
        ),
        "supervised contrast must know the labels of its entries: the dictionary is InBatch": (
            isinstance(objective, SupCon) and not batch
        ),
        "NCE stands for a softmax that is too long to sum: give the memory bank draws, or take InfoNCE over all rows": (
            isinstance(objective, NCE) and bank and dictionary.draws is None  # type: ignore[union-attr]
        ),
        "the predictor ends in another width than the head, so queries and keys cannot be compared": (
            recipe.predictor is not None and recipe.predictor.widths[-1:] != recipe.head.widths[-1:]
        ),
        "slices need entries that are there before the batch: those of a queue or a bank, and keys without gradient": (
            recipe.slices > 1
            and not alone
            and (isinstance(keys, EndToEnd) or isinstance(dictionary, InBatch | Neighbours))
        ),
        "the Z of NCE comes from the first batch whole: it cannot be worked on in slices": (
            recipe.slices > 1 and isinstance(objective, NCE)
        ),
        "only a ViT leaves patches out, those of its own size: model.patch must be pretext.patch": (
            masked and not (isinstance(recipe.model, ViT) and recipe.model.patch == recipe.pretext.patch)  # type: ignore[union-attr]
        ),
        "words are named where tokens are hidden, alone: Cloze, a Transformer, Words and Alone belong together": (
            isinstance(recipe.pretext, Cloze) or isinstance(decoder, Words)
        )
        and not (
            isinstance(recipe.pretext, Cloze)
            and isinstance(recipe.model, Transformer)
            and isinstance(decoder, Words)
            and alone
        ),
        "a decoder paints what is hidden, and nothing is: the pretext must be Masked, its share more": (
            isinstance(decoder, Decoder) and not (masked and recipe.pretext.seen() < recipe.pretext.patches())  # type: ignore[union-attr]
        ),
        "without keys a decoder teaches alone: the head is MLP(()), with no predictor, and InBatch stores nothing": (
            alone and (decoder is None or recipe.head.widths != () or recipe.predictor is not None or not batch)
        ),
    }
    return next((words for words, refused in refusals.items() if refused), None)


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


KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Recipe, Length, TwoViews, OneView, Masked, TwoFrames, TwoClips, ImageView, SameSentence, Pairs, Cloze, ResNet,
        SmallResNet, ViT, Timm, Words, VideoResNet, SmallVideoResNet,
        Transformer, HuggingFace, MLP, Decoder, Momentum,
        EndToEnd, Stored, Alone, Queue, InBatch, MemoryBank, Neighbours, InfoNCE, DCL, SupCon, NCE, Labelled, Classes,
        CrossEntropy, SGD, LARS, AdamW, Muon, Cosine, Steps, Knn,
    )
}  # fmt: skip
"""The only classes a file may name."""


def to_plain(value: Any) -> Any:
    """The value as what JSON holds; a dataclass becomes its kind and fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    return [to_plain(item) for item in value] if isinstance(value, tuple) else value


def from_plain(plain: Any) -> Any:
    """The inverse of ``to_plain``; an unknown kind or field is refused."""
    if isinstance(plain, list):
        return tuple(from_plain(item) for item in plain)
    if not isinstance(plain, dict):
        return plain
    kind = KINDS.get(str(plain.get("kind")))
    if kind is None:
        raise Trouble(
            f"unknown kind {plain.get('kind')!r} in a recipe file: was it written by a newer version?", BAD_DATA
        )
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := plain.keys() - known - {"kind"}:
        raise Trouble(f"unknown field {sorted(unknown)[0]!r} of {kind.__name__} in a recipe file", BAD_DATA)
    fields = {name: from_plain(part) for name, part in plain.items() if name != "kind"}
    hints = typing.get_type_hints(kind)
    for name, part in fields.items():
        if not fits(part, hints[name]):
            raise Trouble(f"{name} of {kind.__name__} cannot be {part!r} in a recipe file", BAD_DATA)
    try:
        return kind(**fields)
    except TypeError as error:
        raise Trouble(f"a field is missing in a recipe file ({error})", BAD_DATA) from None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of a field; a whole number is a float, too."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in choices
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, choice) for choice in choices)
    if origin is tuple:
        each = (choices[0],) * len(value) if isinstance(value, tuple) and choices[-1] is ... else choices
        return isinstance(value, tuple) and len(value) == len(each) and all(map(fits, value, each))
    return type(value) is hint or (hint is float and type(value) is int)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every field by its dotted path, for showing and comparing."""
    plain: dict[str, Any] = {}
    for name, part in to_plain(value).items():
        inner = getattr(value, name, None)
        if name != "kind" and dataclasses.is_dataclass(inner):
            plain |= {prefix + name: part["kind"]} | flat(inner, f"{prefix}{name}.")
        elif name != "kind":
            plain[prefix + name] = part
    return plain


def differences(before: Recipe, after: Recipe) -> list[str]:
    """One line per field that differs."""
    old, new = flat(before), flat(after)
    paths = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    return [f"{path}: {old.get(path)} -> {new.get(path)}" for path in paths]


def override(recipe: Recipe, path: str, text: str) -> Recipe:
    """The recipe with the field at ``path`` read from ``text``; an unknown path is refused with the nearest one."""
    if path not in flat(recipe):
        near = difflib.get_close_matches(path, flat(recipe), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "see recipe.json of a run for all fields"
        raise Trouble(f"recipe {recipe.name} has no field {path!r}; {hint}")
    return typing.cast("Recipe", replaced(recipe, path, text))


def replaced(value: Any, path: str, text: str) -> Any:
    """A frozen dataclass with the field at ``path``, which it has, read from ``text``; raises Trouble."""
    return _replaced(value, path.split("."), path, text)


def _replaced(value: Any, parts: list[str], path: str, text: str) -> Any:
    name, *rest = parts
    if rest:
        return replace(value, **{name: _replaced(getattr(value, name), rest, path, text)})
    hint = typing.get_type_hints(type(value))[name]
    try:
        found = parsed(text, hint)
        if not fits(found, hint):
            raise ValueError(text)
        return replace(value, **{name: found})
    except (ValueError, TypeError, SyntaxError):
        raise Trouble(f"--{path} cannot be {text!r}: it is {_readable(hint)}, now {getattr(value, name)!r}") from None


def _readable(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    if any(dataclasses.is_dataclass(part) for part in (hint, *typing.get_args(hint))):
        return "a kind, which only another recipe changes"
    return getattr(hint, "__name__", None) or str(hint)


def parsed(text: str, hint: Any) -> Any:
    """``text`` as the type of a field: bool, int, float, str, Literal, tuple (``64,128``), or optional."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if text not in choices:
            raise ValueError(text)
        return text
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none" and type(None) in choices:
            return None
        return parsed(text, next(choice for choice in choices if choice is not type(None)))
    if origin is tuple:
        items = ast.literal_eval(text if text.startswith(("(", "[")) else f"({text},)")
        return tuple(parsed(str(item), choices[0]) for item in items)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if hint in (int, float, str):
        return hint(text)
    raise TypeError(hint)
