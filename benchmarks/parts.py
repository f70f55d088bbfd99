"""Which part of a step runs: marks around the package's own functions, put there from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch

from lookalike.learn.dictionary import Dictionary
from lookalike.learn.keys import MomentumKeys
from lookalike.learn.learner import Learner
from lookalike.learn.objective import Objective
from lookalike.models.decoder import PatchDecoder
from lookalike.models.encoder import Encoder
from lookalike.pretext.image import ViewPair

Mark = Callable[[str], AbstractContextManager[object]]

PARTS = ("views", "encoder", "keys", "objective", "backward", "optimizer", "advance", "loop")
"""In the order of a step: ``keys`` are those of the twin, ``loop`` is what belongs to no other part."""


def kinds(base: type) -> list[type]:
    """A class and all that derive from it."""
    return [base, *(kind for below in base.__subclasses__() for kind in kinds(below))]


def places() -> list[tuple[Any, str, str]]:
    """Owner, name and part of every function that begins a part; a name that is not there is left out."""
    named: list[tuple[Any, str, str]] = [
        *((kind, "__call__", "views") for kind in kinds(ViewPair)),
        *((Encoder, name, "encoder") for name in ("project", "tokens", "project_tokens")),
        (MomentumKeys, "precomputed", "keys"),
        *((kind, "__call__", "objective") for kind in kinds(Objective)),
        *((kind, "look_up", "objective") for kind in kinds(Dictionary)),
        (PatchDecoder, "forward", "objective"),
        (torch.Tensor, "backward", "backward"),
        *((kind, name, "optimizer") for kind in kinds(torch.optim.Optimizer) for name in ("step", "zero_grad")),
        (Learner, "advance", "advance"),
    ]
    return [(owner, name, part) for owner, name, part in named if name in vars(owner)]


@contextmanager
def marked(mark: Mark) -> Iterator[None]:
    """Inside, every part of a step runs within ``mark(part)``; the outermost wins, as keys that call an encoder."""
    state = threading.local()

    def around(found: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(found)
        def marking(*arguments: Any, **named: Any) -> Any:
            if getattr(state, "inside", False):
                return found(*arguments, **named)
            state.inside = True
            try:
                with mark(part):
                    return found(*arguments, **named)
            finally:
                state.inside = False

        return marking

    with ExitStack() as stack:
        for owner, name, part in places():
            stack.enter_context(patch.object(owner, name, around(vars(owner)[name], part)))
        yield
