"""BatchNorm in groups equals torch's own BatchNorm run group by group, and shuffled groups hide what leaks."""

import copy

import pytest
import torch
from torch import nn

from lookalike.models.norm import GroupedBatchNorm1d, GroupedBatchNorm2d, GroupedBatchNorm3d, group_norms


def test_equals_batchnorm_of_each_group_value_gradient_and_statistics() -> None:
    torch.manual_seed(0)
    norm = GroupedBatchNorm2d(6, group=4).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(12, 6, 5, 3, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.randn_like(x)
    references = [copy.deepcopy(norm) for _ in range(3)]
    ours = norm(x)
    grads = torch.autograd.grad(ours, (x, norm.weight, norm.bias), upstream)
    parts = x.detach().split(4)
    outs, grad_x, grad_weight, grad_bias = [], [], 0, 0
    for reference, part, up in zip(references, parts, upstream.split(4), strict=True):
        part = part.clone().requires_grad_()
        out = nn.BatchNorm2d.forward(reference, part)
        by = torch.autograd.grad(out, (part, reference.weight, reference.bias), up)
        outs.append(out)
        grad_x.append(by[0])
        grad_weight, grad_bias = grad_weight + by[1], grad_bias + by[2]
    for mine, theirs in zip((ours, *grads), (torch.cat(outs), torch.cat(grad_x), grad_weight, grad_bias), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(reference, name) for reference in references]).mean(0)
        torch.testing.assert_close(getattr(norm, name), mean, rtol=1e-6, atol=1e-9)


LAYOUTS = {
    "as it comes": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "picture by picture, pixels first": lambda x: x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
    "turned": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "some channels of more": lambda x: torch.cat([x, x], 1).to(memory_format=torch.channels_last)[:, : x.shape[1]],
    "every other pixel": lambda x: x.repeat_interleave(2, 3)[..., ::2],
}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("upstream_layout", LAYOUTS)
def test_whatever_the_layout_in_memory(layout: str, upstream_layout: str, kind: torch.dtype) -> None:
    """torch's kernel, asked to write into a slice, wrote elsewhere in layouts that are neither of the usual two."""
    torch.manual_seed(0)
    x, upstream = torch.randn(12, 6, 2, 3).to(kind), torch.randn(12, 6, 2, 3).to(kind)
    norm, plain = GroupedBatchNorm2d(6, group=4), GroupedBatchNorm2d(6, group=4)
    usual, other = x.clone().requires_grad_(), LAYOUTS[layout](x).requires_grad_()
    expected, found = plain(usual), norm(other)
    (by_usual,) = torch.autograd.grad(expected, usual, upstream)
    (by_other,) = torch.autograd.grad(found, other, LAYOUTS[upstream_layout](upstream))
    close = {"rtol": 1e-5, "atol": 1e-5} if kind == torch.float32 else {"rtol": 2**-7, "atol": 2**-6}  # an ulp or two
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(by_other, by_usual, **close)
    torch.testing.assert_close(norm.running_var, plain.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("affine", [True, False])
def test_rows_equal_batchnorm1d_of_each_group_value_gradient_and_statistics(affine: bool) -> None:
    torch.manual_seed(0)
    norm = GroupedBatchNorm1d(5, group=4, affine=affine).double()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    references = [copy.deepcopy(norm) for _ in range(3)]
    x = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    ours = norm(x)
    theirs = torch.cat([nn.BatchNorm1d.forward(ref, part) for ref, part in zip(references, x.split(4), strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    wanted = [(x, *each.parameters()) for each in (norm, *references)]
    by_x, *by_ours = torch.autograd.grad(ours, wanted[0], upstream)
    grads = torch.autograd.grad(theirs, [x, *(p for each in wanted[1:] for p in each[1:])], upstream)
    torch.testing.assert_close(by_x, grads[0], rtol=1e-11, atol=1e-12)
    for i, mine in enumerate(by_ours):
        torch.testing.assert_close(mine, torch.stack(grads[1 + i :: len(by_ours)]).sum(0), rtol=1e-11, atol=1e-12)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(reference, name) for reference in references]).mean(0)
        torch.testing.assert_close(getattr(norm, name), mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(norm.eval()(x), nn.BatchNorm1d.forward(norm, x))


@pytest.mark.parametrize("affine", [True, False])
def test_the_gradient_is_that_of_small_differences(affine: bool) -> None:
    torch.manual_seed(0)
    norm = GroupedBatchNorm1d(3, group=3, affine=affine).double()
    assert torch.autograd.gradcheck(norm, torch.randn(7, 3, dtype=torch.float64, requires_grad=True))


def test_rows_in_bf16_have_statistics_in_fp32() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5) + 3
    for affine in (True, False):
        coarse, fine = (GroupedBatchNorm1d(5, group=16, affine=affine) for _ in range(2))
        out = coarse(x.bfloat16())
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), fine(x.bfloat16().float()), rtol=0, atol=0.02)  # bf16 has 8 bits
        torch.testing.assert_close(coarse.running_var, fine.running_var, rtol=1e-5, atol=1e-6)


def test_an_example_depends_on_its_own_group_alone() -> None:
    norm = GroupedBatchNorm2d(3, group=4)
    x = torch.randn(8, 3, 4, 4)
    other = x.clone()
    other[4:] = torch.randn(4, 3, 4, 4)
    assert torch.equal(norm(x)[:4], norm(other)[:4])
    assert not torch.equal(norm(x)[4:], norm(other)[4:])


def test_evaluation_uses_running_statistics() -> None:
    norm = GroupedBatchNorm2d(3, group=2)
    for _ in range(3):
        norm(torch.randn(8, 3, 4, 4) * 2 + 1)
    norm.eval()
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(norm(x), nn.BatchNorm2d.forward(norm, x))


def test_replacing_keeps_names_and_shapes() -> None:
    rows = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)), rows)
    nn.init.zeros_(net[1].weight)  # as residual branches begin in some networks
    net[1].running_mean.fill_(2.0)
    net[1].eps = 1e-3
    before = {name: value.clone() for name, value in net.state_dict().items()}
    group_norms(net, 8)
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert net[1].eps == 1e-3
    assert isinstance(net[2][0], GroupedBatchNorm2d)
    assert isinstance(net[3][1], GroupedBatchNorm1d)


def test_of_clips_is_that_of_their_frames_side_by_side() -> None:
    torch.manual_seed(0)
    flat, deep = GroupedBatchNorm2d(5, group=2).double(), GroupedBatchNorm3d(5, group=2).double()
    nn.init.normal_(flat.weight)
    deep.load_state_dict(flat.state_dict())
    x = torch.randn(6, 5, 3, 4, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    upstream = torch.randn_like(x)
    ours, theirs = deep(x), flat(x.flatten(2, 3)).view_as(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, other in zip(
        torch.autograd.grad(ours, (x, deep.weight, deep.bias), upstream),
        torch.autograd.grad(theirs, (x, flat.weight, flat.bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(deep, name), getattr(flat, name), rtol=1e-12, atol=1e-12)


def test_norms_that_activate_are_grouped_too_and_keep_what_they_do() -> None:
    """timm's BatchNormAct2d, in which most of its newer networks norm: each group as if it were the batch."""
    norm_act = pytest.importorskip("timm.layers").BatchNormAct2d
    torch.manual_seed(0)
    net = nn.Sequential(norm_act(6, act_layer=nn.SiLU))
    nn.init.normal_(net[0].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(8, 6, 3, 3)
    expected = torch.cat([net(part) for part in x.chunk(2)])
    net.load_state_dict(before)
    group_norms(net, 4)
    assert list(net.state_dict()) == list(before)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)
    net.eval()
    alone = norm_act(6, act_layer=nn.SiLU)
    alone.load_state_dict(net[0].state_dict())
    torch.testing.assert_close(net(x), alone.eval()(x), rtol=1e-5, atol=1e-6)
