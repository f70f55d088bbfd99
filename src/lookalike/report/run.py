"""The report of a run: one page with its curves, its views, nearest neighbours, its recipe and where it ran."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from lookalike.core.errors import UserError
from lookalike.core.progress import Progress, silent
from lookalike.data.example import as_pictures
from lookalike.data.source import Data
from lookalike.learn.dictionary import Queue
from lookalike.models.decoder import Decoder
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import flat
from lookalike.report.charts import Chart, svg
from lookalike.report.neighbours import Sample, neighbours, views
from lookalike.report.page import Accuracies, accuracies, facts, sheet, shown, write
from lookalike.train.history import History, collect
from lookalike.train.trained import load


def write_report(
    run: Path,
    data: Data | None = None,
    tables: Sequence[Accuracies] = (),
    lead: str = "",
    progress: Progress = silent,
) -> Path:
    """Write ``report.html`` into a run folder; ``tables`` and a sentence ``lead`` stand at its top.

    Data that is gone, or a run without a checkpoint, costs the pictures and not the page. Raises UserError.
    """
    history = collect(run)
    try:
        sample = Sample(load(run), as_pictures(history.source(data)), progress)
        pictures = list(pictures_section(sample))
    except UserError as error:
        pictures = [f'<h2>Pictures</h2><p class="quiet">None are shown: {shown(error)}.</p>']
    headings = [part for table in tables for part in (f"<h2>{shown(table.title)}</h2>", accuracies(table))]
    parts = [summary(history), *headings, *curves_section(history), *pictures, *recipe_section(history)]
    titles = dict.fromkeys([history.folder.resolve().name, history.recipe.name])
    write(run / "report.html", " · ".join(titles), lead, parts)
    return run / "report.html"


def summary(history: History) -> str:
    """The run in a line."""
    recipe = history.recipe
    size = recipe.pictures.first.size
    labels = "with" if recipe.objective.supervised else "without"
    temperature = flat(recipe).get("objective.temperature") if recipe.keys.directions else None
    return (
        f'<p class="quiet">{history.examples():,} examples {labels} labels · {history.steps():,} steps of '
        f"{recipe.batch} · views of {size} × {size} pixels · {recipe.contrast()}"
        f"{f' · temperature {temperature:g}' if temperature else ''}</p>"
    )


def curves_section(history: History) -> Iterator[str]:
    """A chart for each metric that was logged."""
    yield "<h2>Training curves</h2>"
    yield f"<p>{' '.join(tasks(history.recipe))}</p>"
    boxes = [f'<div class="panel"><h3>{shown(chart.title)}</h3>{svg(chart)}</div>' for chart in charts(history)]
    yield f'<div class="curves">{"".join(boxes)}</div>'


def tasks(recipe: Recipe) -> Iterator[str]:
    """What the run had to do, in sentences."""
    if recipe.objective.supervised:
        yield "The network learned from labels."
    elif recipe.keys.directions:
        yield "For each query, the network has to pick the key of the same picture among many others."
    if isinstance(recipe.dictionary, Queue):
        yield "The queue starts with random keys, so the curves begin when real ones have replaced them."
    if isinstance(recipe.reconstruction, Decoder):
        yield "A decoder has to paint the patches that the first view hides; an error of 1 is that of painting nothing."
    if not recipe.objective.supervised:
        yield "Labels, where there are any, are used only to measure kNN accuracy."


def charts(history: History) -> list[Chart]:
    """Loss, top-1 and kNN first, then whatever else was logged but the learning rate."""
    curves = {name: history.after_filling(points) for name, points in history.curves.items()}
    plain = history.recipe.reconstruction is None
    chance = "chance, log(K + 1)" if plain else "chance"
    first = [Chart("Loss", curves.get("loss", []), (chance, history.chance_loss()))]
    named = {
        "top1": "Queries that pick their own key",
        "pixels": "Squared error of hidden pixels",
        "knn": "kNN accuracy during training",
    }
    first += [Chart(title, curves[name], None, name != "pixels") for name, title in named.items() if name in curves]
    return first + [Chart(name, curves[name]) for name in curves if name not in {"loss", "lr", *named}]


def pictures_section(sample: Sample) -> Iterator[str]:
    """Examples beside their views, and queries beside their neighbours."""
    yield "<h2>Two views of each picture</h2>"
    yield "<p>As the first epoch drew them. All that the network is told: both views in a column show one picture.</p>"
    yield sheet(views(sample))
    rows, share = neighbours(sample)
    yield "<h2>Nearest neighbours</h2>"
    yield (
        f"<p>Random pictures (not hand-picked), each with the nearest of {len(sample) - 1:,} others by the cosine of "
        "their features.</p>"
    )
    if share is not None:
        yield (
            '<p>Frames mark neighbours of <span class="key right"></span> the same label and of <span class="key '
            f'wrong"></span> another one. Over all pictures, {share:.1%} of the neighbours have the same label.</p>'
        )
    yield sheet(rows, "picture, then the others, nearest first")


def recipe_section(history: History) -> Iterator[str]:
    """Everything that the run depends on."""
    yield "<h2>Recipe</h2>"
    yield "<p>With this recipe, the same data and the same machine, the run repeats to the bit.</p>"
    fields = [(name, _brief(value)) for name, value in flat(history.recipe).items()]
    half = math.ceil(len(fields) / 2)
    yield f'<div class="columns">{facts(dict(fields[:half]))}{facts(dict(fields[half:]))}</div>'
    data = {"data" if name == "data" else f"data: {name}": value for name, value in history.about().items()}
    environment = {name: value for name, value in history.environment.items() if name != "data"} | data
    yield f"<h2>Environment</h2>{facts({name: _brief(value) for name, value in environment.items()})}"


def _brief(value: object) -> str:
    """A field as text: numbers short, lists by commas or, of a command, by spaces."""
    if value in (None, [], ()):
        return "–"
    if isinstance(value, list | tuple):
        return (" " if all(isinstance(item, str) for item in value) else ", ").join(map(_brief, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
