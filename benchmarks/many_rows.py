"""What a table of very many rows costs to train on: seconds until the first step, a step, and memory at the peak.

    python benchmarks/many_rows.py --rows 1000000 100000000 --steps 20

The table is one parquet file in row groups of 10,000, all of the same few pictures, so that it is small on disk; what
is measured, names, labels, draws and the order of rows, does not know that. ``--labels`` gives it a column of classes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

GROUP = 10_000
CLASSES = 10


def pictures(count: int = 64, side: int = 8) -> list[bytes]:
    """Different pictures as files, some 270 bytes each."""
    files, draws = [], np.random.default_rng(0)
    for _ in range(count):
        Image.fromarray(draws.integers(0, 255, (side, side, 3), np.uint8)).save(file := io.BytesIO(), "png")
        files.append(file.getvalue())
    return files


def write(path: Path, rows: int, labels: bool) -> None:
    """A table of ``rows`` rows, by one row group again and again."""
    numbers = np.arange(GROUP)
    columns = {"image": pa.array(pictures(), pa.binary()).take(pa.array(numbers % 64))}
    columns |= {"label": pa.array(numbers // 64 % CLASSES)} if labels else {}
    group = pa.table(columns)
    with pq.ParquetWriter(path, group.schema, compression="zstd", write_statistics=False) as file:
        for first in range(0, rows, GROUP):
            file.write_table(group.slice(0, min(GROUP, rows - first)), row_group_size=GROUP)


def train(table: Path, out: Path, steps: int, more: list[str]) -> dict[str, float]:
    """Seconds until the first step was made, seconds of each other, and bytes at the peak, of one run."""
    command = [sys.executable, "-m", "lookalike", "pretrain", str(table), "--recipe", "tiny", "--steps", str(steps)]
    began = time.perf_counter()
    run = subprocess.Popen([*command, "--workers", "0", "--memory", "0", "--out", str(out), *more])
    first = None
    while run.poll() is None:
        if first is None and (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size:
            first = time.perf_counter() - began
        time.sleep(0.02)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed, at {peak / 1e9:.2f} GB")
    whole = time.perf_counter() - began
    return {"first step": round(first or whole, 1), "whole": round(whole, 1), "GB": round(peak / 1e9, 2)}


def main() -> None:
    """One line of JSON a number of rows; each in a process of its own, so that the peak is that of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--labels", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for the tables, which are made where it holds none")
    parser.add_argument("--more", default="", help="other arguments of pretrain, in one word")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for rows in given.rows:
            table = (given.keep or Path(scratch)) / f"{rows}{'-labels' if given.labels else ''}.parquet"
            if not table.exists():
                write(table, rows, given.labels)
            if len(given.rows) > 1:
                again = [sys.executable, __file__, "--rows", str(rows), "--steps", str(given.steps)]
                again += ["--keep", str(table.parent), "--more", given.more, *["--labels"][: given.labels]]
                subprocess.run(again, check=True)
                continue
            found = train(table, Path(scratch) / "run", given.steps, given.more.split())
            print(json.dumps({"rows": rows, "file": os.path.getsize(table), **found}), flush=True)


if __name__ == "__main__":
    main()
