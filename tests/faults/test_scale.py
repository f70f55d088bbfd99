"""A million files are listed, and five thousand steps leak nothing; each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_precision

LISTS = """
import json, resource, sys, time
from lookalike.data.source import open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
source = open_source(sys.argv[1])
used = time.process_time() - began
print(json.dumps([len(source), used, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))
"""

TRAINS = """
import gc, json, os, sys
import numpy as np
from lookalike import pretrain
from lookalike.train import loop

data, out, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = []

def look(path):
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    seen.append((pages * os.sysconf("SC_PAGESIZE") / 2**20, len(os.listdir("/proc/self/fd"))))

sys.addaudithook(lambda event, args: look(args[1])
                if event == "os.rename" and os.path.basename(args[1]).startswith("step-") else None)
pretrain(data, out, recipe="tiny", steps=steps, save_every=steps // 20, workers=0, quiet=True,
         settings={"model.widths": "4,8", "head.widths": "16"})
half = seen[len(seen) // 2 :]
memory = np.polyfit(np.arange(len(half)) * (steps / 20), [m for m, _ in half], 1)[0]
print(json.dumps([len(seen), memory * steps, half[-1][1] - half[0][1]]))
"""


def alone(program: str, *arguments: object) -> list[float]:
    """What a program prints as JSON in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", program, *map(str, arguments)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    numbers: list[float] = json.loads(ran.stdout.splitlines()[-1])
    return numbers


@pytest.mark.usefixtures("long_tier")
def test_a_million_names_are_listed_in_a_minute_and_a_gigabyte(tmp_path: Path) -> None:
    folder, count = tmp_path / "many", 1_000_000
    for i in range(count):
        if i % 1000 == 0:
            (folder / f"{i // 1000:03}").mkdir(parents=True)
        (folder / f"{i // 1000:03}" / f"{i:07}.jpg").touch()
    listed, seconds, megabytes = alone(LISTS, folder)
    print(f"{count:,} names: {seconds:.1f} s of a core, {megabytes:.0f} MB")
    assert listed == count
    assert seconds < 60
    assert megabytes < 1024


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="handles and memory are counted in /proc")
def test_steps_leak_neither_memory_nor_handles(
    pictures: Path, tmp_path: Path, thorough: Callable[[int, int], int]
) -> None:
    """Looked at as each of twenty saves is published; the slope over the second half of them, by least squares."""
    steps = thorough(500, 5000)
    saves, megabytes, handles = alone(TRAINS, pictures, tmp_path / "run", steps)
    print(f"{steps:,} steps: {megabytes:+.2f} MB and {handles:+.0f} handles by slope over {saves:.0f} saves")
    assert saves == 20
    assert handles == 0
    assert megabytes <= 1
