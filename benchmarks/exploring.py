"""How soon the page of ``explore`` shows a large table, and how many frames a second it draws while one moves over it.

    python -m benchmarks.exploring ../shared/data/cifar10 OUT --count 100000

The table is of pictures of 32 px as ``benchmarks/planted.py`` makes them, and is kept in OUT. Needs the extra
[explore], playwright and Chromium. Seconds are from the opening of the page; frames are those that the map has drawn,
at three scales: everything, a part in which thumbnails are small, and a few large ones. Without a GPU Chromium draws
by the processor, which it shares with the server.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import sync_playwright

from benchmarks.planted import make_many
from lookalike.train.embeddings import write_embeddings
from lookalike.types import Embeddings

PATIENCE = 300.0  # seconds, of a table whose map is still to be drawn
FLAGS = ["--no-sandbox", "--enable-unsafe-swiftshader"]
DRAWN = "explore.map.wanted.length + explore.map.waiting.size === 0 && explore.map.pages.size > 0"
MOVE = """async seconds => {
  const began = performance.now(), first = explore.map.frames, each = [];
  for (let last = began; performance.now() - began < 1000 * seconds;) {
    explore.map.pan(4 * Math.cos((performance.now() - began) / 500), 4 * Math.sin((performance.now() - began) / 500));
    await new Promise(requestAnimationFrame);
    each.push(performance.now() - last);
    last = performance.now();
  }
  return [explore.map.frames - first, performance.now() - began, each];
}"""


def table_of(cifar: Path, out: Path, count: int) -> Path:
    """The table, which is made where there is none."""
    path = out / "pictures.parquet"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        make_many(cifar, out, count, pa, pq)
        column = pq.read_table(out / "train.parquet", columns=["image"])["image"].combine_chunks()
        names = column.field("path").to_pylist()
        rows = Embeddings(names, ["train"] * count, np.arange(count) % 10, np.load(out / "features.npy"))
        write_embeddings(rows, path)
    return path


def waited(page: Any, script: str, since: float) -> float:
    """Seconds until an expression is true; raises TimeoutError."""
    while not page.evaluate(script):
        if time.perf_counter() - since > PATIENCE:
            raise TimeoutError(script)
        time.sleep(0.01)
    return time.perf_counter() - since


def looked_at(page: Any, address: str, seconds: float) -> dict[str, Any]:
    """One visit."""
    began = time.perf_counter()
    page.goto(address)
    found: dict[str, Any] = {
        "s to points": waited(page, "document.body?.dataset.ready === 'yes' && explore.map.frames > 0", began)
    }
    for name, closer in (("all", 1.0), ("closer", 8.0), ("large", 6.0)):
        page.evaluate("by => explore.map.zoom(by)", closer)
        if name != "all":
            found[f"s to thumbnails, {name}"] = waited(page, DRAWN, time.perf_counter())
        frames, took, each = page.evaluate(MOVE, seconds)
        found[f"frames/s, {name}"] = 1e3 * frames / took
        found[f"slowest of 20 frames, ms, {name}"] = statistics.quantiles(each, n=20)[-1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--visits", type=int, default=3)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    asked = parser.parse_args()
    table = table_of(asked.cifar, asked.out, asked.count)
    command = [sys.executable, "-m", "lookalike", "explore", str(table), "--data", str(asked.out / "train.parquet")]
    began = time.perf_counter()
    server = subprocess.Popen([*command, "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    try:
        address = next(match[0] for line in server.stdout if (match := re.search(r"http://127\S+", line)))
        print(json.dumps({"s to the address": time.perf_counter() - began}), flush=True)
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=asked.browser, args=FLAGS)
            for _ in range(asked.visits):
                page = browser.new_page(viewport={"width": 1200, "height": 800})
                print(json.dumps(looked_at(page, address, asked.seconds)), flush=True)
                page.close()
            browser.close()
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
