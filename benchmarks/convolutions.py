"""What the products of a convolution take by torch's kernels and by ours, in bf16: ms, pair by pair.

    python -m benchmarks.convolutions small resnet18 --rounds 9

Processor time of one thread. One line a shape: the convolution, its gradient by the input and by the weight, torch's →
ours, medians; a star where ours is what an encoder takes (models/convolution.py): of unfolded pictures, or without the
border where there are so few pixels that all results see it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from lookalike.models.convolution import border_is_much, ways_of
from lookalike.models.unfolded import Inside, Unfolded, Ways


class Shape(NamedTuple):
    """Channels before and after, side of the picture, side of the kernel, stride, and how often a network has it."""

    before: int
    width: int
    side: int
    kernel: int
    stride: int
    times: int = 1


def residual(before: int, width: int, side: int, stride: int, blocks: int) -> list[Shape]:
    """A stage of basic blocks; the shortcut of ``small`` averages first."""
    first = [Shape(before, width, side, 3, stride), Shape(width, width, side // stride, 3, 1, 2 * blocks - 1)]
    return first + ([Shape(before, width, side, 1, stride)] if stride > 1 else [])


NETWORKS = {
    "small": (128, residual(32, 32, 12, 1, 1) + residual(32, 64, 12, 2, 1) + residual(64, 128, 6, 2, 1)
              + [Shape(128, 256, 3, 3, 2), Shape(256, 256, 2, 3, 1), Shape(128, 256, 2, 1, 1)]),
    "resnet18": (256, residual(64, 64, 32, 1, 2) + residual(64, 128, 32, 2, 2) + residual(128, 256, 16, 2, 2)
                 + residual(256, 512, 8, 2, 2)),
    "resnet50": (64, [Shape(64, 64, 32, 3, 1, 3), Shape(64, 256, 32, 1, 1, 4), Shape(256, 64, 32, 1, 1, 2),
                      Shape(128, 128, 32, 3, 2), Shape(128, 128, 16, 3, 1, 3), Shape(512, 128, 16, 1, 1, 3),
                      Shape(128, 512, 16, 1, 1, 4), Shape(256, 256, 16, 3, 2), Shape(256, 256, 8, 3, 1, 5),
                      Shape(1024, 256, 8, 1, 1, 5), Shape(256, 1024, 8, 1, 1, 6), Shape(512, 512, 8, 3, 2),
                      Shape(512, 512, 4, 3, 1, 2), Shape(2048, 512, 4, 1, 1, 2), Shape(512, 2048, 4, 1, 1, 3)]),
}  # fmt: skip
"""Pictures in a batch, and the convolutions of the encoder at 24, 32 and 128 px, without the stem."""


def took(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return 1e3 * (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.networks:
        batch, shapes = NETWORKS[name]
        whole = {"torch": 0.0, "ours": 0.0}
        for shape in shapes:
            line, both = measured(batch, shape, asked.rounds)
            print(f"{name:9}{line}", flush=True)
            for kind in whole:
                whole[kind] += shape.times * both[kind]
        print(f"{name:9}all of them: {whole['torch']:.1f} -> {whole['ours']:.1f} ms as an encoder takes them")


def measured(batch: int, shape: Shape, rounds: int) -> tuple[str, dict[str, float]]:
    """One line, and ms of all products of one step in which keys come from a twin: two forward, both gradients."""
    like = torch.channels_last
    x = torch.randn(batch, shape.before, shape.side, shape.side).bfloat16().to(memory_format=like)
    weight = torch.randn(shape.width, shape.before, shape.kernel, shape.kernel).bfloat16().to(memory_format=like)
    inside, every = border_is_much(x, weight, shape.stride), Ways(True, True, True)
    taken = every if inside else ways_of(x, weight, shape.stride)
    kinds = ((Unfolded, Ways()), (Inside,) if inside else (Unfolded, every))
    works = [products(x, weight, shape.stride, *kind) for kind in kinds]
    times = [[[took(work) for work in some] for some in works] for _ in range(rounds + 2)][2:]
    plain, ours = ([statistics.median(one[which][part] for one in times) for part in range(3)] for which in range(2))
    stars = ["*" if one else " " for one in taken]
    gflop = 2e-9 * batch * (-(-shape.side // shape.stride)) ** 2 * weight.numel()
    words = [f"{a:8.2f} -> {b:7.2f}{star}" for a, b, star in zip(plain, ours, stars)]
    chosen = [b if one else a for a, b, one in zip(plain, ours, taken)]
    total = {kind: 2 * some[0] + some[1] + some[2] for kind, some in (("torch", plain), ("ours", chosen))}
    about = f"{shape.before:4} -> {shape.width:4}, {shape.side:2} px, {shape.kernel}x{shape.kernel}/{shape.stride}"
    return f"{about} {gflop:6.2f} GFLOP | {' | '.join(words)}", total


def products(x: torch.Tensor, weight: torch.Tensor, stride: int, kind: Any, *more: Any) -> list[Callable[[], object]]:
    """The convolution, its gradient by the input, and that by the weight."""
    ctx: Any = SimpleNamespace()
    ctx.save_for_backward = lambda *saved: setattr(ctx, "saved_tensors", saved)
    grad = torch.randn_like(kind.forward(ctx, x, weight, stride, *more))

    def back(*wanted: bool) -> object:
        ctx.needs_input_grad = wanted
        return kind.backward(ctx, grad)

    return [
        lambda: kind.forward(ctx, x, weight, stride, *more),
        lambda: back(True, False),
        lambda: back(False, True),
    ]


if __name__ == "__main__":
    main()
