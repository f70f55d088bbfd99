"""Plants known faults into a copy of a folder of pictures, and measures what finds them.

``plant SOURCE OUT`` copies split/class/picture, edits some, and writes the truth to OUT.csv, one line a fault:

- duplicate: a copy of a train picture in its class folder, equal in bytes or edited (``EDITS``), 10 % of train
- leak: the same in another split, as many as 30 % of what those splits hold
- label: a train picture that lies in the folder of another class, 5 % of train; ``other`` is its true class

``measure`` and ``rival`` are described in docs/results.md, *Finding what is wrong with data*.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("plant")
    one.add_argument("source", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    faults = plant(asked.source, asked.out, asked.seed)
    write_truth(asked.out.with_suffix(".csv"), faults)
    print(f"{len(faults)} faults in {asked.out}, listed in {asked.out.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
