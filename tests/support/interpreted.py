"""Kernels of Triton on the processor, by Triton's interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_NUMPY = "only 0-dimensional arrays can be converted"  # what newer versions of numpy refuse to Triton 3.6's interpreter


def interpreted(module: str) -> str:
    """What a module of the tests prints; the test is skipped where it cannot be interpreted."""
    pytest.importorskip("triton", reason="Triton is not installed")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    if _NUMPY in ran.stderr:
        pytest.skip("Triton's interpreter does not run with this numpy")
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout.strip()
