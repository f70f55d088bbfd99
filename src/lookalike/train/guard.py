"""What keeps a run sound: nothing that is not finite moves its weights or is saved, and a collapse is said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lookalike.core import dist
from lookalike.core.devices import Later
from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import write_atomically, write_json
from lookalike.learn.dictionary import Dictionary
from lookalike.learn.learner import Outcome
from lookalike.train.run import BAD_STEP, Run
from lookalike.types import Batch, View

_RUNAWAY = 1e3  # times the norm that the weights began with: healthy ones grow to a few times of it
_ALIKE = 0.05  # spread of unit rows under which they are one point; healthy runs begin at 0.25 to 1
_PATIENCE = 50  # steps that they must be so for
_FEW = 8  # rows of which a spread says little


class Diverged(UserError):
    """Training led to numbers that are none, or to weights that run away."""


class Seen(NamedTuple):
    """A step whose numbers may be on their way: loss, norm of the gradient, norms of the mean query and of all."""

    step: int
    batch: Batch | None
    rows: int  # how many queries
    numbers: Later


class Guard:
    """Looks at each step of a learner or another network, and at the state before it is kept.

    On a processor loss and gradient are read before the weights move. A GPU is not waited for: there they are read one
    step late, and at once before a save or where steps may be skipped. ``advice`` ends every refusal.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, advice: str) -> None:
        self._model, self._optimizer, self._advice = model, optimizer, advice
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._pending: Seen | None = None
        self._bad: tuple[Seen, str] | None = None
        self._collapse = Collapse()

    def look(self, step: int, loss: Tensor, batch: Batch | None = None, query: Tensor | None = None) -> int:
        """The number of this rank, from 1, where the newest step that is known has a loss or gradient not finite."""
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        told = [] if query is None or len(query) < _FEW else [query.detach().mean(0), query.detach()]
        parts = [loss.detach(), norm, *(torch.linalg.vector_norm(rows) for rows in told)]
        numbers = Later(torch.stack([part.to(norm.dtype) for part in parts]))
        known, self._pending = self._settle(), Seen(step, batch, 0 if query is None else len(query), numbers)
        return known or (self._settle() if numbers.ready() else 0)

    def check(self, loss: Tensor, step: int) -> None:
        """``look``, by one process. Raises Diverged."""
        if rank := self.look(step, loss):
            self.spoiled(rank)

    def spoiled(self, rank: int) -> None:
        """On all ranks, for the step in which ``look`` gave one of them its number. Raises Diverged."""
        raise Diverged(f"{self._told(rank)}: {self._advice}", BAD_DATA)

    def check_state(self, step: int) -> None:
        """Look at the state after ``step``, which finite gradients can spoil, on all ranks. Raises Diverged on all."""
        if rank := int(dist.largest([self._settle()])[0]):
            self.spoiled(rank)
        reason = next(self._wrong(step), None)
        if rank := int(dist.largest([dist.rank() + 1 if reason else 0])[0]):
            self.unsound(step, dist.agree(reason, rank - 1) or "")

    def unsound(self, step: int, told: str) -> None:
        """On all ranks, for a state that may not be kept. Raises Diverged."""
        raise Diverged(f"{told}: {self._advice}", BAD_DATA)

    def _told(self, rank: int) -> str:
        """What the rank of that number, from 1, says of its step."""
        told = dist.agree(self._bad[1] if self._bad else "", rank - 1)
        return f"{told} of rank {rank - 1}" if dist.world() > 1 else told

    def _settle(self) -> int:
        """Wait for what was looked at."""
        seen, self._pending = self._pending, None
        if seen is None:
            return 0
        loss, norm, *norms = seen.numbers.values()
        if norms:
            self._collapse.meet(spread_of(norms[0], norms[1], seen.rows))
        if math.isfinite(loss) and math.isfinite(norm):
            return 0
        self._bad = seen, f"the loss is {loss}, the norm of its gradient {norm}, at step {seen.step}"
        return dist.rank() + 1

    def _wrong(self, step: int) -> Iterator[str]:
        moments = [("the optimizer", part) for state in self._optimizer.state.values() for part in state.values()]
        for name, part in [*self._model.state_dict().items(), *moments]:
            if isinstance(part, Tensor) and part.is_floating_point() and not bool(part.isfinite().all()):
                yield f"{name} is not finite after step {step}"


class StepGuard(Guard):
    """That of pretraining: it keeps the batch of a bad step, and passes over ``skips`` such steps of a run."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        run: Run,
        paths: Sequence[str],
        skips: int,
    ) -> None:
        super().__init__(
            model, optimizer, "no checkpoint holds it; start again with a lower --optimizer.lr and --overwrite"
        )
        self._run, self._paths = run, paths
        self._left = skips - dist.on_first_rank(lambda: run.logged("skipped")) if skips else 0
        self._moved = list(moved_by_forward(model)) if skips else []
        self._waits = skips > 0
        self._began = self._norm()

    def step(self, step: int, work: Callable[[Batch], Outcome], batch: Batch) -> tuple[Outcome, bool]:
        """Forward and backward of a step, and whether it is sound on all ranks; else all is as it was before it.

        Raises Diverged where it may not be passed over.
        """
        before = [part.clone() for part in self._moved]
        outcome = work(batch)
        (rank,) = dist.largest([self.look(step, outcome.loss, batch, outcome.queries)])
        if rank:
            self.spoiled(int(rank))
            for part, was in zip(self._moved, before):
                part.copy_(was)
        return outcome, not rank

    def look(self, step: int, loss: Tensor, batch: Batch | None = None, query: Tensor | None = None) -> int:
        """As that of ``Guard``; says it once where features have collapsed."""
        bad = super().look(step, loss, batch, query) or (self._settle() if self._waits else 0)
        if said := self._collapse.said():
            self._run.note(said)
        return bad

    def spoiled(self, rank: int) -> None:
        """Keep the batch of the step. Raises Diverged unless it may be passed over."""
        told = self._told(rank)
        step = self._keep(rank, told)
        if self._left <= 0:
            names = f"its examples are named in {self._run.folder / BAD_STEP}.json"
            raise Diverged(f"{told}: {names}, --skip-bad-steps 10 passes over ten such steps; {self._advice}", BAD_DATA)
        self._left, self._bad = self._left - 1, None
        self._run.note(f"skipped a step, {self._left} more may be: {told}; its examples are named in {BAD_STEP}.json")
        self._run.log(step, skipped=1.0)

    def unsound(self, step: int, told: str) -> None:
        """As that of ``Guard``, but ``bad_step.json`` tells of it: no examples, since many steps have led there."""
        self._note({"what": told, "step": step, "rows": [], "examples": []})
        super().unsound(step, told)

    def _note(self, record: dict[str, object]) -> None:
        if self._run.writes:
            write_json(self._run.folder / f"{BAD_STEP}.json", record)

    def _norm(self) -> float:
        return float(nn.utils.get_total_norm([part.detach() for part in self._parameters]))

    def _wrong(self, step: int) -> Iterator[str]:
        """Weights that have run away, too; what is fitted may begin at zero, and its norm says nothing."""
        yield from super()._wrong(step)
        if (growth := self._norm() / max(self._began, 1.0)) > _RUNAWAY:
            yield f"the weights have run away, to {growth:.2g} times the norm that they began with, after step {step}"

    def _keep(self, rank: int, told: str) -> int:
        """``bad_step.json`` names the examples, ``bad_step.safetensors`` has the views that the rank made; the step."""
        content, about = b"", (0, list[int]())
        if self._bad is not None and (batch := self._bad[0].batch) is not None:
            views = {**_named("first", batch.first), **_named("second", batch.second)}
            content, about = save({"index": batch.index.cpu(), **views}), (self._bad[0].step, batch.index.tolist())
        content, (step, rows) = dist.bytes_of(content, rank - 1), dist.agree(about, rank - 1)
        if self._run.writes:
            names = [self._paths[row] for row in rows]
            self._note({"what": told, "step": step, "rows": rows, "examples": names})
            write_atomically(self._run.folder / f"{BAD_STEP}.safetensors", content)
        return step


class Collapse:
    """Watches how far apart the queries of a batch are, step by step."""

    def __init__(self) -> None:
        self._mean, self._alike, self._told = 1.0, 0, False

    def meet(self, spread: float) -> None:
        """One step: 1 where queries fill the sphere evenly, 0 where they are one point."""
        if math.isfinite(spread):
            self._mean += (spread - self._mean) / 10
            self._alike = self._alike + 1 if self._mean < _ALIKE else 0

    def said(self) -> str | None:
        """A line, the first time that they have been one point for fifty steps."""
        if self._told or self._alike < _PATIENCE:
            return None
        self._told = True
        return (
            f"the features have collapsed: for {_PATIENCE} steps all examples of a batch have been one point to the "
            f"network (spread {self._mean:.3f}; 1 is even): stop, and start again with a lower --optimizer.lr, "
            "less --optimizer.weight-decay or another objective"
        )


def spread_of(mean: float, norm: float, rows: int) -> float:
    """The deviation of ``rows`` of equal norm from their mean: 0 where they are one point, 1 where even.

    By the norm of their mean and that of all of them as one vector; NaN where they are no numbers.
    """
    return math.sqrt(max(0.0, 1 - rows * (mean / norm) ** 2)) if norm > 0 else math.nan


def moved_by_forward(model: nn.Module) -> Iterator[Tensor]:
    """The buffers that a forward pass may move: running statistics, not a dictionary, which ``advance`` moves."""
    for module in model.modules():
        if not isinstance(module, Dictionary):
            yield from module.buffers(recurse=False)


def _named(prefix: str, view: View) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": part.cpu().contiguous() for name, part in view.items()}
