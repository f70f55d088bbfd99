"""The kernels that norm all groups at once equal the loop over groups in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lookalike.models import norm_torch
from tests.norms import Case, cases, check


@pytest.mark.parametrize("case", cases(), ids=str)
def test_operations_of_torch_equal_the_loop(case: Case) -> None:
    check(norm_torch, case)


def test_kernels_of_triton_equal_the_loop() -> None:
    """Interpreted, on the processor."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.norms"]
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "all equal", ran.stderr[-3000:]
