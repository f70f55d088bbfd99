"""Attention in bf16 on a processor: its gradients are as near to those of double precision as torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.models.fused import attended

pytestmark = pytest.mark.any_precision


def gradients(
    parts: list[Tensor], mask: Tensor | None, grad: Tensor, attention: object = F.scaled_dot_product_attention
) -> list[Tensor]:
    learning = [part.clone().requires_grad_() for part in parts]
    out = attention(*learning, mask)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad(out, learning, grad.to(out.dtype))]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [1, 10, 65])
def test_gradients_are_those_of_double_precision(tokens: int, masked: bool) -> None:
    chance = torch.Generator().manual_seed(tokens)
    parts = [torch.randn(4, 3, tokens, 32, generator=chance).bfloat16() for _ in range(3)]
    grad = torch.randn(4, 3, tokens, 32, generator=chance).bfloat16()
    mask = (torch.arange(tokens) < torch.tensor([[1], [3], [7], [tokens]]))[:, None, None] if masked else None
    ours = gradients(parts, mask, grad, attended)
    torchs = gradients(parts, mask, grad)
    truth = gradients([part.double() for part in parts], mask, grad)
    assert torch.equal(ours[0], torchs[0])  # what it computes is torch's to the last bit
    for one, other, exact in zip(ours[1:], torchs[1:], truth[1:]):
        error, usual = ((found.double() - exact).square().mean().sqrt() for found in (one, other))
        assert error <= 1.5 * usual + 1e-3 * exact.square().mean().sqrt()
        assert one.dtype == torch.bfloat16


def test_other_types_are_left_to_torch() -> None:
    parts = [torch.randn(2, 3, 5, 8) for _ in range(3)]
    grad = torch.randn(2, 3, 5, 8)
    for one, other in zip(gradients(parts, None, grad, attended), gradients(parts, None, grad)):
        assert torch.equal(one, other)
