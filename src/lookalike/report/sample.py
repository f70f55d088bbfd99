"""Some examples of a run's data: their two views, what is near to what by networks before and after, and a map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from threadpoolctl import threadpool_limits
from torch import Tensor

from lookalike.core.errors import UserError
from lookalike.core.progress import Progress
from lookalike.curate.survey import largest, upright
from lookalike.data.example import Source, as_pictures
from lookalike.data.loader import Loads
from lookalike.data.text.loader import texts_of
from lookalike.metrics import unlabelled
from lookalike.pretext.image import OneView
from lookalike.recipes.modality import TEXT, Examples, modality_of
from lookalike.report.page import picture, shown
from lookalike.report.pictures import colour, swatch
from lookalike.train.loop import views_at
from lookalike.train.trained import Trained

TILE = 64  # px of the longer side of a picture
_BYTES = 100_000_000  # of canvases that a report decodes
_MOST = 2000  # examples among which it looks for neighbours
_EACH = 8  # neighbours
_MAPPED, _LEAST = 800, 12  # pictures on a map, and those below which there is nothing to see
_CELL, _FRAME = 30, 3  # px of a place of the map, and of the frame in it
_EQUAL = 1e-9  # variance below which all features are one
_AXES = 50  # directions that t-SNE is given
_CLASSES = 20  # colours that a reader may tell apart, with the words below the map
_SPREAD = 1.5  # places for each picture
_SENTENCE = 160  # letters of a text that are shown


class PictureSample:
    """Readable examples of a source with their features; the draw depends on the number of rows alone."""

    def __init__(self, trained: Sequence[Trained], names: Sequence[str], source: Source, progress: Progress) -> None:
        """``trained`` are networks of one run, which ``names`` call; by each the examples are embedded."""
        recipe = trained[-1].recipe
        self.names, self.source, self.modality = names, source, modality_of(recipe)
        most = _MOST if self.modality.inputs == TEXT else min(_MOST, max(16, _BYTES // (3 * recipe.canvas**2)))
        whole = trained[-1].loader(source, 0, 0)
        rows = Examples(recipe, whole).some(most, draw=3)
        every = [one.features(whole, rows, "backbone", progress, "embedding for the report") for one in trained]
        good = torch.tensor([row not in whole.bad_rows for row in rows.tolist()], dtype=torch.bool)
        self.rows, self.labels, self.classes = rows[good], source.labels[rows[good]], source.classes
        if not len(self.rows):
            raise UserError("no example of the data can be read")
        self.features = [features[good] for features in every]
        self.nearest = [unlabelled.neighbours(features, _EACH) for features in self.features]  # (N, 8) each

    @property
    def words(self) -> bool:
        """Whether the examples are texts."""
        return self.modality.inputs == TEXT

    @property
    def labelled(self) -> bool:
        """Whether labels tell some from others."""
        return len(set(self.labels[self.labels >= 0].tolist())) > 1

    def shares(self) -> list[float]:
        """The share of neighbours with the same label by each network; empty without labels."""
        found = (agreement(self.labels, near) for near in self.nearest if self.labelled)
        return [share for share in found if share is not None]

    def name(self, i: int) -> str:
        """The class of example ``i``, or an empty text."""
        label = int(self.labels[i])
        return (self.classes[label] if label < len(self.classes) else str(label)) if label >= 0 else ""

    def text(self, i: int) -> str:
        """The beginning of a text, or both of a pair."""
        words = " / ".join(" ".join(text.split()) for text in texts_of(self.source)(int(self.rows[i])))
        return words if len(words) <= _SENTENCE else f"{words[: _SENTENCE - 1]}…"

    def picture(self, i: int, side: int = TILE) -> Image.Image:
        """A picture upright in its own shape, of at most ``side`` pixels."""
        source = as_pictures(self.source)
        example = source.example(int(self.rows[i]), largest(source, side))
        return upright(example.pixels, example.height, example.width, side)

    def tile(self, i: int, frame: str = "", said: str = "") -> str:
        """The picture inside a page; ``said`` is what its frame means, for those who do not see it."""
        return tile(self.picture(i), f"{self.name(i) or 'picture'}{said}", frame)

    def some(self, count: int) -> list[int]:
        """``count`` examples: of each class in turn if there are labels, else the first; the order is random."""
        labels = self.labels.tolist()
        if not self.labelled:
            return list(range(min(count, len(labels))))
        turns = [labels[:i].count(label) for i, label in enumerate(labels)]
        return sorted(range(len(labels)), key=lambda i: (turns[i], labels[i]))[:count]


def tile(image: Image.Image, alt: str, frame: str = "") -> str:
    """A small picture; photos as JPEG, what is enlarged or small as PNG, which is sharp and shorter then."""
    few = len(image.getcolors(1 << 16) or range(1 << 16)) <= 256
    return picture(image, alt, "png" if few else "jpeg", frame)


# ---- two views ----


def views(sample: PictureSample, trained: Trained, loader: Loads, count: int = 10) -> Iterator[str]:
    """Pictures above their views, as the run's first epoch drew them; ``loader`` is that of the training."""
    chosen, recipe = sample.some(count), trained.recipe
    kinds = ("A view",) if isinstance(recipe.pretext, OneView) else ("Two views", "the two random views")
    whole = "video" if sample.modality.rows == "frames" else "picture"
    learns = (
        f" The network learns only that both are of one {whole}."
        if len(kinds) > 1 and not recipe.objective.supervised
        else ""
    )
    yield f"<h2>{kinds[0]} of each {whole}</h2>"
    yield f"<p>Each picture, and below it {(*kinds, 'the random view')[1]} that the first epoch drew.{learns}</p>"
    first, second = recipe.pictures.displayable(*views_at(loader, recipe, sample.rows[chosen], 0))
    names = ("picture", "first view", "second view")[: 1 + len(kinds)]
    figures = []
    for i, *pair in zip(chosen, first.cpu(), second.cpu()):
        drawn = [sample.picture(i, 84), *(upright(view, view.shape[1], view.shape[2], 84) for view in pair)]
        images = (tile(image, f"{sample.name(i)} {name}".strip()) for image, name in zip(drawn, names))
        figures.append(f"<figure>{''.join(images)}</figure>")
    yield f'<div class="views">{"".join(figures)}</div>'


# ---- neighbours ----


def neighbours(sample: PictureSample, queries: int = 8) -> Iterator[str]:
    """For some examples the nearest others by each network of the sample."""
    what = sample.modality.rows
    yield (
        f"<p>Random {what} (not hand-picked), each with the nearest of {len(sample.rows) - 1:,} others by the cosine "
        "of their features, nearest first.</p>"
    )
    if shares := sample.shares():
        said = " and ".join(f"{share:.1%} ({shown(name)})" for share, name in zip(shares, sample.names))
        frames = (
            'Frames mark neighbours of <span class="key right"></span> the same label and of '
            '<span class="key wrong"></span> another one. '
        )
        yield (
            f"<p>{'' if sample.words else frames}Over all of these {what}, {said} of the {sample.nearest[0].shape[1]} "
            "nearest have the same label.</p>"
        )
    for i in sample.some(queries):
        pairs = zip(sample.names, sample.nearest)
        parts = (f"<h3>{shown(name)}</h3>{_nearest(sample, i, near[i])}" for name, near in pairs)
        own = shown(sample.text(i)) if sample.words else f'<div class="tiles">{sample.tile(i)}</div>'
        caption = f"<figcaption>{own}{'' if sample.words else shown(sample.name(i))}</figcaption>"
        kind = "near words" if sample.words else "near"
        yield f'<figure class="{kind}">{caption}<div>{"".join(parts)}</div></figure>'


def _nearest(sample: PictureSample, i: int, near: Tensor) -> str:
    """Neighbours as a list of texts or a row of framed pictures."""
    if sample.words:
        return f"<ol>{''.join(f'<li>{shown(sample.text(n))}</li>' for n in near[:4].tolist())}</ol>"
    tiles = []
    for n in near.tolist():
        known = sample.labelled and min(sample.labels[i], sample.labels[n]) >= 0
        right = bool(sample.labels[n] == sample.labels[i])
        said = (", the same label" if right else ", another label") if known else ""
        tiles.append(sample.tile(n, ("right" if right else "wrong") if known else "", said))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def agreement(labels: Tensor, nearest: Tensor) -> float | None:
    """The share of neighbours that have the label of the row they are near to; None without labels."""
    known = labels >= 0
    if not bool(known.any()) or not nearest.numel():
        return None
    return float((labels[nearest] == labels[:, None])[known].double().mean())


# ---- a map ----


def map_of(sample: PictureSample) -> Iterator[str]:
    """Pictures where t-SNE (van der Maaten and Hinton 2008) puts the features of the last network."""
    rows = sample.features[-1][:_MAPPED]
    if sample.words or len(rows) < _LEAST or rows.shape[1] < 2 or float(rows.double().var(0).sum()) < _EQUAL:
        return
    places, across = free_places(flattened(rows))
    yield "<h2>Map</h2>"
    yield (
        f"<p>{len(rows):,} random pictures by the features of the network {shown(sample.names[-1])}: what it finds "
        "alike lies together (t-SNE). Near places mean something; far distances, and the directions, do not.</p>"
    )
    coloured = sample.labelled and len(sample.classes) <= _CLASSES
    canvas = Image.new("RGBA", (across * _CELL, across * _CELL))
    marks = []
    for i, (column, row) in enumerate(places.tolist()):
        label = int(sample.labels[i])
        left, top = column * _CELL, row * _CELL
        ground = colour(label) if coloured and label >= 0 else (0, 0, 0, 0)
        canvas.paste(ground, (left + 1, top + 1, left + _CELL - 1, top + _CELL - 1))
        side = _CELL - 2 * (_FRAME if coloured else 1)
        image = sample.picture(i, side)
        canvas.paste(image, (left + (_CELL - image.width) // 2, top + (_CELL - image.height) // 2))
        name = shown(sample.name(i) or sample.source.paths[int(sample.rows[i])])
        marks.append(f'<rect x="{column}" y="{row}" width="1" height="1"><title>{name}</title></rect>')
    words = f"A map of {len(rows)} pictures; the neighbours above say in words what lies together."
    titles = f'<svg viewBox="0 0 {across} {across}" aria-hidden="true">{"".join(marks)}</svg>'
    yield f'<figure class="map">{picture(canvas, words, "png")}{titles}</figure>'
    if coloured:
        yield legend(sample)


def legend(sample: PictureSample) -> str:
    """The colours of classes that are on the map."""
    known = sorted(set(sample.labels[:_MAPPED].tolist()) - {-1})
    names = ((label, sample.classes[label] if label < len(sample.classes) else label) for label in known)
    return f'<ul class="legend">{"".join(f"<li>{swatch(label)}{shown(name)}</li>" for label, name in names)}</ul>'


def flattened(rows: Tensor, seed: int = 0) -> npt.NDArray[np.float64]:
    """(N, 2) places for unit rows (N, F), N at least 3: the same rows and seed give the same places."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    features = rows.double().numpy()
    with threadpool_limits(1):  # sums in parallel differ in the last bit, and t-SNE makes that another map
        axes = min(_AXES, *features.shape)
        few = PCA(axes, svd_solver="full").fit_transform(features)
        places: npt.NDArray[np.float64] = TSNE(
            perplexity=min(30.0, (len(rows) - 1) / 3), init="pca", random_state=seed, max_iter=500
        ).fit_transform(few)
    return places.astype(np.float64)


def free_places(points: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], int]:
    """(N, 2) column and row of each point (N, 2) on a square grid, no two the same, and how many places it has a side.

    From the middle outwards each takes the free place nearest to where it belongs.
    """
    across = int(np.ceil(np.sqrt(_SPREAD * len(points))))
    low, high = points.min(0), points.max(0)
    wanted = (points - low) / np.maximum(high - low, 1e-12) * (across - 1)
    grid = np.stack(np.meshgrid(np.arange(across), np.arange(across), indexing="ij"), -1).reshape(-1, 2)
    free = np.ones(len(grid), np.bool_)
    found = np.zeros((len(points), 2), np.int64)
    for i in np.argsort(((wanted - wanted.mean(0)) ** 2).sum(1), kind="stable"):
        apart = ((grid - wanted[i]) ** 2).sum(1)
        apart[~free] = np.inf
        best = int(apart.argmin())
        free[best], found[i] = False, grid[best]
    return found, across
