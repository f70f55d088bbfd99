"""Grouped BatchNorm by the kernels of Triton, against the loop over groups in float64; run as a program.

A program of its own because Triton must know before it is imported that it is to interpret its kernels.
"""

from __future__ import annotations

import itertools
from types import ModuleType

import torch
from torch import Tensor

from lookalike.models.norm import GroupedBatchNorm1d, GroupedBatchNorm2d, GroupedBatchNorm3d, _Together

SHAPES = {
    (48, 20): 8,
    (12, 130): 2,
    (9, 1): 1,
    (6, 3, 5, 4): 1,
    (8, 20, 3, 3): 2,
    (4, 70, 5, 5): 2,
    (4, 20, 2, 3, 3): 2,
    (2, 64, 7, 1): 1,
}  # to the number of groups
FOLLOWS = ("nothing", "activation", "addition")
CLASSES = {2: GroupedBatchNorm1d, 4: GroupedBatchNorm2d, 5: GroupedBatchNorm3d}
LAYOUTS = {2: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}

Case = tuple[tuple[int, ...], str, torch.dtype, bool]


def cases() -> list[Case]:
    """Shapes, what follows the norm, types, and whether it has weight and bias; each pair of shape and type once."""
    rest = itertools.cycle([(follow, affine) for affine in (True, False) for follow in FOLLOWS])
    wanted = [(shape, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16) for shape in SHAPES]
    return [(shape, follow, dtype, affine) for (shape, dtype), (follow, affine) in zip(wanted, rest)]


def check(kernels: ModuleType, case: Case, cut: bool = False) -> None:
    """Values, gradients and running statistics of a case; ``cut``: as Triton's interpreter turns fp32 into bf16."""
    shape, follow, dtype, affine = case
    torch.manual_seed(0)
    norm = CLASSES[len(shape)](shape[1], shape[0] // SHAPES[shape], affine=affine)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x, residual, upstream = (torch.randn(shape).to(dtype).to(memory_format=LAYOUTS[len(shape)]) for _ in range(3))
    x += 3 * torch.arange(shape[1]).view(-1, *[1] * (len(shape) - 2)).sin().to(dtype)  # means beyond the deviations
    leaves = [x, *([residual] if follow == "addition" else [])]
    wanted = reference(norm, leaves, follow, upstream)
    found = computed(kernels, norm, leaves, follow, upstream)
    # fp32 computes; what has the input's type was rounded to it once, by half a unit in the last place.
    rounding = {torch.float32: 0.0, torch.bfloat16: 2**-7 if cut else 2**-8, torch.float16: 2**-11}[dtype]
    for name, (mine, theirs) in {name: (found[name], wanted[name]) for name in wanted}.items():
        its = rounding if mine.dtype == dtype else 0.0
        torch.testing.assert_close(
            *(mine.double(), theirs), rtol=1.01 * its + 1e-5, atol=2e-5, msg=lambda text, n=name: f"{case} {n}: {text}"
        )
        assert mine.shape == theirs.shape
    assert found["out"].dtype == found["x0"].dtype == dtype
    assert found["out"].stride() == x.stride()


def reference(norm: torch.nn.Module, leaves: list[Tensor], follow: str, upstream: Tensor) -> dict[str, Tensor]:
    """By the loop over groups, in float64."""
    double = type(norm)(norm.num_features, norm.group, affine=norm.affine).double()
    double.load_state_dict(norm.state_dict())
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    out = double(leaves[0])
    if follow == "addition":
        out = out + leaves[1]
    if follow != "nothing":
        assert float(out.detach().abs().min()) > 1e-6, "beside ReLU's kink rounding would decide over a gradient"
        out = out.relu()
    return named(double, out, leaves, upstream)


def computed(
    kernels: ModuleType, norm: torch.nn.Module, leaves: list[Tensor], follow: str, upstream: Tensor
) -> dict[str, Tensor]:
    """By the kernels."""
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    residual = leaves[1] if follow == "addition" else None
    settings = len(leaves[0]) // norm.group, norm.eps, norm.momentum, follow != "nothing"
    statistics = norm.running_mean, norm.running_var
    out = _Together.apply(leaves[0], residual, norm.weight, norm.bias, kernels, *statistics, *settings)
    return named(norm, out, leaves, upstream)


def named(norm: torch.nn.Module, out: Tensor, leaves: list[Tensor], upstream: Tensor) -> dict[str, Tensor]:
    """What is compared."""
    grads = torch.autograd.grad(out, [*leaves, *norm.parameters()], upstream.to(out.dtype))
    names = [f"x{number}" for number in range(len(leaves))] + [name for name, _ in norm.named_parameters()]
    statistics = {name: buffer for name, buffer in norm.named_buffers() if name.startswith("running")}
    return {"out": out.detach(), **dict(zip(names, grads, strict=True)), **statistics}


def main() -> None:
    """Tiles and shares as they are; then small tiles, of which small shapes have many, in many shares and in few."""
    from lookalike.models import norm_triton

    for case in cases():
        check(norm_triton, case, cut=True)
    norm_triton._TILE = 256
    for programs in (99, 9):
        norm_triton._PROGRAMS = programs
        for case in [case for case in cases() if case[2] == torch.float32 and len(case[0]) == 4]:
            check(norm_triton, case)
    print("all equal")


if __name__ == "__main__":
    main()
