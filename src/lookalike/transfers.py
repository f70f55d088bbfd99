"""The verbs of ``lookalike evaluate`` that train a network further on labels which are no classes."""

from __future__ import annotations

from pathlib import Path

from lookalike.checks import at_least, refuse_unwritable
from lookalike.commands.transfer import Segment
from lookalike.evaluate.segmentation import Segmentation
from lookalike.report.scenes import scenes_page
from lookalike.run import write_atomically
from lookalike.screen import Screen
from lookalike.segmenting import segmented
from lookalike.trained import load

_SHOWN = 12  # pictures of a page


def segment(command: Segment) -> dict[str, object]:
    """Mean intersection over union."""
    at_least(command, steps=1, batch=1, size=8, crop=8, stride=1, width=1, lr=1e-12, seed=0)
    refuse_unwritable(command.page)
    trained = load(command.run, command.untrained, command.weights)
    given = {name: getattr(command, name) for name in ("steps", "batch", "size", "crop", "stride", "width", "lr")}
    spec = Segmentation(**given, group=command.batch, void=command.void)
    with Screen("segment") as screen:
        found = segmented(trained, command.data, spec, command.seed, screen.work, _SHOWN if command.page else 0)
        if found.unmasked:
            screen.say(f"{len(found.unmasked)} photos have no mask and are left out, first {found.unmasked[0]}")
        words = (
            f"mean intersection over union {found.scores.miou:.2%} of {len(found.scores.iou)} classes, pixel accuracy "
            f"{found.scores.accuracy:.2%}, on {found.queries} pictures after {spec.steps} steps on {found.reference} "
            f"(step {trained.step})"
        )
        screen.say(words)
        if command.page:
            page = scenes_page(found, f"segmentation of {command.data} by {command.run}", words)
            write_atomically(Path(command.page), page.encode("utf-8", "replace"))
            screen.say(f"written: {command.page}")
    by_class = {f"iou_{number}": value for number, value in found.scores.iou.items()}
    sizes = {"queries": found.queries, "reference": found.reference, "unmasked": len(found.unmasked)}
    scores = {"miou": found.scores.miou, "pixel_accuracy": found.scores.accuracy, **by_class}
    return {**scores, **given, "void": list(spec.void), "seed": command.seed, "step": trained.step, **sizes}
