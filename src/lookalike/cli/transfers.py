"""The verbs of ``lookalike evaluate`` that train a network further on labels which are no classes."""

from __future__ import annotations

from pathlib import Path

from lookalike.cli.transfer import Detect, Keypoints, Segment, Tuned
from lookalike.core.checks import at_least
from lookalike.core.files import refuse_unwritable
from lookalike.data.annotations.open import learned_and_asked, open_annotated
from lookalike.evaluation import keypoints
from lookalike.evaluation.detect import ALPHA, Fitted, fit
from lookalike.evaluation.detector import Detection, Instances
from lookalike.evaluation.precision import tools
from lookalike.evaluation.scenes import in_mirror
from lookalike.evaluation.segment import segmented
from lookalike.evaluation.segmentation import Segmentation
from lookalike.recipes.serialize import flat
from lookalike.report.predictions import write_detections, write_segmentation
from lookalike.train.screen import Screen
from lookalike.train.trained import load

_SHOWN = 12  # pictures of a page of masks
_FOUND = 24  # of a page of boxes or points


def segment(command: Segment) -> dict[str, object]:
    """Mean intersection over union."""
    at_least(command, steps=1, batch=1, size=8, crop=8, stride=1, width=1, lr=1e-12, seed=0)
    refuse_unwritable(command.page)
    trained = load(command.run, command.untrained, command.weights, command.precision)
    given = {name: getattr(command, name) for name in ("steps", "batch", "size", "crop", "stride", "width", "lr")}
    spec = Segmentation(**given, group=command.batch, void=command.void)
    with Screen("segment") as screen:
        keep, folder = _SHOWN if command.page else 0, Path(command.out) if command.out else None
        found = segmented(trained, command.data, spec, command.seed, screen.work, keep, folder)
        if found.unmasked:
            screen.say(f"{len(found.unmasked)} photos have no mask and are left out, first {found.unmasked[0]}")
        words = (
            f"mean intersection over union {found.scores.miou:.2%} of {len(found.scores.iou)} classes, pixel accuracy "
            f"{found.scores.accuracy:.2%}, on {found.queries} pictures after {spec.steps} steps on {found.reference} "
            f"(step {trained.step})"
        )
        screen.say(words)
        if command.page:
            title = f"Segmentation of {command.data} by {command.run}"
            write_segmentation(Path(command.page), title, words, found)
            screen.say(f"written: {command.page}")
    by_class = {f"iou_{number}": value for number, value in found.scores.iou.items()}
    sizes = {"queries": found.queries, "reference": found.reference, "unmasked": len(found.unmasked)}
    scores = {"miou": found.scores.miou, "pixel_accuracy": found.scores.accuracy, **by_class}
    return {**scores, **given, "void": list(spec.void), "seed": command.seed, "step": trained.step, **sizes}


def transferred(command: Detect | Keypoints) -> dict[str, object]:
    """The numbers, printed in a line; and the page."""
    at_least(command, steps=1, batch=1, size=16, lr=0, seed=0)
    tools()
    verb, spec = ("keypoints" if isinstance(command, Keypoints) else "detect"), spec_of(command)
    target = Path(command.page or f"{verb}.html")
    refuse_unwritable(str(target))
    found = open_annotated(command.data, command.annotations, isinstance(command, Keypoints))
    learned, asked = learned_and_asked(found)
    trained = load(command.run, command.untrained, command.weights, command.precision)
    with Screen(verb) as screen:
        for note in found.notes:
            screen.say(f"left out: {note}")
        if isinstance(command, Keypoints) and in_mirror(found.joints) is None:
            screen.say("the names of points say no left and right, so no picture is mirrored")
        out = Path(command.out) if command.out else None
        done = fit(trained, learned, asked, spec, command.seed, screen.work, out, command.workers)
        line = f"{numbers(done)} on {len(done.asked.scenes)} pictures, tuned on {done.learned} (step {trained.step})"
        screen.say(line)
        about = {name: str(value) for name, value in flat(spec).items()} | {"seed": str(command.seed)}
        about |= {"run": command.run, "data": command.data, "weights": command.weights or "its own"}
        write_detections(target, f"{verb} · {Path(command.data).name}", line, done.asked, done.seen, about, _FOUND)
        screen.say(f"written: {target}")
    counts = {"step": trained.step, "pictures": len(done.asked.scenes), "learned": done.learned}
    return {**done.metrics, **counts, "seed": command.seed, **flat(spec)}


def spec_of(command: Tuned) -> Detection:
    """The detector that a command asks for."""
    kind: type[Detection] = Detection
    if isinstance(command, Keypoints):
        kind = keypoints.Keypoints
    elif isinstance(command, Detect) and command.masks:
        kind = Instances
    longest = round(1.6 * command.size)
    return kind(command.steps, command.batch, command.lr, size=command.size, longest=longest, neck=command.neck)


def numbers(done: Fitted) -> str:
    """All of them in one line."""
    found = done.metrics
    said = [f"box AP {found['AP']:.2%} (AP50 {found['AP50']:.2%}, AP75 {found['AP75']:.2%})"]
    for name in ("mask", "keypoint"):
        if f"{name}_AP" in found:
            said.append(f"{name} AP {found[f'{name}_AP']:.2%} (AP50 {found[f'{name}_AP50']:.2%})")
    said.append(f"PCK@{ALPHA:g} {found['PCK']:.2%}" if "PCK" in found else f"VOC AP50 {found['VOC_AP50']:.2%}")
    return ", ".join(said)
