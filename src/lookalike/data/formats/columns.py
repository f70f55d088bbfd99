"""Which columns of an Arrow schema hold pictures and labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

LABELS = ("label", "labels", "fine_label", "class", "target", "category")
FOR_TEXT = "text wants a recipe for text, such as --recipe simcse"
BROKEN = (OSError, ValueError, LookupError, pa.ArrowException)  # what pyarrow raises for files that are damaged


class PictureColumns(NamedTuple):
    """Which columns hold what; ``names`` are the classes as Hugging Face's metadata states them."""

    image: str
    nested: bool  # struct{bytes, path}, not plain binary
    has_path: bool
    label: str | None
    names: list[str] | None


def columns_of(schema: Any) -> PictureColumns | None:
    """The image and label columns of an Arrow schema; None where no column can hold pictures."""
    features = _features(schema)
    image = next((f for f in _preferred(schema, features, "Image", ("image", "img")) if _holds_bytes(f.type)), None)
    if image is None:
        return None
    label = next((f for f in _preferred(schema, features, "ClassLabel", LABELS) if _labels(f, features)), None)
    names = features.get(label.name, {}).get("names") if label is not None else None
    nested = pa.types.is_struct(image.type)
    has_path = nested and image.type.get_field_index("path") >= 0
    return PictureColumns(image.name, nested, has_path, label.name if label is not None else None, names)


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face's metadata says of each column; {} where there is none that can be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def _preferred(schema: Any, features: dict[str, Any], kind: str, names: Sequence[str]) -> list[Any]:
    """The columns: those of a usual name first, then those that the metadata calls ``kind``, then the rest."""

    def rank(field: Any) -> tuple[bool, int]:
        usual = names.index(field.name.lower()) if field.name.lower() in names else len(names)
        return features.get(field.name, {}).get("_type") != kind, usual

    return sorted(schema, key=rank)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _labels(field: Any, features: dict[str, Any]) -> bool:
    """Whether a column may hold labels: by its stated kind, or by its name and type."""
    if features.get(field.name, {}).get("_type") == "ClassLabel":
        return True
    simple = pa.types.is_integer(field.type) or pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    return bool(simple and field.name.lower() in LABELS)


def field(column: Any, name: str) -> Any:
    """The column itself, or the field of its struct that ``name`` (``column.field``) ends in."""
    return pc.struct_field(column, name.rpartition(".")[2]) if pa.types.is_struct(column.type) else column
