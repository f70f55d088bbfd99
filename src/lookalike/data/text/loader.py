"""Batches of tokens, and of pictures with the tokens of their captions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.data.example import Source, TextSource
from lookalike.data.loader import Loaded, Loader
from lookalike.types import FIRST, MASK, PAD, Captioned, Tokens

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
        texts, flat, lengths = texts_of(source), list[npt.NDArray[np.int32]](), [0]
        for start in range(0, len(source), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(source)))
            encoded = tokenizer.encoded([text for row in rows for text in texts(row)], length)
            flat.append(np.fromiter((token for tokens in encoded for token in tokens), np.int32))
            lengths += [len(tokens) for tokens in encoded]
            progress(len(rows))
        # Every text's tokens one after the other, and where each begins: row by row, text by text.
        self._flat, self._starts = torch.from_numpy(np.concatenate(flat)), torch.tensor(lengths).cumsum(0)

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


class Tokenizer:
    """Tokens of texts, byte pairs (arXiv 1508.07909) by the package tokenizers. ``json`` is all that a run keeps."""

    def __init__(self, json: str) -> None:
        """Raises UserError where ``json`` is no tokenizer."""
        try:
            self._inner = _package().Tokenizer.from_str(json)
        except UserError:
            raise
        except Exception as error:  # the package knows no class of its own
            raise UserError(f"tokenizer.json holds no tokenizer ({str(error)[:200]})", BAD_DATA) from None
        self.json = json
        self._inner.no_padding()

    @classmethod
    def trained(cls, texts: Iterable[str], vocabulary: int, lowercase: bool) -> Tokenizer:
        """Byte pairs of ``texts``, at most ``vocabulary`` tokens; the same texts give the same, byte for byte."""
        package = _package()
        inner = package.Tokenizer(package.models.BPE())
        forms = [package.normalizers.NFC(), *([package.normalizers.Lowercase()] if lowercase else [])]
        inner.normalizer = package.normalizers.Sequence(forms)
        inner.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=True)
        special = {PAD: "[PAD]", FIRST: "[FIRST]", MASK: "[MASK]"}
        trainer = package.trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[special[i] for i in range(len(special))],
            initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(iter(texts), trainer)
        inner.post_processor = package.processors.TemplateProcessing(
            single="[FIRST] $A", special_tokens=[("[FIRST]", FIRST)]
        )
        return cls(inner.to_str(pretty=True))

    @property
    def size(self) -> int:
        """How many tokens it knows."""
        return int(self._inner.get_vocab_size())

    def encoded(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """The tokens of each text, cut to ``length``."""
        self._inner.enable_truncation(length)
        return [encoding.ids for encoding in self._inner.encode_batch_fast(list(texts))]


def _package() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError("text needs the package tokenizers: pip install 'lookalike[text]'", USAGE) from None
    return tokenizers
