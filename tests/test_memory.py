"""What is freed is kept: a block that is asked for again is not mapped anew."""

import resource
import subprocess
import sys

import pytest

from lookalike.memory import keep_freed

FAULTS = """
import resource, torch
from lookalike.memory import keep_freed
{keep}
torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_large_blocks_are_reused() -> None:
    if not keep_freed():
        pytest.skip("this C library has no mallopt")
    pages = (1 << 26) // resource.getpagesize()
    assert faults("keep_freed()") < pages // 4
