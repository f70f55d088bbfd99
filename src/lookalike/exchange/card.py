"""What goes along with a model: its card, in the form of the Hub, and how it sees a picture."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lookalike.core.errors import visible
from lookalike.data.decode import FINE
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import to_plain

_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers


@dataclass(frozen=True)
class Facts:
    """Where a model comes from, as far as is known; nothing here names a folder of the person's machine."""

    name: str
    command: str  # of the export
    training: Mapping[str, str] = field(default_factory=dict)  # how, with what and from what; empty if not by us
    numbers: Sequence[str] = ()  # each with how many examples it was measured on
    start: str = ""  # the model that training began from
    licence: str = ""  # of the start, else of the weights themselves


class Shown(NamedTuple):
    """How evaluations see a picture: its centre, ``share`` of the short side, at ``size`` pixels a side.

    Where there is a ``canvas``, the whole picture is first squashed to so many pixels a side.
    """

    size: int
    share: float
    mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    frames: tuple[int, ...]  # how many a clip has, if it is one
    canvas: int | None

    @classmethod
    def of(cls, recipe: Recipe) -> Shown:
        """Of a recipe for pictures, frames, clips or captioned pictures."""
        pretext: Any = recipe.pretext
        view = getattr(pretext, "picture", None) or pretext.first
        frames = (pretext.frames,) if pretext.modality == "clips" else ()
        if (own := recipe.preprocessing) is not None:
            return cls(own.size, own.share, own.mode, own.interpolation, own.mean, own.std, frames, None)
        return cls(pretext.whole or view.size, 1.0, "center", "bilinear", view.mean, view.std, frames, recipe.canvas)

    def timm(self) -> dict[str, Any]:
        """The part of timm's ``pretrained_cfg`` that says it."""
        mode = "squash" if self.mode == "squash" else "center"
        cropped = {"interpolation": self.interpolation, "crop_pct": self.share, "crop_mode": mode}
        return {"input_size": [3, self.size, self.size], **cropped, "mean": [*self.mean], "std": [*self.std]}

    def transformers(self) -> dict[str, Any]:
        """The ``preprocessor_config.json`` that says it."""
        square, squash = {"height": self.size, "width": self.size}, self.mode == "squash"
        return {
            "image_processor_type": "ViTImageProcessor" if squash else "CLIPImageProcessor",
            "size": square if squash else {"shortest_edge": math.floor(self.size / self.share)},
            "crop_size": square,
            "resample": _RESAMPLING[self.interpolation],
            "rescale_factor": 1 / 255,
            "image_mean": [*self.mean],
            "image_std": [*self.std],
            "do_center_crop": not squash,
            **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True),
            **({} if self.canvas is None else {"canvas": self.canvas}),  # which is no word of theirs
        }

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in part) for part in (self.mean, self.std))
        words = f"RGB of {self.size} by {self.size} pixels: the centre square, {self.share:.4g} of the picture's short "
        words += f"side, resized ({self.interpolation}), from 0 to 1, minus mean {mean}, divided by std {std}."
        if self.canvas is None:
            return words
        kind = "BICUBIC" if self.canvas >= FINE else "BILINEAR"
        return f"""{words}

Training and `lookalike embed` squash the whole picture first. To search in a table of `embed`, do so, too (Pillow):

```python
short, canvas, size = min(picture.size), {self.canvas}, {self.size}
left, top = (canvas * (1 - short / side) / 2 for side in picture.size)
squashed = picture.convert("RGB").resize((canvas, canvas), Image.Resampling.{kind})
seen = squashed.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, canvas - left, canvas - top))
```"""


def card(recipe: Recipe, facts: Facts, library: str, usage: str, checked: str) -> str:
    """The model card; names of files and data stand in it as code, where no letter of theirs acts."""
    licence = facts.licence if re.fullmatch(r"[a-z0-9.\-]+", facts.licence) else "other"
    head = f"license: {licence}\nlibrary_name: {library}\npipeline_tag: image-feature-extraction\n"
    training = [f"- {what}: {_code(said)}" for what, said in facts.training.items()]
    if training:
        fields = json.dumps(to_plain(recipe), indent=1)
        training.append(f"\n<details><summary>All of the recipe</summary>\n\n```json\n{fields}\n```\n\n</details>")
    sections = {
        f"# {_code(facts.name)}": f"A network from pictures to features, by {_code(facts.command)}.",
        "## Use": usage,
        "## What it sees": str(Shown.of(recipe)),
        "## Check of this export": f"On random pictures: {checked}.",
        "## Training": "\n".join(training) or "Not by lookalike.",
        "## Numbers": "\n".join(f"- {_code(number)}" for number in facts.numbers) or "None were recorded.",
        "## Licence": _licence(facts),
    }
    tags = "tags:\n- lookalike\n- self-supervised-learning\n- image-feature-extraction\n"
    return f"---\n{head}{tags}---\n" + "".join(f"\n{title}\n\n{text}\n" for title, text in sections.items())


def _licence(facts: Facts) -> str:
    if facts.start:
        return f"Training began from {_code(facts.start)}, whose licence holds here: {facts.licence or 'not recorded'}."
    return f"{facts.licence or 'Not recorded'}; the weights belong to whoever trained them."


def _code(text: str) -> str:
    return f"`{visible(text).replace('`', chr(39))}`"
