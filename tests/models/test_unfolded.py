"""The convolution as a product of matrices is the convolution: value, gradients, in parts and whole, in bf16, too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lookalike.models import unfolded
from lookalike.models.unfolded import Inside, Unfolded, Ways

ALL = Ways(True, True, True)


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


@given(
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 60, 1 << 20]),
)
@settings(max_examples=80, deadline=None)
def test_every_size_equals_conv2d_with_its_gradients(
    n: int, c: int, d: int, h: int, w: int, kernel: int, stride: int, cached: int
) -> None:
    """``cached`` numbers at a time: picture by picture, a few pictures, all of them."""
    x, weight = numbers(n, c, h, w).requires_grad_(), numbers(d, c, kernel, kernel).requires_grad_()
    theirs = F.conv2d(x, weight, stride=stride, padding=kernel // 2)
    upstream = numbers(*theirs.shape)
    expected = torch.autograd.grad(theirs, (x, weight), upstream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfolded, "_CACHED", cached)
        ours = Unfolded.apply(x, weight, stride, ALL)
        found = torch.autograd.grad(ours, (x, weight), upstream)
    for mine, other in zip((ours, *found), (theirs, *expected)):
        torch.testing.assert_close(mine.detach(), other.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ways", [Ways(), Ways(forward=True), Ways(by_input=True), Ways(by_weight=True), ALL])
def test_gradcheck_whichever_products_are_torchs(ways: Ways) -> None:
    x, weight = numbers(2, 2, 3, 2).requires_grad_(), numbers(2, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: Unfolded.apply(x, w, 1, ways), (x, weight))
    assert torch.autograd.gradcheck(lambda w: Unfolded.apply(x.detach(), w, 1, ways), (weight,))
    assert torch.autograd.gradcheck(lambda p: Unfolded.apply(p, weight.detach(), 1, ways), (x,))


@pytest.mark.parametrize("cached", [1, 1 << 20])
def test_bf16_is_rounded_as_often_as_a_sum_of_parts_must_be(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result is rounded once, to 2⁻⁹ of itself; the gradient by the kernel once more for each part added up.

    Parts are added in fp32 and their rounding, at random, adds up less than their number: 2⁻⁸ of the largest is enough.
    """
    monkeypatch.setattr(unfolded, "_CACHED", cached)
    x, weight = numbers(64, 16, 4, 4, dtype=torch.bfloat16), numbers(32, 16, 3, 3, dtype=torch.bfloat16) / 12
    x, weight = x.requires_grad_(), weight.requires_grad_()
    exact = F.conv2d(x.detach().double(), weight.detach().double(), padding=1)
    ours = Unfolded.apply(x, weight, 1, ALL)
    upstream = numbers(*ours.shape, dtype=torch.bfloat16)
    plain = [part.detach().double().requires_grad_() for part in (x, weight)]
    expected = torch.autograd.grad(F.conv2d(*plain, padding=1), plain, upstream.double())
    found = torch.autograd.grad(ours, (x, weight), upstream)
    for mine, true in zip((ours.detach(), *found), (exact, *expected)):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - true).abs().max() <= 2**-8 * true.abs().max()


def test_the_same_bits_again_whatever_the_layout_and_channels_last_comes_out() -> None:
    x, weight = numbers(9, 16, 4, 4, dtype=torch.bfloat16), numbers(24, 16, 3, 3, dtype=torch.bfloat16)
    out = Unfolded.apply(x, weight, 1, ALL)
    assert torch.equal(out, Unfolded.apply(x, weight, 1, ALL))
    layout = torch.channels_last
    assert torch.equal(out, Unfolded.apply(x.to(memory_format=layout), weight.to(memory_format=layout), 1, ALL))
    assert out.is_contiguous(memory_format=layout)


ALIKE = st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2), (3, 3)])


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), ALIKE, st.sampled_from([1, 2]))
@settings(max_examples=80, deadline=None)
def test_without_the_border_it_equals_conv2d_with_its_gradients(
    n: int, c: int, d: int, sides: tuple[int, int], stride: int
) -> None:
    stride = 2 if 3 in sides else stride
    x, weight = numbers(n, c, *sides).requires_grad_(), numbers(d, c, 3, 3).requires_grad_()
    theirs, ours = F.conv2d(x, weight, stride=stride, padding=1), Inside.apply(x, weight, stride)
    upstream = numbers(*theirs.shape)
    expected = torch.autograd.grad(theirs, (x, weight), upstream)
    found = torch.autograd.grad(ours, (x, weight), upstream)
    for mine, other in zip((ours, *found), (theirs, *expected)):
        torch.testing.assert_close(mine.detach(), other.detach(), rtol=1e-12, atol=1e-12)


def test_without_the_border_gradients_are_asked_for_one_by_one() -> None:
    x, weight = numbers(2, 2, 2, 3).requires_grad_(), numbers(2, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: Inside.apply(x.detach(), w, 2), (weight,))
    assert torch.autograd.gradcheck(lambda p: Inside.apply(p, weight.detach(), 2), (x,))


@pytest.mark.parametrize(("side", "stride"), [(2, 1), (3, 2)])
def test_without_the_border_bf16_is_rounded_as_often_as_products_are_added_up(side: int, stride: int) -> None:
    """Up to four products are rounded, by 2⁻⁹ of themselves, and their sum once more."""
    x, weight = numbers(64, 64, side, side, dtype=torch.bfloat16), numbers(64, 64, 3, 3, dtype=torch.bfloat16) / 24
    x, weight = x.requires_grad_(), weight.requires_grad_()
    ours = Inside.apply(x, weight, stride)
    upstream = numbers(*ours.shape, dtype=torch.bfloat16)
    plain = [part.detach().double().requires_grad_() for part in (x, weight)]
    exact = F.conv2d(*plain, stride=stride, padding=1)
    expected = torch.autograd.grad(exact, plain, upstream.double())
    found = torch.autograd.grad(ours, (x, weight), upstream)
    for mine, true in zip((ours.detach(), *found), (exact.detach(), *expected)):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - true).abs().max() <= 5 * 2**-9 * true.abs().max()
    assert ours.is_contiguous(memory_format=torch.channels_last)
