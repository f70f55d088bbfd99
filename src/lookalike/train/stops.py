"""What ends a run before its last step: Ctrl-C and SIGTERM, once the step is done, and numbers that are not finite."""

from __future__ import annotations

import math
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lookalike.core.devices import Later
from lookalike.core.errors import BAD_DATA, UserError

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """While open, the first signal is only noted in ``received``; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            self._before = {number: signal.signal(number, self._note) for number in _HANDLED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number


def leave(number: int) -> NoReturn:
    """End the process by what a signal asked for, once everything is saved."""
    print("stopped and saved; the same command with the same --out continues", file=sys.stderr)
    sys.exit(128 + number)


class Finite:
    """Ends a run before a loss or a gradient that is not a number reaches a checkpoint, with ``advice``.

    On a processor it is read before the weights move. A GPU is not waited for: there it is read one step late, and at
    once before a save.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, advice: str) -> None:
        self._model, self._optimizer, self._advice = model, optimizer, advice
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._pending: Later | None = None
        self._step = 0

    def check(self, loss: Tensor, step: int) -> None:
        """Look at the loss and the gradients of ``step``. Raises UserError."""
        norm = nn.utils.get_total_norm(p.grad for p in self._parameters if p.grad is not None)
        numbers = Later(torch.stack([loss.detach().to(norm.dtype), norm]))
        self.settle()
        self._pending, self._step = numbers, step
        if numbers.ready():
            self.settle()

    def check_state(self, step: int) -> None:
        """Look at the state after ``step``, which an update by finite numbers can make infinite. Raises UserError."""
        self.settle()
        moments = [("the optimizer", part) for state in self._optimizer.state.values() for part in state.values()]
        for name, part in [*self._model.state_dict().items(), *moments]:
            if isinstance(part, Tensor) and part.is_floating_point() and not bool(part.isfinite().all()):
                raise UserError(f"{name} is not finite after step {step}: {self._advice}", BAD_DATA)

    def settle(self) -> None:
        """Wait for what was looked at. Raises UserError."""
        loss, norm = self._pending.values() if self._pending is not None else (0.0, 0.0)
        self._pending = None
        if not math.isfinite(loss + norm):
            raise UserError(
                f"the loss is {loss}, the norm of its gradient {norm}, at step {self._step}: {self._advice}", BAD_DATA
            )
