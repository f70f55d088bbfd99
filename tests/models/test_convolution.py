"""Which way a convolution is computed: only where it pays, and nothing else of a network or a step changes by it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lookalike.models import convolution
from lookalike.models.convolution import QuickConv2d, border_is_much, fewer_products_pay, quick_convolutions, ways_of
from lookalike.models.encoder import Encoder
from lookalike.models.image import ResNet, SmallResNet
from lookalike.models.unfolded import Inside, Unfolded, Ways


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_replacing_keeps_state_weights_and_the_stream_of_random_numbers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.Sequential(nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.Conv2d(64, 64, 3, padding=1)),
        nn.Conv2d(64, 64, 1, bias=False),
        nn.Conv2d(64, 64, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(64, 64, 3, bias=False),
    )
    before, stream = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    quick_convolutions(net)
    assert torch.equal(stream, torch.get_rng_state())
    quick = {name for name, module in net.named_modules() if isinstance(module, QuickConv2d)}
    assert quick == {"0", "1.0", "2"}
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.fixture
def without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that is fastest in fp32: what is computed is right on any."""
    monkeypatch.setattr(convolution, "_multiplies_in_fp32", lambda: True)
    monkeypatch.setattr(convolution, "_multiplies_tiles", lambda: False)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with AMX."""
    monkeypatch.setattr(convolution, "_multiplies_in_fp32", lambda: False)
    monkeypatch.setattr(convolution, "_multiplies_tiles", lambda: True)


def test_fewer_products_only_where_they_were_measured_to_pay(without_tiles: None) -> None:
    big, weight = torch.zeros(64, 64, 8, 8), torch.zeros(64, 64, 3, 3)
    assert fewer_products_pay(big, weight)
    assert not fewer_products_pay(big.double(), weight.double())
    assert not fewer_products_pay(big[:, :32], weight[:, :32])
    assert not fewer_products_pay(big[:1], weight)  # the weights' own transform would cost more than it saves
    with torch.autocast("cpu", torch.bfloat16):
        assert not fewer_products_pay(big, weight)


def ways(side: int, before: int, width: int, kernel: int = 3, stride: int = 1) -> Ways:
    return ways_of(torch.zeros(128, before, side, side), torch.zeros(width, before, kernel, kernel), stride)


def test_pictures_are_unfolded_where_few_pixels_leave_torchs_kernels_idle(tiles: None) -> None:
    assert ways(2, 256, 256) == (True, True, True)
    assert ways(8, 256, 256) == (False, False, True)
    assert ways(3, 128, 128) == (False, False, True)
    assert ways(8, 256, 512, stride=2) == (True, True, True)
    assert not any(ways(32, 64, 64))


def test_without_tiles_only_gradients_of_kernels_are_of_unfolded_pictures(
    without_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "computes_in_bf16", lambda _: True)
    assert ways(3, 128, 128) == (False, False, True)
    assert ways(16, 256, 256, stride=2) == (False, False, True)
    assert not any(ways(4, 512, 512))
    monkeypatch.setattr(convolution, "computes_in_bf16", lambda _: False)  # bf16 is emulated there
    assert not any(ways(3, 128, 128))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_border_is_left_out_where_all_results_see_it(kind: torch.dtype) -> None:
    def taken(count: int, side: int, stride: int) -> str:
        layer = quick_convolutions(nn.Sequential(nn.Conv2d(64, 64, 3, stride, 1, bias=False))).to(kind)
        return str(layer(pictures(count, 64, side, side).to(kind)).grad_fn)

    assert border_is_much(torch.zeros(64, 64, 2, 2), torch.zeros(64, 64, 3, 3), 1)
    assert not border_is_much(torch.zeros(64, 64, 2, 2), torch.zeros(64, 64, 1, 1), 1)
    for side, stride in ((1, 1), (2, 1), (2, 2), (3, 2)):
        assert Inside.__name__ in taken(64, side, stride)
    assert Inside.__name__ not in taken(64, 3, 1) + taken(64, 4, 2) + taken(63, 2, 1)


def gradients(net: nn.Module, x: Tensor, narrow: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        net(pixels=x.to(next(net.parameters()).dtype)).square().mean().backward()
    return torch.cat([p.grad.flatten().double() for p in net.parameters() if p.grad is not None])


def as_torch(net: nn.Module) -> nn.Module:
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if isinstance(module, QuickConv2d):
            module.__class__ = nn.Conv2d
    return plain


@pytest.mark.parametrize("spec", [SmallResNet(widths=(64, 64, 128, 128)), ResNet("resnet18", stem="small")])
def test_a_step_in_fp32_equals_that_of_plain_convolutions(
    spec: SmallResNet | ResNet, smooth: None, without_tiles: None
) -> None:
    """Gradients of float32 are as near to those of float64: 1.5e-6 and 2.2e-6 of them, as plain convolutions' are."""
    torch.manual_seed(0)
    ours = quick_convolutions(spec.build(16)[0]).to(memory_format=torch.channels_last)
    plain = as_torch(ours)
    exact = copy.deepcopy(plain).double()
    x = pictures(32, 3, 24, 24) if isinstance(spec, SmallResNet) else pictures(16, 3, 12, 12)
    quick, usual, true = (gradients(net, x, narrow=False) for net in (ours, plain, exact))
    assert not torch.equal(quick, usual)  # another way was taken
    for found in (quick, usual):
        assert (found - true).norm() < 1e-5 * true.norm()


@pytest.mark.parametrize("spec", [SmallResNet(), ResNet("resnet18", stem="small")])
def test_a_step_in_bf16_is_as_near_to_the_true_one_as_that_of_plain_convolutions(
    spec: SmallResNet | ResNet, smooth: None, tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both round every layer to bf16; which one lies nearer is chance, and half as far again is more than chance."""
    taken: list[Ways] = []
    monkeypatch.setattr(convolution, "ways_of", lambda *about: taken.append(ways_of(*about)) or taken[-1])
    torch.manual_seed(0)
    ours = quick_convolutions(spec.build(16)[0]).to(memory_format=torch.channels_last)
    plain = as_torch(ours)
    exact = copy.deepcopy(plain).double()
    x = pictures(64, 3, 24, 24) if isinstance(spec, SmallResNet) else pictures(16, 3, 12, 12)
    quick, usual = (gradients(net, x, narrow=True) for net in (ours, plain))
    true = gradients(exact, x, narrow=False)
    assert any(all(ways) for ways in taken)
    assert (quick - true).norm() < 1.5 * (usual - true).norm() < 0.5 * true.norm()


def test_double_precision_stays_double_where_autocast_is_on(tiles: None) -> None:
    layer = quick_convolutions(nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, bias=False))).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(pictures(2, 256, 2, 2).double()).dtype == torch.float64


def test_what_is_traced_is_one_convolution(tiles: None) -> None:
    layer = quick_convolutions(nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, bias=False)))
    layer, x = layer.bfloat16(), pictures(2, 256, 2, 2).bfloat16()
    assert Unfolded.__name__ in str(layer(x).grad_fn)
    traced = str(torch.export.export(layer, (x,)).graph)
    assert "conv2d" in traced
    assert "as_strided" not in traced


def test_an_encoder_replaces_the_convolutions_of_any_backbone_and_nothing_else_does() -> None:
    backbone = ResNet("resnet18", stem="small").build(16)[0]
    assert not any(isinstance(module, QuickConv2d) for module in backbone.modules())
    names = list(backbone.state_dict())
    encoder = Encoder(backbone, nn.Identity())
    quick = [module for module in encoder.modules() if isinstance(module, QuickConv2d)]
    assert len(quick) == 20  # the small stem, 16 of side 3 and three of side 1
    assert sum(module.rewritable for module in quick) == 14
    assert list(encoder.backbone.state_dict()) == names
