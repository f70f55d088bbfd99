"""One self-contained HTML file about a run: nothing is fetched, and nothing in it runs."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from lookalike.core.errors import UserError
from lookalike.core.files import write_atomically
from lookalike.core.progress import Progress, silent
from lookalike.curate.sample import Neighbours, Sample, Strip, neighbours, views
from lookalike.data.source import Data, PictureSource, open_source
from lookalike.learn.keys import Alone
from lookalike.models.decoder import Decoder
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import flat
from lookalike.report.charts import Chart, Guide, svg
from lookalike.report.style import CSS
from lookalike.report.tables import Accuracies, accuracies, facts, shown
from lookalike.train.history import History, collect
from lookalike.train.trained import load

FILE = "report.html"


def report(runs: Sequence[str | Path], data: Data | None = None, progress: Progress = silent) -> list[Path]:
    """Write the page of each run, from the data that it learned from unless ``data`` is given; where the pages are."""
    return [write_report(Path(run), data, progress=progress) for run in runs]


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
        sample = Sample(load(run), source_of(history, data), progress)
        pictures = [*views_section(views(sample)), *neighbours_section(neighbours(sample))]
    except UserError as error:
        pictures = [f'<h2>Pictures</h2><p class="quiet">None are shown: {shown(error)}.</p>']
    body = [*opening(history, lead), *(part for table in tables for part in table_section(table))]
    text = page(title_of(history), [*body, *curves_section(history), *pictures, *recipe_section(history)])
    write_atomically(run / FILE, text.encode("utf-8", "replace"))
    return run / FILE


def source_of(history: History, data: Data | None) -> PictureSource:
    """The data given, else what the run learned from if that is on this machine: a run folder may be a stranger's."""
    about = history.about()
    if data is None and not about.get("data"):
        raise UserError("the run does not say what it learned from")
    if data is None and (str(about["data"]).startswith("hub:") or "://" in str(about["data"])):
        raise UserError(
            f"the run learned from {about['data']}, which is not on this machine; give the address to ask it"
        )
    split = about.get("split")
    return open_source(str(about["data"]) if data is None else data, None if split is None else str(split))


def title_of(history: History) -> str:
    """The folder's name and the recipe's."""
    name = history.folder.resolve().name
    return name if name == history.recipe.name else f"{name} · {history.recipe.name}"


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document that may load nothing: only its own style sheet, by its hash, and pictures inside the file."""
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown(title)}</title>\n<style>{CSS}</style>\n</head>\n<body><main>\n{body}\n</main></body>\n</html>\n"
    )


def photo(image: Image.Image, alt: str) -> str:
    """A picture inside the page, as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return f'<img src="{uri}" width="{image.width}" height="{image.height}" alt="{shown(alt)}">'


def opening(history: History, lead: str) -> Iterator[str]:
    """What this is, in two lines."""
    recipe = history.recipe
    yield f"<h1>{shown(title_of(history))}</h1>"
    if lead:
        yield f'<p class="lead">{shown(lead)}</p>'
    size = recipe.pictures.first.size
    labels = "with" if recipe.objective.supervised else "without"
    degrees = None if isinstance(recipe.keys, Alone) else getattr(recipe.objective, "temperature", None)
    temperature = "" if degrees is None else f" · temperature {degrees:g}"
    yield (
        f'<p class="quiet">{history.examples():,} examples {labels} labels · {history.steps():,} steps '
        f"of {recipe.batch} · views of {size} × {size} pixels · {recipe.contrast()}{temperature}</p>"
    )


def table_section(table: Accuracies) -> Iterator[str]:
    """A heading and the table."""
    yield f"<h2>{shown(table.title)}</h2>"
    yield accuracies(table)


def curves_section(history: History) -> Iterator[str]:
    """A chart for each metric that was logged."""
    yield "<h2>While it learned</h2>"
    yield f"<p>{' '.join(tasks(history.recipe))} Labels, where there are any, only measure kNN.</p>"
    boxes = [f'<div class="panel"><h3>{shown(chart.title)}</h3>{svg(chart)}</div>' for chart in charts(history)]
    yield f'<div class="curves">{"".join(boxes)}</div>'


def tasks(recipe: Recipe) -> Iterator[str]:
    """What the run had to do, in sentences."""
    if recipe.keys.directions:
        yield "A query has to pick the other view of its own picture among the keys of the queue."
        yield "Curves begin once the queue holds keys of pictures: it starts with random ones."
    if isinstance(recipe.reconstruction, Decoder):
        yield "A decoder has to paint the patches that the first view hides; 1 is the error of painting nothing."


def charts(history: History) -> list[Chart]:
    """Loss, top-1 and kNN first, then whatever else was logged but the learning rate."""
    curves = {name: history.after_filling(points) for name, points in history.curves.items()}
    plain = history.recipe.reconstruction is None
    guess = Guide("guess, log(K + 1)" if plain else "guess", history.guess())
    first = [Chart("Loss", curves.get("loss", []), guess)]
    named = {
        "top1": "Queries that pick their own key",
        "pixels": "Squared error of hidden pixels",
        "knn": "kNN accuracy at check-ups",
    }
    first += [Chart(title, curves[name], None, name != "pixels") for name, title in named.items() if name in curves]
    rest = [name for name in curves if name not in {"loss", "lr", *named}]
    return first + [Chart(name, curves[name]) for name in rest]


def views_section(strips: Sequence[Strip]) -> Iterator[str]:
    """What the run was asked to recognise."""
    yield "<h2>Two views of each picture</h2>"
    yield "<p>What the first epoch saw. The two views of a column belong together; that is all the run was told.</p>"
    yield sheet(strips, "")


def neighbours_section(found: Neighbours) -> Iterator[str]:
    """What it made of that."""
    yield "<h2>Nearest neighbours</h2>"
    yield (
        f"<p>Pictures drawn by a rule, not chosen, each with the {found.each} nearest of the other {found.among - 1:,} "
        f"by cosine of their features.{_agreement(found.agreement)}</p>"
    )
    yield sheet(found.strips, f"picture, then its {found.each} nearest, nearest first")


def _agreement(share: float | None) -> str:
    if share is None:
        return ""
    return (
        f' Framed <span class="key right"></span> with the same label, <span class="key wrong"></span> with another. '
        f"Over all of them, {100 * share:.1f} % of the neighbours have the label of their picture."
    )


def sheet(strips: Sequence[Strip], heading: str) -> str:
    """Strips below each other, with their names."""
    named = any(strip.name for strip in strips)
    head = f"<thead><tr>{'<td></td>' if named else ''}<th>{shown(heading)}</th></tr></thead>" if heading else ""
    rows = "".join(f"<tr>{_row_head(strip, named)}<td>{_picture(strip)}</td></tr>\n" for strip in strips)
    return f'<div class="wide"><table class="sheet">{head}<tbody>{rows}</tbody></table></div>'


def _row_head(strip: Strip, named: bool) -> str:
    return f'<th scope="row">{shown(strip.name)}</th>' if named else ""


def _picture(strip: Strip) -> str:
    return f'<img src="{strip.uri()}" width="{strip.width}" height="{strip.height}" alt="{shown(strip.alt)}">'


def recipe_section(history: History) -> Iterator[str]:
    """Everything that the run depends on."""
    yield "<h2>Recipe</h2>"
    yield "<p>With these fields, this data and this machine, the run repeats to the bit.</p>"
    fields = {name: _brief(value) for name, value in flat(history.recipe).items()}
    names = list(fields)
    half = math.ceil(len(names) / 2)
    columns = [{name: fields[name] for name in part} for part in (names[:half], names[half:])]
    yield f'<div class="columns">{"".join(facts(column) for column in columns)}</div>'
    where = {name: _brief(value) for name, value in history.environment.items() if name != "data"}
    yield f"<h2>Where it ran</h2>{facts(where | {f'data: {k}': _brief(v) for k, v in history.about().items()})}"


def _brief(value: object) -> str:
    """A field as text: numbers short, lists by commas or, of a command, by spaces."""
    if isinstance(value, list | tuple):
        return (" " if all(isinstance(item, str) for item in value) else ", ").join(map(_brief, value))
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
