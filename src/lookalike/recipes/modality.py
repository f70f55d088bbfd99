"""How a recipe's kind of data is opened and read: pictures as canvases, text as tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.loader import GIB, Loader, Loads
from lookalike.data.source import Finder, Source, place_of
from lookalike.data.text.captions import CaptionLoader, find_captioned
from lookalike.data.text.source import find_text
from lookalike.data.text.tokenizer import Reader, Tokenizer, texts_of
from lookalike.models.hugging_face import HuggingFace
from lookalike.models.text import Transformer
from lookalike.models.towers import TwoTowers
from lookalike.pretext.captions import Captions
from lookalike.pretext.text import Pairs, SameSentence
from lookalike.recipes import RECIPES
from lookalike.recipes.recipe import Recipe

TOKENIZER = "tokenizer.json"
"""The file of a run folder that says what its tokens are."""


def reads_text(recipe: Recipe | str | None) -> bool:
    """Whether a recipe, or the one of a name, is for text."""
    if isinstance(recipe, str):
        return recipe in RECIPES and reads_text(RECIPES[recipe])
    return recipe is not None and isinstance(recipe.pretext, SameSentence)


def has_words(recipe: Recipe) -> bool:
    """Whether a run of the recipe has a tokenizer."""
    return isinstance(recipe.pretext, SameSentence | Captions)


def finder(recipe: Recipe | str | None) -> Finder:
    """How the data of a recipe is opened."""
    named = RECIPES[recipe] if isinstance(recipe, str) and recipe in RECIPES else recipe
    if not isinstance(named, Recipe):
        return place_of
    if isinstance(named.pretext, Captions):
        return find_captioned
    return partial(find_text, pairs=isinstance(named.pretext, Pairs)) if reads_text(named) else place_of


def refuse_text(recipe: Recipe, what: str) -> None:
    """Raise UserError for what is made for pictures only."""
    if reads_text(recipe):
        raise UserError(f"{what} is for pictures, and {recipe.name} is for text")


def tokenizer_for(recipe: Recipe, source: Source) -> Tokenizer:
    """The tokenizer of a new run: that of its published encoder, else trained on the texts of ``source``."""
    if isinstance(recipe.model, HuggingFace):
        return Tokenizer(recipe.model.tokenizer())
    if not isinstance(recipe.model, Transformer | TwoTowers) or not isinstance(recipe.pretext, SameSentence | Captions):
        raise UserError(f"{recipe.name} reads no text")
    return Tokenizer.trained(_texts(source), recipe.model.vocabulary, recipe.pretext.lowercase)


def _texts(source: Source) -> Iterator[str]:
    texts = texts_of(source)
    for row in range(len(source)):
        yield from texts(row)


def held_tokenizer(folder: Path, recipe: Recipe) -> Tokenizer | None:
    """That of a run; None for pictures alone. Raises UserError where text has none."""
    if not has_words(recipe):
        return None
    try:
        return Tokenizer((folder / TOKENIZER).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / TOKENIZER} cannot be read ({error}): a run of text needs it", BAD_DATA) from None


def loader(
    recipe: Recipe,
    source: Source,
    tokenizer: Tokenizer | None,
    budget: int = 4 * GIB,
    workers: int | None = None,
    max_bad: float = 1.0,
    progress: Callable[[int], None] = lambda _: None,
    on_bad: Callable[[Mapping[str, str]], None] = lambda _: None,
) -> Loads:
    """What reads the material of ``source``; ``budget``, ``workers`` and ``progress`` as Loader takes them."""
    if isinstance(recipe.pretext, SameSentence):
        return _reader(recipe, source, tokenizer, max_bad, progress, on_bad)
    pictures = Loader(source.at(recipe.canvas), budget, workers, max_bad, progress, on_bad)
    if not isinstance(recipe.pretext, Captions) or getattr(source, "texts", None) is None:
        return pictures
    return CaptionLoader(pictures, _reader(recipe, source, tokenizer))


def _reader(recipe: Recipe, source: Source, tokenizer: Tokenizer | None, *told: Any) -> Reader:
    """What reads text; ``told`` are the last arguments of Reader."""
    assert tokenizer is not None
    assert isinstance(recipe.pretext, SameSentence | Captions)
    known = recipe.model.vocabulary if isinstance(recipe.model, Transformer | TwoTowers) else tokenizer.size
    if tokenizer.size > known:
        raise UserError(f"{TOKENIZER} has {tokenizer.size} tokens and the model knows {known}: use its own", BAD_DATA)
    return Reader(source, tokenizer, recipe.pretext.length, *told)
