"""Plants known faults into a copy of a folder of pictures, and measures what finds them.

``plant SOURCE OUT`` copies split/class/picture, edits some, and writes the truth to OUT.csv, one line a fault:

- duplicate: a copy of a train picture in its class folder, equal in bytes or edited (``EDITS``), 10 % of train
- leak: the same in another split, as many as 30 % of what those splits hold
- label: a train picture that lies in the folder of another class, 5 % of train; ``other`` is its true class

``ours OUT TABLE`` writes what lookalike finds in a table of OUT to OUT.ours.json, and after it ``rival NAME OUT`` what
another library finds, in an environment that has it; ``judge OUT FOUND.json`` compares either with the truth. A pair
that was not planted counts as wrong, even where the pictures are the same by nature. ``many CIFAR OUT`` makes 100,000
pictures of CIFAR-10's 60,000 and edits of 40,000, with features, and times ``duplicates`` on them.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

HEAD = ("kind", "edit", "path", "other")


class Fault(NamedTuple):
    """What was planted: ``path``, and ``other`` as the kind says; both relative to the folder."""

    kind: str
    edit: str
    path: str
    other: str


def crop(image: Image.Image, draw: random.Random) -> Image.Image:
    """A part with 60 to 90 % of each side."""
    width, height = (round(side * draw.uniform(0.6, 0.9)) for side in image.size)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def resize(image: Image.Image, draw: random.Random) -> Image.Image:
    """40 to 70 % of each side, by one factor."""
    share = draw.uniform(0.4, 0.7)
    return image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))))


def jpeg(image: Image.Image, draw: random.Random) -> Image.Image:
    """Quality 10 to 40."""
    image.save(file := io.BytesIO(), "JPEG", quality=draw.randint(10, 40))
    return Image.open(file).convert("RGB")


def colour(image: Image.Image, draw: random.Random) -> Image.Image:
    """Brightness, contrast and saturation by factors of 0.6 to 1.4; a fifth turn gray."""
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(draw.uniform(0.6, 1.4))
    return ImageOps.grayscale(image).convert("RGB") if draw.random() < 0.2 else image


def mirror(image: Image.Image, draw: random.Random) -> Image.Image:
    """Left and right."""
    return ImageOps.mirror(image)


def watermark(image: Image.Image, draw: random.Random) -> Image.Image:
    """Words across the picture, half transparent."""
    size = max(10, round(min(image.size) * draw.uniform(0.15, 0.25)))
    layer = Image.new("RGBA", image.size)
    place = draw.uniform(0, 0.2) * image.width, draw.uniform(0.1, 0.7) * image.height
    ImageDraw.Draw(layer).text(
        place, "© sample shop", (255, 255, 255, draw.randint(120, 200)), ImageFont.load_default(size)
    )
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def border(image: Image.Image, draw: random.Random) -> Image.Image:
    """A frame of 6 to 15 % of the longer side."""
    width = round(max(image.size) * draw.uniform(0.06, 0.15))
    return ImageOps.expand(image, width, draw.choice(["white", "black", (90, 120, 160)]))


EDITS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    f.__name__: f for f in (crop, resize, jpeg, colour, mirror, watermark, border)
}
KINDS = ("equal", *EDITS)


def save_edited(source: Path, target: Path, edit: str, draw: random.Random) -> None:
    """A copy, or an edited one as a JPEG of quality 90."""
    if edit == "equal":
        shutil.copyfile(source, target)
        return
    with Image.open(source) as image:
        EDITS[edit](ImageOps.exif_transpose(image).convert("RGB"), draw).save(target, "JPEG", quality=90)


def plant(source: Path, out: Path, seed: int) -> list[Fault]:
    """The copy in ``out``, whose faults it returns."""
    draw = random.Random(seed)
    shutil.copytree(source, out)
    paths = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.suffix in (".jpg", ".JPEG", ".png"))
    train = [path for path in paths if path.startswith("train/")]
    draw.shuffle(train)
    tenth = len(train) // 10
    faults = [_copy(out, path, path, KINDS[i % len(KINDS)], "duplicate", draw) for i, path in enumerate(train[:tenth])]
    others = [path for path in paths if not path.startswith("train/")]
    leaks = 3 * len(others) // 10
    for i, path in enumerate(train[tenth : tenth + leaks]):
        split = draw.choice(others).split("/")[0]
        faults.append(_copy(out, path, f"{split}/{path.partition('/')[2]}", KINDS[i % len(KINDS)], "leak", draw))
    classes = sorted({path.split("/")[1] for path in train})
    for path in train[tenth + leaks :][: len(train) // 20]:
        _, true, name = path.split("/")
        wrong = draw.choice([one for one in classes if one != true])
        (out / path).rename(out / "train" / wrong / name)
        faults.append(Fault("label", wrong, f"train/{wrong}/{name}", true))
    return faults


def _copy(out: Path, path: str, beside: str, edit: str, kind: str, draw: random.Random) -> Fault:
    """One edited copy of ``path`` in the folder of ``beside``, under a name that says nothing."""
    target = Path(beside).with_name(f"{draw.getrandbits(64):016x}.jpg")
    save_edited(out / path, out / target, edit, draw)
    return Fault(kind, edit, str(target), path)


def write_truth(path: Path, faults: Sequence[Fault]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *faults])


def read_truth(path: Path) -> list[Fault]:
    with path.open(newline="") as file:
        return [Fault(**row) for row in csv.DictReader(file)]


Pairs = list[tuple[str, str, float, str]]
"""Two paths, a score, and a reason."""


def ours(folder: Path, table: Path, precision: float) -> dict[str, Any]:
    """What ``duplicates``, ``leaks`` and ``labels`` go by: all pairs, all leaks, all labels."""
    import torch

    from lookalike.curate.duplicates import leaks_among
    from lookalike.curate.labels import probabilities, suspicious_labels
    from lookalike.curate.same import REASONS, same_pictures
    from lookalike.curate.table import open_table

    opened = open_table(table, folder)
    began = time.perf_counter()
    same, path = same_pictures(opened, precision), opened.rows.path
    print(f"{time.perf_counter() - began:.0f} s; {same.threshold.words}")
    members: dict[int, list[int]] = {}
    for row, first in enumerate(same.exact.tolist()):
        members.setdefault(first, []).append(row)
    pairs = [(a, b, 1.0, REASONS[0]) for some in members.values() for a in some for b in some if a < b]
    for (one, other), score, reason in zip(same.pairs.tolist(), same.scores.tolist(), same.reasons.tolist()):
        pairs += [(a, b, score, REASONS[reason]) for a in members[one] for b in members[other]]
    known, numbers = opened.rows.label >= 0, torch.tensor(opened.rows.label[opened.rows.label >= 0])
    share = probabilities(opened.vectors[torch.from_numpy(known)], numbers)
    own = share.gather(1, numbers[:, None])[:, 0]
    other = share.scatter(1, numbers[:, None], 0.0).amax(1)
    labels = list(zip(np.array(path, object)[known].tolist(), (other / (other + own)).tolist()))
    listed = [path[finding.row] for finding in suspicious_labels(opened)]
    columns = {"path": np.array(path), "label": opened.rows.label, "embedding": opened.rows.vectors}
    np.savez(folder.with_suffix(".npz"), **columns)  # for libraries that live with no pyarrow
    leaks = [path[finding.row] for finding in leaks_among(opened, same)]
    return {
        "pairs": [(path[a], path[b], *rest) for a, b, *rest in pairs],
        "labels": labels,
        "listed": listed,
        "leaks": leaks,
    }


def phash(folder: Path) -> dict[str, Any]:
    """imagededup's PHash, down to its default of 10 bits of 64."""
    from imagededup.methods import PHash

    found = PHash().find_duplicates(image_dir=folder, scores=True, recursive=True)
    return {"pairs": [(a, b, 1 - bits / 64, "phash") for a, some in found.items() for b, bits in some if a < b]}


def cnn(folder: Path) -> dict[str, Any]:
    """imagededup's rule for networks, cosine 0.9 and more, on the features of the table; its own are a download."""
    import torch
    from imagededup.methods import CNN
    from imagededup.utils.models import CustomModel

    read = np.load(folder.with_suffix(".npz"))
    method = CNN(model_config=CustomModel(name="table", model=torch.nn.Identity(), transform=lambda image: image))
    encodings = dict(zip(read["path"].tolist(), read["embedding"]))
    found = method.find_duplicates(encoding_map=encodings, min_similarity_threshold=0.8, scores=True)
    return {"pairs": [(a, b, float(score), "cnn") for a, some in found.items() for b, score in some if a < b]}


def fastdup(folder: Path) -> dict[str, Any]:
    """fastdup with its own network, as it comes."""
    import fastdup as library

    job = library.create(work_dir=str(folder.with_suffix(".fastdup")), input_dir=str(folder))
    job.run(overwrite=True, num_images=0, threshold=0.8, nearest_neighbors_k=5, print_summary=False)
    frame, root = job.similarity(), str(folder.absolute()) + "/"
    names = [
        [str(Path(name).absolute()).removeprefix(root) for name in frame[f"filename_{end}"]] for end in ("from", "to")
    ]
    pairs = {tuple(sorted(pair)): float(score) for *pair, score in zip(*names, frame["distance"])}
    return {"pairs": [(a, b, score, "fastdup") for (a, b), score in pairs.items() if a != b]}


def cleanlab(folder: Path) -> dict[str, Any]:
    """cleanlab's quality of each label, from scikit-learn's logistic regression on five folds of the same features."""
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    read = np.load(folder.with_suffix(".npz"))
    rows, labels = read["embedding"], read["label"]
    shares = cross_val_predict(LogisticRegression(max_iter=1000), rows, labels, cv=5, method="predict_proba")
    quality = get_label_quality_scores(labels, shares)
    return {"labels": [(path, 1 - float(score)) for path, score in zip(read["path"].tolist(), quality)]}


def many(cifar: Path, out: Path, count: int = 100_000) -> None:
    """Seconds of the wall and of the processor, and peak memory, with features of 256 numbers given."""
    import resource

    import pyarrow as pa
    import pyarrow.parquet as pq

    from lookalike.curate.duplicates import duplicates_among
    from lookalike.curate.same import same_pictures
    from lookalike.curate.table import Table, pictures_of
    from lookalike.types import Embeddings

    out.mkdir(parents=True, exist_ok=True)
    if not (out / "features.npy").exists():
        make_many(cifar, out, count, pa, pq)
    rows = np.load(out / "features.npy")
    paths = pq.read_table(out / "train.parquet", columns=["image"])["image"].combine_chunks().field("path").to_pylist()
    table = Embeddings(paths, ["train"] * len(paths), np.full(len(paths), -1), rows)
    pictures = pictures_of(table, str(out / "train.parquet"))
    began, busy = time.perf_counter(), time.process_time()
    same = same_pictures(Table("many", table, pictures))
    found = duplicates_among(Table("many", table, pictures), same)
    wall, busy = time.perf_counter() - began, time.process_time() - busy
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    edited = {path for path in paths if path.startswith("edit")}
    hits = sum(paths[one.row] in edited or paths[one.others[0]] in edited for one in found)
    print(f"{len(paths):,} pictures: {wall:.0f} s, {busy:.0f} s of this process's processors, {memory:.2f} GB")
    print(f"{len(found):,} duplicates, {hits:,} with one of {len(edited):,} edited; {same.threshold.words}")


def make_many(cifar: Path, out: Path, count: int, pa: Any, pq: Any) -> None:
    """A table of pictures in bytes, and features: 256 directions of most variance of small colours."""
    draw, images, looks = random.Random(0), [], []
    tables = [pq.read_table(path, columns=["image"]) for path in sorted(cifar.rglob("*.parquet"))]
    data = [row["bytes"] for table in tables for row in table["image"].to_pylist()]
    edits = [draw.choice(list(EDITS)) for _ in range(count - len(data))]
    for number, edit in enumerate([None] * len(data) + edits):
        image = Image.open(io.BytesIO(data[number % len(data)])).convert("RGB")
        if edit:
            image = EDITS[edit](image, draw)
        image.save(file := io.BytesIO(), "JPEG", quality=90)
        name = f"edit/{number:06}-{edit}.jpg" if edit else f"own/{number:06}.jpg"
        images.append({"bytes": file.getvalue() if edit else data[number], "path": name})
        small = np.asarray(image.resize((16, 16)), np.float32)
        looks.append((small + small[:, ::-1]).reshape(-1))
    pq.write_table(pa.table({"image": images}), out / "train.parquet")
    rows = np.stack(looks)
    rows -= rows.mean(0)
    rows = rows @ np.linalg.eigh(rows[::5].T @ rows[::5])[1][:, -256:].astype(np.float32)
    np.save(out / "features.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))


RIVALS = {"phash": phash, "cnn": cnn, "fastdup": fastdup, "cleanlab": cleanlab}


def judge(folder: Path, found: dict[str, Any]) -> None:
    """Precision and recall of pairs, of leaks by edit, and how well labels are ranked."""
    truth = read_truth(folder.with_suffix(".csv"))
    planted = {tuple(sorted((one.path, one.other))): one for one in truth if one.kind != "label"}
    if "pairs" in found:
        pairs: Pairs = [(*sorted(pair[:2]), *pair[2:]) for pair in found["pairs"]]
        for reasons in (None, ("equal bytes",), ("equal bytes", "equal pixels", "perceptual hash")):
            some = pairs if reasons is None else [pair for pair in pairs if pair[3] in reasons]
            if some:
                judge_pairs(" + ".join(reasons or ["all"]), some, planted)
    if "leaks" in found:
        rows = {one.path for one in planted.values() if one.kind == "leak"}
        for name, some in (("equal", True), ("edited", False)):
            kind = {one.path for one in planted.values() if one.kind == "leak" and (one.edit == "equal") == some}
            print(f"leaks, {name}: recall {len(kind & set(found['leaks'])) / len(kind):.3f} of {len(kind)}")
        print(f"leaks listed: {len(found['leaks'])}, of which planted: {len(rows & set(found['leaks']))}")
    if "labels" in found:
        wrong = {one.path for one in truth if one.kind == "label"}
        judge_labels(found["labels"], wrong, folder)
        if listed := set(found.get("listed", ())):
            print(f"labels listed: {len(listed)}, of which planted: {len(wrong & listed)} of {len(wrong)}")


def judge_pairs(name: str, pairs: Pairs, planted: dict[Any, Fault]) -> None:
    """At each tool's own threshold, and at the one that is best for this truth."""
    scores = np.array([pair[2] for pair in pairs])
    right = np.array([pair[:2] in planted for pair in pairs])
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + len(planted))
    own = {"cnn": 0.9, "fastdup": 0.9}.get(pairs[0][3], -1.0)
    kept = scores >= own
    precision, recall = right[kept].mean() if kept.any() else 0.0, right[kept].sum() / len(planted)
    best = f"best F1 {f1.max():.3f} from {scores[order[f1.argmax()]]:.3f}"
    total = 2 * right[kept].sum() / (kept.sum() + len(planted))
    print(f"{name}: {kept.sum()} pairs, precision {precision:.3f}, recall {recall:.3f}, F1 {total:.3f}; {best}")
    seen = {pair[:2] for pair, keep in zip(pairs, kept) if keep}
    edits = {edit: [pair for pair, one in planted.items() if one.edit == edit] for edit in KINDS}
    print(
        "  recall: " + ", ".join(f"{edit} {sum(p in seen for p in some)}/{len(some)}" for edit, some in edits.items())
    )


def judge_labels(found: Iterable[tuple[str, float]], wrong: set[str], folder: Path) -> None:
    """Area under the curve over all of train (what is not listed comes last), and the precision at a recall of 0.5."""
    from sklearn.metrics import roc_auc_score

    scores = {path: score for path, score in found if path.startswith("train/")}
    names = [str(path.relative_to(folder)) for path in (folder / "train").rglob("*.*")]
    values, truth = [scores.get(name, 0.0) for name in names], [name in wrong for name in names]
    hits = np.cumsum(np.array(truth)[np.argsort(-np.array(values), kind="stable")])
    half = int(np.argmax(hits >= len(wrong) / 2)) + 1
    area = roc_auc_score(truth, values)
    print(f"labels: AUC {area:.4f}; precision at recall 0.5: {hits[half - 1] / half:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("plant")
    one.add_argument("source", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--seed", type=int, default=0)
    one = verbs.add_parser("ours")
    one.add_argument("out", type=Path)
    one.add_argument("table", type=Path)
    one.add_argument("--precision", type=float, default=0.95)
    one = verbs.add_parser("rival")
    one.add_argument("name", choices=RIVALS)
    one.add_argument("out", type=Path)
    one = verbs.add_parser("many")
    one.add_argument("cifar", type=Path)
    one.add_argument("out", type=Path)
    one = verbs.add_parser("judge")
    one.add_argument("out", type=Path)
    one.add_argument("found", type=Path)
    asked = parser.parse_args()
    if asked.verb == "plant":
        faults = plant(asked.source, asked.out, asked.seed)
        write_truth(asked.out.with_suffix(".csv"), faults)
        print(f"{len(faults)} faults in {asked.out}, listed in {asked.out.with_suffix('.csv')}")
    elif asked.verb == "many":
        many(asked.cifar, asked.out)
    elif asked.verb == "judge":
        judge(asked.out, json.loads(asked.found.read_text()))
    else:
        began, name = time.perf_counter(), getattr(asked, "name", "ours")
        rival = RIVALS.get(name)
        found = rival(asked.out) if rival else ours(asked.out, asked.table, asked.precision)
        print(f"{name}: {time.perf_counter() - began:.0f} s")
        asked.out.with_suffix(f".{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
