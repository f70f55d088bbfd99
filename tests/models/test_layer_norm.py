"""The kernels that add to a residual stream and norm it equal torch's operations in float64."""

import pytest
import torch

from lookalike.models.vit import ViT
from tests.support.interpreted import interpreted
from tests.support.started import Started

pytestmark = pytest.mark.any_precision


def test_kernels_of_triton_equal_torch() -> None:
    assert interpreted("tests.support.layer_norms").startswith("all equal")


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_on_a_gpu_each_norm_adds_what_the_layer_before_it_gave(pool: str) -> None:
    triton = pytest.importorskip("lookalike.models.fused_triton", reason="Triton is not installed")
    with torch.device("meta"):  # without data; what runs on it is what a GPU would run
        net = ViT(24, 4, 3, 8, pool).build(8)[0]
        pixels = torch.empty(2, 3, 32, 32)
    with Started(triton.KERNELS) as forward:
        features = net(pixels)
    with Started(triton.KERNELS) as backward:
        features.sum().backward()
    assert forward.operations["lookalike::add_norm"] == 9
    assert backward.operations["lookalike::add_norm_backward"] == 18
    assert forward.operations["aten::add"] == 1  # of positions
    assert "aten::native_layer_norm" not in forward.operations
