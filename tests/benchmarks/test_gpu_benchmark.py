"""The benchmark for GPUs at toy size on a processor: every section that starts no further runs finds something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.records import Records

pytestmark = pytest.mark.any_precision

SECTIONS = "commands,views,losses,nccl,speed,files,costs,peers"


def test_all_sections_run_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--out", str(tmp_path), "--only", SECTIONS]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = Records.read(tmp_path / "gpu.jsonl")
    assert not [record for record in found if "failed" in record]
    measured = {record["section"] for record in found if record["name"] != "section"}
    assert measured == {"machine", *SECTIONS.split(",")}
