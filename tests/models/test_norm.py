"""The kernels that norm all groups at once equal the loop over groups in float64."""

import pytest
import torch

from lookalike.models.image import ResNet
from tests.support.interpreted import interpreted
from tests.support.started import Started


def test_kernels_of_triton_equal_the_loop() -> None:
    assert interpreted("tests.support.norms").startswith("all equal")


@pytest.mark.parametrize(("name", "norms"), [("resnet18", 20), ("resnet50", 53)])
def test_on_a_gpu_a_norm_is_two_kernels_each_way_with_relu_and_addition(name: str, norms: int) -> None:
    triton = pytest.importorskip("lookalike.models.norm_triton", reason="Triton is not installed")
    with torch.device("meta"):  # without data; what runs on it is what a GPU would run
        net = ResNet(name).build(group=4)[0].train()
        pixels = torch.empty(8, 3, 64, 64)
    with Started(triton.KERNELS) as forward:
        features = net(pixels)
    with Started(triton.KERNELS) as backward:
        features.sum().backward()
    assert forward.operations["lookalike::grouped_norm"] == 2 * norms
    assert backward.operations["lookalike::grouped_norm_backward"] == 2 * norms
    left = {
        "aten::convolution",
        "aten::max_pool2d_with_indices",
        "aten::mean",
        "aten::clone",
        "aten::as_strided_",
        "lookalike::grouped_norm",
    }
    assert set(forward.operations) <= left
