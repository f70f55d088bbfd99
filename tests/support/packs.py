"""The same pictures in every kind of place that data may lie in."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lookalike.data.example import Source

KINDS = ("folder", "txt", "csv", "parquet", "arrow", "tar", "tars", "zip")
CLASSES = ["ant", "bee"]


class Picture(NamedTuple):
    """One picture: its class, its number, and its file's bytes."""

    label: int
    number: int
    data: bytes

    @property
    def path(self) -> str:
        return f"{CLASSES[self.label]}/{self.number:02}.png"


def pictures(count: int, side: int = 16) -> list[Picture]:
    """Pictures of noise in two classes, in the order of their paths."""
    noise = np.random.default_rng(0)
    found = []
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
        found.append(Picture(i * 2 // count, i, file.getvalue()))
    return found


def pack(kind: str, of: list[Picture], root: Path) -> Path:
    """The pictures below ``root`` as one kind of place; what a person would name."""
    root.mkdir(parents=True, exist_ok=True)
    return _PACKS[kind](of, root)


def folder(of: list[Picture], root: Path) -> Path:
    for picture in of:
        (root / picture.path).parent.mkdir(parents=True, exist_ok=True)
        (root / picture.path).write_bytes(picture.data)
    return root


def txt(of: list[Picture], root: Path) -> Path:
    folder(of, root / "there")
    (root / "list.txt").write_text("".join(f"there/{picture.path}\n" for picture in of))
    return root / "list.txt"


def comma(of: list[Picture], root: Path) -> Path:
    folder(of, root / "there")
    with open(root / "list.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["label", "path"])
        lines.writerows([CLASSES[picture.label], root / "there" / picture.path] for picture in of)
    return root / "list.csv"


def columns(of: list[Picture]) -> pa.Table:
    images = [{"bytes": picture.data, "path": None} for picture in of]
    features = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    made = pa.table({"image": pa.array(images, IMAGE), "label": [picture.label for picture in of]})
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(of: list[Picture], root: Path) -> Path:
    pq.write_table(columns(of), root / "0000.parquet", row_group_size=7)
    return root


def arrow(of: list[Picture], root: Path) -> Path:
    """As ``datasets.Dataset.save_to_disk`` lays it out."""
    table = columns(of)
    with pa.ipc.new_stream(root / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return root


def tar(of: list[Picture], root: Path) -> Path:
    """One archive of a folder: classes are folders."""
    write_tar(root / "all.tar", ((f"./{picture.path}", picture.data) for picture in of))
    return root / "all.tar"


def tars(of: list[Picture], root: Path) -> Path:
    """WebDataset's layout."""
    for shard in range(0, len(of), 10):
        members = [
            (f"{picture.number:06}.{suffix}", data)
            for picture in of[shard : shard + 10]
            for suffix, data in (("cls", str(picture.label).encode()), ("png", picture.data), ("txt", b"words"))
        ]
        write_tar(root / f"shard-{shard // 10:06}.tar", iter(members))
    return root


def zipped(of: list[Picture], root: Path) -> Path:
    with zipfile.ZipFile(root / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, picture in enumerate(of):
            archive.writestr(picture.path, picture.data, zipfile.ZIP_STORED if i % 2 else zipfile.ZIP_DEFLATED)
    return root / "all.zip"


def write_tar(path: Path, members: Iterator[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def digest(source: Source) -> str:
    """A hash of every canvas."""
    return hashlib.sha256(
        b"".join(source.example(row, 16).pixels.numpy().tobytes() for row in range(len(source)))
    ).hexdigest()


def report(sources: list[Source], results: multiprocessing.SimpleQueue[list[str]]) -> None:
    """What another process reads."""
    results.put([digest(source) for source in sources])


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PACKS = {
    "folder": folder,
    "txt": txt,
    "csv": comma,
    "parquet": parquet,
    "arrow": arrow,
    "tar": tar,
    "tars": tars,
    "zip": zipped,
}
