"""The kernels that make views on a GPU equal the operations of ops.py in float64."""

import pytest

from tests.support.interpreted import interpreted

pytestmark = pytest.mark.any_precision


def test_kernels_of_triton_equal_the_operations() -> None:
    assert interpreted("tests.support.views").startswith("all equal")
