"""The table that was there before: what of it is still true of the data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lookalike.core.errors import USAGE, UserError
from lookalike.models.encoder import Layer
from lookalike.train.embeddings import about_in, columns_of, identity_of, made_by, opened_table, refusing, vectors_in
from lookalike.types import Origin

_OURS = ("path", "split", "label", "class", "text", "embedding", "width", "height", "sha256")
_GROUPS = 4  # row groups that are kept, since rows are asked for in about their order


class Old(NamedTuple):
    """Rows of it: vectors (K, F), and what others have added, with nothing in the places of new rows."""

    vectors: npt.NDArray[np.float32]
    others: dict[str, pa.ChunkedArray]


class Previous:
    """A table by the same model; some 300 bytes a row are held."""

    def __init__(self, path: Path, file: pq.ParquetFile, digest: str, same_data: bool, open_: ExitStack) -> None:
        columns = columns_of(file)
        self.digest, self._path, self._file, self._same_data, self._open = digest, path, file, same_data, open_
        self._numbers = {where: row for row, where in enumerate(zip(columns["split"], columns["path"]))}
        self._sha256: list[str] = columns.get("sha256") or [""] * len(columns["path"])
        self._texts: list[str] | None = columns.get("text")
        groups = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
        self._starts = np.cumsum([0, *groups])
        self._others = [field for field in file.schema_arrow if field.name not in _OURS]
        self._group = lru_cache(_GROUPS)(self._read)

    @classmethod
    def of(cls, path: Path, layer: Layer, origin: Origin) -> Previous:
        """The table at ``path``; raises UserError where another model made it, or other settings."""
        stack = ExitStack()  # open until this is gone
        file = stack.enter_context(opened_table(path))
        about = about_in(file)
        made = about["origin"]
        if not made_by(about, layer, origin):
            stack.close()
            by = "an older version, which does not say what made it" if made is None else f"{made}"
            reason = f"{path} was made by {by}, layer {about['layer']}, and this is {origin}, layer {layer}"
            raise UserError(f"{reason}: leave out --update to make it anew, or choose another --out", USAGE)
        return cls(path, file, identity_of(path), made.data_digest == origin.data_digest, stack)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def places(self, split: str, paths: Sequence[str], sha256: Sequence[str] | None, texts: Sequence[str]) -> Tensor:
        """(R,) the rows that are these and have not changed, -1 of others.

        What is neither a file nor a text has changed unless all of the data is the same.
        """
        places = []
        for number, path in enumerate(paths):
            row = self._numbers.get((split, path), -1)
            if row >= 0:
                now, before = sha256[number] if sha256 else "", self._sha256[row]
                if now and before:
                    same = now == before
                elif texts and self._texts is not None:
                    same = texts[number] == self._texts[row]
                else:
                    same = self._same_data
                row = row if same else -1
            places.append(row)
        return torch.tensor(places, dtype=torch.int64)

    def rows(self, places: Tensor) -> Old:
        """Those at ``places`` (R,): the vectors of all that are not -1, in their order."""
        known = places[places >= 0].numpy()
        groups = np.searchsorted(self._starts, known, "right") - 1
        parts = [self._group(int(group)).take(known[groups == group] - self._starts[group]) for group in set(groups)]
        table = pa.concat_tables(parts) if parts else self._group(0).slice(0, 0)
        # From the order of groups to that of the places, with nothing for new rows.
        order = np.concatenate([np.flatnonzero(groups == group) for group in set(groups)] or [known])
        back = np.argsort(order)
        where = np.full(len(places), -1)
        where[places.numpy() >= 0] = back
        indices = pa.array(where, mask=where < 0)
        others = {field.name: table[field.name].take(indices) for field in self._others}
        return Old(vectors_in(table["embedding"].combine_chunks())[back], others)

    def _read(self, group: int) -> pa.Table:
        names = ["embedding", *(field.name for field in self._others)]
        with refusing(self._path):
            table: Any = self._file.read_row_group(group, columns=names)
            return table
