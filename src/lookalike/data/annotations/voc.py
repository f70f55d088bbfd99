"""Pascal VOC's XML: one file a picture. Files with a document type are refused, so nothing in one can expand."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from lookalike.data.annotations.pictures import Pictures
from lookalike.data.annotations.record import RawAnnotations, Thing
from lookalike.data.formats.disk import Local
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION
from lookalike.data.image.decode import Unreadable

_MOST = 4 << 20  # bytes of one file: a picture with 10,000 objects takes 3 MB
_SETS = {"train": TRAIN, "val": VALIDATION, "test": TEST}


def voc(pictures: Pictures, files: list[str]) -> RawAnnotations:
    """What the files, relative to the root, state; those that cannot be read are counted."""
    raw = RawAnnotations()
    by_stem: dict[str, str] = {}
    for file in files:
        try:
            tree = parsed(Local(pictures.root).whole(file))
        except Unreadable as unreadable:
            pictures.omissions.add("files that cannot be read", f"{file} ({unreadable.reason})")
            continue
        name = (tree.findtext("filename") or "").strip()
        path = (pictures.find(name, file) if name else None) or pictures.beside(file)
        if path is None:
            pictures.omissions.add("files whose picture is not in the folder", file)
        elif (size := pictures.size(path)) is not None:
            by_stem[Path(file).stem] = path
            if _fits(tree, size):
                raw.things[path] = [thing for part in tree.iter("object") if (thing := _thing(part)) is not None]
            else:
                pictures.omissions.add("pictures of another size than their annotations state", path)
    raw.splits = _sets(pictures.root, by_stem)
    return raw


def parsed(data: bytes) -> ElementTree.Element:
    """The tree of a small file without a document type; raises Unreadable."""
    if len(data) > _MOST:
        raise Unreadable(f"{len(data)} bytes are more than the limit of {_MOST}")
    try:
        text = data.decode("utf-8-sig")  # whatever the file declares: so nothing hides in another encoding
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise Unreadable("it has a document type")
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise Unreadable(f"no XML: {error}") from None


def _thing(part: ElementTree.Element) -> Thing | None:
    """VOC counts pixels from 1 and the last one belongs to the box."""
    try:
        left, top, right, bottom = (
            float(part.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        left = top = right = bottom = float("nan")
    name = (part.findtext("name") or "").strip()
    hard = (part.findtext("difficult") or "").strip() == "1"
    return Thing((left - 1, top - 1, right, bottom), name, ignored=hard) if name else None


def _fits(tree: ElementTree.Element, size: tuple[int, int]) -> bool:
    """Whether the stated size, if it is one, is that of the picture."""
    says = tuple((tree.findtext(f"size/{side}") or "").strip() for side in ("height", "width"))
    return not all(side.isdecimal() and side.strip("0") for side in says) or tuple(map(str, size)) == says


def _sets(root: Path, by_stem: dict[str, str]) -> dict[str, list[str]]:
    """The lists of ImageSets/Main, of which those of single classes are none."""
    splits: dict[str, list[str]] = {}
    for name, split in _SETS.items():
        try:
            lines = (root / "ImageSets" / "Main" / f"{name}.txt").read_text("utf-8", "replace").split("\n")
        except OSError:
            continue
        splits[split] = [by_stem[stem] for line in lines if (stem := line.strip()) in by_stem]
    return splits
