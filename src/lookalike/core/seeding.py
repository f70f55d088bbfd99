"""Randomness as a pure function of counters: the same on any device, for any batch, worker and process count.

Nothing here holds state, so a checkpoint needs no generator: an example's view is a function of
(seed, epoch, row, view) and the order of an epoch is a function of (seed, epoch).
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: consecutive counters land far apart (Steele et al. 2014)


def _signed(word: int) -> int:
    """The 64-bit word as the signed integer that torch.int64 stores."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


_MULTIPLY_1, _MULTIPLY_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, which torch lacks (its ``>>`` copies the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def scramble(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64: a bijection whose every output bit depends on every input bit."""
    x = (x ^ _shift_right(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLY_2
    return x ^ _shift_right(x, 31)


def hashed(*counters: int) -> int:
    """One signed 64-bit number from any counters, order included: (2, 3) and (3, 2) differ."""
    state = 0
    for counter in counters:
        word = (state + counter + 1) * _GOLDEN & _WORD
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
        state = word ^ (word >> 31)
    return _signed(state)


def noise(seed: int, epoch: int, rows: Tensor, view: int) -> Tensor:
    """(B,) int64 of any bits, a function of (seed, epoch, row, view) alone; ``rows`` is (B,) int64."""
    return scramble(rows * _signed(_GOLDEN) + hashed(seed, epoch, view))


def after(counters: Tensor, step: Tensor) -> Tensor:
    """int64 of any bits for each counter and each ``step`` onward from it; both broadcast."""
    return scramble(counters + (step + 1) * _signed(_GOLDEN))


def uniforms(seed: int, epoch: int, rows: Tensor, view: int, n: int) -> Tensor:
    """(B, n) float32 draws from [0, 1), a function of (seed, epoch, row, view) alone; ``rows`` is (B,) int64."""
    words = after(noise(seed, epoch, rows, view)[:, None], torch.arange(n, device=rows.device))
    # 24 bits fill a float32 mantissa exactly, so every device rounds alike.
    return _shift_right(words, 40).float() / (1 << 24)


def integers(seed: int, stream: int, rows: Tensor, n: int, below: int) -> Tensor:
    """(B, n) int64 draws from range(below), a function of (seed, stream, row) alone; ``rows`` is (B,) int64."""
    base = scramble(rows * _signed(_GOLDEN) + hashed(seed, stream))
    counters = torch.arange(1, n + 1, device=rows.device) * _signed(_GOLDEN)
    # 63 bits modulo ``below``: the bias is below 2^-33 for a billion rows.
    return _shift_right(scramble(base[:, None] + counters), 1) % below


def reseed(*counters: int) -> None:
    """Set torch's global generators (dropout) from counters, so that a resumed step draws what it drew before."""
    torch.manual_seed(hashed(*counters) & (_WORD >> 1))
