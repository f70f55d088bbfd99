"""One command on one GPU: is it right, how fast is it, where does the time go, and how fast are the others?

    python -m benchmarks.gpu --out FOLDER [--data JPEGS] [--only losses,speed] [--toy]

At most ``--minutes`` (8) on one GPU and 16 cores, without network. Every section is a process of its own, so that a
fault of one does not reach the next; what it finds is in FOLDER/gpu.jsonl at once. ``--toy`` runs everything in seconds
on a processor, in this process, to see that it runs: its numbers say nothing.

Sections: losses (ten steps of every small recipe against the processor in fp32 and in float64), views, resume (kill it,
go on: the same bytes), evaluations, nccl (one process), commands (every one of them, by its tests); speed (canvases in
memory), files (from JPEG), costs (determinism, TF32), peers (plain PyTorch as MoCo's code has it; lightly where it is
installed).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts; its cost is none to speak of

import torch

from benchmarks import gpu_correct, gpu_peers, gpu_speed
from benchmarks.records import Record, Records, machine, shown

SECTIONS: dict[str, Callable[..., None]] = {**gpu_correct.SECTIONS, **gpu_speed.SECTIONS, **gpu_peers.SECTIONS}
BUDGETS = {
    "commands": 100, "views": 20, "losses": 90, "resume": 50, "evaluations": 25, "nccl": 15, "speed": 100, "files": 60,
    "costs": 90, "peers": 70,
}  # fmt: skip
"""Seconds after which a section begins nothing new; half as much again later it is ended."""


def main() -> None:
    asked = arguments().parse_args()
    names = asked.only.split(",") if asked.only else list(BUDGETS)
    if unknown := set(names) - set(SECTIONS):
        raise SystemExit(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    if asked.child:
        return section(asked, names[0], asked.until)
    end = time.time() + 60 * asked.minutes
    Records(asked.out / "gpu.jsonl", "machine").add("machine", **machine(), toy=asked.toy)
    for name in names:
        left = end - time.time()
        if left < 10:
            Records(asked.out / "gpu.jsonl", name).add("section", skipped="no time left")
            continue
        began = time.time()
        print(f"== {name}", flush=True)
        if asked.toy or asked.here:
            section(asked, name, time.time() + BUDGETS[name])
        else:
            in_process(asked, name, min(BUDGETS[name], left), left)
        Records(asked.out / "gpu.jsonl", name).add("section", seconds=round(time.time() - began, 1))
    print(summary(Records.read(asked.out / "gpu.jsonl")), flush=True)
    return None


def section(asked: argparse.Namespace, name: str, deadline: float) -> None:
    """One section; what it raises is its last record."""
    records = Records(asked.out / "gpu.jsonl", name)
    gpu = "cuda" if torch.cuda.is_available() and not asked.toy else "cpu"
    more: dict[str, Any] = {} if name in gpu_correct.SECTIONS else {"data": asked.data}
    try:
        SECTIONS[name](records, gpu, deadline, asked.toy, **more)
    except Exception as error:
        traceback.print_exc()
        records.add("section", failed=f"{type(error).__name__}: {error}"[:800])


def in_process(asked: argparse.Namespace, name: str, seconds: float, left: float) -> None:
    """The same in a fresh process, which is ended when it takes half as long again, or all the time that is left."""
    most = min(1.5 * seconds + 10, left + 5)
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", "--only", name, "--out", str(asked.out)]
    command += ["--until", str(time.time() + seconds), *(["--data", str(asked.data)] if asked.data else [])]
    try:
        done = subprocess.run(command, timeout=most, check=False)
        if done.returncode:
            Records(asked.out / "gpu.jsonl", name).add("section", failed=f"it ended with {done.returncode}")
    except subprocess.TimeoutExpired:
        Records(asked.out / "gpu.jsonl", name).add("section", failed=f"ended after {most:.0f} s")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.jsonl, which grows")
    parser.add_argument("--only", help=f"sections, with commas between: {', '.join(BUDGETS)}")
    parser.add_argument("--data", type=Path, help="a folder of JPEG files beside those that are made on the spot")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all (%(default)s)")
    parser.add_argument("--toy", action="store_true", help="seconds on a processor; its numbers say nothing")
    parser.add_argument("--here", action="store_true", help="all sections in this process")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser


# ---- the table at the end ----


def summary(found: list[Record]) -> str:
    """Everything that was found, a line each."""
    lines = ["", "=" * 100]
    for record in found:
        if record["section"] == "machine":
            lines.append(
                ", ".join(f"{name} {value}" for name, value in record.items() if name not in ("section", "name", "at"))
            )
    for name in SECTIONS:
        rows = [record for record in found if record["section"] == name]
        if rows:
            lines += [f"-- {name}", *(f"   {line(record)}" for record in rows)]
    return "\n".join(lines)


def line(record: Record) -> str:
    """One record: what went wrong, or its numbers."""
    if error := record.get("failed") or record.get("skipped"):
        return f"{record['name']:<44} {'FAILED' if 'failed' in record else 'skipped'}: {str(error)[:300]}"
    if "pairs_per_second" in record:
        return speed_line(record)
    if "errors" in record:
        told = (f"{way} {' '.join(f'{x:.1e}' for x in parts.values())}" for way, parts in record["errors"].items())
        judged = "explained" if record["explained"] else "EXCEEDS "
        return f"{record['name']:<24} {judged}  first loss, worst loss, gradient: {', '.join(told)}"
    kept = {name: value for name, value in record.items() if name not in ("section", "name", "at", "losses")}
    told = [f"{name} {number(value)}" for name, value in kept.items()]
    return f"{record['name']:<44} {', '.join(told)}"


def number(value: Any) -> str:
    if isinstance(value, dict) and "median" in value:
        return shown(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def speed_line(record: Record) -> str:
    """Pairs a second and what was seen beside."""
    text = f"{record['name']:<44} {shown(record['pairs_per_second'])} pairs/s, {record['peak_bytes'] / 2**30:.1f} GiB"
    if waited := record.get("waited_for_data"):
        text += f", waited {shown(waited, '.1%')}"
    if "launches" in record:
        parts = "  ".join(
            f"{part} {record['launches'][part]:.0f} / {record['gpu_ms'][part]:.1f} / {record['host_ms'][part]:.1f}"
            for part in record["launches"]
        )
        text += (
            f", launches {record['launches_a_step']:.0f}, waits {record['waits_a_step']:.1f}, busy {record['busy']:.0%}"
            f"\n      launches / GPU ms / host ms: {parts}"
        )
        text += "".join(
            f"\n      {kernel['ms']:8.2f} ms {kernel['n']:6.0f} x {name[:90]}"
            for name, kernel in list(record["kernels"].items())[:6]
        )
    return text


if __name__ == "__main__":
    main()
