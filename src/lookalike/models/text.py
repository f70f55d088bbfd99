"""A transformer for text that is trained from scratch. It computes on tokens alone: padding costs next to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.errors import UserError
from lookalike.core.seeding import after, integers

LEAST = 259  # tokens that every vocabulary has: three that are no text, and the bytes
_TABLE = 1 << 18  # entries: 1 MB, which stays in a processor's cache

Pool = Literal["mean", "first"]


@dataclass(frozen=True)
class Transformer:
    """Pre-norm blocks over byte pairs; features are the mean over tokens, or those of the first.

    ``vocabulary`` is also how many tokens the tokenizer that a run trains will know. ``dropout`` is the share of units
    that drop out of the embedding and of what each layer adds; attention weights do not.
    """

    vocabulary: int = 8192
    width: int = 192
    depth: int = 4
    heads: int = 4
    dropout: float = 0.1
    pool: Pool = "mean"

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights and F; ``group`` is for BatchNorm, which a transformer does without."""
        if self.width < 2 or self.depth < 1 or self.heads < 1 or self.width % (2 * self.heads):
            raise UserError(
                f"model.width {self.width} must be a multiple of twice model.heads ({self.heads}), "
                "model.depth at least 1"
            )
        if self.vocabulary < LEAST:
            raise UserError(f"model.vocabulary must be at least {LEAST}: all bytes, and the tokens that are no text")
        if not 0 <= self.dropout < 1:
            raise UserError("model.dropout must be at least 0 and below 1")
        return TransformerBackbone(self), self.width


class TransformerBackbone(nn.Module):
    """Tokens become vectors, positions are added, blocks mix them, and what is pooled is the feature."""

    def __init__(self, spec: Transformer) -> None:
        super().__init__()
        self.pool, self.share = spec.pool, spec.dropout
        self.embedding = nn.Embedding(spec.vocabulary, spec.width)
        self.first_norm = nn.LayerNorm(spec.width)
        self.blocks = nn.ModuleList(_Block(spec.width, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        for module in self.modules():  # BERT's
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(
        self, tokens: Tensor, attend: Tensor, noise: Tensor | None = None, asked: Tensor | None = None
    ) -> Tensor:
        """(B, L) → (B, F); what ``attend`` leaves out is not seen. Units drop out where ``noise`` (B,) is given."""
        return pooled(self.tokens(tokens, attend, noise), attend, self.pool)

    def tokens(
        self, tokens: Tensor, attend: Tensor, noise: Tensor | None = None, asked: Tensor | None = None
    ) -> Tensor:
        """(T, F) the last layer, for the tokens that are attended to, example by example; ``asked`` is a decoder's."""
        seen = Attended.of(attend)
        place = seen.of_each(attend.cumsum(1) - 1)
        dropped = Dropped.of(noise, seen, place, self.share, 1 + 2 * len(self.blocks))
        x = self.embedding(seen.of_each(tokens)) + 0.02 * waves(place, self.embedding.embedding_dim)
        x = dropped(self.first_norm(x), 0)
        for number, block in enumerate(self.blocks):
            x = block(x, seen, dropped, 1 + 2 * number)
        found: Tensor = self.norm(x)
        return found


class Attended(NamedTuple):
    """Which tokens of a batch are attended to: asked once, since a GPU makes its host wait for how many there are."""

    mask: Tensor  # (B, L) bool
    places: Tensor  # (T,) int64 of the B · L

    @classmethod
    def of(cls, attend: Tensor) -> Attended:
        """From ``attend`` (B, L)."""
        return cls(attend, attend.flatten().nonzero()[:, 0])

    def of_each(self, rows: Tensor) -> Tensor:
        """(T, ...) of (B, L, ...)."""
        return rows.flatten(0, 1).index_select(0, self.places)

    def put_back(self, rows: Tensor) -> Tensor:
        """(B, L, F) of (T, F), zero where nothing is attended to."""
        room = rows.new_zeros(self.mask.numel(), rows.shape[1])
        return room.index_copy(0, self.places, rows).view(*self.mask.shape, -1)


class _Block(nn.Module):
    """Attention, then a layer of four times the width, each on normed input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, seen: Attended, dropped: Dropped, site: int) -> Tensor:
        """(T, F) → the same; places ``site`` and the next are those where units drop out."""
        x = x + dropped(self.proj(self._mixed(self.qkv(self.norm1(x)), seen)), site)
        out: Tensor = x + dropped(self.mlp(self.norm2(x)), site + 1)
        return out

    def _mixed(self, qkv: Tensor, seen: Attended) -> Tensor:
        """Attention of every token to all of its example: the one place where rows must be of equal length."""
        room = seen.put_back(qkv).view(*seen.mask.shape, 3, self.heads, -1)
        query, key, value = room.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, seen.mask[:, None, None, :])
        return seen.of_each(mixed.transpose(1, 2).flatten(2))


class Dropped:
    """Sets units to zero as counters say, not as a generator does.

    The mask of a token at one of the places where units drop out is a window into one fixed table of bits; where it
    begins is a hash of (noise of the example, position, place). A fifth of the time of torch's dropout on a processor,
    and the same on any device, for any batch and on any number of processes.
    """

    def __init__(self, begins: Tensor | None, share: float) -> None:
        """``begins`` (places, T); None where nothing drops out."""
        self._begins, self._share = begins, share

    @classmethod
    def of(cls, noise: Tensor | None, seen: Attended, place: Tensor, share: float, sites: int) -> Dropped:
        """For ``noise`` (B,) and the positions ``place`` (T,) of the tokens that are attended to."""
        if noise is None or not share:
            return cls(None, share)
        token = after(seen.of_each(noise[:, None].expand_as(seen.mask)), place)
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
    return Attended.of(attend).put_back(hidden).sum(1) / counts[:, None]


def waves(place: Tensor, width: int) -> Tensor:
    """(T, width) sines and cosines of positions (T,): any length, nothing to learn (arXiv 1706.03762, section 3.5)."""
    frequencies = 10_000.0 ** -(torch.arange(width // 2, device=place.device) / (width // 2))
    angles = place[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)
