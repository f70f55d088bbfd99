"""From text to tokens: byte pairs (arXiv 1508.07909) that a run trains on its own lines, by the package tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lookalike.core.errors import BAD_DATA, USAGE, UserError
from lookalike.types import FIRST, MASK, PAD


class Tokenizer:
    """Numbers for texts. ``json`` is all there is to it, and all that a run keeps."""

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
    """The package tokenizers, an extra."""
    try:
        import tokenizers
    except ImportError:
        raise UserError("text needs the package tokenizers: pip install 'lookalike[text]'", USAGE) from None
    return tokenizers
