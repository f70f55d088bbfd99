"""A transformer for text that is trained from scratch. It computes on tokens alone: padding costs next to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lookalike.core.errors import Bounded, Limit, UserError, Width
from lookalike.core.seeding import after, integers
from lookalike.models.fused import attended
from lookalike.models.image import ResNet, SmallResNet

LEAST = 259  # tokens that every vocabulary has: three special ones, and the bytes
_TABLE = 1 << 18  # entries: 1 MB, which stays in a processor's cache

Pool = Literal["mean", "first"]


@dataclass(frozen=True)
class Transformer(Bounded):
    """Pre-norm blocks over byte pairs; features are the mean over tokens, or those of the first.

    ``vocabulary`` is also how many tokens the tokenizer that a run trains will know. ``dropout`` is the share of units
    that drop out of the embedding and of what each layer adds; attention weights do not.
    """

    vocabulary: Annotated[int, Limit(LEAST, 10_000_000)] = 8192
    width: Width = 192
    depth: Annotated[int, Limit(1, 1000)] = 4
    heads: Width = 4
    dropout: Annotated[float, Limit(0, 0.99)] = 0.1
    pool: Pool = "mean"

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights and F; ``group`` is for BatchNorm, which a transformer does without."""
        if self.width % (2 * self.heads):
            raise UserError(f"model.width {self.width} must be a multiple of twice model.heads ({self.heads})")
        return TransformerBackbone(self), self.width


class TransformerBackbone(nn.Module):
    """Tokens become vectors, positions are added, blocks mix them, and what is pooled is the feature."""

    def __init__(self, spec: Transformer) -> None:
        super().__init__()
        self.pool, self.share = spec.pool, spec.dropout
        self.embedding = nn.Embedding(spec.vocabulary, spec.width)
        self.first_norm = nn.LayerNorm(spec.width)
        self.blocks = nn.ModuleList(TextBlock(spec.width, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        for module in self.modules():  # BERT's
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(
        self, tokens: Tensor, attend: Tensor, noise: Tensor | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """(B, L) → (B, F); what ``attend`` leaves out is ignored. Units drop out where ``noise`` (B,) is given."""
        return pooled(self.tokens(tokens, attend, noise), attend, self.pool)

    def tokens(
        self, tokens: Tensor, attend: Tensor, noise: Tensor | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """(T, F) the last layer for the attended tokens, example by example; ``targets`` are a decoder's."""
        packing = Packing.of(attend)
        place = packing.pack(attend.cumsum(1) - 1)
        dropout = CounterDropout.of(noise, packing, place, self.share, 1 + 2 * len(self.blocks))
        x = self.embedding(packing.pack(tokens)) + 0.02 * positions(place, self.embedding.embedding_dim)
        x = dropout(self.first_norm(x), 0)
        for number, block in enumerate(self.blocks):
            x = block(x, packing, dropout, 1 + 2 * number)
        last: Tensor = self.norm(x)
        return last


class Packing(NamedTuple):
    """Which tokens of a batch are attended to: computed once, since the host waits until a GPU has counted them."""

    mask: Tensor  # (B, L) bool
    places: Tensor  # (T,) int64 of the B · L

    @classmethod
    def of(cls, attend: Tensor) -> Packing:
        """From ``attend`` (B, L)."""
        return cls(attend, attend.flatten().nonzero()[:, 0])

    def pack(self, rows: Tensor) -> Tensor:
        """(B, L, ...) → (T, ...)."""
        return rows.flatten(0, 1).index_select(0, self.places)

    def unpack(self, rows: Tensor) -> Tensor:
        """(T, F) → (B, L, F), zero where nothing is attended to."""
        padded = rows.new_zeros(self.mask.numel(), rows.shape[1])
        return padded.index_copy(0, self.places, rows).view(*self.mask.shape, -1)


class TextBlock(nn.Module):
    """Attention, then a layer of four times the width, each on normed input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, packing: Packing, dropout: CounterDropout, site: int) -> Tensor:
        """(T, F) → the same; units drop out at the sites ``site`` and ``site + 1``."""
        x = x + dropout(self.proj(self._attention(self.qkv(self.norm1(x)), packing)), site)
        out: Tensor = x + dropout(self.mlp(self.norm2(x)), site + 1)
        return out

    def _attention(self, qkv: Tensor, packing: Packing) -> Tensor:
        """Of every token to all of its example: the one place where rows must be of equal length."""
        padded = packing.unpack(qkv).view(*packing.mask.shape, 3, self.heads, -1)
        query, key, value = padded.permute(2, 0, 3, 1, 4)
        mixed = attended(query, key, value, packing.mask[:, None, None, :])
        return packing.pack(mixed.transpose(1, 2).flatten(2))


class CounterDropout:
    """Sets units to zero as counters say, not as a generator does.

    The mask of a token at one of the sites where units drop out is a window into one fixed table of bits; where it
    begins is a hash of (noise of the example, position, site). A fifth of the time of torch's dropout on a processor,
    and the same on any device, for any batch and on any number of processes.
    """

    def __init__(self, begins: Tensor | None, share: float) -> None:
        """``begins`` (sites, T); None where nothing drops out."""
        self._begins, self._share = begins, share

    @classmethod
    def of(cls, noise: Tensor | None, packing: Packing, place: Tensor, share: float, sites: int) -> CounterDropout:
        """For ``noise`` (B,) and the positions ``place`` (T,) of the tokens that are attended to."""
        if noise is None or not share:
            return cls(None, share)
        token = after(packing.pack(noise[:, None].expand_as(packing.mask)), place)
        return cls(after(token, torch.arange(sites, device=noise.device)[:, None]), share)

    def __call__(self, x: Tensor, site: int) -> Tensor:
        """(T, W) → the same, scaled so that its mean stays."""
        if self._begins is None:
            return x
        bits = table(self._share, x.device)
        windows = bits.as_strided((len(bits) - x.shape[1] + 1, x.shape[1]), (1, 1))
        return x * windows.index_select(0, self._begins[site] % len(windows)).to(x.dtype)


@lru_cache(maxsize=8)
def table(share: float, device: torch.device) -> Tensor:
    """(_TABLE,) zeros for about ``share`` of the entries, else what makes up for them; always the same."""
    drawn = integers(0, 0, torch.arange(_TABLE), 1, 1 << 24)[:, 0].double() / (1 << 24)
    return ((drawn >= share) / (1 - share)).float().to(device)


def pooled(hidden: Tensor, attend: Tensor, pool: Pool) -> Tensor:
    """(B, F) from (T, F): the mean over the tokens of each example, or its first."""
    counts = attend.sum(1)
    if pool == "first":
        return hidden.index_select(0, counts.cumsum(0) - counts)
    return Packing.of(attend).unpack(hidden).sum(1) / counts[:, None]


def positions(place: Tensor, width: int) -> Tensor:
    """(T, width) sines and cosines of positions (T,): any length, nothing to learn (arXiv 1706.03762, section 3.5)."""
    frequencies = 10_000.0 ** -(torch.arange(width // 2, device=place.device) / (width // 2))
    angles = place[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


# ---- texts beside pictures ----


@dataclass(frozen=True)
class TwoTowers:
    """An encoder for each kind (CLIP, arXiv 2103.00020, section 2.3); both end in F features."""

    picture: SmallResNet | ResNet = SmallResNet()  # noqa: RUF009
    text: Transformer = Transformer(width=256, depth=2)

    @property
    def vocabulary(self) -> int:
        """How many tokens the network of texts knows."""
        return self.text.vocabulary

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights and F."""
        picture, features = self.picture.build(group)
        text, width = self.text.build(group)
        if width != features:
            raise UserError(f"model.text.width {width} must be the features of the picture's network, {features}")
        return TwoTowersBackbone(picture, text), features


class TwoTowersBackbone(nn.Module):
    """A view with ``pixels`` goes through the network of pictures, any other through that of texts."""

    def __init__(self, picture: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.picture, self.text = picture, text

    def forward(self, **view: Tensor) -> Tensor:
        """A view of B pictures or texts → (B, F)."""
        features: Tensor = self.picture(**view) if "pixels" in view else self.text(**view)
        return features
