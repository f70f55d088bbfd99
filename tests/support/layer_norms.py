"""An addition with LayerNorm, and a bias with GELU, by Triton's kernels, against torch's operations in float64.

A program of its own: Triton must know before it is imported that it is to interpret its kernels.
"""

from __future__ import annotations

import itertools
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.models import fused, fused_triton
from lookalike.models.fused import _AddNorm, _BiasGELU, add_norm
from lookalike.models.vit import ViT, ViTBackbone

SHAPES = ((3, 7, 24), (2, 5, 97), (1, 1, 8), (5, 1, 384), (2, 3, 1536), (70, 1), (0, 4, 16))
WRITTEN = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-11}
"""Half a unit in the last place; Triton's interpreter cuts fp32 off where it makes bf16 of it, which is a whole one."""


def check(shape: tuple[int, ...], written: torch.dtype, added: torch.dtype | None, used: bool) -> None:
    """Values and gradients; ``used``: whether the sum goes on beside the norm, as a residual stream does."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(shape[-1], eps=1e-6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    leaves = [torch.randn(shape) + 20]  # a mean far beyond the deviation
    leaves += [] if added is None else [torch.randn(shape).to(added)]
    upstream = torch.randn(shape), torch.randn(shape).to(written)
    wanted = exact(norm, leaves, upstream, used)
    found = computed(norm, leaves, upstream, used, written)
    for name, (mine, theirs) in {name: (found[name], wanted[name]) for name in wanted}.items():
        told = f"{shape} {written} {added} {used} {name}"
        torch.testing.assert_close(
            *(mine.double(), theirs),
            rtol=1.01 * ROUNDING[mine.dtype] + 1e-5,
            atol=2e-5 * max(1.0, float(theirs.abs().max()) if theirs.numel() else 1.0),
            msg=lambda text, told=told: f"{told}: {text}",
        )
        assert mine.shape == theirs.shape, told
    assert found["out"].dtype == written
    assert added is None or found["added"].dtype == added


def exact(norm: nn.LayerNorm, leaves: list[Tensor], upstream: tuple[Tensor, ...], used: bool) -> dict[str, Tensor]:
    """By torch in float64, of the sum that fp32 gives."""
    parameters = [parameter.detach().double().requires_grad_() for parameter in norm.parameters()]
    rounded = sum(leaf.detach().float() for leaf in leaves)
    total = rounded.double().requires_grad_()
    out = F.layer_norm(total, total.shape[-1:], *parameters, norm.eps)
    by_sum = upstream[0].double() if used else torch.zeros_like(total)
    to_x, *others = torch.autograd.grad([total * 1, out], [total, *parameters], [by_sum, upstream[1].double()])
    by_leaf = dict(zip(("x", "added"), [to_x] * len(leaves)))
    return {"sum": total.detach(), "out": out.detach(), "weight": others[0], "bias": others[1], **by_leaf}


def computed(
    norm: nn.LayerNorm, leaves: list[Tensor], upstream: tuple[Tensor, ...], used: bool, written: torch.dtype
) -> dict[str, Tensor]:
    """By the kernels."""
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    added = leaves[1] if len(leaves) > 1 else None
    total, out = _AddNorm.apply(leaves[0], added, norm.weight, norm.bias, norm.eps, written, fused_triton)
    outputs, gradients = ((total, out), upstream) if used else ((out,), upstream[1:])
    to_weight, to_bias, *others = torch.autograd.grad(outputs, [norm.weight, norm.bias, *leaves], gradients)
    found = {"sum": total.detach(), "out": out.detach(), "weight": to_weight, "bias": to_bias}
    return {**found, **dict(zip(("x", "added"), others))}


def check_network(keep: Tensor | None, pool: str) -> None:
    """A network of blocks in fp32 by the kernels, which some gradients reach through all of them."""
    torch.manual_seed(0)
    net = ViT(24, 2, 3, 4, pool).build(8)[0]
    assert isinstance(net, ViTBackbone)
    pixels = torch.randn(2, 3, 12, 16)
    wanted = gradients(net.double(), pixels.double(), keep)
    with patch.object(fused, "_norm_kernels", lambda *_: fused_triton):
        found = gradients(net.float(), pixels, keep)
    for name, theirs in wanted.items():
        size = float(theirs.abs().max())
        torch.testing.assert_close(found[name].double(), theirs, rtol=1e-4, atol=2e-5 * size, msg=name)


def gradients(net: ViTBackbone, pixels: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
    out = net(pixels, keep)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    named = dict(net.named_parameters())
    return {"out": out.detach(), **dict(zip(named, torch.autograd.grad(out, list(named.values()), upstream)))}


def check_gelu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Values and gradients, also where GELU is nothing or its argument."""
    torch.manual_seed(0)
    bias = torch.randn(shape[-1], requires_grad=True)
    x, upstream = (4 * torch.randn(shape)).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)
    doubles = [leaf.detach().double().requires_grad_() for leaf in (x, bias)]
    results = []
    for leaves, out in (
        ((x, bias), _BiasGELU.apply(x, bias, fused_triton)),
        (doubles, F.gelu(doubles[0] + doubles[1])),
    ):
        results.append([out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))])
    assert results[0][0].dtype == results[0][1].dtype == dtype
    for mine, theirs in zip(*results):
        rtol = 1.01 * ROUNDING[mine.dtype] + 1e-5
        torch.testing.assert_close(mine.double(), theirs, rtol=rtol, atol=2e-5, msg=lambda text: f"{shape}: {text}")


def check_narrow() -> None:
    """A network whose products are in bf16, by all kernels and by torch, on one processor."""
    torch.manual_seed(0)
    net, pixels = ViT(32, 2, 4, 4).build(8)[0], torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = gradients(net, pixels, None)
        with (
            patch.object(fused, "_norm_kernels", lambda *_: fused_triton),
            patch.object(fused, "_gelu_kernels", lambda *_: fused_triton),
        ):
            found = gradients(net, pixels, None)
    exact = gradients(net.double(), pixels.double(), None)
    for name, true in exact.items():
        # Torch's own error is the measure: other numbers are rounded, by the interpreter twice as coarsely.
        error, torchs = ((some[name].double() - true).norm() for some in (found, wanted))
        assert error <= 3 * torchs + 1e-6 * true.norm(), f"{name}: {error} {torchs} {true.norm()}"


def check_view() -> None:
    """What lies otherwise in memory: the first tokens of each example."""
    x, norm = torch.randn(3, 5, 32), nn.LayerNorm(32)
    wanted = norm(x[:, :1] + x[:, 1:2])
    with patch.object(fused, "_norm_kernels", lambda *_: fused_triton):
        found = add_norm(x[:, :1], x[:, 1:2], norm)
    assert torch.equal(found[0], x[:, :1] + x[:, 1:2])
    torch.testing.assert_close(found[1], wanted, rtol=1e-5, atol=1e-5)


def main() -> None:
    """Rows as they are shared out; then many rows a program."""
    cases = list(itertools.product(SHAPES, WRITTEN, (None, torch.float32, torch.bfloat16), (True, False)))
    for case in cases[::5]:
        check(*case)
    fused_triton._NORM_WARPS = 2
    check((50, 300), torch.bfloat16, torch.bfloat16, True)
    check((50, 30), torch.float32, torch.float32, True)
    check_view()
    for dtype in WRITTEN:
        for shape in ((3, 7, 24), (50, 300), (0, 8)):
            check_gelu(shape, dtype)
    fused_triton._GELU_PROGRAMS = 2
    check_gelu((50, 300), torch.bfloat16)
    check_narrow()
    for pool in ("class", "mean"):
        check_network(None, pool)
        check_network(torch.tensor([[0, 7, 3], [11, 2, 5]]), pool)
    print("all equal")


if __name__ == "__main__":
    main()
