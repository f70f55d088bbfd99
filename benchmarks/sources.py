"""Rows a second in random order from the same pictures in every kind of place, and how long an index takes.

    python benchmarks/sources.py --data ../shared/data/imagenette128 [--side 128] [--rows 1000] [--rounds 5]

Reads the training pictures of DATA (at most --most), packs them into a temporary folder, and asks for --rows random
rows a round, kinds in turn: "bytes" fetches a picture's file, "canvas" decodes it too. Files are in the page cache.
Parquet has row groups of 100, as on the Hub, and is measured twice: with room for all pictures in memory, and for a
tenth of them, as with data beyond 512 MiB. The first round fills that memory. The index: opening one tar shard
(KEY.jpg and KEY.cls) and one zip of --members pictures of 1 KiB.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import resource
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lookalike.data.decode import decode
from lookalike.data.source import open_source

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_tar(path: Path, members: Iterator[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_zip(path: Path, members: Iterator[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)


def packed(pictures: list[bytes], root: Path) -> dict[str, Path]:
    """The pictures in every kind of place."""
    names = [f"{i:06}.jpg" for i in range(len(pictures))]
    for kind in ("folder", "parquet", "parquet, a tenth in memory", "arrow", "tar"):
        (root / kind).mkdir()
    for name, data in zip(names, pictures, strict=True):
        (root / "folder" / name).write_bytes(data)
    (root / "list.txt").write_text("".join(f"folder/{name}\n" for name in names))
    table = pa.table({"image": pa.array([{"bytes": data, "path": None} for data in pictures], IMAGE)})
    for kind in ("parquet", "parquet, a tenth in memory"):
        pq.write_table(table, root / kind / "0.parquet", row_group_size=100)  # as the Hub's pictures are
    with pa.ipc.new_stream(root / "arrow" / "0.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=1000)
    for shard in range(0, len(names), 1000):
        part = slice(shard, shard + 1000)
        write_tar(root / "tar" / f"shard-{shard:06}.tar", zip(names[part], pictures[part], strict=True))
    write_zip(root / "pictures.zip", zip(names, pictures, strict=True))
    return {
        **{kind: root / kind for kind in ("folder", "parquet", "parquet, a tenth in memory", "arrow", "tar")},
        "list": root / "list.txt",
        "zip": root / "pictures.zip",
    }


def reader(data: Path, side: int) -> tuple[Callable[[int], object], Callable[[int], object]]:
    """What fetches a row's bytes, and what makes its canvas."""
    source: Any = open_source(data)
    if "tenth" in data.name:
        file = source.store._files[0]
        file._groups.keep = os.path.getsize(data / "0.parquet") // 10
    return source.read, lambda row: source.example(row, side)


def seconds(read_row: Callable[[int], object], rows: list[int]) -> float:
    began = time.perf_counter()
    for row in rows:
        read_row(row)
    return time.perf_counter() - began


def index_seconds(members: int, root: Path) -> dict[str, float]:
    """How long a shard and a zip of many small members take to open."""
    data = os.urandom(1024)
    write_tar(
        root / "many.tar", ((f"{i:08}.{s}", d) for i in range(members) for s, d in (("jpg", data), ("cls", b"7")))
    )
    write_zip(root / "many.zip", ((f"{i:08}.jpg", data) for i in range(members)))
    index = {}
    for name in ("many.tar", "many.zip"):
        began = time.perf_counter()
        assert len(open_source(root / name)) == members
        index[name] = time.perf_counter() - began
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/imagenette128")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, default=100_000)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = open_source(options.data)
    read = source.read
    assert read is not None
    pictures = [read(row) for row in range(min(len(source), options.most))]
    times: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as root:
        readers = {kind: reader(data, options.side) for kind, data in packed(pictures, Path(root)).items()}
        readers["memory"] = (pictures.__getitem__, lambda row: decode(pictures[row], options.side))
        for turn in range(options.rounds):
            rows = random.Random(turn).sample(range(len(pictures)), min(options.rows, len(pictures)))
            for kind, readings in readers.items():
                for what, read_row in zip(("bytes", "canvas"), readings, strict=True):
                    times.setdefault(kind, {}).setdefault(what, []).append(len(rows) / seconds(read_row, rows))
        index = index_seconds(options.members, Path(root))
    print(
        f"{len(pictures)} pictures, {sum(map(len, pictures)) / 1e6:.0f} MB, canvas {options.side} px; "
        f"rows/s, median and range of {options.rounds} rounds"
    )
    for kind, measured in times.items():
        cells = [f"{what} {statistics.median(v):8,.0f} ({min(v):,.0f}-{max(v):,.0f})" for what, v in measured.items()]
        print(f"{kind:28} {'   '.join(cells)}")
    print(
        f"index of {options.members} members: "
        + ", ".join(f"{name} {duration:.2f} s" for name, duration in index.items())
    )
    about = {
        "torch": torch.__version__,
        "pyarrow": pa.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(about | {"peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024})
    if options.json:
        Path(options.json).write_text(json.dumps({"rows/s": times, "index": index, "about": about}))


if __name__ == "__main__":
    main()
