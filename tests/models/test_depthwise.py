"""Depthwise convolutions and folded norms: what they stand for, with other gradients in bf16, and in fewer passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from lookalike.models.depthwise import Depthwise, exact_gradients
from lookalike.models.folded import folded
from lookalike.models.image import Pixels, ResNet, Timm

SHAPES = [(3, 1, 1, nn.Conv2d), (5, 2, 2, nn.Conv2d), (3, 2, 0, Conv2dSame), (5, 1, 0, Conv2dSame)]


def passed(conv: nn.Module, pixels: Tensor, bf16: bool) -> tuple[Tensor, ...]:
    """What it gives, and the gradients of its input, kernels and bias."""
    conv.zero_grad()
    pixels = pixels.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = conv(pixels)
    (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    assert pixels.grad is not None
    return out.float().detach(), pixels.grad, *(p.grad for p in conv.parameters())  # type: ignore[misc]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding", "kind"), SHAPES)
def test_a_depthwise_convolution_is_the_one_it_replaces(
    kernel: int, stride: int, padding: int, kind: Any, bf16: bool
) -> None:
    torch.manual_seed(0)
    plain = kind(6, 6, kernel, stride, padding, groups=6)
    ours = exact_gradients(nn.Sequential(kind(6, 6, kernel, stride, padding, groups=6)))[0]  # type: ignore[index]
    ours.load_state_dict(plain.state_dict())
    assert type(ours) is Depthwise
    pixels = torch.randn(3, 6, 11, 11)
    for mine, its in zip(passed(ours, pixels, bf16), passed(plain, pixels, False)):
        assert torch.allclose(mine, its, atol=(2e-2 if bf16 else 1e-5) * float(its.abs().max()))  # bf16 keeps 8 bits


@pytest.mark.parametrize("groups", [1, 2])
def test_other_convolutions_stay(groups: int) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=groups), nn.Conv2d(4, 8, 3, groups=4))
    assert all(type(part) is nn.Conv2d for part in exact_gradients(net))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext", "test_vit"])
def test_a_folded_network_gives_the_same_features_and_leaves_the_other_alone(name: str) -> None:
    torch.manual_seed(0)
    net = Timm(name, 64 if "vit" in name else None).build(4)[0].eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    before, pixels = {n: p.clone() for n, p in net.state_dict().items()}, torch.randn(3, 3, 64, 64)
    quick = folded(net, pixels=pixels[:1])
    norms = [sum(isinstance(part, nn.BatchNorm2d) for part in one.modules()) for one in (net, quick)]
    assert norms[1] == 0
    assert (quick is not net) == (norms[0] > 0)
    with torch.inference_mode():
        assert torch.allclose(quick(pixels=pixels), net(pixels=pixels), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(part, before[name]) for name, part in net.state_dict().items())


def test_norms_that_add_and_activate_fold_too() -> None:
    torch.manual_seed(0)
    net, pixels = ResNet("resnet18").build(4)[0].eval(), torch.randn(2, 3, 64, 64)
    plain = torchvision.models.resnet18(weights=None)
    plain.fc = nn.Identity()
    plain.load_state_dict({name.removeprefix("net."): part for name, part in net.state_dict().items()})
    with torch.inference_mode():
        assert torch.allclose(folded(net, pixels=pixels)(pixels=pixels), plain.eval()(pixels), atol=1e-4)


def test_a_network_that_folding_would_change_stays_as_it_is() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            assert self.norm.running_mean is not None
            self.norm.running_mean.fill_(3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv(x)
            return (self.norm(out) + out).mean((2, 3))  # the convolution's output counts twice

    net = Pixels(Twice()).eval()
    assert folded(net, pixels=torch.randn(2, 3, 8, 8)) is net
