"""What a run begins with: the weights of another model, rows of a teacher; ``--init-from`` and ``--teacher``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lookalike.core import dist
from lookalike.core.devices import module_to_device
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import publish
from lookalike.core.progress import Progress, counted
from lookalike.data.example import Rows, Source
from lookalike.data.loader import Loads
from lookalike.data.source import Say
from lookalike.learn.dictionary import BankOfKeys, MemoryBank
from lookalike.learn.learner import Learner
from lookalike.learn.tuned import merge
from lookalike.models.encoder import Encoder, Whitening, unit, unwhitened, width
from lookalike.recipes.adapt import adapt, following, taught
from lookalike.recipes.modality import PICTURE, Examples, modality_of, only_pictures
from lookalike.recipes.recipe import Recipe
from lookalike.train import checkpoint
from lookalike.train.run import Run
from lookalike.train.trained import START, Trained, load
from lookalike.types import View

_SOME = 200  # pictures


class Beginning(NamedTuple):
    """What a new run was asked to begin with and to learn from, and the examples by which its result is judged."""

    init: Trained | None = None
    teacher: Trained | None = None
    held_out: Source | None = None

    @property
    def given(self) -> bool:
        """Whether there is a model to begin with."""
        return self.init is not None or self.teacher is not None

    @classmethod
    def opened(
        cls, init: str | Path | None, teacher: str | Path | None, network: str | None, download: bool, say: Say
    ) -> Beginning:
        """Those of these names; ``network`` says what files of weights are of. Raises UserError."""

        def found(name: str | Path | None) -> Trained | None:
            of_file = network if name is not None and os.path.isfile(name) else None
            return None if name is None else load(name, model=of_file, download=download, say=say)

        begun, taught_by = found(init), found(teacher)
        if taught_by is not None:
            only_pictures(taught_by.recipe, "--teacher")
        return cls(begun, taught_by)

    def recipe(self, named: Recipe | None, otherwise: Recipe, change: Callable[[Recipe], Recipe]) -> Recipe:
        """What a run of ``named``, or of the default, is from here: the recipe follows the model.

        ``change`` applies what the person sets, which may make the network that of the model. Raises UserError.
        """
        recipe, init = named or otherwise, self.init
        if init is not None and named is None:
            recipe = init.recipe if init.named is None else adapt
        if init is not None and change(recipe).model != init.recipe.model:
            if modality_of(init.recipe).inputs == PICTURE:
                recipe = following(recipe, init.recipe, crop_size(init))
            elif init.named is not None:
                how = f"--recipe simcse_bert --model.folder {init.recipe.name}"
                raise UserError(f"--init-from {init.run} is a model of text: leave it out, and begin with it by {how}")
            if change(recipe).model != init.recipe.model:
                theirs = f"{init.run} has another model ({init.recipe.model})"
                raise UserError(f"--init-from {theirs}: use its recipe, and leave out --model", BAD_DATA)
        if self.teacher is not None:
            return taught(recipe, features_of(self.teacher))
        if begins_filled(recipe):
            if init is None:
                raise UserError(f"{recipe.name} goes on from a model: name it with --init-from, such as timm:resnet50")
            return replace(recipe, head=replace(recipe.head, widths=(features_of(init),)))
        return recipe

    def about(self) -> dict[str, dict[str, str]]:
        """What environment.json says of them."""
        models = {"start": self.init, "teacher": self.teacher}
        return {name: about(model) for name, model in models.items() if model is not None}


def begins_filled(recipe: Recipe) -> bool:
    """Whether a model has to embed the data before the first step."""
    return isinstance(recipe.dictionary, MemoryBank) and recipe.dictionary.filled


def about(model: Trained) -> dict[str, str]:
    """Name, sha256 of the weights and licence of a public model; of a run its folder and step."""
    if model.named is None:
        return {"run": model.run, "step": str(model.step)}
    found = {"model": model.named.name, "sha256": model.named.digest(), "licence": model.named.licence}
    return found | ({"architecture": model.named.architecture} if model.named.architecture else {})


def crop_size(model: Trained) -> int:
    """Pixels of a crop: half of the side of whole pictures, a multiple of 32, where the network takes that."""
    seen = model.recipe.preprocessing
    if seen is None:
        return model.recipe.pictures.first.size
    size = max(32, round(seen.size / 64) * 32)
    return size if takes(model.encoder, size) else seen.size


def takes(encoder: Encoder, size: int) -> bool:
    """Whether a network takes pictures of this size: many transformers know one alone."""
    try:
        return width(encoder, size) > 0
    except (UserError, RuntimeError, AssertionError):
        return False


def features_of(model: Trained) -> int:
    """How many numbers it has for a picture, before they are whitened."""
    seen = model.recipe.preprocessing
    size = model.recipe.pictures.first.size if seen is None else seen.size
    return int(getattr(model.encoder.backbone, "evaluated_width", 0)) or width(model.encoder, size)


# ---- the first checkpoint ----


def begun(recipe: Recipe, start: Beginning, loader: Loads, progress: Progress) -> Learner:
    """A learner before its first step: the weights of the start, and where rows are stored, those of the teacher."""
    learner = recipe.build(len(loader))
    if (init := start.init) is not None:
        merge(learner.encoder.backbone).load_state_dict(init.encoder.backbone.state_dict())
        recipe.tuned.settle(learner.encoder.backbone)
        if init.recipe.head == recipe.head:
            learner.encoder.head.load_state_dict(init.encoder.head.state_dict())
    learner = module_to_device(learner)
    if begins_filled(recipe):
        teacher = start.teacher or start.init
        assert teacher is not None
        teacher.encoder.evaluated_in = recipe.computes_in()
        assert isinstance(learner.dictionary, BankOfKeys)
        rows, whitening = teacher_rows(teacher, loader.source, progress)
        if rows.shape[1] != learner.dictionary.rows.shape[1]:
            wide = f"as wide as the features of {teacher.run}, {rows.shape[1]}"
            raise UserError(f"the head must be {wide}, since they are its keys: leave out --head.widths")
        learner.dictionary.fill(rows)
        if start.init is not None and start.init.recipe.model == teacher.recipe.model:
            as_head(learner.encoder.head, whitening, norm_of(start.init, loader))
    learner.keys = recipe.keys.build(learner.encoder, learner.dictionary)
    return learner


def save_beginning(recipe: Recipe, start: Beginning, loader: Loads, run: Run, progress: Progress) -> None:
    """The first checkpoint, and beside it the start's backbone where the result will be compared with it."""
    learner = begun(recipe, start, loader, progress)
    if start.init is not None and start.held_out is not None:
        backbone = {name: part.contiguous() for name, part in start.init.encoder.backbone.state_dict().items()}
        dist.on_first_rank(lambda: publish(run.folder, {START: save(backbone)}))
    checkpoint.save(run.checkpoints, 0, learner, recipe.optimizer_of(learner))


def teacher_rows(teacher: Trained, source: Source, progress: Progress) -> tuple[Tensor, Whitening]:
    """(N, F) its unit features of all pictures, each the mean over ``sights``, whitened by what is fitted to them."""
    encoder, every = teacher.encoder, list(sights(teacher))
    total, done = torch.zeros(()), counted(progress, "teacher", len(source) * len(every))
    for seen, mirrored in every:
        loader = seen.loader(source, budget=0)
        views = seen.views(loader, Examples(seen.recipe, loader).evaluated())
        total = total + unit(unwhitened(encoder, (flipped(view) if mirrored else view for view in views), done))
    whitening = Whitening(total.shape[1], unit=True).to(total.device)
    whitening.fit(total)
    return unit(whitening(total)), whitening


def sights(teacher: Trained) -> Iterator[tuple[Trained, bool]]:
    """How a teacher sees a picture, and whether in the mirror: as it is made for, and larger where it can.

    A network that was trained on crops knows objects larger than whole pictures show them (arXiv 1906.06423): the mean
    of three sights is nearer to the classes than any of them (docs/results.md).
    """
    yield teacher, False
    yield teacher, True
    seen = teacher.recipe.preprocessing
    if seen is not None and takes(teacher.encoder, larger := round(seen.size * 9 / 7)):
        yield (
            teacher._replace(recipe=replace(teacher.recipe, preprocessing=replace(seen, size=larger, share=1.0))),
            False,
        )


def flipped(view: View) -> View:
    """Pictures in the mirror."""
    return {**view, "pixels": view["pixels"].flip(-1)}


def norm_of(model: Trained, loader: Loads) -> float:
    """The mean norm of its features, of some pictures."""
    rows = torch.arange(min(_SOME, len(loader)))
    whole = model.loader(Rows(loader.source, rows), budget=0)
    return float(unwhitened(model.encoder, model.views(whole, rows)).norm(dim=1).mean())


def as_head(head: nn.Module, whitening: Whitening, norm: float) -> None:
    """Let a head of one layer begin as a whitening of features of this norm: queries then are where their rows are."""
    layer = next(head.children(), None)
    if not isinstance(layer, nn.Linear) or layer.weight.shape != whitening.map.shape:
        return
    with torch.no_grad():
        layer.weight.copy_(whitening.map.T / norm)
        layer.bias.copy_(-(whitening.mean @ whitening.map))
