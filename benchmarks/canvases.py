"""What views lose by being cut from a canvas instead of from the picture: crops at 224 px, the same boxes.

    python benchmarks/canvases.py PHOTOS [--sides 256 320 384 448 512] [--longest 500] [--views 4]

PHOTOS is a folder of pictures; ``--longest`` first shrinks those whose long side is longer, as ImageNet's mostly are
500. Pictures smaller than a view are left out. Detail is the energy of the luminance above half of the Nyquist
frequency, under a Hann window: a view from the canvas over the same view from the picture, as the papers' code has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lookalike.data.decode import squash
from lookalike.pretext.image import ImageView
from lookalike.types import Canvases

VIEW = ImageView(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def pictures(folder: Path, longest: int | None) -> Iterator[Image.Image]:
    for path in sorted(folder.rglob("*.jpg")):
        image = Image.open(path).convert("RGB")
        if longest is not None and max(image.size) > longest:
            scale = longest / max(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.BICUBIC)
        if min(image.size) >= VIEW.size:
            yield image


def views(pixels: Tensor, size: tuple[int, int], row: int, count: int) -> Tensor:
    """(count, 3, S, S) in [0, 1]: views number 0, 1, ... of the picture that ``pixels`` (3, H, W) hold."""
    canvas = Canvases(pixels[None], torch.tensor([size]))
    return torch.cat([VIEW(canvas, torch.tensor([row]), 0, 0, number)["pixels"] for number in range(count)])


def detail(views: Tensor) -> Tensor:
    """(B,) energy of the luminance above half of the Nyquist frequency."""
    side = views.shape[-1]
    gray = (views * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    window = torch.hann_window(side, periodic=False)
    spectrum = torch.fft.fft2((gray - gray.mean((1, 2), keepdim=True)) * window * window[:, None]).abs().square()
    frequency = torch.fft.fftfreq(side).abs()
    return spectrum[:, torch.maximum(frequency, frequency[:, None]) > 0.25].sum(1)


def compare(image: Image.Image, row: int, sides: list[int], count: int) -> list[tuple[float, float]]:
    """For each side the PSNR in dB of a picture's views, and the share of their detail that is lost; means."""
    full = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    size = (image.height, image.width)
    wanted = views(full, size, row, count)
    found = []
    for side in sides:
        ours = views(squash(image, side).pixels, size, row, count)
        psnr = -10 * (ours - wanted).square().mean((1, 2, 3)).log10()
        found.append((float(psnr.mean()), float(1 - (detail(ours) / detail(wanted)).mean())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 320, 384, 448, 512])
    parser.add_argument("--longest", type=int)
    parser.add_argument("--views", type=int, default=4)
    asked = parser.parse_args()
    images = enumerate(pictures(asked.photos, asked.longest))
    found = [compare(image, row, asked.sides, asked.views) for row, image in images]
    numbers = torch.tensor(found)  # (n, sides, 2)
    print(f"{len(numbers)} pictures, {asked.views} views each; mean (standard deviation) over pictures")
    print("side  KB a picture  PSNR dB      detail lost %")
    for side, (psnr, lost) in zip(asked.sides, numbers.permute(1, 2, 0)):
        print(
            f"{side:4}  {3 * side**2 / 1000:8.0f}      {psnr.mean():.1f} ({psnr.std():.1f})   "
            f"{100 * lost.mean():5.1f} ({100 * lost.std():.1f})"
        )


if __name__ == "__main__":
    main()
