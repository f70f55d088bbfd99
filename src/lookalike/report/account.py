"""Everything that a report tells of one run, gathered once; nothing of the run is touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lookalike.core.devices import isolated, module_to_device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import read_json
from lookalike.core.progress import Progress, silent
from lookalike.curate.diagnosis import Diagnosis, Spread, diagnose, spread_of
from lookalike.data.example import Source
from lookalike.data.loader import Loads
from lookalike.data.source import Data
from lookalike.evaluation.settings import EVALUATIONS
from lookalike.learn.learner import Learner
from lookalike.metrics.accuracy import Evidence
from lookalike.metrics.unlabelled import alignment
from lookalike.recipes.modality import loader, modality_of
from lookalike.report.ages import Drift, drifts
from lookalike.report.page import shown, table
from lookalike.report.sample import PictureSample
from lookalike.train import checkpoint
from lookalike.train.history import History
from lookalike.train.learned import FINDS, found_among, two_views
from lookalike.train.pretrain import parted
from lookalike.train.run import Run
from lookalike.train.trained import Trained, as_begun, load, whiten_untrained

_VIEWED = 250  # examples of which two views are compared


class Moment(NamedTuple):
    """A run's network as it was at one time, and what was measured of it without labels."""

    name: str
    trained: Trained
    spread: Spread
    found: Evidence | None = None  # which examples are found again from another view
    alignment: float = math.nan  # of two views of an example


class Record(NamedTuple):
    """What ``lookalike evaluate --json`` wrote of a run; the number that models are compared by comes first."""

    task: str  # or the name of the file, of older ones
    data: str
    run: str
    numbers: dict[str, float]


class Account(NamedTuple):
    """One run; what could not be looked at is empty, and ``unseen`` and ``unmade`` say why."""

    diagnosis: Diagnosis
    records: Sequence[Record]
    moments: Sequence[Moment] = ()  # before the run, at checkpoints, and now
    training: Loads | None = None  # reads the examples as the run did
    sample: PictureSample | None = None  # by the networks before the run and now
    drift: Sequence[Drift] = ()
    unseen: str = ""
    unmade: str = ""  # why no step could be made again

    @property
    def history(self) -> History:
        """What was recorded."""
        return self.diagnosis.history


@isolated()
def account(
    folder: Path, given: Sequence[Record] = (), data: Data | None = None, progress: Progress = silent
) -> Account:
    """Of a run folder and the records in it, and of those ``given`` that name it. Raises UserError where it is none."""
    diagnosis, records = diagnose(folder, 0, features=False), []
    for file in sorted(folder.glob("*.json")):
        with suppress(UserError):  # other files of a run
            records.append(record_in(file))
    found = Account(diagnosis, [*records, *(one for one in given if is_of(one, folder) and one not in records)])
    try:
        return looked_at(found, data, progress)
    except UserError as error:
        return found._replace(unseen=str(error))


def looked_at(found: Account, data: Data | None, progress: Progress) -> Account:
    """With what its networks make of its data. Raises UserError where either is gone."""
    diagnosis, recipe = found.diagnosis, found.history.recipe
    source, _ = parted(found.history.source(data), recipe.held_out)
    now = load(found.history.folder)
    training = loader(recipe, source, now.tokenizer, 0, 0)
    every = moments(diagnosis, now, source, training, progress)
    sample = PictureSample([every[0].trained, now], [every[0].name, every[-1].name], source, progress)
    found = found._replace(moments=every, training=training, sample=sample)
    if data is not None or diagnosis.changed or len(source) != found.history.examples():
        return found._replace(unmade="the data is not what the run learned from")
    if found.history.last("skipped"):
        return found._replace(unmade="some steps were passed over")
    progress("making steps again", 0, 1)
    step = diagnosis.whole or 0
    return found._replace(drift=drifts(recipe, learner_at(diagnosis, step), training, step) if step else ())


def moments(diagnosis: Diagnosis, now: Trained, source: Source, training: Loads, progress: Progress) -> list[Moment]:
    """The network before the run, as whole checkpoints before the newest have it, and now, on the same examples."""
    start, recipe = as_begun(now), now.recipe
    before = start or load(diagnosis.history.folder, untrained=True)
    if start is None:
        whiten_untrained(before, source)
    every = {"before, as the start was" if start else "before, untrained": before}
    for step in sorted(step for step, reason in diagnosis.checkpoints if reason is None and 0 < step < now.step):
        every[f"at step {step:,}"] = now._replace(encoder=learner_at(diagnosis, step).encoder, step=step)
    every[f"now, at step {now.step:,}"] = now
    found = list[Moment]()
    for name, trained in every.items():
        progress("measuring the networks", len(found), len(every))
        found.append(Moment(name, trained, spread_of(trained, source, 0)))
    if recipe.objective.supervised or modality_of(recipe).examples not in FINDS or not recipe.keys.directions:
        return found
    rows, views = two_views(recipe, training, [trained.encoder for trained in every.values()], _VIEWED)
    again = (found_among(source.paths, rows, *pair) for pair in views)
    return [one._replace(found=some, alignment=alignment(*pair)) for one, some, pair in zip(found, again, views)]


def learner_at(diagnosis: Diagnosis, step: int) -> Learner:
    """All that training changes, as the checkpoint of a step has it. Raises UserError."""
    run = Run(diagnosis.history.folder)
    learner = diagnosis.history.recipe.build(int(run.data()["examples"]))
    paths = {checkpoint.step_of(path): path for path in checkpoint.published(run.checkpoints)}
    if step not in paths:  # of a run that goes on meanwhile
        raise UserError(f"the checkpoint of step {step} is gone: give the same command again")
    checkpoint.load_learner(paths[step], learner)
    module_to_device(learner)
    return learner


def moments_table(moments: Sequence[Moment]) -> Iterator[str]:
    """What was measured of the network at each moment, and what the numbers mean."""
    if not moments:
        return
    columns: list[tuple[str, str, str, Callable[[Moment], float]]] = [
        (
            "found again",
            "from another view; more is better",
            ".1%",
            lambda one: one.found.mean if one.found else math.nan,
        ),
        ("alignment", "distance of two views; 0 is the same, 2 is chance", ".2f", lambda one: one.alignment),
        ("uniformity", "0 all at one point, about −4 evenly spread", ".2f", lambda one: one.spread.uniformity),
        ("spread", "0 collapsed, 1 even", ".2f", lambda one: one.spread.embedding),
        ("dimensions in use", f"effective rank, of {moments[0].spread.width}", ".1f", lambda one: one.spread.rank),
    ]
    known = [column for column in columns if any(math.isfinite(column[3](one)) for one in moments)]
    rows = [[shown(one.name), *(cell(value(one), form) for *_, form, value in known)] for one in moments]
    yield "<h2>Has it collapsed?</h2>"
    yield (
        "<p>A network that gives the same answer for everything is of no use. These numbers tell, without labels: two "
        "views of an example should lie close together (alignment), and different examples apart, all over the space "
        "(uniformity, spread, dimensions).</p>"
    )
    yield table("numbers", rows, [f"{name} <small>{means}</small>" for name, means, *_ in known], "has it collapsed")


def cell(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:{form}}".replace("-", "\N{MINUS SIGN}")


# ---- evaluations ----


def record_in(file: Path) -> Record:
    """What a file holds; raises UserError where it is no record."""
    plain: Any = read_json(file)
    if not isinstance(plain, dict) or not isinstance(plain.get("data"), str) or not isinstance(plain.get("run"), str):
        raise UserError(f"{file} holds no numbers: name what lookalike evaluate TASK --json wrote", BAD_DATA)
    task = str(plain.get("task", file.stem))
    kinds = [EVALUATIONS[task]] if task in EVALUATIONS else list(EVALUATIONS.values())
    settings = {"step", *(name for kind in kinds for name in kind.__dataclass_fields__)}
    numbers = {name: value for name, value in plain.items() if type(value) in (int, float) and name not in settings}
    metrics = [plain.get("metric"), *(kind.METRIC for kind in kinds)]
    first = {name: numbers[name] for name in metrics if name in numbers}
    return Record(task, plain["data"], plain["run"], first | numbers)


def is_of(record: Record, run: Path) -> bool:
    """Whether a record is of a run, which may have been named from another place."""
    return Path(record.run).resolve().name == run.resolve().name


def records_table(accounts: Sequence[Account], heads: Sequence[str] = ("numbers",)) -> Iterator[str]:
    """The evaluations of one run, or of several beside each other."""
    rows = []
    for task, data in dict.fromkeys((one.task, one.data) for found in accounts for one in found.records):
        row = [f"{shown(task)} <small>on {shown(Path(data).name)}</small>"]
        for found in accounts:
            mine = next((one.numbers for one in found.records if (one.task, one.data) == (task, data)), {})
            first, *others = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in mine.items()] or ["–"]
            row.append(f"<strong>{shown(first)}</strong><small>{shown(', '.join(others))}</small>")
        rows.append(row)
    if rows:
        yield f"<h2>Evaluations</h2>{table('numbers', rows, [shown(head) for head in heads], 'evaluations')}"
