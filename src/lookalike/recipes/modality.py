"""Kinds of data: how the rows of each are called, found, loaded and searched for. A recipe's pretext names its kind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from lookalike.core.devices import material_to_device, view_to_device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import known, whole
from lookalike.data.decode import Unreadable, cropped, decode
from lookalike.data.example import Source, TextSource, as_pictures
from lookalike.data.loader import GIB, Loader, Loads
from lookalike.data.order import drawn, some_rows
from lookalike.data.source import Finder, native_side, place_of
from lookalike.data.text.loader import CaptionLoader, TextLoader, Tokenizer, refuse_too_many, texts_of
from lookalike.data.text.source import find_captioned, find_text
from lookalike.data.video.source import Timeline
from lookalike.models.encoder import Layer
from lookalike.models.hugging_face import HuggingFace
from lookalike.models.text import Transformer, TwoTowers
from lookalike.pretext.image import TwoViews
from lookalike.pretext.text import Captions, SameSentence, plain
from lookalike.pretext.video import TwoClips, TwoFrames
from lookalike.recipes import RECIPES
from lookalike.recipes.recipe import Recipe
from lookalike.types import Canvases, Tokens, View

TOKENIZER = "tokenizer.json"
"""The file of a run folder that says what its tokens are."""

Input = Literal["picture", "clip", "text"]


class Modality(NamedTuple):
    """One kind of data."""

    examples: str  # what its examples are called, in the plural
    rows: str  # what the rows are called that a loader reads of them
    inputs: frozenset[Input]  # what its encoders take
    find: Finder  # how a place of it is found
    layer: Layer = "backbone"  # whose rows a search compares

    @property
    def tokenizes(self) -> bool:
        """Whether a run of it keeps a tokenizer."""
        return "text" in self.inputs

    def side(self, source: Source) -> int:
        """The usual short side of its pictures in pixels, 0 for text; raises UserError."""
        return 0 if self.inputs == TEXT else native_side(as_pictures(source))


PICTURE: frozenset[Input] = frozenset(("picture",))
CLIP: frozenset[Input] = frozenset(("clip",))
TEXT: frozenset[Input] = frozenset(("text",))

CAPTIONED = Modality("captioned pictures", "pictures", PICTURE | TEXT, find_captioned, "head")
MODALITIES = {
    modality.examples: modality
    for modality in (
        Modality("pictures", "pictures", PICTURE, place_of),
        Modality("frames", "frames", PICTURE, place_of),
        Modality("clips", "frames", CLIP, place_of),
        Modality("sentences", "sentences", TEXT, find_text),
        Modality("pairs", "pairs", TEXT, partial(find_text, pairs=True)),
        CAPTIONED,
    )
}
"""By the name that pretexts state."""


def modality_of(recipe: Recipe | str | None) -> Modality:
    """That of a recipe, or of the one of a name; pictures where no recipe is named."""
    if isinstance(recipe, str):
        recipe = RECIPES.get(recipe)
    return MODALITIES["pictures" if recipe is None else recipe.pretext.modality]


def only_pictures(recipe: Recipe, what: str) -> None:
    """Raise UserError for what is made for encoders of single pictures, where the recipe's is another."""
    if modality_of(recipe).inputs != PICTURE:
        raise UserError(f"{what} is for pictures, and {recipe.name} is for {modality_of(recipe).examples}")


def loader(
    recipe: Recipe,
    source: Source,
    tokenizer: Tokenizer | None,
    budget: int = 4 * GIB,
    workers: int | None = None,
    max_bad: float = 1.0,
    progress: Callable[[int], None] = lambda _: None,
    on_bad: Callable[[Mapping[str, str]], None] = lambda _: None,
    whole: bool = False,
) -> Loads:
    """The loader of the rows of ``source``, for training, or to see them ``whole``; the others are of ``Loader``."""
    modality = modality_of(recipe)
    if modality.inputs == TEXT:
        if source.unlisted:
            on_bad(source.unlisted)
        refuse_too_many(cast(TextSource, source), max_bad)
        return _tokens(recipe, source, tokenizer, progress)
    side = recipe.whole_canvas if whole else recipe.canvas
    pictures = Loader(as_pictures(source), side, budget, workers, max_bad, progress, on_bad, modality.rows)
    if not modality.tokenizes or source.texts is None:
        return pictures
    return CaptionLoader(pictures, _tokens(recipe, source, tokenizer))


def _tokens(
    recipe: Recipe, source: Source, tokenizer: Tokenizer | None, progress: Callable[[int], None] = lambda _: None
) -> TextLoader:
    assert tokenizer is not None
    known = recipe.model.vocabulary if isinstance(recipe.model, Transformer | TwoTowers) else tokenizer.size
    if tokenizer.size > known:
        raise UserError(f"{TOKENIZER} has {tokenizer.size} tokens and the model knows {known}: use its own", BAD_DATA)
    return TextLoader(source, tokenizer, _of_words(recipe).length, progress)


def _of_words(recipe: Recipe) -> SameSentence | Captions:
    """The pretext of a recipe that tokenizes."""
    assert isinstance(recipe.pretext, SameSentence | Captions)
    return recipe.pretext


def new_tokenizer(recipe: Recipe, source: Source) -> Tokenizer:
    """That of a new run: of its published encoder, else trained on the texts of ``source``."""
    if isinstance(recipe.model, HuggingFace):
        return Tokenizer(recipe.model.tokenizer())
    assert isinstance(recipe.model, Transformer | TwoTowers)
    texts = texts_of(source)
    every = (text for row in range(len(source)) for text in texts(row))
    return Tokenizer.trained(every, recipe.model.vocabulary, _of_words(recipe).lowercase)


def load_tokenizer(folder: Path, recipe: Recipe) -> Tokenizer | None:
    """That of a run, None where it needs none; raises UserError where the run has lost it."""
    if not modality_of(recipe).tokenizes:
        return None
    try:
        return Tokenizer(known(folder / TOKENIZER).decode())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / TOKENIZER} cannot be read ({error}): a run of text needs it", BAD_DATA) from None


class Crop(NamedTuple):
    """A part of a picture, in pixels of the upright picture."""

    file: str
    box: tuple[int, int, int, int]  # left, top, width, height


def crop_of(query: str) -> Crop | None:
    """The part that ``FILE@x,y,w,h`` names; None of any other query, and where a file has that very name."""
    file, mark, numbers = query.rpartition("@")
    if not mark or not re.fullmatch(r"\d{1,9}(,\d{1,9}){3}", numbers, re.ASCII) or os.path.lexists(query):
        return None
    left, top, width, height = map(int, numbers.split(","))
    return Crop(file, (left, top, width, height))


def query_view(recipe: Recipe, tokenizer: Tokenizer | None, query: str, layer: Layer) -> View:
    """The view of a picture file, of a part of one, or of a sentence, for a search among rows of ``layer``.

    Raises UserError.
    """
    inputs = modality_of(recipe).inputs
    if "clip" in inputs:
        raise UserError(f"{recipe.name} encodes clips: a query must be a path of the table")
    part = crop_of(query)
    if inputs == PICTURE or ("picture" in inputs and os.path.isfile(part.file if part else query)):
        return _picture_view(recipe, query)
    if "picture" in inputs and layer != "head":
        raise UserError("sentences and pictures meet in the output of the head: lookalike embed --layer head")
    assert tokenizer is not None
    if not query.strip():
        raise UserError("an empty query: give a sentence")
    tokens = torch.tensor(tokenizer.encoded([query.strip()], _of_words(recipe).length))
    return view_to_device(plain(Tokens(tokens[:, None], torch.tensor([[tokens.shape[1]]])), 0))


def _picture_view(recipe: Recipe, file: str) -> View:
    try:
        part = crop_of(file)
        data = whole(file) if part is None else cropped(whole(part.file), *part.box)
        canvas = decode(data, recipe.whole_canvas)
    except (OSError, ValueError, Unreadable) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
        raise UserError(f"{file}: neither a path of the table nor a picture ({reason})", BAD_DATA) from None
    assert isinstance(recipe.pretext, TwoViews | Captions)
    sizes = torch.tensor([[canvas.height, canvas.width]])
    return recipe.evaluation(material_to_device(Canvases(torch.stack([canvas.pixels]), sizes)))


class Examples:
    """The examples of a loader's data, as a recipe sees them."""

    def __init__(self, recipe: Recipe, loader: Loads) -> None:
        self._pretext, self._seed, self._loader = recipe.pretext, recipe.seed, loader

    @cached_property
    def _timeline(self) -> Timeline:
        return Timeline.of(self._loader.source.paths)

    def training(self, rows: Tensor, epoch: int) -> Tensor:
        """The rows (R,) that ``epoch`` reads for the examples at ``rows`` (B,); raises UserError for no videos."""
        if isinstance(self._pretext, TwoFrames | TwoClips):
            return self._pretext.training_rows(self._timeline, rows, self._seed, epoch)
        return rows

    def whole(self, rows: Tensor) -> Tensor:
        """The rows (R,) that evaluations read for the examples at ``rows`` (B,); raises UserError for no videos."""
        return self._pretext.whole_rows(self._timeline, rows) if isinstance(self._pretext, TwoClips) else rows

    def evaluated(self) -> Tensor:
        """(N,) the rows of the examples that evaluations look at; raises UserError for no videos."""
        if isinstance(self._pretext, TwoClips):
            return self._pretext.examples(self._timeline)
        return torch.arange(len(self._loader))

    def some(self, most: int, draw: int) -> Tensor:
        """At most ``most`` of the rows of ``evaluated``, in an order that they and ``draw`` decide."""
        if isinstance(self._pretext, TwoClips):
            return drawn(self.evaluated(), most, draw)
        return some_rows(len(self._loader), most, draw)
