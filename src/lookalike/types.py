"""The types that every layer shares: materials, views, batches, embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

View = dict[str, Tensor]
"""What an encoder is called with, by keyword.

Pictures: ``pixels`` (B, 3, S, S). Text: ``tokens`` int64 (B, L), ``attend`` bool (B, L), and in training ``noise``
int64 (B,), which decides what drops out.
"""


class Canvases(NamedTuple):
    """Whole pictures squashed to one size: ``pixels`` uint8 (B, 3, H, W), ``sizes`` int64 (B, 2) as they were."""

    pixels: Tensor
    sizes: Tensor


class Tokens(NamedTuple):
    """Texts as numbers of tokens: ``tokens`` int64 (B, V, L), of which ``lengths`` int64 (B, V) are no padding.

    V is how many texts an example holds: one, or the two of a pair.
    """

    tokens: Tensor
    lengths: Tensor


class Captioned(NamedTuple):
    """Captioned pictures: the fields of Canvases, then those of Tokens, V captions a picture."""

    pixels: Tensor
    sizes: Tensor
    tokens: Tensor
    lengths: Tensor

    def canvases(self) -> Canvases:
        """The pictures alone."""
        return Canvases(self.pixels, self.sizes)

    def captions(self) -> Tokens:
        """The captions alone."""
        return Tokens(self.tokens, self.lengths)


Material = Canvases | Tokens | Captioned
"""What a loader reads and a pretext makes views of: of each kind of data its own, B rows of each tensor."""

PAD, FIRST, MASK = range(3)
"""Special tokens: padding, what every text begins with, what stands for a hidden token."""


class Batch(NamedTuple):
    """Two views of each of B examples; ``index`` (B,) holds their rows in the source, on the host or on the device."""

    index: Tensor  # type: ignore[assignment]  # it hides tuple.index
    first: View
    second: View

    def slices(self, count: int) -> Iterator[Batch]:
        """``count`` equal consecutive parts."""
        views = zip(*(_slices(view, count) for view in (self.first, self.second)))
        for index, (first, second) in zip(self.index.chunk(count), views):
            yield Batch(index, first, second)


def _slices(view: View, count: int) -> Iterator[View]:
    for parts in zip(*(part.chunk(count) for part in view.values())):
        yield dict(zip(view, parts))


@dataclass(frozen=True)
class Origin:
    """What made rows of embeddings: a model at a step, as it was shown its examples, and the data."""

    run: str  # the folder, where the model is of one
    step: int
    weights: str  # sha256 of all parameters and buffers, the whitening included
    precision: str  # of the network's products
    preprocessing: dict[str, Any]
    data: str  # its name, or where it was
    data_digest: str  # sha256 of names, sizes and content of its files
    model: str = ""  # which network it is of, where ``run`` is a file of weights that does not say so
    file: str = ""  # sha256 of the file of a public model

    def compares_with(self, other: Origin) -> bool:
        """Whether rows of both are of one space: of the same weights, which saw examples in the same way."""
        return (self.weights, self.preprocessing) == (other.weights, other.preprocessing)

    def __str__(self) -> str:
        return f"{self.run or 'a model that is no run'} (step {self.step:,}, weights {self.weights[:8]})"


@dataclass(frozen=True)
class Embeddings:
    """One row per example: what every evaluation, search and export reads."""

    path: list[str]
    split: list[str]
    label: npt.NDArray[np.int64]  # (N,), -1 where there is none
    vectors: npt.NDArray[np.float32]  # (N, F), unit rows
    classes: tuple[str, ...] = ()  # the names of the labels
    text: list[str] | None = None  # of tables of text, what each row says
    layer: Literal["backbone", "head"] = "backbone"  # whose output the rows are
    origin: Origin | None = None  # None where nobody knows
    size: npt.NDArray[np.int32] | None = None  # (N, 2) upright height and width of pictures, 0 where nobody knows
    sha256: list[str] | None = None  # (N,) of the picture's file, in hex; "" of pictures that are no files

    def __len__(self) -> int:
        return len(self.path)

    def __repr__(self) -> str:
        splits = ", ".join(dict.fromkeys(self.split))
        return f"Embeddings({len(self):,} rows of {self.vectors.shape[1]} features, {splits})"
