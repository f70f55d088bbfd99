"""What came of a run, in words that a stranger understands: first whether it is finished, learned and is sound."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from lookalike.curate.diagnosis import losses, trend
from lookalike.recipes.modality import modality_of
from lookalike.report.account import Account
from lookalike.report.page import shown
from lookalike.train.learned import EASY, FINDS

_LITTLE = 0.01  # of the loss of guessing, or of a share: less is no difference


def verdict(found: Account) -> str:
    """A headline, a paragraph and what to do next, as HTML."""
    words = " ".join((*of_learning(found), *of_labels(found), *of_soundness(found)))
    return (
        f'<section class="verdict" aria-label="verdict"><p><strong>{shown(headline(found))}</strong></p>'
        f"<p>{shown(words)}</p><p>Next: {shown(found.diagnosis.next_step())}.</p></section>"
    )


def headline(found: Account) -> str:
    """Finished or not, and learned or not, in a sentence."""
    diagnosis, step = found.diagnosis, found.history.steps()
    of = "" if diagnosis.total is None else f" of {diagnosis.total:,}"
    state = f"Not finished: step {diagnosis.whole or 0:,}{of} is saved"
    if diagnosis.busy:
        state = f"Still running, at step {step:,}{of}"
    elif diagnosis.ended:
        state = f"Finished, all {diagnosis.whole or step:,} steps"
    if found.moments and found.moments[-1].spread.collapsed:
        return f"{state}, and collapsed: everything looks the same to the network."
    return f"{state}; {learned(found)}."


def learned(found: Account) -> str:
    """Whether it learned, in few words."""
    if found.diagnosis.kept:
        return f"beside the model that it began with, what was kept is {found.diagnosis.kept}"
    known = [one.found for one in found.moments if one.found is not None]
    if len(known) > 1:
        gain = known[-1].gain(known[0])
        if gain.mean > gain.half:
            shares = found.sample.shares() if found.sample else []
            doubt = ", but what it finds alike has the same label no more often than before"
            return f"it learned{doubt if shares and shares[-1] < shares[0] + _LITTLE else ''}"
        if known[0].mean < EASY:
            return "it learned nothing that shows" if gain.mean > -gain.half else "it is worse than before"
    values, tenth = losses(found.history)
    if not values or not found.history.filled():
        return "it is too early to tell"
    guess = (1 - _LITTLE) * found.history.chance_loss()
    return "its loss is below that of guessing" if fmean(values[-tenth:]) < guess else "its loss is that of guessing"


def of_learning(found: Account) -> Iterator[str]:
    """What it can do now, and how the loss went."""
    history = found.history
    names, labels = modality_of(history.recipe).examples, history.recipe.objective.supervised
    yield f"Trained {'with' if labels else 'without'} labels on {history.examples():,} {names}."
    known = [one.found for one in found.moments if one.found is not None]
    if len(known) > 1:
        before, now = known[0], known[-1]
        yield (
            f"It {FINDS[names]} in {now.mean:.0%} of cases among {len(now.each):,}; before the run in "
            f"{before.mean:.0%}, and by guessing in {now.chance or 0:.1%}."
        )
    values, tenth = losses(history)
    if values and history.filled():
        yield (
            f"Its loss, the number that training makes smaller, is {fmean(values[-tenth:]):.2f} at the end, where "
            f"guessing has {history.chance_loss():.2f} ({trend(values, tenth)})."
        )
    elif values:
        yield "Its loss means nothing yet, since some of what it is compared with is still random."
    if isinstance(begun := history.about().get("start"), dict):
        yield f"It {found.diagnosis.begun(str(begun.get('model') or begun.get('run')))}."


def of_labels(found: Account) -> Iterator[str]:
    """What labels say."""
    supervised = found.history.recipe.objective.supervised
    if found.sample and (shares := found.sample.shares()):
        saw = "" if supervised else ", which it never saw"
        yield (
            f"Of the examples that it finds most alike, {shares[-1]:.0%} have the same label{saw}; before the run "
            f"{shares[0]:.0%}."
        )
        if found.diagnosis.kept and shares[-1] < shares[0]:
            yield "The few nearest alone say less than all that vote where it was decided what to keep."
    knn = found.history.last("knn")
    if knn is not None and not supervised:
        yield f"Labels guessed from the nearest neighbours (kNN) are right for {knn:.0%} of held-out examples."


def of_soundness(found: Account) -> Iterator[str]:
    """Whether it has collapsed."""
    if not found.moments:
        return
    spread = found.moments[-1].spread
    if spread.collapsed:
        yield (
            "It has collapsed: it gives nearly the same answer for everything, so that nothing can be told apart. "
            "Start again with a lower learning rate."
        )
    elif spread.narrow:
        yield f"It is close to a collapse: {spread.rank:.0f} of its {spread.width} dimensions are in use."
    else:
        yield f"It has not collapsed: different examples stay apart, in {spread.rank:.0f} of {spread.width} dimensions."
