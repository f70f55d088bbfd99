"""A run that trains meanwhile: a fixed sample of its data, embedded anew at each checkpoint, so that the map moves."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import torch

from lookalike.core.errors import UserError
from lookalike.core.files import json_in
from lookalike.core.lock import holder
from lookalike.curate.survey import random_rows
from lookalike.curate.table import Table, data_of
from lookalike.data.example import Rows, as_pictures
from lookalike.explore.layout import layout
from lookalike.explore.session import Session
from lookalike.recipes.modality import TEXT, modality_of
from lookalike.train.checkpoint import newest_step
from lookalike.train.embeddings import origin_of
from lookalike.train.run import Run, is_run
from lookalike.train.trained import load
from lookalike.types import Embeddings

_SAMPLE = 2000  # pictures: enough to see a map, few enough to be embedded while the run needs the processor
_EVERY = 2.0  # seconds between two looks at the folder
_TAIL = 65_536  # bytes of the log that are read again each time


def training(where: str) -> bool:
    """Whether it is a run that some process trains now, and has a checkpoint to begin with."""
    return is_run(where) and holder(Path(where)) is not None and newest_step(Run(Path(where)).checkpoints) >= 0


class Live:
    """A run, and its sample."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where its data is not here, or no pictures."""
        self._run, self.step = Run(folder), -1
        trained = load(folder)
        if modality_of(trained.recipe).inputs == TEXT or (data := data_of(folder)) is None:
            raise UserError(f"{folder} learns from texts, which have no map while they are learned: wait until it ends")
        every = as_pictures(modality_of(trained.recipe).find(data).rows(None))
        rows = random_rows(len(every), _SAMPLE)
        self._pictures = as_pictures(Rows(every, rows.sort().values))
        self._loader = trained.loader(self._pictures, 0)

    def table(self) -> Table:
        """The sample by the newest checkpoint."""
        trained = load(self._run.folder)
        self.step, source = trained.step, self._pictures
        layer = modality_of(trained.recipe).layer
        vectors = trained.features(self._loader, torch.arange(len(source)), layer).numpy()
        names = (list(source.paths), ["all"] * len(source), source.labels.numpy(), vectors, tuple(source.classes))
        rows = Embeddings(*names, None, layer, origin_of(trained, str(data_of(self._run.folder) or "")))
        return Table(str(self._run.folder), rows, self._pictures, trained)

    def follow(self, session: Session) -> None:
        """Until the end is wanted: what the log says, and after each checkpoint the map from where it was."""
        while not session.ended.wait(_EVERY):
            session.live = self.about()
            if newest_step(self._run.checkpoints) > self.step:
                with suppress(UserError):  # it was replaced by a newer one while it was read; that comes next
                    table = self.table()
                    session.move(
                        table.rows, layout(table.rows.vectors, session.map.places if session.map.number else None)
                    )

    def about(self) -> dict[str, object]:
        """Whether it trains, the newest numbers of its log, and the step that is shown."""
        metrics = _last(self._run.metrics)
        return {"training": holder(self._run.folder) is not None, "shown": self.step, "metrics": metrics}


def _last(log: Path) -> dict[str, float]:
    """The newest value of each number of a log that another process writes; what is torn or strange is passed over."""
    found = dict[str, float]()
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        for line in file.read(_TAIL).splitlines():
            with suppress(ValueError):
                entry = json_in(line)
                if isinstance(entry, dict):
                    found |= {
                        str(k)[:60]: v for k, v in entry.items() if isinstance(v, int | float) and math.isfinite(v)
                    }
    return found
