"""Tables of embeddings: made of data by a model, written and read, and what they say of where they come from."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch
from torch import nn

from lookalike.core import dist
from lookalike.core.devices import isolated, refuse_unheld
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import cell, json_in, opened, write_atomically
from lookalike.core.progress import Progress, silent
from lookalike.data.example import Source, remarks
from lookalike.data.formats.places import Place
from lookalike.data.source import EVERYTHING, Data, Say, name_of
from lookalike.models.encoder import Layer
from lookalike.pretext.video import TwoClips
from lookalike.recipes.modality import TEXT, modality_of
from lookalike.train.fit import weights_digest
from lookalike.train.trained import CHUNK, PartFeatures, Trained, load, refuse_other_ranks, unsaid
from lookalike.types import Embeddings, Origin

VERSION = 2
"""Of the format, since 2 with sizes and sha256 of pictures; tables without one are of the versions before."""
ROWS = 4 * CHUNK
"""Of a row group: what is held in memory while a table is made, and done again after a kill."""
_ABOUT, _LAYER = b"lookalike", b"lookalike.layer"  # keys of a file's metadata: the second is all that older ones have
_CONTENT = "lookalike.embeddings"  # of a file's metadata: sha256 of the bytes of all features
_PLAIN = {
    "PLAIN",
    "RLE",
    "BIT_PACKED",
}  # encodings; the last two are those of levels, which say that nothing is missing

# ---- made ----


@isolated()
def embed_data(
    model: Trained | str | Path,
    data: Data,
    layer: Layer = "backbone",
    workers: int | None = None,
    progress: Progress = silent,
    clip: float | None = None,
    place: Place[Source] | None = None,
    say: Say = unsaid,
) -> Embeddings:
    """One unit row for every readable example of every split of ``data``: splits in turn, paths sorted.

    ``model`` is a run folder, or what ``load`` gave; ``clip`` is in seconds of video; ``place`` is the data where it
    has been opened already; ``say`` hears what is left out. Raises UserError.
    """
    trained = model if isinstance(model, Trained) else load(model)
    place = place or place_for(trained, data)
    sources = sources_of(place)
    rows = sum(map(len, sources.values()))
    advice = "embed some of its files at a time, each into a table of its own"
    refuse_unheld(f"embeddings of {rows:,} rows", rows * 8 * width_of(trained, layer), advice)
    for line in remarks(name_of(data), sources):
        say(line)
    refuse_other_ranks(trained, sources, layer, clip)
    how = (layer, workers, progress)
    every = [PartFeatures.of(trained, source, *how, split, say) for split, source in sources.items()]
    parts = [part.in_clips(clip) for part in every]
    sentences = [text for source, part in zip(sources.values(), parts) for text in sentences_of(source, part.paths)]
    return Embeddings(
        [path for part in parts for path in part.paths],
        [split for split, part in zip(sources, parts) for _ in part.paths],
        torch.cat([part.labels for part in parts]).numpy(),
        torch.cat([part.features for part in parts]).numpy(),
        class_names(sources),
        sentences if modality_of(trained.recipe).inputs == TEXT else None,
        layer,
        origin_of(trained, name_of(data), place.rows(None).stamps().digest()) if dist.first() else None,
    )


def place_for(trained: Trained, data: Data) -> Place[Source]:
    """The data as the model reads it: pictures, texts or videos. Raises UserError."""
    return modality_of(trained.recipe).find(data)


def sources_of(place: Place[Source]) -> dict[str, Source]:
    """The rows of each split, in turn; all of them where the data is not divided."""
    return {split: place.rows(split) for split in place.splits} or {EVERYTHING: place.rows(None)}


def class_names(sources: Mapping[str, Source]) -> tuple[str, ...]:
    """The names of the labels, as a table holds them."""
    return tuple(map(_unicode, next(iter(sources.values())).classes))


def sentences_of(source: Source, paths: Sequence[str]) -> list[str]:
    """The first text of each row, which is what an encoder of texts sees; none of pictures."""
    rows = {path: row for row, path in enumerate(source.paths)} if source.texts else {}
    return [source.texts(rows[path])[0] for path in paths] if source.texts else []


def origin_of(trained: Trained, data: str = "", data_digest: str = "") -> Origin:
    """What made rows of this model, and of which data."""
    where = os.path.abspath(data)[:4096] if os.path.exists(data) else data[:4096]
    weights, precision = weights_digest(trained.encoder), trained.encoder.evaluated_in
    origin = Origin(trained.run, trained.step, weights, precision, preprocessing(trained), where, data_digest)
    named = trained.named
    return origin if named is None else replace(origin, model=named.architecture or "", file=named.digest())


def preprocessing(trained: Trained) -> dict[str, Any]:
    """How an encoder is shown what it encodes, as JSON: two models that differ in it do not compare."""
    pretext, shown = trained.recipe.pretext, dict[str, Any]()
    if trained.recipe.preprocessing is not None:
        shown = asdict(trained.recipe.preprocessing)
        return shown | {"mean": list(shown["mean"]), "std": list(shown["std"])}
    if (view := getattr(pretext, "picture", getattr(pretext, "first", None))) is not None:
        shown = {"side": getattr(pretext, "whole", None) or view.size, "mean": list(view.mean), "std": list(view.std)}
        shown |= {"crop": "centre square of the whole picture", "canvas": trained.recipe.canvas}
    if isinstance(pretext, TwoClips):
        shown |= {"frames": pretext.frames, "every": pretext.every}
    if trained.tokenizer is not None:
        tokens = hashlib.sha256(trained.tokenizer.json.encode()).hexdigest()
        shown |= {"length": getattr(pretext, "length", None), "tokenizer": tokens}
    return shown


# ---- written ----


def files_of(path: Path) -> list[Path]:
    """The files that ``write_embeddings`` writes; raises UserError for a name that says no kind of table."""
    if path.suffix.lower() not in _WRITERS:
        raise UserError(f"{path}: embeddings are written as .parquet, .csv or .npy; end the name in one of these")
    return [path, path.with_suffix(".rows.csv")] if path.suffix.lower() == ".npy" else [path]


def size_of(trained: Trained, place: Place[Source], path: Path, layer: Layer) -> int:
    """Bytes of the features of all rows, about: what the disk needs at least. 0 where that is not known before."""
    return len(place.rows(None)) * width_of(trained, layer) * (10 if path.suffix.lower() == ".csv" else 4)


def width_of(trained: Trained, layer: Layer) -> int:
    """Features of a row of the data; 0 where that is not known before."""
    linear = [module for module in trained.encoder.head.modules() if isinstance(module, nn.Linear)]
    if not linear or isinstance(trained.recipe.pretext, TwoClips):
        return 0
    return linear[0].in_features if layer == "backbone" else linear[-1].out_features


def write_embeddings(table: Embeddings, path: Path) -> None:
    """A table as its name ends, published by rename. Raises UserError for another name.

    ``.parquet``: path, split, label, class, text of tables of text, embedding (fixed-size list of float32), where they
    are known width, height and sha256 of the picture's file, and where it comes from in the metadata. ``.csv``: the
    same with a column a feature, of ``cell``s, without metadata. ``.npy``: the embeddings alone, float32 (N, F), and
    ``.rows.csv`` beside it with the other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, data in zip(files_of(path), _WRITERS[path.suffix.lower()](table)):
        write_atomically(file, data)


def _columns(table: Embeddings, word: Callable[[str], object] = str) -> dict[str, Any]:
    """All but the features and what is known of files, each word as ``word`` has it."""
    named = [table.classes[i] if 0 <= i < len(table.classes) else None for i in table.label.tolist()]
    words: dict[str, Sequence[str | None]] = {"path": table.path, "split": table.split, "class": named}
    words |= {} if table.text is None else {"text": table.text}
    columns = {name: pa.array([v and word(_unicode(v)) for v in values], pa.string()) for name, values in words.items()}
    return {name: columns.pop(name) for name in ("path", "split")} | {"label": pa.array(table.label)} | columns


def _of_files(table: Embeddings) -> dict[str, Any]:
    """The columns of what is known of the pictures' files."""
    columns = {} if table.size is None else {"width": pa.array(table.size[:, 1]), "height": pa.array(table.size[:, 0])}
    return columns if table.sha256 is None else columns | {"sha256": pa.array(table.sha256, pa.string())}


def described(table: Embeddings) -> pa.Table:
    """All columns but the embedding and the hashes."""
    return pa.table(_columns(table) | _of_files(replace(table, sha256=None)))


def arrow(table: Embeddings) -> pa.Table:
    """The table as it stands in a file of parquet, with what it says of itself."""
    rows = pa.FixedSizeListArray.from_arrays(pa.array(table.vectors.reshape(-1)), table.vectors.shape[1])
    origin = asdict(table.origin) if table.origin else None
    about = {"version": VERSION, "layer": table.layer, "classes": table.classes, "origin": origin}
    columns = pa.table(_columns(table) | {"embedding": rows} | _of_files(table))
    return columns.replace_schema_metadata({_ABOUT: json.dumps(about)})


class Writer:
    """Writes such tables: pages with checksums, features, which no codec makes smaller, in one page a group.

    A hash of the features is among the metadata: so the last bytes of a file tell it from any other.
    """

    def __init__(self, file: Any, schema: pa.Schema) -> None:
        words = [name for name in schema.names if name != "embedding"]
        how = {"use_dictionary": words, "compression": dict.fromkeys(words, "zstd"), "data_page_size": 1 << 30}
        self._writer = pq.ParquetWriter(file, schema, write_page_checksum=True, **how)
        self._digest = hashlib.sha256()

    def write(self, table: pa.Table) -> None:
        """Rows, in groups of ``ROWS``."""
        self._digest.update(np.ascontiguousarray(vectors_in(table["embedding"].combine_chunks())).data)
        self._writer.write_table(table, ROWS)

    def close(self) -> None:
        """Ends the table."""
        self._writer.add_key_value_metadata({_CONTENT: self._digest.hexdigest()})
        self._writer.close()


def in_parquet(table: pa.Table) -> bytes:
    """The file of a table that is in memory."""
    writer = Writer(sink := pa.BufferOutputStream(), table.schema)
    writer.write(table)
    writer.close()
    return bytes(sink.getvalue().to_pybytes())


def _parquet(table: Embeddings) -> list[bytes]:
    return [in_parquet(arrow(table))]


def identity_of(path: Path) -> str:
    """What tells a table from any other: a hash of its last bytes, where ``Writer`` has left one of all content.

    Of a file that another program wrote it is one of all bytes. Raises UserError.
    """
    with opened_table(path) as file, opened(path) as whole:
        size = whole.seek(0, os.SEEK_END)
        told = _CONTENT.encode() in (file.metadata.metadata or {})
        whole.seek(max(0, size - file.metadata.serialized_size - 8) if told else 0)
        return f"{size} {hashlib.file_digest(whole, 'sha256').hexdigest()}"


def _csv(table: Embeddings, features: bool = True) -> list[bytes]:
    columns, sink = _columns(table, cell), pa.BufferOutputStream()
    columns |= {f"embedding_{i}": pa.array(column) for i, column in enumerate(table.vectors.T if features else ())}
    pa_csv.write_csv(pa.table(columns), sink)
    return [sink.getvalue().to_pybytes()]


def _npy(table: Embeddings) -> list[bytes]:
    np.save(file := io.BytesIO(), table.vectors, allow_pickle=False)
    return [file.getvalue(), *_csv(table, features=False)]


def _unicode(text: str) -> str:
    """The text, with halves of letters, which no file of text may hold, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


_WRITERS: dict[str, Callable[[Embeddings], list[bytes]]] = {".parquet": _parquet, ".csv": _csv, ".npy": _npy}

# ---- read ----


def read_embeddings(path: Path) -> Embeddings:
    """What ``write_embeddings`` wrote into a parquet file, or a table that was made of it; raises UserError.

    Columns that others have added are not looked at.
    """
    with opened_table(path) as file:
        return Embeddings(**columns_of(file), vectors=vectors_of(file, path), **about_in(file))


@contextmanager
def opened_table(path: Path) -> Iterator[pq.ParquetFile]:
    """A table in parquet; what goes wrong inside leaves as UserError."""
    with refusing(path), opened(path) as file:
        yield pq.ParquetFile(file, page_checksum_verification=True)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """What goes wrong with a table leaves as UserError."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0][:100]
        made = f"lookalike embed MODEL {path if path.is_dir() else 'DATA'} --out TABLE.parquet makes one"
        where = f"{path}: neither a run nor a table that lookalike embed wrote in parquet"
        raise UserError(f"{where} ({reason}): {made}", BAD_DATA) from None


def columns_of(file: pq.ParquetFile) -> dict[str, Any]:
    """The fields of ``Embeddings`` that are columns, but for the vectors; raises KeyError, ArrowException."""
    names = ("path", "split", "label", "text", "width", "height", "sha256")
    table = file.read([name for name in names if name in file.schema_arrow.names])

    def words(name: str) -> list[str]:
        return list(table[name].cast(pa.string()).to_pylist())

    def numbers(name: str) -> pa.ChunkedArray:
        return table[name].cast(pa.int64())

    columns = {name: words(name) for name in ("path", "split")}
    columns |= {name: words(name) for name in ("text", "sha256") if name in table.column_names}
    sizes = [numbers(name).fill_null(0).to_numpy() for name in ("height", "width") if name in table.column_names]
    size = np.stack(sizes, 1).astype(np.int32) if len(sizes) == 2 else None
    return columns | {"label": numbers("label").fill_null(-1).to_numpy(), "size": size}


def plain_places(file: pq.ParquetFile) -> list[int | None]:
    """Where in the file the numbers of each row group begin, if they can be one page as they are in memory.

    A page ends with its numbers, which levels precede; None of what is compressed, or coded in any other way.
    """
    number = next((i for i, column in enumerate(file.schema) if column.path.split(".")[0] == "embedding"), -1)
    places, width = list[int | None](), 0
    for i in range(file.num_row_groups if number >= 0 else 0):
        group = file.metadata.row_group(i)
        column = group.column(number)
        width = width or column.num_values // max(1, group.num_rows)
        size = 4 * column.num_values
        plain = column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
        plain = plain and column.physical_type == "FLOAT" and set(column.encodings) <= _PLAIN
        even = column.num_values == group.num_rows * width and column.total_compressed_size > size
        places.append(column.data_page_offset + column.total_compressed_size - size if plain and even else None)
    return places


def vectors_of(file: pq.ParquetFile, path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(N, F): as they lie in the file, if their hash is what ``Writer`` says, in a twentieth of the time of decoding.

    Raises ValueError for lists that differ in length.
    """
    told, places = (file.metadata.metadata or {}).get(_CONTENT.encode()), plain_places(file)
    if told is not None and places and None not in places:
        groups = [file.metadata.row_group(i) for i in range(len(places))]
        width = file.schema_arrow.field("embedding").type.list_size
        rows, digest, at = np.empty((file.metadata.num_rows, width), np.float32), hashlib.sha256(), 0
        with opened(path) as whole:
            for place, group in zip(places, groups):
                part = rows[at : at + group.num_rows]
                whole.seek(place or 0)
                whole.readinto(part.data.cast("B"))
                digest.update(part.data)
                at += len(part)
        if digest.hexdigest().encode() == told:
            return rows
    return _decoded(file)


def _decoded(file: pq.ParquetFile) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(N, F), read some rows at a time."""
    rows, at = None, 0
    for batch in file.iter_batches(ROWS, columns=["embedding"]):
        part = vectors_in(batch["embedding"])
        rows = np.empty((file.metadata.num_rows, part.shape[1]), np.float32) if rows is None else rows
        if part.shape[1] != rows.shape[1]:
            raise ValueError("embeddings of several lengths")
        rows[at : at + len(part)] = part
        at += len(part)
    return vectors_in(file.read(["embedding"])["embedding"].combine_chunks()) if rows is None else rows


def vectors_in(rows: pa.Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(N, F) of a column of lists, as other writers have them; raises ValueError for lists that differ in length."""
    lengths = pc.unique(pc.list_value_length(rows)).to_pylist() or [0]
    if len(lengths) > 1 or None in lengths:
        raise ValueError("embeddings of several lengths")
    return np.asarray(rows.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(rows), lengths[0])


def made_by(about: Mapping[str, Any], layer: Layer, origin: Origin) -> bool:
    """Whether what a file says of itself is what this model, layer and precision would make."""
    made: Origin | None = about["origin"]
    return made is not None and made.compares_with(origin) and (about["layer"], made.precision) == (
        layer, origin.precision,
    )  # fmt: skip


def about_in(file: pq.ParquetFile) -> dict[str, Any]:
    """Layer, classes and origin, from what anybody may have written; no more than the layer in the oldest tables."""
    metadata: Mapping[bytes, bytes] = file.schema_arrow.metadata or {}
    if _ABOUT not in metadata:
        return {"layer": "head" if metadata.get(_LAYER) == b"head" else "backbone", "origin": None}
    about = json_in(metadata[_ABOUT])
    if about["version"] > VERSION or about["layer"] not in ("backbone", "head"):
        raise ValueError("a newer version of lookalike wrote it")
    record, kinds = about["origin"], (str, int, str, str, dict, str, str, str, str)
    record = record if record is None else {"model": "", "file": "", **record}  # which older versions did not write
    origin = record if record is None else Origin(*(kind(record[f.name]) for f, kind in zip(fields(Origin), kinds)))
    return {"layer": about["layer"], "classes": tuple(map(str, about["classes"])), "origin": origin}
