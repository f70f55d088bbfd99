"""The kernels that make views on a GPU equal the operations of ops.py in float64."""

from tests.interpreted import interpreted


def test_kernels_of_triton_equal_the_operations() -> None:
    assert interpreted("tests.views").startswith("all equal")
