"""The kernels that make views on a GPU equal the operations of ops.py in float64."""

from tests.support.interpreted import interpreted


def test_kernels_of_triton_equal_the_operations() -> None:
    assert interpreted("tests.support.views").startswith("all equal")
