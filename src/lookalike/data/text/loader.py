"""Batches of tokens, and of pictures with the tokens of their captions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

import numpy as np
import torch
from torch import Tensor

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.example import Source, TextSource
from lookalike.data.loader import Loaded, Loader
from lookalike.data.text.tokenizer import Tokenizer
from lookalike.types import PAD, Captioned, Tokens

_CHUNK = 4096  # rows between two reports of progress
TextsOf = Callable[[int], tuple[str, ...]]


class TextLoader:
    """Batches of the tokens of a source. All are encoded at once and kept: four bytes a token."""

    def __init__(
        self, source: Source, tokenizer: Tokenizer, length: int, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """``progress`` hears how many more rows are encoded. Raises UserError where the rows hold no text."""
        self.source, self.bad = source, dict(source.unlisted)
        self.bad_rows: dict[int, str] = {}  # what cannot be read is no row
        self._flat, self._starts = _encoded(texts_of(source), len(source), tokenizer, length, progress)

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Loaded[Tokens], None, None]:
        """The tokens of each step's rows (B,), in order."""
        for rows in rows_of_steps:
            yield Loaded(rows, self._tokens(rows))

    def shown(self, rows: Tensor) -> Tensor:
        """The rows themselves, since every one can be read."""
        return rows

    def _tokens(self, rows: Tensor) -> Tokens:
        """Padded as far as the longest of them needs."""
        views = (self._starts.numel() - 1) // len(self)
        numbers = rows[:, None] * views + torch.arange(views)
        starts, lengths = self._starts[numbers], self._starts[numbers + 1] - self._starts[numbers]
        places = torch.arange(int(lengths.max()))
        inside = places < lengths[..., None]
        where = (starts[..., None] + places).clamp(max=len(self._flat) - 1)
        return Tokens(torch.where(inside, self._flat[where].long(), PAD), lengths)


def _encoded(
    texts: TextsOf, count: int, tokenizer: Tokenizer, length: int, progress: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Every text's tokens one after the other, int32, and where each begins: row by row, text by text."""
    flat, lengths = [], [0]
    for start in range(0, count, _CHUNK):
        rows = range(start, min(start + _CHUNK, count))
        encoded = tokenizer.encoded([text for row in rows for text in texts(row)], length)
        flat.append(np.fromiter((token for tokens in encoded for token in tokens), np.int32))
        lengths += [len(tokens) for tokens in encoded]
        progress(len(rows))
    return torch.from_numpy(np.concatenate(flat)), torch.tensor(lengths).cumsum(0)


def texts_of(source: Source) -> TextsOf:
    """The texts of each row; raises UserError where the rows hold none."""
    if source.texts is None:
        raise UserError(
            "no text in this data: a recipe for text wants .txt, .csv, .tsv or .parquet, or a list of strings; one for "
            "captions a folder of pictures with captions.csv (image, caption) or COCO's captions_*.json",
            BAD_DATA,
        )
    return source.texts


def refuse_too_many(source: TextSource, max_bad: float) -> None:
    """Raise UserError where more than the share ``max_bad`` of all lines is no text."""
    lines = source.refused + len(source)
    if source.refused > max_bad * lines:
        where, reason = next((where, why) for where, why in source.unlisted.items() if ":" in where)
        raise UserError(
            f"{source.refused} of {lines} lines are no text, first {where} ({reason}); "
            f"mend or remove those in bad_files.csv, or allow more than {max_bad:g} of all with --max-bad",
            BAD_DATA,
        )


class CaptionLoader:
    """Batches of pictures with their captions; the one that stands in for a bad picture brings its own."""

    def __init__(self, pictures: Loader, captions: TextLoader) -> None:
        self._pictures, self._captions = pictures, captions
        self.source, self.bad, self.bad_rows = pictures.source, pictures.bad, pictures.bad_rows

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, rows_of_steps: Iterable[Tensor]) -> Generator[Loaded[Captioned], None, None]:
        """The material of each step's rows (B,), in order. Raises UserError."""
        for rows, canvases in self._pictures.batches(rows_of_steps):
            captions = next(self._captions.batches([self.shown(rows)])).material
            yield Loaded(rows, Captioned(*canvases, *captions))

    def shown(self, rows: Tensor) -> Tensor:
        """The rows (B,) whose pictures stand in a batch for the examples at ``rows``."""
        return self._pictures.shown(rows)
