"""Two views of a picture: lookalike against lightly and plain torchvision (PIL, one at a time) and kornia (batched).

    python -m benchmarks.views [--threads 1] [--rounds 7] [--sizes 32 128]

Everyone starts from decoded pictures in memory (PIL images or uint8 tensors), draws the same changes with the same
probabilities per picture (MoCo's CIFAR notebook at 32 px, MoCo v2 with blur from 96 px on), and ends with normalised
float tensors. Rounds alternate between the contestants, so that a noisy moment hits all of them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn
from torchvision.transforms import functional

from benchmarks.rivals import lightly_views, papers_view
from lookalike.pretext.image import MOCO_CIFAR, MOCO_V2, ImageView, TwoViews
from lookalike.types import Canvases

Contestant = Callable[[], object]
COUNT = {32: (512, 64), 128: (64, 16)}  # pictures a round: batched, one at a time


def ours(pixels: Tensor, view: ImageView) -> Contestant:
    canvases = Canvases(pixels, torch.tensor([pixels.shape[2:]]).expand(len(pixels), 2))
    pretext, rows = TwoViews(view), torch.arange(len(pixels))
    return lambda: pretext(canvases, rows, 0, 0)


def torchvision_pil(pixels: Tensor, view: ImageView) -> Contestant:
    images = [functional.to_pil_image(picture) for picture in pixels]
    chain = papers_view(view)
    return lambda: [(chain(image), chain(image)) for image in images]


def lightly(pixels: Tensor, view: ImageView) -> Contestant:
    images, chain = [functional.to_pil_image(picture) for picture in pixels], lightly_views(view)
    return lambda: [chain(image) for image in images]


def kornia(pixels: Tensor, view: ImageView) -> Contestant:
    import kornia.augmentation as K

    steps = [
        K.RandomResizedCrop((view.size, view.size), scale=view.scale, ratio=view.ratio, same_on_batch=False),
        K.RandomHorizontalFlip(p=view.flip),
        K.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue, p=view.jitter, same_on_batch=False),
        K.RandomGrayscale(p=view.gray),
    ]
    if view.blur:
        side = 2 * view.radius() + 1
        steps.append(K.RandomGaussianBlur((side, side), view.sigma, p=view.blur, same_on_batch=False))
    chain = nn.Sequential(*steps, K.Normalize(torch.tensor(view.mean), torch.tensor(view.std)))

    def run() -> object:
        pictures = pixels.float() / 255
        return chain(pictures), chain(pictures)

    return run


def contestants(size: int) -> dict[str, tuple[Contestant, int]]:
    """Who is installed, each with how many pictures a round of it makes."""
    view = replace(MOCO_CIFAR if size < 96 else MOCO_V2, size=size)
    batched, single = COUNT.get(size, (64, 16))
    pixels = torch.randint(0, 256, (batched, 3, size, size), dtype=torch.uint8)
    found = {
        "lookalike": (ours(pixels, view), batched),
        "torchvision": (torchvision_pil(pixels[:single], view), single),
    }
    for name, make, count in (("lightly", lightly, single), ("kornia", kornia, batched)):
        try:
            found[name] = (make(pixels[:count], view), count)
        except ImportError as error:
            print(f"{name}: skipped, not installed ({error})")
    return found


def timed(run: Contestant, count: int) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start) / count


def compare(size: int, rounds: int) -> None:
    """Prints the table of one size."""
    field = contestants(size)
    for run, _ in field.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in field}
    for _ in range(rounds):
        for name, (run, count) in field.items():
            times[name].append(timed(run, count))
    base = statistics.median(times["lookalike"])
    print(f"\n{size} px, two views, ms a picture: median of {rounds} alternating rounds (min to max)")
    for name, values in times.items():
        middle = statistics.median(values)
        print(
            f"  {name:12s} {middle:8.4f}  ({min(values):.4f} to {max(values):.4f})  {middle / base:6.1f} x lookalike's"
        )


def installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description="Two views of a picture, side by side with the peers.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # the peers' deprecations
    names = ("torch", "torchvision", "pillow", "lightly", "kornia")
    print(f"{processor()}, {asked.threads} thread(s), Python {platform.python_version()}")
    print(", ".join(installed(name) for name in names))
    for size in asked.sizes:
        compare(size, asked.rounds)


if __name__ == "__main__":
    main()
