"""The report of a run: what came of it in words, how it learned, what its network sees, and what it was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.progress import Progress, silent
from lookalike.curate.diagnosis import losses
from lookalike.data.source import Data
from lookalike.learn.dictionary import MemoryBank
from lookalike.learn.keys import EndToEnd, Momentum, Stored
from lookalike.models.decoder import Decoder
from lookalike.pretext.image import ViewPair
from lookalike.recipes.modality import modality_of
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import flat
from lookalike.report import ages
from lookalike.report.account import Account, account, cell, is_of, moments_table, record_in, records_table
from lookalike.report.charts import Chart, dash, svg
from lookalike.report.page import Accuracies, accuracies, facts, shown, table, write
from lookalike.report.sample import map_of, neighbours, views
from lookalike.report.verdict import verdict
from lookalike.train.history import History
from lookalike.train.run import is_run

_PICTURED = 6  # runs beside each other whose neighbours are shown: a page stays small enough to open


def report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    numbers: Sequence[str | Path] = (),
    data: Data | None = None,
    progress: Progress = silent,
) -> Path:
    """Write one self-contained page on a run, or on several beside each other, and say where it is.

    ``numbers`` are files that ``evaluate --json`` wrote; those in a run's folder are found. ``data`` is what a run
    learned from, where that has moved. Nothing of a run is touched, and one that is still going may be reported. Data
    that is gone, or a run without a checkpoint, costs the pictures and not the page. Raises UserError.
    """
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    given = {file: record_in(Path(file)) for file in numbers}
    if not folders:
        raise UserError("name at least one run: lookalike report RUN")
    for folder in folders:
        if not is_run(folder):
            page = next(iter(sorted(folder.glob("*.html"))), None)
            hint = f"of a comparison, open {page}" if page else f"lookalike pretrain DATA --out {folder} makes one"
            raise UserError(f"{folder} is not a run, it holds no recipe.json: {hint}", BAD_DATA)
    for file, record in given.items():
        if not any(is_of(record, folder) for folder in folders):
            raise UserError(
                f"{file} has the numbers of {record.run}, which is not reported here: name it, too", BAD_DATA
            )
    found = [account(folder, list(given.values()), data, progress) for folder in folders]
    if len(found) == 1:
        write_account(Path(out), found[0])
    else:
        write(Path(out), f"{len(found)} runs beside each other", "", several(found))
    return Path(out)


def write_account(out: Path, found: Account, tables: Sequence[Accuracies] = (), lead: str = "") -> None:
    """The page of one run; ``tables`` and a sentence ``lead`` stand at its top. Raises UserError."""
    history = found.history
    headings = (part for table in tables for part in (f"<h2>{shown(table.title)}</h2>", accuracies(table)))
    parts = [
        verdict(found),
        summary(history),
        *headings,
        *curves_section(history),
        *moments_table(found.moments),
        *keys_section(found),
        *pictures_section(found),
        *records_table([found]),
        *recipe_section(history),
    ]
    titles = dict.fromkeys([history.folder.resolve().name, history.recipe.name])
    write(out, " · ".join(titles), lead, parts)


def summary(history: History) -> str:
    """The run in a line."""
    recipe = history.recipe
    labels = "with" if recipe.objective.supervised else "without"
    temperature = flat(recipe).get("objective.temperature") if recipe.keys.directions else None
    return (
        f'<p class="quiet">{history.examples():,} {modality_of(recipe).examples} {labels} labels · '
        f"{history.steps():,} steps of {recipe.batch} · {shown(recipe.pretext.shown())} · {shown(recipe.contrast())}"
        f"{f' · temperature {temperature:g}' if temperature else ''}</p>"
    )


# ---- how it learned ----


def curves_section(history: History) -> Iterator[str]:
    """A chart for each metric that was logged."""
    yield "<h2>Training curves</h2>"
    yield f"<p>{' '.join(tasks(history))}</p>"
    yield panels(charts(history))


def panels(charts: Sequence[Chart]) -> str:
    """Charts in boxes."""
    boxes = (f'<div class="panel"><h3>{shown(chart.title)}</h3>{svg(chart)}</div>' for chart in charts)
    return f'<div class="curves">{"".join(boxes)}</div>'


def tasks(history: History) -> Iterator[str]:
    """What the run had to do, in sentences."""
    recipe = history.recipe
    if recipe.objective.supervised:
        yield "The network learned from labels."
    elif recipe.keys.directions:
        yield contest(recipe)
    random = "rows" if isinstance(recipe.dictionary, MemoryBank) else "keys"
    if not history.filled():
        yield f"Some {random} are still the random ones that a run starts with: the loss looks better than it is."
    elif history.filling():
        yield f"A run starts with random {random}, so the curves begin when real ones have replaced them."
    if isinstance(recipe.reconstruction, Decoder):
        yield "A decoder has to paint the patches that the first view hides; an error of 1 is that of painting nothing."
    if not recipe.objective.supervised:
        yield "Labels, where there are any, are used only to measure kNN accuracy."


def contest(recipe: Recipe) -> str:
    """What a query is scored against and who made it, as the recipe's dictionary and keys are."""
    makers = {
        Momentum: "The keys are made by the twin, a copy of the network that follows it slowly.",
        EndToEnd: "The keys are made by the network itself, in the same step.",
        Stored: "The keys are the rows that are stored, one for each example.",
    }
    return (
        "For each query, a view of an example, the network has to pick the key of the same example among others "
        f"({shown(recipe.contrast())}). {makers.get(type(recipe.keys), '')}"
    )


def charts(history: History) -> list[Chart]:
    """Loss, top-1 and kNN first, then whatever else was logged but the learning rate."""
    curves = {name: history.after_filling(points) for name, points in history.curves.items()}
    first = [Chart("Loss", curves.get("loss", []), ("guessing", history.chance_loss()))]
    named = {
        "top1": "Queries that pick their own key",
        "pixels": "Squared error of hidden pixels",
        "knn": "kNN accuracy during training",
    }
    hidden = set() if history.filled() else {"top1"}
    logged = {name: title for name, title in named.items() if name in curves.keys() - hidden}
    first += [Chart(title, curves[name], None, name != "pixels") for name, title in logged.items()]
    return first + [Chart(name, curves[name]) for name in curves if name not in {"loss", "lr", *named}]


def keys_section(found: Account) -> Iterator[str]:
    """How old what queries are scored against is, and how far the network has moved since."""
    recipe = found.history.recipe
    if recipe.objective.supervised or not recipe.keys.directions:
        return
    yield "<h2>What queries are scored against</h2>"
    yield f"<p>{shown(' '.join([ages.ages(recipe, found.history.examples()), *ages.words(found.drift, recipe)]))}</p>"
    if not found.drift and ages.oldest(recipe, found.history.examples()) and found.unmade:
        yield f'<p class="quiet">How far they have drifted was not measured: {shown(found.unmade)}.</p>'


# ---- what it sees ----


def pictures_section(found: Account) -> Iterator[str]:
    """Examples beside their views, beside their neighbours before and after, and on a map."""
    if found.sample is None or found.training is None:
        yield f'<h2>Pictures</h2><p class="quiet">None are shown: {shown(found.unseen)}.</p>'
        return
    if isinstance(found.history.recipe.pretext, ViewPair):
        yield from views(found.sample, found.moments[-1].trained, found.training)
    yield "<h2>Nearest neighbours</h2>"
    yield from neighbours(found.sample)
    yield from map_of(found.sample)


# ---- what it was ----


def recipe_section(history: History) -> Iterator[str]:
    """Everything that the run depends on."""
    yield "<h2>Recipe</h2>"
    yield "<p>With this recipe, the same data and the same machine, the run repeats to the bit.</p>"
    fields = [(name, brief(value)) for name, value in flat(history.recipe).items()]
    half = math.ceil(len(fields) / 2)
    yield f'<div class="columns">{facts(dict(fields[:half]))}{facts(dict(fields[half:]))}</div>'
    data = {"data" if name == "data" else f"data: {name}": value for name, value in history.about().items()}
    environment = {name: value for name, value in history.environment.items() if name != "data"} | data
    yield f"<h2>Environment</h2>{facts({name: brief(value) for name, value in environment.items()})}"


def brief(value: object) -> str:
    """A field as text: numbers short, lists by commas or, of a command, by spaces."""
    if value in (None, [], ()):
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} {brief(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return (" " if all(isinstance(item, str) for item in value) else ", ").join(map(brief, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- several runs ----


def several(accounts: Sequence[Account]) -> Iterator[str]:
    """What came of each, their curves over each other, numbers, evaluations, settings that differ, and neighbours."""
    folders = [found.history.folder.resolve() for found in accounts]
    names = [
        one.name if [f.name for f in folders].count(one.name) == 1 else "/".join(one.parts[-2:]) for one in folders
    ]
    for i, (name, found) in enumerate(zip(names, accounts)):
        yield f"<h2>{dash(i)} {shown(name)}</h2>{verdict(found)}"
    yield "<h2>Training curves</h2>"
    yield "<p>Losses compare only where runs are scored against as much, in the same way: see the loss of guessing.</p>"
    yield f'<ul class="legend">{"".join(f"<li>{dash(i)}{shown(name)}</li>" for i, name in enumerate(names))}</ul>'
    drawn = [{chart.title: chart for chart in charts(found.history)} for found in accounts]
    every = {title: chart for one in drawn for title, chart in one.items()}
    curves = {title: [one[title].points if title in one else () for one in drawn] for title in every}
    boxes = [Chart(title, first, None, every[title].percent, rest) for title, (first, *rest) in curves.items()]
    yield panels(boxes)
    numbers = [numbers_of(found) for found in accounts]
    rows = [[name, *(one[name] for one in numbers)] for name in numbers[0]]
    yield f"<h2>Numbers</h2>{_beside(names, [row for row in rows if set(row[1:]) != {'–'}])}"
    yield from records_table(accounts, names)
    settings = [{"data": found.history.about().get("data")} | flat(found.history.recipe) for found in accounts]
    rows = [
        [path, *(brief(one.get(path)) for one in settings)]
        for path in dict.fromkeys(p for one in settings for p in one)
    ]
    differ = [row for row in rows if len(set(row[1:])) > 1]
    yield f"<h2>Settings that differ</h2>{_beside(names, differ) if differ else '<p>None.</p>'}"
    for name, found in list(zip(names, accounts))[:_PICTURED]:
        if found.sample is not None:
            yield f"<h2>Nearest neighbours: {shown(name)}</h2>"
            yield from neighbours(found.sample, 4)


def numbers_of(found: Account) -> dict[str, str]:
    """What a run came to, in the words of a table."""
    history, (values, tenth) = found.history, losses(found.history)
    last, shares = next(reversed(found.moments), None), found.sample.shares() if found.sample else []
    return {
        "steps": f"{history.steps():,}",
        "examples": f"{history.examples():,}",
        "loss": cell(fmean(values[-tenth:]) if values else None, ".3f"),
        "loss of guessing": cell(history.chance_loss(), ".3f"),
        "kNN in training": cell(history.last("knn"), ".1%"),
        "found again from another view": cell(last.found.mean if last and last.found else None, ".1%"),
        "neighbours of the same label": cell(shares[-1] if shares else None, ".1%"),
        "alignment": cell(last.alignment if last else None, ".2f"),
        "uniformity": cell(last.spread.uniformity if last else None, ".2f"),
        "spread": cell(last.spread.embedding if last else None, ".2f"),
        "dimensions in use": cell(last.spread.rank if last else None, ".1f"),
    }


def _beside(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table("numbers", [[shown(word) for word in row] for row in rows], [shown(name) for name in names], "runs")
