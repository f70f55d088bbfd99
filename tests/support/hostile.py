"""Inputs that are not what a command wants: what may lie at a path, files that lie about what they are."""

# ruff: noqa: E501  (a table of inputs, one a line)

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

SUFFIXES = (
    *("", ".parquet", ".arrow", ".tar", ".tar.gz", ".zip", ".csv", ".tsv", ".txt", ".json", ".jsonl", ".npy", ".npz"),
    *(".safetensors", ".pth", ".pt", ".bin", ".png", ".jpg", ".gif", ".mp4", ".onnx", ".mat", ".xml", ".yaml"),
)
DEEP = "[" * 10_000 + "]" * 10_000
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
ENTITIES = (
    '<!DOCTYPE a [<!ENTITY a0 "x">'
    + "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))
    + "]><annotation><filename>&a9;</filename></annotation>"
)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(file, "PNG")
    return file.getvalue()


CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "png": png(),
    "words": "fünf,sechs\n\x1b[31m=1+1,\x00\n".encode(),
    "noise": bytes(np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)),
}


def cyclic(path: Path) -> None:
    one: dict[str, Any] = {"again": []}
    one["again"] += [one, one["again"]]
    torch.save(one, path)


def nan_weights(path: Path) -> None:
    save_file({"conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}, path)


def claims(path: Path, shape: list[int]) -> None:
    """A file of safetensors whose head promises a tensor of that shape."""
    head = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))


def head_of(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + b"{}")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": [os.getcwd]}))


def in_tar(path: Path, name: str, size: int | None = None, link: str | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        info.size, info.type = len(png()), tarfile.SYMTYPE if link else tarfile.REGTYPE
        info.linkname = link or ""
        archive.addfile(info, None if link else io.BytesIO(png()))
    if size is not None:  # a head that promises more than there is
        data = bytearray(path.read_bytes())
        data[124:136] = b"%011o\0" % size
        path.write_bytes(data)


def in_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../a/1.png", bytes(50_000_000))
        archive.writestr("b/\x1b]0;2.png", png())


def nulls(path: Path) -> None:
    pq.write_table(
        pa.table({"image": pa.array([None, png()], pa.binary()), "label": pa.array([None, None], pa.int64())}), path
    )


def truncated(path: Path) -> None:
    pq.write_table(pa.table({"image": [png()] * 3, "label": [0, 1, 2]}), path)
    path.write_bytes(path.read_bytes()[:-20])


def table(at: Path, **columns: Any) -> None:
    """Looks like one of embeddings."""
    meta = columns.pop("meta", {"version": 1})
    made = pa.table(columns).replace_schema_metadata({"lookalike": meta if isinstance(meta, str) else json.dumps(meta)})
    pq.write_table(made, at)


def objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)


def text(data: str | bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(data if isinstance(data, bytes) else data.encode()))


def void(_: object) -> None:
    return None


class Given(NamedTuple):
    """One input: what makes it at a path, and the name that it has."""

    make: Callable[[Path], None]
    name: str | bytes
    new: bool = False  # whether it may well be written to


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the paths of sockets are short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def folder(*files: tuple[str, str | bytes]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name, data in files:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return make


def closed(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
        (path / "a.png").write_bytes(png())
    else:
        path.write_bytes(png())
    path.chmod(0)


def looping(path: Path) -> None:
    path.mkdir()
    (path / "a.png").write_bytes(png())
    (path / "again").symlink_to(path)


def weird_folder(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "fifo.png")
    listening(path / "s.png")
    (path / "zero.png").symlink_to("/dev/zero")
    (path / "loop.png").symlink_to(path / "loop.png")
    (path / "closed.png").write_bytes(png())
    (path / "closed.png").chmod(0)


def filesystem() -> dict[str, Given]:
    """What may lie at any path, or does not."""
    return {
        "missing": Given(void, "missing/one", new=True),
        "folder": Given(folder(), "folder", new=True),
        "full folder": Given(folder(("file", "x"), ("a.png", b"x")), "full"),
        "file": Given(text("x"), "plain"),
        "below a file": Given(lambda path: text("x")(path.parent), "plain/below"),
        "fifo": Given(os.mkfifo, "fifo"),
        "fifo.json": Given(os.mkfifo, "fifo.json"),
        "fifo.parquet": Given(os.mkfifo, "fifo.parquet"),
        "fifo.safetensors": Given(os.mkfifo, "fifo.safetensors"),
        "socket": Given(listening, "socket"),
        "zero": Given(void, "/dev/zero"),
        "zero.txt": Given(lambda path: path.symlink_to("/dev/zero"), "zero.txt"),
        "zero.pth": Given(lambda path: path.symlink_to("/dev/zero"), "zero.pth"),
        "zero.parquet": Given(lambda path: path.symlink_to("/dev/zero"), "zero.parquet"),
        "null": Given(void, "/dev/null"),
        "closed file": Given(lambda path: closed(path, "file"), "closed.png"),
        "closed.parquet": Given(lambda path: closed(path, "file"), "closed.parquet"),
        "closed folder": Given(lambda path: closed(path, "folder"), "closed"),
        "below a closed folder": Given(lambda path: closed(path.parent, "folder"), "closed/a.png"),
        "loop": Given(lambda path: path.symlink_to(path), "loop"),
        "dangling": Given(lambda path: path.symlink_to("nowhere/at/all"), "dangling", new=True),
        "too long": Given(void, "n" * 256),
        "newline": Given(void, "new\nline", new=True),
        "escape": Given(void, "\x1b[2Jred\x07", new=True),
        "no unicode": Given(void, b"caf\xe9\xff", new=True),
        "255": Given(void, "n" * 255, new=True),
        "newline picture": Given(text(png()), "new\nline.png"),
        "no unicode picture": Given(text(png()), b"caf\xe9\xff.png"),
        "no unicode folder": Given(folder(("ü\x1b[1m.png", png())), b"fol\xe9"),
        "255 picture": Given(text(png()), "n" * 251 + ".png"),
        "nothing": Given(void, "", new=True),
        "blank": Given(void, " ", new=True),
        "dash": Given(void, "-", new=True),
        "colon": Given(void, "hf:", new=True),
        "timm": Given(void, "timm:nothing/../x", new=True),
        "torchvision": Given(void, "torchvision:", new=True),
        "hub": Given(void, "hub:../../x", new=True),
        "address": Given(void, "file:///etc", new=True),
        "frames": Given(void, "frames@nan:x", new=True),
    }


def contents() -> dict[str, Given]:
    """Files that lie about what they are."""
    kinds = {
        f"{name}{suffix}": Given(text(data), f"a{suffix}") for suffix in SUFFIXES for name, data in CONTENTS.items()
    }
    special: dict[str, Given] = {
        **{f"deep{suffix}": Given(text(DEEP), f"deep{suffix}") for suffix in (".json", ".jsonl", ".yaml", ".csv", ".txt")},
        **{f"cyclic{suffix}": Given(cyclic, f"cyclic{suffix}") for suffix in (".pth", ".pt", ".bin")},
        **{f"pickle{suffix}": Given(pickled, f"pickle{suffix}") for suffix in (".pth", ".bin", ".safetensors", ".npy")},
        "nan weights": Given(nan_weights, "nan.safetensors"),
        **{f"claims {n}": Given(functools.partial(claims, shape=[n]), "a.safetensors") for n in (-5, 10**12, 2**63)},
        **{f"head {n}": Given(functools.partial(head_of, length=n), "a.safetensors") for n in (10**12, 2**64 - 1)},
        "objects": Given(objects, "objects.npy"),
        "null labels": Given(nulls, "nulls.parquet"),
        "truncated": Given(truncated, "cut.parquet"),
        "table of nothing": Given(lambda path: table(path, path=pa.array([], pa.string())), "t.parquet"),
        "table of words": Given(lambda path: table(path, path=["a"], embedding=["b"]), "t.parquet"),
        "table of deep": Given(lambda path: table(path, path=["a"], meta=DEEP), "t.parquet"),
        "table of null": Given(lambda path: table(path, path=[None], split=[None], embedding=[None], meta="null"), "t.parquet"),
        "table of nan": Given(lambda path: table(path, path=["a", "b"], split=["train"] * 2, label=[0, 1], embedding=pa.array([[float("nan")] * 3, [1.0] * 3], pa.list_(pa.float32(), 3)), meta={"version": 1, "layer": "backbone", "origin": {"step": -5}}), "t.parquet"),
        "up in tar": Given(lambda path: in_tar(path, "../../up.png"), "up.tar"),
        "link in tar": Given(lambda path: in_tar(path, "a/b.png", link="/etc/passwd"), "link.tar"),
        "huge in tar": Given(lambda path: in_tar(path, "a/b.png", size=8**11 - 1), "huge.tar"),
        "escape in tar": Given(lambda path: in_tar(path, "\x1b[2J/=b.png"), "escape.tar"),
        "bomb": Given(in_zip, "bomb.zip"),
        "laughs": Given(text(LAUGHS), "laughs.yaml"),
        "entities": Given(text(ENTITIES), "entities.xml"),
        "coco of null": Given(text('{"images": null, "annotations": [null], "categories": {}}'), "annotations.json"),
        "record of null": Given(text("null"), "a.json"),
        "record of nan": Given(text('{"accuracy": NaN, "task": -5, "numbers": 1e999}'), "a.json"),
        "vast number": Given(text('{"accuracy": ' + "9" * 5000 + "}"), "a.json"),
        "lines of null": Given(text("null\n[]\n5\n{}\n" * 3), "a.jsonl"),
        "list of weird": Given(text("/dev/zero\n../../etc/passwd\n\x1b[1m.png\n\n" + "n" * 5000 + "\n"), "list.txt"),
        "table of weird": Given(text("path,label\n/dev/zero,\n=1,=2\n,,,,\n"), "list.csv"),
        "wide csv": Given(text("a," * 200_000), "wide.csv"),
        "sentences": Given(text("".join(f"sentence {i}\n" for i in range(40))), "s.txt"),
        "only closed": Given(weird_folder, "weird"),
        "looping": Given(looping, "looping"),
        "frames of null": Given(folder(("dataset_info.json", "null"), ("state.json", DEEP), ("a.arrow", b"ARROW1")), "saved"),
        "cache of null": Given(folder(("cache.json", "null"), ("canvases.json", "[]"), ("prepared.json", DEEP)), "cache"),
        "yolo": Given(folder(("data.yaml", LAUGHS), ("images/train/a.png", png()), ("labels/train/a.txt", "0 nan 1e999 -5 0\n")), "yolo"),
        "coco": Given(folder(("train2017/a.png", png()), ("annotations/instances_train2017.json", DEEP)), "coco"),
        "hf": Given(folder(("config.json", DEEP), ("model.safetensors", b"")), "hf"),
        "hf of null": Given(folder(("config.json", '{"model_type": "vit", "hidden_size": -5, "image_size": 1000000000000}'), ("preprocessor_config.json", "null")), "hf"),
        "timm folder": Given(folder(("config.json", '{"architecture": "resnet18", "num_classes": -5, "pretrained_cfg": {"mean": null}}'), ("model.safetensors", png())), "timm"),
    }  # fmt: skip
    return kinds | special


def place(given: Given, root: Path) -> str:
    """Where it lies, once it has been made below ``root``; some are no paths, or lie elsewhere."""
    name = os.fsdecode(given.name)
    if name.strip(" -") == "" or ":" in name or name.startswith("/"):
        return name
    given.make(root / name)
    return str(root / name)
