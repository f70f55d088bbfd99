"""The verbs of ``lookalike evaluate`` that ask whether what belongs together is near: sentences, captions."""

from __future__ import annotations

from lookalike.cli import evaluation as asked
from lookalike.evaluation.captions import matched
from lookalike.evaluation.sts import scored, texts_embedded
from lookalike.metrics.spearman import spearman
from lookalike.train.screen import Screen
from lookalike.train.trained import load

Report = dict[str, object]


def sts(command: asked.Sts) -> Report:
    """The rank correlation of cosines with scores."""
    with Screen("sts") as screen:
        trained = load(command.run, command.untrained, command.weights, command.precision)
        pairs, split = scored(trained, command.data, command.split)
        first, second = (texts_embedded(trained, pairs, number, command.layer) for number in (0, 1))
        found = spearman((first * second).sum(1), pairs.scores)
        screen.say(
            f"STS: Spearman {found:.4f} between cosines and the scores of {len(pairs)} pairs, {split} "
            f"({command.layer}, step {trained.step})"
        )
    return {"spearman": found, "pairs": len(pairs), "split": split, "layer": command.layer, "step": trained.step}


def captions(command: asked.Captions) -> Report:
    """How often a picture finds one of its captions, and a caption its picture."""
    with Screen("captions") as screen:
        trained = load(command.run, command.untrained, command.weights, command.precision)
        found = matched(trained, command.data, command.workers, screen.work)
        report: Report = {"pictures": found.rows, "captions_each": found.each, "step": trained.step}
        for what, done, others in (
            ("a picture finds one of its captions", found.captions, found.rows * found.each),
            ("a caption finds its picture", found.pictures, found.rows),
        ):
            shown = ", ".join(f"recall@{k} {share:.2%}" for k, share in done.recall.items())
            screen.say(f"{what}: {shown} of {others} (step {trained.step})")
            report |= {f"{what.split()[1]}_recall_{k}": share for k, share in done.recall.items()}
    return report
