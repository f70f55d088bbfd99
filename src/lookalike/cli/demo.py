"""``lookalike demo``: pretrain on handwritten digits without labels, and show what a few labels then buy."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from lookalike.data.example import PictureSource
from lookalike.data.loader import Loader
from lookalike.data.source import DIGITS, open_source, reference_and_query
from lookalike.metrics.fewshot import Interval, by_means
from lookalike.recipes.images import digits
from lookalike.recipes.recipe import Recipe
from lookalike.report.account import account
from lookalike.report.page import Accuracies, percent
from lookalike.report.run import write_account
from lookalike.train.pretrain import Request, carry_out
from lookalike.train.screen import Screen
from lookalike.train.trained import Trained, load, whiten_untrained

LABELS, DRAWS = (1, 5, 10), 100
LEAD = (
    "1,797 handwritten digits of 8 × 8 pixels, learned from without a single label. "
    "Then a few labels a class decide how well new digits are named."
)


def demo(out: Path, overwrite: bool = False, recipe: Recipe | None = None) -> int:
    """Run it all: the exit code, 0 or 128 and the number of the signal that stopped it. Raises UserError."""
    done = carry_out(Request(DIGITS, out, recipe=recipe or digits, overwrite=overwrite, workers=0))
    if done.signal:
        return 128 + done.signal
    with Screen("demo") as screen:
        table = compared(out)
        screen.console.print(as_text(table))
        screen.say(table.caption)
        page = out / "report.html"
        write_account(page, account(out, progress=screen.work), [table], LEAD)
        screen.say(f"The report is {page}: open it in a browser.")
    return 0


def compared(out: Path) -> Accuracies:
    """Accuracy with few labels of raw pixels, of the untrained and of the pretrained network."""
    reference, query = reference_and_query(DIGITS)
    rows = {
        "raw pixels": few(pixels(reference), pixels(query), reference, query),
        "untrained network": by_network(load(out, untrained=True), reference, query),
        "pretrained network": by_network(load(out), reference, query),
    }
    caption = (
        f"Accuracy on {len(query)} digits by the nearest class mean. Mean and 95 % interval over {DRAWS} draws of "
        f"the labelled digits from the {len(reference)} others; every row has the same draws."
    )
    columns = [f"{count} label{'s' if count > 1 else ''} a class" for count in LABELS]
    return Accuracies("Accuracy with few labels", columns, rows, caption)


def pixels(source: PictureSource) -> Tensor:
    """(N, 64) unit rows: the pictures as they are."""
    canvases = next(iter(Loader(source, 8, workers=0).batches([torch.arange(len(source))]))).material
    return F.normalize(canvases.pixels[:, 0].flatten(1).float(), dim=1)


def by_network(trained: Trained, reference: PictureSource, query: PictureSource) -> list[Interval]:
    """With a network's features; one that was never trained gets its whitening, as the other did."""
    if trained.step == 0:
        whiten_untrained(trained, open_source(DIGITS))
    known, queries = (trained.features(trained.loader(part, 0)) for part in (reference, query))
    return few(known, queries, reference, query)


def few(known: Tensor, queries: Tensor, reference: PictureSource, query: PictureSource) -> list[Interval]:
    """Mean and interval for each number of labels."""
    return list(by_means(known, reference.labels, queries, query.labels, LABELS, DRAWS).values())


def as_text(table: Accuracies) -> Table:
    """The table for a terminal."""
    shown = Table(title=table.title, title_justify="left")
    shown.add_column("")
    for column in table.columns:
        shown.add_column(column, justify="right")
    for name, cells in table.rows.items():
        shown.add_row(name, *map(percent, cells))
    return shown
