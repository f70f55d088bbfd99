"""BatchNorm in groups on a GPU: Triton's kernels and the loop over groups, by layers of ResNet-50.

    python benchmarks/norms.py [--batch 256] [--group 32] [--size 224] [--rounds 20]

For each kind of layer, with ReLU: the time of forward and backward with the share of the bandwidth that a copy reaches,
whether two runs give the same bytes, and the relative error of output, gradients by input, shortcut, weight and bias
against float64. What must be moved at the least: forward x twice and the output once, backward x and the gradient
twice and the result once, and what a shortcut adds to that. Then LayerNorm with the addition before it, and GELU with
the bias, by Triton's kernels and by torch's operations, for --batch pictures of 197 tokens. Without a GPU small layers
run, for their errors alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.kernels import load
from lookalike.models.fused import _AddNorm, _BiasGELU
from lookalike.models.norm import GroupedBatchNorm2d, _Together

LAYERS = ((64, 2, False), (64, 4, False), (256, 4, True), (128, 8, False), (512, 8, True))
LAYERS += ((256, 16, False), (1024, 16, True), (512, 32, False), (2048, 32, True))
"""Channels, by how much the picture has shrunk, whether a shortcut is added."""


class Layer:
    """One norm with what follows, in bf16, by any of the ways to compute it."""

    def __init__(self, batch: int, group: int, channels: int, side: int, added: bool, device: torch.device) -> None:
        torch.manual_seed(0)
        shape, layout = (batch, channels, side, side), torch.channels_last
        made = (torch.randn(shape, device=device).bfloat16().to(memory_format=layout) for _ in range(3))
        x, residual, self.upstream = made
        self.leaves = [x.requires_grad_(), *([residual.requires_grad_()] if added else [])]
        self.norm = GroupedBatchNorm2d(channels, group).to(device)
        torch.nn.init.normal_(self.norm.weight)
        self.groups = batch // group

    def forward(self, kernels: ModuleType | None) -> Tensor:
        """By those kernels, or by the loop."""
        if kernels is None:
            out = self.norm._one_by_one(self.leaves[0], self.groups)
            return F.relu(out.add_(self.leaves[1]) if len(self.leaves) > 1 else out, inplace=True)
        norm, residual = self.norm, self.leaves[1] if len(self.leaves) > 1 else None
        statistics_of = norm.running_mean, norm.running_var
        settings = self.groups, norm.eps, 0.1, True
        return _Together.apply(self.leaves[0], residual, norm.weight, norm.bias, kernels, *statistics_of, *settings)

    def gradients(self, out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, [*self.leaves, self.norm.weight, self.norm.bias], self.upstream, True)

    def results(self, kernels: ModuleType | None) -> list[Tensor]:
        out = self.forward(kernels)
        return [out.detach(), *self.gradients(out)]

    def exact(self) -> list[Tensor]:
        """By the loop in float64."""
        norm = GroupedBatchNorm2d(self.norm.num_features, self.norm.group).to(self.upstream.device).double()
        norm.load_state_dict(self.norm.state_dict())
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        out = norm._one_by_one(leaves[0], self.groups)
        out = F.relu(out + leaves[1] if len(leaves) > 1 else out)
        return [out.detach(), *torch.autograd.grad(out, [*leaves, *norm.parameters()], self.upstream.double())]


class Stream:
    """A residual stream in fp32 with what is added to it in bf16, its norm written in bf16; the sum goes on as well."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        torch.manual_seed(0)
        made = (torch.randn(rows, width, device=device) for _ in range(4))
        x, added, by_sum, by_norm = made
        self.leaves = [x.requires_grad_(), added.bfloat16().requires_grad_()]
        self.upstream = [by_sum, by_norm.bfloat16()]
        self.norm = torch.nn.LayerNorm(width, eps=1e-6).to(device)
        torch.nn.init.normal_(self.norm.weight)

    def forward(self, kernels: ModuleType | None) -> tuple[Tensor, Tensor]:
        """By those kernels, or as autocast does it."""
        if kernels is None:
            total = self.leaves[0] + self.leaves[1]
            return total, self.norm(total).bfloat16()
        norm = self.norm
        return _AddNorm.apply(*self.leaves, norm.weight, norm.bias, norm.eps, torch.bfloat16, kernels)

    def gradients(self, out: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, [*self.leaves, *self.norm.parameters()], self.upstream, True)

    def results(self, kernels: ModuleType | None) -> list[Tensor]:
        out = self.forward(kernels)
        return [*(part.detach() for part in out), *self.gradients(out)]

    def exact(self) -> list[Tensor]:
        """In float64."""
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        parameters = [parameter.detach().double().requires_grad_() for parameter in self.norm.parameters()]
        total = leaves[0] + leaves[1]
        out = total, F.layer_norm(total, total.shape[-1:], *parameters, self.norm.eps)
        upstream = [part.double() for part in self.upstream]
        return [*(part.detach() for part in out), *torch.autograd.grad(out, [*leaves, *parameters], upstream)]


class Hidden:
    """GELU with the bias before it, in bf16."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        torch.manual_seed(0)
        x, self.upstream = (torch.randn(rows, width, device=device).bfloat16() for _ in range(2))
        self.leaves = [x.requires_grad_(), torch.randn(width, device=device, requires_grad=True)]

    def forward(self, kernels: ModuleType | None) -> Tensor:
        """By those kernels, or by torch, whose products add the bias."""
        if kernels is None:
            return F.gelu(self.leaves[0] + self.leaves[1].bfloat16())
        return _BiasGELU.apply(*self.leaves, kernels)

    def gradients(self, out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, self.leaves, self.upstream, True)

    def results(self, kernels: ModuleType | None) -> list[Tensor]:
        out = self.forward(kernels)
        return [out.detach(), *self.gradients(out)]

    def exact(self) -> list[Tensor]:
        """In float64."""
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        out = F.gelu(leaves[0] + leaves[1])
        return [out.detach(), *torch.autograd.grad(out, leaves, self.upstream.double())]


def tokens(batch: int, rounds: int, bandwidth: float, device: torch.device) -> None:
    """A line for each width and way, with the bytes a number that must be moved forward and backward."""
    for width in (192, 384, 768, 1024):
        beside(f"add {width}", Stream(batch * 197, width, device), "models.fused_triton", (12, 16), rounds, bandwidth)
        beside(
            f"GELU {4 * width}",
            Hidden(batch * 197, 4 * width, device),
            "models.fused_triton",
            (4, 6),
            rounds,
            bandwidth,
        )


def beside(told: str, part: Stream | Hidden, name: str, moved: tuple[int, int], rounds: int, bandwidth: float) -> None:
    """Triton's kernels, then torch's operations."""
    exact = part.exact()
    for way, kernels in (("triton", load(name)), ("torch", None)):
        out, found = part.forward(kernels), part.results(kernels)
        forward = milliseconds(partial(part.forward, kernels), rounds)
        times = forward, milliseconds(partial(part.gradients, out), rounds)
        least = [found[0].numel() * each / 1e6 / bandwidth for each in moved]
        shares = "  ".join(f"{ms:7.3f} ms {100 * few / ms:3.0f} %" for ms, few in zip(times, least))
        bytes_ = "same bytes" if all(map(torch.equal, found, part.results(kernels))) else "OTHER BYTES"
        print(f"{told:10} {way:6} {shares}  {bytes_}  {errors(found, exact)}", flush=True)


def errors(found: list[Tensor], exact: list[Tensor]) -> str:
    """Root of the mean square of the error, by that of the value, for each result; bf16 rounds by 0.0017."""
    ratios = [(f.double() - e).norm() / e.norm() for f, e in zip(found, exact)]
    return " ".join(f"{float(ratio):.1e}" for ratio in ratios)


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """The median."""
    found = []
    for _ in range(rounds + 3):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(stop))
    return statistics.median(found[3:])


def shown(layer: Layer, kernels: ModuleType | None, rounds: int, bandwidth: float) -> str:
    """Times, and the share of the bandwidth of what must be read and written at the least."""
    out = layer.forward(kernels)
    forward = milliseconds(lambda: layer.forward(kernels), rounds)
    backward = milliseconds(lambda: layer.gradients(out), rounds)
    size, added = out.numel() * 2, len(layer.leaves) > 1
    moved = (3 + added) * size, (5 + 2 * added) * size
    shares = [f"{100 * part / 1e6 / ms / bandwidth:3.0f} %" for part, ms in zip(moved, (forward, backward))]
    return f"{forward:7.3f} ms {shares[0]} {backward:7.3f} ms {shares[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 256), ("group", 32), ("size", 224), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        layer = Layer(8, 4, 20, 5, True, torch.device("cpu"))
        print("no GPU; error of one small layer:", errors(layer.results(None), layer.exact()))
        for part in (Stream(50, 24, torch.device("cpu")), Hidden(50, 24, torch.device("cpu"))):
            print("of one small", type(part).__name__.lower(), errors(part.results(None), part.exact()))
        return
    device, ways = torch.device("cuda"), {"triton": load("models.norm_triton"), "loop": None}
    some = torch.empty(2**30, dtype=torch.uint8, device=device)
    bandwidth = 2 * 2**30 / 1e6 / milliseconds(some.clone, 10)  # GB/s
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; a copy moves {bandwidth:.0f} GB/s")
    began = time.perf_counter()
    for channels, shrunk, added in LAYERS:
        layer = Layer(given.batch, given.group, channels, given.size // shrunk, added, device)
        exact = layer.exact()
        for name, kernels in ways.items():
            found = layer.results(kernels)
            same = all(map(torch.equal, found, layer.results(kernels)))
            times = shown(layer, kernels, given.rounds, bandwidth)
            bytes_ = "same bytes" if same else "OTHER BYTES"
            print(
                f"{channels:4} x {given.size // shrunk:3} {name:6} {times}  {bytes_}  {errors(found, exact)}",
                flush=True,
            )
        del layer, exact, found
    tokens(given.batch, given.rounds, bandwidth, device)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
