"""What a benchmark finds, line by line in a file, so that one that is killed has said what it knew."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]


class Records:
    """``add`` appends one JSON object to a file and makes it survive at once."""

    def __init__(self, path: Path, section: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.section = path, section

    def add(self, name: str, **values: Any) -> None:
        line = json.dumps({"section": self.section, "name": name, "at": round(time.time(), 1), **values}, default=str)
        with self.path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"  {self.section}: {name}: {brief(values)}", flush=True)

    @staticmethod
    def read(path: Path) -> list[Record]:
        """Every whole line."""
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def brief(values: Record) -> str:
    """Numbers and short words of a record, for whoever watches."""
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in values.items()
        if isinstance(value, bool | int | float | str)
    }
    return ", ".join(f"{name} {value[:200]}" for name, value in shown.items())


def spread(values: Sequence[float]) -> Record:
    """The median of some measurements, how many they are, the least and the most."""
    if not values:
        return {"n": 0}
    return {"median": statistics.median(values), "n": len(values), "least": min(values), "most": max(values)}


def shown(found: Record | None, form: str = ".0f") -> str:
    """Such a spread as text."""
    if not found or not found.get("n"):
        return "none"
    return f"{found['median']:{form}} ({found['least']:{form}} to {found['most']:{form}}, n {found['n']})"


def machine() -> Record:
    """What a number depends on besides the code."""
    gpu = torch.cuda.is_available()
    found: Record = {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "versions": {name: _installed(name) for name in ("torch", "torchvision", "triton", "pillow", "simplejpeg")},
        "gpu": torch.cuda.get_device_name() if gpu else None,
    }
    if gpu:
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
            "memory": torch.cuda.get_device_properties(0).total_memory,
        }
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.limit", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None


def flags() -> Record:
    """How torch was set when something was measured."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_conv": torch.backends.cudnn.allow_tf32,
    }
