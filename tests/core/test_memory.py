"""What a step has freed is kept: the next steps ask the system for next to nothing."""

import subprocess
import sys

import pytest

from lookalike.core.devices import keep_freed

STEPS = """
import resource
import torch
from lookalike.core.devices import keep_freed
from lookalike.models.image import SmallResNet
keep_freed()
torch.set_num_threads(1)
net = SmallResNet().build(32)[0]
pixels = torch.randn(128, 3, 24, 24)
for step in range(10):
    if step == 7:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    net(pixels).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_later_steps_take_no_new_pages() -> None:
    """Three steps: some 18,000 new pages without the setting, at most a few hundred with it."""
    if not keep_freed():
        pytest.skip("this C library has no mallopt")
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3000
