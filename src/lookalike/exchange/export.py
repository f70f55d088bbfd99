"""A model as files that another library opens: written, opened there, compared with the model, and only then published.

What a library wants is a ``Target``: see targets.py and onnx.py. A mismatch is an error and leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lookalike.core.errors import BAD_DATA, IO, UserError
from lookalike.core.files import of_system, refuse_unwritable, sync_folder, unfinished, write_json
from lookalike.exchange.card import Facts, Shown, card
from lookalike.models.encoder import Encoder, evaluating
from lookalike.recipes.recipe import Recipe

LIMIT = 1e-4
"""The largest difference that passes: of features, over the largest of them where that is above 1."""

Checked = tuple[float, str]
"""How far what was written is from the model, and who found that, in words."""


@dataclass(frozen=True)
class Subject:
    """The model that leaves: on the processor, in evaluation mode and fp32; ``facts`` are for its card."""

    recipe: Recipe
    encoder: Encoder
    facts: Facts

    @property
    def net(self) -> nn.Module:
        """The backbone, whose tensors have the names of its own library."""
        net: nn.Module = getattr(self.encoder.backbone, "net", self.encoder.backbone)
        return net

    @property
    def shown(self) -> Shown:
        """How it sees a picture."""
        return Shown.of(self.recipe)

    def pixels(self, count: int = 4) -> Tensor:
        """(count, 3, [T,] S, S) of random pictures, coarse as pictures are and always the same, normalised."""
        shown, drawn = self.shown, torch.Generator().manual_seed(count)
        colours = torch.rand(count, 3, *shown.frames, 5, 5, generator=drawn)
        place = torch.arange(shown.size) * 5 // shown.size
        mean, std = (torch.tensor(part).view(3, *[1] * (colours.dim() - 2)) for part in (shown.mean, shown.std))
        return (colours[..., place, :][..., place] - mean) / std

    def raw(self, pixels: Tensor) -> Tensor:
        """(N, F) what the backbone gives, neither whitened nor of unit norm."""
        with evaluating(self.encoder):
            return self.encoder.raw(pixels=pixels).clone()


@dataclass(frozen=True)
class Target:
    """A form in which a model leaves; ``refusal`` says of a recipe in words why it cannot, or None."""

    name: str
    library: str  # as the Hub calls it
    refusal: Callable[[Recipe], str | None]
    write: Callable[[Subject, Path], None]
    check: Callable[[Subject, Path], Checked]  # of what lies in the folder
    usage: str  # Python that opens it
    needs: tuple[str, ...] = ()  # packages of the extra
    extra: str = ""
    embeds: bool = False  # whether it gives what ``lookalike embed`` writes, not the backbone's features
    preprocesses: bool = False  # whether its own files say how it sees pictures


class Exported(NamedTuple):
    """What was written, the largest difference that its check found, and the same in words."""

    folder: str
    target: str
    difference: float
    lines: list[str]

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def export(subject: Subject, target: Target, out: Path) -> Exported:
    """Write ``subject`` into the new or empty folder ``out``; raises UserError, and then leaves nothing."""
    with _filling(out) as folder:
        try:
            target.write(subject, folder)
            worst, words = target.check(subject, folder)
        except (UserError, OSError):
            raise
        except Exception as error:  # whatever another library raises of a network or of a file
            if (failed := of_system(error)) is not None:
                raise failed from None
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UserError(f"{target.name} does not take this model ({reason}): nothing was kept", BAD_DATA) from error
        if not worst <= LIMIT:  # NaN, too
            reason = f"largest difference {worst:.2g}, limit {LIMIT:g}; {words}"
            raise UserError(
                f"what was written gives other features than the model ({reason}): nothing was kept", BAD_DATA
            )
        told, remark = f"{words}; largest difference {worst:.2g} (limit {LIMIT:g})", _remark(subject, target)
        if not target.preprocesses:
            write_json(folder / "preprocessor_config.json", subject.shown.transformers())
        opening = target.usage.replace("NAME", getattr(subject.recipe.model, "name", ""))
        usage = f"```python\n{opening}\n```\n\n{remark}"
        (folder / "README.md").write_text(card(subject.recipe, subject.facts, target.library, usage, told), "utf-8")
        files = {file.relative_to(folder).as_posix(): file.stat().st_size for file in _files(folder)}
        written = f"written: {', '.join(files)} ({sum(files.values()) / 1e6:.1f} MB) in {out}"
    return Exported(str(out), target.name, worst, [f"checked: {told}", written, remark])


def refuse(recipe: Recipe, target: Target, others: Collection[Target]) -> None:
    """Raise UserError where the target cannot hold the model, naming those that can, or where a package is missing."""
    if (reason := target.refusal(recipe)) is not None:
        able = [other.name for other in others if other.refusal(recipe) is None]
        advice = f": take --to {' or '.join(able)}" if able else ""
        raise UserError(f"{target.name} cannot hold this model, {reason}{advice}")
    if missing := [package for package in target.needs if find_spec(package) is None]:
        raise UserError(f"--to {target.name} needs {', '.join(missing)}: pip install 'lookalike[{target.extra}]'")


def refuse_filled(out: Path) -> None:
    """Raise UserError where something lies in the folder already, or it cannot be written."""
    refuse_unwritable(out, folder=True)
    held = sorted(out.iterdir()) if out.is_dir() else []
    if held := [path for path in held if path not in unfinished(out / "export")[1]]:
        raise UserError(f"{out} is not empty, it holds {held[0].name}: choose another --out")


def _remark(subject: Subject, target: Target) -> str:
    """What is between the features and what ``embed`` writes."""
    if target.embeds:
        return "It gives what `lookalike embed` writes: rows of unit norm, whitening and joined stages included."
    if subject.encoder.whitening is None:
        return "Its features, scaled to unit norm, are what `lookalike embed` writes."
    rows = "features / their norm" if subject.encoder.whitening.unit else "features"
    return (
        f"It holds the backbone; `lookalike embed` writes `({rows} - mean) @ map`, of whitening/whitening.safetensors, "
        "scaled to unit norm. Leave that out where the network is trained further."
    )


@contextmanager
def _filling(out: Path) -> Iterator[Path]:
    """A folder whose files are those of ``out`` at the end; after an error nothing is left. Raises UserError."""
    refuse_filled(out)
    made, there = [path for path in (out, *out.parents) if not path.exists()], out.is_dir()
    inner, left = unfinished(out / "export" if there else out)
    try:
        for folder in left:
            shutil.rmtree(folder)
        inner.mkdir(parents=True)
        yield inner
        for file in _files(inner):
            file.chmod(inner.stat().st_mode & 0o666)  # safetensors lets nobody else read its own
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if there:  # which may be a disk of its own, or another's
            for entry in sorted(inner.iterdir(), key=lambda entry: entry.name == "config.json"):
                entry.replace(out / entry.name)  # config.json last, by which others know the folder
            inner.rmdir()
        else:
            inner.rename(out)
            sync_folder(out.parent)
        sync_folder(out)
    except BaseException as error:
        shutil.rmtree(inner, ignore_errors=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"cannot write to {out} ({error.strerror or error}): choose another --out", IO) from None
        raise


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def compared(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """How many tensors are equal bit by bit, in words; raises UserError where one is not, or is missing."""
    wrong = [name for name, part in ours.items() if name not in theirs or not torch.equal(theirs[name], part)]
    if wrong := [*wrong, *(name for name in theirs if name not in ours)]:
        raise UserError(f"tensors read back are not the model's ({', '.join(wrong[:3])}): nothing was kept", BAD_DATA)
    return f"{len(ours)} tensors equal bit by bit, and the same features"


def difference(theirs: Any, ours: Tensor) -> float:
    """The largest difference of rows (N, F), over the largest entry where above 1; infinite for other shapes."""
    if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
        return float("inf")
    return float((theirs - ours).abs().max() / ours.abs().max().clamp_min(1))
