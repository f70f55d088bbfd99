"""The kernels that make views on a GPU equal the operations of ops.py in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_kernels_of_triton_equal_the_operations() -> None:
    """Interpreted, on the processor."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.views"]
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    assert ran.stdout.startswith("all equal"), ran.stderr[-3000:]
