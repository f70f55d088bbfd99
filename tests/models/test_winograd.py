"""The convolution with fewer products is the convolution: value and gradients, as exact as a sum."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lookalike.models.winograd import Convolution, convolve, correlate, interpolation, scheme


def pictures(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 14), st.integers(1, 14), st.integers(1, 40)
)
@settings(max_examples=60, deadline=None)
def test_every_size_equals_conv2d_with_its_gradients(n: int, c: int, d: int, h: int, w: int, rows: int) -> None:
    x, weight = pictures(n, c, h, w).requires_grad_(), pictures(d, c, 3, 3).requires_grad_()
    theirs = F.conv2d(x, weight, padding=1)
    upstream = torch.randn_like(theirs)
    to_x, to_weight = torch.autograd.grad(theirs, (x, weight), upstream)
    source, gradient = x.detach().permute(0, 2, 3, 1), upstream.permute(0, 2, 3, 1)
    for side in (2, 3, 4):
        plan = scheme(side, torch.float64)
        ours = convolve(source, plan.weighed(weight.detach()).transpose(1, 2), plan, rows)
        back = convolve(gradient, plan.turned().weighed(weight.detach()), plan, rows)
        by_weight = correlate(source, gradient, plan, rows)
        for mine, other in (
            (ours.permute(0, 3, 1, 2), theirs),
            (back.permute(0, 3, 1, 2), to_x),
            (by_weight.permute(2, 3, 0, 1), to_weight),
        ):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (2, 1)])
def test_gradcheck(size: tuple[int, int]) -> None:
    x, weight = pictures(1, 2, *size).requires_grad_(), pictures(2, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(Convolution.apply, (x, weight))
    assert torch.autograd.gradcheck(lambda w: Convolution.apply(x.detach(), w), (weight,))
    assert torch.autograd.gradcheck(lambda p: Convolution.apply(p, weight.detach()), (x,))


@pytest.mark.parametrize("side", [2, 3, 4])
def test_the_matrices_are_a_correlation(side: int) -> None:
    a, g, b = interpolation(side, 3)
    line, taps = pictures(side + 2), pictures(3)
    torch.testing.assert_close(a @ ((g @ taps) * (b @ line)), F.conv1d(line[None, None], taps[None, None])[0, 0])


@pytest.mark.parametrize("side", [4, 6, 3, 2])
def test_rounding_is_that_of_a_sum_in_single_precision(side: int) -> None:
    """n products of rounded numbers, added one by one, err by about √n/2 · 2⁻²⁴ of their size: the bound is twice that.

    Ours were measured at 0.4 to 1.03 of it, with AVX-512. Plain convolutions are no measure: in what order they add,
    and so how they round, depends on the processor.
    """
    x, weight = pictures(8, 128, side, side).relu(), pictures(128, 128, 3, 3) / 24
    exact = F.conv2d(x, weight, padding=1)
    ours = Convolution.apply(x.float(), weight.float())
    size = F.conv2d(x.square(), weight.square(), padding=1)  # of a product, squared, times how many there are
    expected = size * (2**-24) ** 2 * (9 * 128) / 4
    assert (ours - exact).square().mean() < 2**2 * expected.mean()
    assert (ours - exact).abs().max() < 3e-5 * exact.square().mean().sqrt()


def test_the_same_bits_again_and_channels_last_comes_out() -> None:
    x, weight = pictures(9, 16, 8, 8, dtype=torch.float32), pictures(16, 16, 3, 3, dtype=torch.float32)
    out = Convolution.apply(x, weight)
    assert torch.equal(out, Convolution.apply(x, weight))
    assert torch.equal(out, Convolution.apply(x.contiguous(memory_format=torch.channels_last), weight))
    assert out.is_contiguous(memory_format=torch.channels_last)
