"""The report of a run: one page with its curves, its views, nearest neighbours, its recipe and where it ran."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lookalike.core.errors import UserError
from lookalike.core.progress import Progress, silent
from lookalike.curate.survey import random_rows, upright
from lookalike.data.example import PictureSource, as_pictures
from lookalike.data.loader import Loader
from lookalike.data.source import Data
from lookalike.metrics.knn import products
from lookalike.models.decoder import Decoder
from lookalike.recipes.serialize import flat
from lookalike.report.charts import Chart, svg
from lookalike.report.page import GAP, Accuracies, PictureRow, accuracies, facts, sheet, shown, side_by_side, write
from lookalike.train.history import History, collect
from lookalike.train.loop import views_at
from lookalike.train.trained import Trained, load

RIGHT, WRONG = (0, 158, 115, 255), (213, 94, 0, 255)  # told apart by people who see no green, too
_TILE, _FRAME = 64, 4  # px
_BYTES = 100_000_000  # of canvases that a report decodes
_MOST = 2000  # pictures among which it looks for neighbours


def write_report(
    run: Path, data: Data | None = None, tables: Sequence[Accuracies] = (), lead: str = "", progress: Progress = silent
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
    yield f"<p>{' '.join(tasks(history))}</p>"
    boxes = [f'<div class="panel"><h3>{shown(chart.title)}</h3>{svg(chart)}</div>' for chart in charts(history)]
    yield f'<div class="curves">{"".join(boxes)}</div>'


def tasks(history: History) -> Iterator[str]:
    """What the run had to do, in sentences."""
    recipe = history.recipe
    if recipe.objective.supervised:
        yield "The network learned from labels."
    elif recipe.keys.directions:
        yield "For each query, the network has to pick the key of the same picture among many others."
    if not history.filled():
        yield "Some keys are still the random ones that a run starts with: the loss looks better than it is."
    elif history.filling():
        yield "A run starts with random keys, so the curves begin when real ones have replaced them."
    if isinstance(recipe.reconstruction, Decoder):
        yield "A decoder has to paint the patches that the first view hides; an error of 1 is that of painting nothing."
    if not recipe.objective.supervised:
        yield "Labels, where there are any, are used only to measure kNN accuracy."


def charts(history: History) -> list[Chart]:
    """Loss, top-1 and kNN first, then whatever else was logged but the learning rate."""
    curves = {name: history.after_filling(points) for name, points in history.curves.items()}
    chance = "chance, log(K + 1)" if history.recipe.reconstruction is None else "chance"
    first = [Chart("Loss", curves.get("loss", []), (chance, history.chance_loss()))]
    named = {
        "top1": "Queries that pick their own key",
        "pixels": "Squared error of hidden pixels",
        "knn": "kNN accuracy during training",
    }
    hidden = set() if history.filled() else {"top1"}
    logged = {name: title for name, title in named.items() if name in curves.keys() - hidden}
    first += [Chart(title, curves[name], None, name != "pixels") for name, title in logged.items()]
    return first + [Chart(name, curves[name]) for name in curves if name not in {"loss", "lr", *named}]


def pictures_section(sample: Sample) -> Iterator[str]:
    """Examples beside their views, and queries beside their neighbours."""
    yield "<h2>Two views of each picture</h2>"
    yield "<p>As the first epoch drew them. The network learns only that both views in a column show one picture.</p>"
    yield sheet(views(sample))
    rows, share = neighbours(sample)
    yield "<h2>Nearest neighbours</h2>"
    yield (
        f"<p>Random pictures (not hand-picked), each with the nearest of {len(sample.rows) - 1:,} others by the cosine "
        "of their features.</p>"
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


class Sample:
    """Readable pictures of a source with the features of a run; the draw depends on the number of rows alone."""

    def __init__(self, trained: Trained, source: PictureSource, progress: Progress) -> None:
        canvas = trained.recipe.canvas
        rows = random_rows(len(source), min(_MOST, max(16, _BYTES // (3 * canvas**2))))
        self.trained = trained
        self.loader = Loader(source, canvas, 0, workers=0, max_bad=1.0)  # all rows: a view may read others
        self.whole = trained.loader(source, 0, 0)
        features = trained.features(self.whole, rows, "backbone", progress, "embedding for the report")
        good = torch.tensor([row not in self.whole.bad_rows for row in rows.tolist()], dtype=torch.bool)
        self.rows, self.labels, self.classes = rows[good], source.labels[rows[good]], source.classes
        self.features = features[good]

    def name(self, i: int) -> str:
        """The class of picture ``i``, or an empty text."""
        label = int(self.labels[i])
        return (self.classes[label] if label < len(self.classes) else str(label)) if label >= 0 else ""

    def pictures(self, chosen: Tensor) -> list[Tensor]:
        """Each uint8 (3, S, S): the examples ``chosen`` (N,) as evaluations encode them."""
        displayable = self.trained.recipe.pictures.displayable
        views = self.trained.views(self.whole, self.rows[chosen])
        return [pixels.cpu() for view in views for pixels in displayable(view, view)[0]]

    def some(self, count: int) -> Tensor:
        """``count`` pictures: of each class in turn if there are labels, else the first; the order is random."""
        labels = self.labels.tolist()
        if len(set(labels)) < 2:
            return torch.arange(len(self.rows))[:count]
        turns = [labels[:i].count(label) for i, label in enumerate(labels)]
        return torch.tensor(sorted(range(len(self.rows)), key=lambda i: (turns[i], labels[i]))[:count])


def views(sample: Sample, count: int = 10) -> list[PictureRow]:
    """Three rows: pictures as they are, and both views as the run's first epoch drew them."""
    chosen = sample.some(count)
    recipe = sample.trained.recipe
    first, second = recipe.pictures.displayable(*views_at(sample.loader, recipe, sample.rows[chosen], 0))
    rows = {"picture": sample.pictures(chosen), "first view": list(first.cpu()), "second view": list(second.cpu())}
    return [picture_row(name, pixels, f"{name} of {len(chosen)} examples") for name, pixels in rows.items()]


def neighbours(sample: Sample, queries: int = 10, each: int = 8) -> tuple[list[PictureRow], float | None]:
    """For some pictures of the sample the nearest others in it; and ``agreement`` over all of them."""
    each = max(0, min(each, len(sample.rows) - 1))
    nearest = nearest_others(sample.features, each)
    rows = []
    for i in sample.some(queries).tolist():
        near = nearest[i]
        agree = [None] * each if sample.labels[i] < 0 else (sample.labels[near] == sample.labels[i]).tolist()
        names = ", ".join(name for name in map(sample.name, near.tolist()) if name)
        alt = f"{sample.name(i) or 'a picture'} and its nearest: {names or 'unlabelled pictures'}"
        pictures = sample.pictures(torch.cat([torch.tensor([i]), near]))
        rows.append(picture_row(sample.name(i), pictures, alt, [None, *agree], apart=3 * GAP))
    return rows, agreement(sample.labels, nearest)


def nearest_others(features: Tensor, each: int, chunk: int = 512) -> Tensor:
    """(N, each) for unit rows (N, F) the nearest other rows, nearest first."""
    nearest: list[Tensor] = []
    for cosines in products(features, features, chunk):
        cosines.diagonal(sum(map(len, nearest))).fill_(-torch.inf)
        nearest.append(cosines.topk(each).indices)
    return torch.cat(nearest)


def agreement(labels: Tensor, nearest: Tensor) -> float | None:
    """The share of neighbours that have the label of the row they are near to; None without labels."""
    known = labels >= 0
    if not bool(known.any()) or not nearest.numel():
        return None
    return float((labels[nearest] == labels[:, None])[known].double().mean())


def picture_row(
    name: str, pictures: Sequence[Tensor], alt: str, right: Sequence[bool | None] | None = None, apart: int = 0
) -> PictureRow:
    """Pictures uint8 (3, S, S) side by side, framed where ``right`` is a bool; ``apart`` pixels set the first off."""
    marks = right or [None] * len(pictures)
    return PictureRow(name, side_by_side([framed(*pair) for pair in zip(pictures, marks)], apart), alt)


def framed(picture: Tensor, right: bool | None) -> Image.Image:
    """One picture, enlarged by whole pixels or reduced to about ``_TILE``, with room for a frame around it."""
    width = picture.shape[-1]
    side = width * (_TILE // width) or _TILE
    colour = (0, 0, 0, 0) if right is None else RIGHT if right else WRONG
    tile = Image.new("RGBA", (side + 2 * _FRAME, side + 2 * _FRAME), colour)
    tile.paste(upright(picture, width, width, side), (_FRAME, _FRAME))
    if right is False:  # a corner, for whom colours are not enough
        ImageDraw.Draw(tile).polygon([(0, 0), (side // 3, 0), (0, side // 3)], fill=WRONG)
    return tile
