"""What going on from public weights is worth on other pictures: kNN and probe on test, of start and result.

    python benchmarks/adapt.py sets --data ../shared/data --clones CLONES --out sets      # once
    python benchmarks/adapt.py run --weights tf_efficientnet_lite0.safetensors --sets sets --out adapt.jsonl
    python benchmarks/adapt.py table adapt.jsonl

``CLONES`` holds clones of github.com/marcusklasson/GroceryStoreDataset and of
github.com/lionelmessi6410/Scene-Recognition-with-Bag-of-Words (the 15 scenes of Lazebnik et al. 2006), and the files of
Fashion-MNIST. Each run is one line of JSON; the same call goes on where it stopped. Every run has as many steps of as
many pictures, on the training pictures without labels; test pictures are looked at once, at its end. ``way`` is a
recipe and settings; beside the result that the run kept, its last step is measured.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

import lookalike
from lookalike.core.devices import processor
from lookalike.metrics.accuracy import Evidence
from lookalike.metrics.knn import Knn
from lookalike.metrics.probe import LinearProbe
from lookalike.models.encoder import Whitening
from lookalike.recipes import recipe_of
from lookalike.train.trained import Trained, labelled_parts

NET = "timm:tf_efficientnet_lite0"
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
WAYS: dict[str, tuple[str, Mapping[str, str]]] = {
    "adapt": ("adapt", {}),
    "adapt, mild views": ("adapt", {f"pretext.first.{n}": v for n, v in {"jitter": "0.4", "gray": "0.05"}.items()}),
    "adapt, all stages": ("adapt", {"tuned.share": "1"}),
    "adapt, norms alone": ("adapt", {"tuned.weights": "norms"}),
    "adapt, falling rates": ("adapt", {"tuned.fall": "0.7"}),
    "index as class": ("adapt_instances", {}),
    "neighbours": ("adapt_neighbours", {}),
    "momentum contrast": ("adapt_moco", {}),
    "momentum contrast, head first": ("adapt_moco", {"tuned.rest": "0.3"}),
    "momentum contrast, statistics of batches": ("adapt_moco", {"tuned.statistics": "batch"}),
    "keys with gradient": ("adapt_simclr", {}),
}


# ---- sets ----


def put(picture: Image.Image, to: Path, name: str) -> None:
    """As PNG in a folder of its class."""
    to.mkdir(parents=True, exist_ok=True)
    picture.save(to / f"{name}.png")


def camvid_crops(data: Path, to: Path) -> None:
    """Boxes around the connected parts of masks, of 300 pixels or more; the 11 classes; split by photo."""
    from scipy import ndimage

    for part, split in (("train", "train"), ("val", "train"), ("test", "test")):
        for file in sorted((data / "camvid" / "CamVid" / part).glob("*.png")):
            photo = Image.open(file).convert("RGB")
            mask = np.asarray(Image.open(file.parents[1] / f"{part}annot" / file.name))
            for number, name in enumerate(CAMVID):
                parts, _ = ndimage.label(mask == number)
                for i, (y, x) in enumerate(ndimage.find_objects(parts)):
                    if (parts[y, x] == i + 1).sum() >= 300 and min(y.stop - y.start, x.stop - x.start) >= 16:
                        box = x.start, y.start, x.stop, y.stop
                        put(photo.crop(box), to / split / name, f"{file.stem}_{number}_{i}")


def boxes(data: Path, to: Path) -> None:
    """Boxes of 24 pixels or more of coco_mini, and of raccoon as one more class; every fifth of its photos is test."""
    for part, split in (("train2017", "train"), ("val2017", "test")):
        about = json.loads((data / "coco_mini" / "annotations" / f"instances_{part}.json").read_text())
        names = {one["id"]: one["name"].replace(" ", "_") for one in about["categories"]}
        files = {one["id"]: data / "coco_mini" / part / one["file_name"] for one in about["images"]}
        for one in about["annotations"]:
            x, y, w, h = one["bbox"]
            if min(w, h) >= 24 and not one.get("iscrowd") and files[one["image_id"]].is_file():
                photo = Image.open(files[one["image_id"]]).convert("RGB")
                crop = photo.crop((int(x), int(y), int(x + w + 1), int(y + h + 1)))
                put(crop, to / split / names[one["category_id"]], str(one["id"]))
    for i, file in enumerate(sorted((data / "raccoon" / "annotations").glob("*.xml"))):
        photo = Image.open(data / "raccoon" / "images" / f"{file.stem}.jpg").convert("RGB")
        for number, found in enumerate(ElementTree.parse(file).iter("bndbox")):
            box = tuple(int(found.findtext(side, "0")) for side in ("xmin", "ymin", "xmax", "ymax"))
            put(photo.crop(box), to / ("train" if i % 5 else "test") / "raccoon", f"{file.stem}_{number}")  # type: ignore[arg-type]


def weizmann(data: Path, to: Path) -> None:
    """Single frames of the clips; performers 0, 3 and 6 are test."""
    for file in sorted((data / "weizmann" / "data").rglob("*.jpg")):
        strip = Image.open(file).convert("RGB")
        split = "train" if int(file.stem) // 8 % 3 else "test"
        for x in range(0, strip.width, 64):
            put(strip.crop((x, 0, x + 64, 64)), to / split / file.parent.name, f"{file.stem}_{x // 64}")


def fashion(clones: Path, to: Path) -> None:
    """The first 2,000 pictures of train and 1,000 of test."""
    for part, split, count in (("train", "train", 2000), ("t10k", "test", 1000)):
        pixels = np.frombuffer(
            gzip.decompress((clones / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
        )
        labels = np.frombuffer(
            gzip.decompress((clones / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
        )
        for i in range(count):
            put(Image.fromarray(pixels.reshape(-1, 28, 28)[i]), to / split / str(labels[i]), f"{i:05}")


def make_sets(data: Path, clones: Path, out: Path) -> None:
    """Those that are not class folders already."""
    for name, make, source in (
        ("camvid_crops", camvid_crops, data),
        ("boxes", boxes, data),
        ("weizmann", weizmann, data),
        ("fashion", fashion, clones),
    ):
        if not (out / name).is_dir():
            make(source, out / name)
    for split in ("train", "test"):
        for file in sorted((clones / "GroceryStoreDataset" / "dataset" / split).rglob("*.jpg")):
            (out / "groceries" / split / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, out / "groceries" / split / file.parent.name / file.name)
        photos = clones / "Scene-Recognition-with-Bag-of-Words" / "data" / split
        shutil.copytree(photos, out / "scenes" / split, dirs_exist_ok=True)
    for name in ("clothing160", "imagenette128"):
        (out / name).symlink_to((data / name).resolve())


# ---- runs ----


class Rows(NamedTuple):
    """Features and labels of both parts."""

    known: Tensor
    labels: Tensor
    asked: Tensor
    truth: Tensor

    @classmethod
    def of(cls, model: Trained, data: Path) -> Rows:
        """Not normalised, not whitened, in bf16 where that is native."""
        parts = labelled_parts(model, data)
        known, asked = (model.features(model.loader(part)) for part in parts)
        return cls(known, parts[0].labels, asked, parts[1].labels)

    def knn(self) -> Tensor:
        """(Q,) what is right."""
        rule = Knn.suited(self.labels, 0.1)
        if rule.k > 20:
            rule = Knn(20, 0.1)
        return (rule.predict(normalize(self.known), self.labels, normalize(self.asked)) == self.truth).double()

    def probe(self) -> Tensor:
        """(Q,) what is right."""
        return (LinearProbe().fit(self.known, self.labels).predict(self.asked) == self.truth).double()

    def whitened(self) -> Rows:
        """By what is fitted to the known ones."""
        whitening = Whitening(self.known.shape[1])
        whitening.fit(self.known)
        return self._replace(known=whitening(self.known), asked=whitening(self.asked))


def numbers(each: Tensor, base: Tensor | None) -> dict[str, float]:
    """In percent, with the paired gain."""
    found = {"mean": 100 * float(each.mean())}
    if base is not None:
        gain = Evidence(each, "queries").gain(Evidence(base, "queries"))
        found |= {"gain": 100 * gain.mean, "half": 100 * gain.half}
    return found


def started(weights: Path, data: Path, kept: Path, probes: bool, precision: Any) -> dict[str, Tensor]:
    """What the start answers right, kept in a file."""
    if kept.is_file():
        return torch.load(kept, weights_only=True)  # type: ignore[no-any-return]
    rows = Rows.of(lookalike.load(weights, model=NET, precision=precision), data)
    right = {"knn": rows.knn(), "knn whitened": rows.whitened().knn()}
    if probes:
        right |= {"probe": rows.probe(), "probe whitened": rows.whitened().probe()}
    torch.save(right, kept)
    return right


def one(weights: Path, data: Path, way: str, seed: int, steps: int, probes: bool, out: Path) -> dict[str, Any]:
    """Adapt, and measure the last step and what was kept."""
    recipe, settings = WAYS[way]
    precision = recipe_of("adapt").computes_in()
    base = started(weights, data, out.with_name(f"{out.stem}-{data.name}.pt"), probes, precision)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        run, began = Path(folder) / "run", time.perf_counter()
        how: dict[str, Any] = {
            "recipe": recipe,
            "steps": steps,
            "settings": {**settings, "seed": str(seed)},
            "quiet": True,
        }
        lookalike.pretrain(data, run, init_from=weights, model=NET, **how)
        minutes = (time.perf_counter() - began) / 60
        verdict = json.loads((run / "result.json").read_text())
        record: dict[str, Any] = {"set": data.name, "way": way, "seed": seed, "steps": steps, "minutes": minutes}
        record |= {"processor": processor(), "threads": torch.get_num_threads(), "precision": precision}
        record |= {"verdict": verdict, "start": {name: numbers(each, None) for name, each in base.items()}}
        kept = Rows.of(lookalike.load(run, precision=precision), data)
        (run / "result.json").unlink()
        last = Rows.of(lookalike.load(run, precision=precision), data).whitened()
    record |= {"last": numbers(last.knn(), base["knn"]), "kept": numbers(kept.knn(), base["knn"])}
    record |= {"last over whitened": numbers(last.knn(), base["knn whitened"])}
    if probes:
        record["kept probe"] = numbers(kept.probe(), base["probe"])
    return record


def jobs(names: list[str], ways: list[str], seeds: int) -> Iterator[tuple[str, str, int]]:
    """Set, way and seed."""
    for seed in range(seeds):
        for way in ways:
            yield from ((name, way, seed) for name in names)


def run(args: argparse.Namespace) -> None:
    """One after the other, but for what is there."""
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    done = {(line["set"], line["way"], line["seed"]) for line in lines}
    for name, way, seed in jobs(args.names, args.ways, args.seeds):
        if (name, way, seed) in done:
            continue
        record = one(args.weights, args.sets / name, way, seed, args.steps, args.probes, args.out)
        with args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps({key: record[key] for key in ("set", "way", "seed", "minutes", "kept", "last")}), flush=True)


def gain(rows: list[dict[str, Any]], key: str) -> str:
    """The mean gain over seeds, ± the half of an interval over test pictures (their mean), and the range of gains."""
    gains, halves = [row[key]["gain"] for row in rows], [row[key]["half"] for row in rows]
    return f"{fmean(gains):+.1f} ± {fmean(halves):.1f}, {min(gains):+.1f} to {max(gains):+.1f}"


def table(file: Path) -> None:
    """A row of Markdown for each set and way: means over seeds."""
    rows = [json.loads(line) for line in file.open()]
    head = ["set", "way", "n", "kNN: start, whitened", "kept", "last step over the whitened", "probe: start", "kept"]
    print(f"| {' | '.join([*head, 'minutes'])} |\n{'|---' * (len(head) + 1)}|")
    for name, way in sorted({(row["set"], row["way"]) for row in rows}):
        these = [row for row in rows if (row["set"], row["way"]) == (name, way)]
        start = {key: found["mean"] for key, found in these[0]["start"].items()}
        cells = [name, way, str(len(these)), f"{start['knn']:.1f}, {start['knn whitened']:.1f}", both(these, "kept")]
        cells += [gain(these, "last over whitened"), f"{start.get('probe', math.nan):.1f}"]
        probed = [row for row in these if "kept probe" in row]
        cells += [both(probed, "kept probe") if probed else "", f"{fmean(row['minutes'] for row in these):.1f}"]
        print(f"| {' | '.join(cells)} |")


def both(rows: list[dict[str, Any]], key: str) -> str:
    """The mean over seeds, and ``gain``."""
    return f"{fmean(row[key]['mean'] for row in rows):.1f} ({gain(rows, key)})"


def main() -> None:
    """The three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    sets = verbs.add_parser("sets")
    for name in ("data", "clones", "out"):
        sets.add_argument(f"--{name}", type=Path, required=True)
    runs = verbs.add_parser("run")
    for name in ("weights", "sets", "out"):
        runs.add_argument(f"--{name}", type=Path, required=True)
    runs.add_argument("--names", nargs="+", default=["camvid_crops", "scenes", "clothing160", "groceries"])
    runs.add_argument("--ways", nargs="+", default=["adapt"], choices=list(WAYS))
    runs.add_argument("--seeds", type=int, default=1)
    runs.add_argument("--steps", type=int, default=200)
    runs.add_argument("--probes", action="store_true")
    verbs.add_parser("table").add_argument("file", type=Path)
    args = parser.parse_args()
    if args.verb == "sets":
        make_sets(args.data, args.clones, args.out)
    elif args.verb == "run":
        run(args)
    else:
        table(args.file)


if __name__ == "__main__":
    main()
