"""A vision transformer with fixed positions, which takes pictures of any size and any part of their patches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from lookalike.core.devices import product_type
from lookalike.core.errors import Bounded, Limit, UserError, Width
from lookalike.models.fused import add_norm, attended, linear_gelu


@dataclass(frozen=True)
class ViT(Bounded):
    """The vision transformer (arXiv 2010.11929) as MoCo v3 trains it (arXiv 2104.02057, section 4).

    The defaults are ViT-S of that paper, which has 12 heads where other ViT-S have 6.
    """

    width: Width = 384
    depth: Annotated[int, Limit(1, 1000)] = 12
    heads: Width = 12
    patch: Annotated[int, Limit(1, 1024)] = 16  # side in pixels
    pool: Literal["class", "mean"] = "class"  # features: those of the class token, or the mean over patches
    frozen_patches: bool = False  # the patch projection stays random, which keeps training stable (section 4.2)

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights and F; ``group`` is for BatchNorm, which a transformer does without."""
        if self.width % self.heads or self.width % 4:
            raise UserError(
                f"model.width {self.width} must be a multiple of model.heads ({self.heads}) and, for positions, of 4"
            )
        return ViTBackbone(self), self.width


class ViTBackbone(nn.Module):
    """Patches, a class token if asked for, pre-norm blocks, a last norm.

    Names below ``blocks`` and ``norm`` are timm's; ``patches`` is its ``patch_embed.proj`` with the kernel as a row.
    """

    def __init__(self, spec: ViT) -> None:
        super().__init__()
        self.side = spec.patch
        self.patches = nn.Linear(3 * spec.patch**2, spec.width)
        # One dimension: it decays only where everything does.
        self.token = nn.Parameter(torch.empty(spec.width)) if spec.pool == "class" else None
        self.blocks = Blocks(*(Block(spec.width, spec.heads) for _ in range(spec.depth)))
        self.norm = nn.LayerNorm(spec.width, eps=1e-6)
        initialise(self)
        if self.token is not None:
            nn.init.normal_(self.token, std=1e-6)
        self.patches.requires_grad_(not spec.frozen_patches)

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) → (B, F); with ``keep`` (B, n) only those patches, numbered by rows, are computed."""
        x = self._embedded(pixels, keep)
        # A processor would round sums over fewer rows otherwise: its runs keep their bytes.
        first = 1 if self.token is not None and x.device.type != "cpu" else None
        return self.pooled(self._last_layer(x, first))

    def tokens(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, n, F) the last layer for each patch that is kept, after that of the class token where there is one."""
        return self._last_layer(self._embedded(pixels, keep))

    def _embedded(self, pixels: Tensor, keep: Tensor | None) -> Tensor:
        """(B, n, F) what goes into the blocks."""
        rows, columns = grid(pixels, self.side)
        where = positions(rows, columns, self.norm.normalized_shape[0], pixels.device).to(self.norm.weight.dtype)
        patches = patches_at(pixels, self.side, keep, product_type(pixels))
        x: Tensor = self.patches(patches) + (where if keep is None else where[keep])
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], 1, -1), x], dim=1)
        return x

    def _last_layer(self, x: Tensor, first: int | None = None) -> Tensor:
        """(B, n, F) what comes out of the blocks, normed; of the ``first`` tokens alone, if given."""
        last, added = self.blocks.open(x, first)
        return add_norm(last, added, self.norm, x.dtype)[1]

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, F) the features, from (B, n, F)."""
        return tokens[:, 0] if self.token is not None else tokens.mean(1)


def initialise(transformer: nn.Module) -> None:
    """MoCo v3's linear layers: Glorot's uniform, for queries, keys and values each by itself; no biases."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            parts = 3 if name.endswith("qkv") else 1
            bound = math.sqrt(6 / (module.out_features / parts + module.in_features))
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


class Block(nn.Module):
    """Attention, then a layer of four times the width, each on normed input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width)

    def forward(self, x: Tensor, added: Tensor | None = None, first: int | None = None) -> tuple[Tensor, Tensor]:
        """(B, N, width) and what the block before ``added`` → the sum, and what this block adds: the next norm adds it.

        Of the ``first`` tokens alone, if given, which still attend to all others.
        """
        x, normed = add_norm(x, added, self.norm1)
        x, normed = add_norm(x if first is None else x[:, :first], self.attn(normed, first), self.norm2)
        return x, self.mlp(normed)


class Blocks(nn.Sequential):
    """Blocks one after the other, each of which leaves an addition to the next."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to the same."""
        x, added = self.open(x)
        return x + added

    def open(self, x: Tensor, first: int | None = None) -> tuple[Tensor, Tensor]:
        """The residual stream, and what is still to be added to it; of the ``first`` tokens alone, if given."""
        added: Tensor | None = None
        for block in list(self)[:-1]:
            x, added = block(x, added)
        out: tuple[Tensor, Tensor] = self[-1](x, added, first)
        return out


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(linear_gelu(self.fc1, x))
        return out


class _Attention(nn.Module):
    """Scaled dot products of every token with every other, ``heads`` times side by side."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """(B, N, width) → the same, or of the ``first`` tokens alone, if given."""
        parts = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).unbind(2)  # whose gradients are put there at once
        query, key, value = (part.transpose(1, 2) for part in parts)
        if first is None:
            mixed = attended(query, key, value)
        else:  # of so few, torch would choose a kernel whose gradients are added in any order
            logits = query[:, :, :first] * query.shape[-1] ** -0.5 @ key.transpose(2, 3)
            mixed = logits.softmax(3) @ value
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


def grid(pixels: Tensor, side: int) -> tuple[int, int]:
    """Rows and columns of patches of ``side`` pixels."""
    height, width = pixels.shape[2:]
    if height % side or width % side or not height or not width:
        raise UserError(
            f"pictures of {height} by {width} pixels do not divide into patches of {side}: "
            f"choose sizes of views that are multiples of it, or another model.patch"
        )
    return height // side, width // side


def patches_at(pixels: Tensor, side: int, index: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """(B, n, 3 · side²) the patches of (B, 3, H, W) at ``index`` (B, n), or all, by rows; no other is copied.

    In ``dtype``, if given: they are converted while they are copied.
    """
    rows, columns = grid(pixels, side)
    patches = pixels.reshape(-1, 3, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    if index is None:
        patches = patches.to(dtype or pixels.dtype, memory_format=torch.contiguous_format)
        return patches.flatten(1, 2).flatten(2)
    example = torch.arange(len(index), device=index.device)[:, None]
    return patches[example, index // columns, index % columns].flatten(2).to(dtype or pixels.dtype)


def positions(rows: int, columns: int, width: int, device: torch.device | None = None) -> Tensor:
    """(rows · columns, width) sines and cosines, half of the width for the row and half for the column of a patch.

    Frequencies fall from 1 to almost 1/10,000 as in MoCo v3. They count patches, so an object of the same size in
    pixels has the same differences of positions in a picture of any size.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))
    row, column = (torch.arange(n, device=device)[:, None] * frequencies for n in (rows, columns))
    by_row = torch.cat([row.sin(), row.cos()], dim=1)[:, None].expand(rows, columns, -1)
    by_column = torch.cat([column.sin(), column.cos()], dim=1).expand(rows, columns, -1)
    return torch.cat([by_row, by_column], dim=2).flatten(0, 1)
