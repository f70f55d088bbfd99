"""``lookalike preview``: pictures beside the two views of each that a recipe would train on."""

from __future__ import annotations

from pathlib import Path

import torch

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import write_atomically
from lookalike.curate.sheet import Tile, random_rows, sheet, upright
from lookalike.data.loader import Loader
from lookalike.data.source import Rows, Source
from lookalike.recipes.recipe import Recipe
from lookalike.train.loop import views_at

_TILE = 160


def preview(source: Source, recipe: Recipe, out: Path, count: int = 12, epoch: int = 0) -> int:
    """Write a PNG of up to ``count`` rows as (picture, query view, key view), the very views that ``epoch`` draws.

    How many rows it has: which they are, the number of rows decides; unreadable ones are left out. Raises UserError.
    """
    rows = random_rows(len(source), 4 * count)
    few = Loader(Rows(source, rows).at(recipe.canvas), workers=0, max_bad=1.0)
    good = torch.tensor([i for i in range(len(rows)) if i not in few.bad_rows])[:count]
    if not len(good):
        raise UserError(f"none of {len(rows)} pictures can be read, first {source.paths[int(rows[0])]}", BAD_DATA)
    pictures = next(iter(few.batches([good]))).material
    # From all rows again, since a view may read others than its own.
    loader = Loader(source.at(recipe.canvas), 0, workers=0, max_bad=1.0)
    views = recipe.pictures.displayable(*views_at(loader, recipe, rows[good], epoch))
    tiles: list[Tile] = []
    for i, row in enumerate(rows[good].tolist()):
        height, width = pictures.sizes[i].tolist()
        tiles.append(Tile(upright(pictures.pixels[i], height, width, _TILE), source.paths[row]))
        tiles += [Tile(upright(v[i].cpu(), 1, 1, _TILE), name) for v, name in zip(views, ("query view", "key view"))]
    size = recipe.pictures.first.size
    title = f"Recipe {recipe.name}, epoch {epoch}: each picture and its two views of {size} × {size} pixels"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, sheet(tiles, 6 if len(good) > 1 else 3, _TILE, title))
    return len(good)
