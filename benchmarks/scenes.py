"""Material for benchmarks that nobody has to download: pictures that look like photographs to a codec, and words."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def photos(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(count, 3, H, W) uint8: noise of every scale, louder the coarser, with a little of the finest."""
    draws = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, height, width)
    for cells, loud in ((2, 80.0), (5, 50.0), (13, 30.0), (40, 14.0), (120, 6.0)):
        coarse = torch.randn(count, 3, min(cells, height), min(cells, width), generator=draws)
        total += loud * F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return (total + 128 + 3 * torch.randn(total.shape, generator=draws)).clamp(0, 255).to(torch.uint8)


def jpegs(folder: Path, count: int, workers: int, height: int = 375, width: int = 500) -> float:
    """Writes that many JPEG files of quality 90 into two class folders; the mean number of bytes."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    job = partial(_some, folder, height, width)
    starts = range(0, count, 32)
    parts = [range(start, min(start + 32, count)) for start in starts]
    if workers <= 1:
        sizes = [size for part in map(job, parts) for size in part]
    else:
        with ProcessPoolExecutor(workers) as pool:
            sizes = [size for part in pool.map(job, parts) for size in part]
    return float(np.mean(sizes))


def _some(folder: Path, height: int, width: int, numbers: Sequence[int]) -> list[int]:
    torch.set_num_threads(1)
    sizes = []
    for number, picture in zip(numbers, photos(len(numbers), height, width, numbers[0])):
        file = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=90)
        (folder / "ab"[number % 2] / f"{number:05d}.jpg").write_bytes(file.getvalue())
        sizes.append(file.tell())
    return sizes


def sentences(count: int, seed: int = 0) -> list[str]:
    """Lines of three to twelve words out of some hundred."""
    draws = np.random.default_rng(seed)
    letters = list("abcdefghijklmnoprstuw")
    words = ["".join(draws.choice(letters, draws.integers(2, 8))) for _ in range(200)]
    return [" ".join(draws.choice(words, draws.integers(3, 13))) for _ in range(count)]
