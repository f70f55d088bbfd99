"""A step that a GPU repeats by itself: its forward and backward pass, recorded once as a CUDA graph.

A ResNet-50 step starts about 900 kernels, which took the host longer than the GPU took to run them (docs/results.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lookalike.core import dist
from lookalike.core.devices import device
from lookalike.learn.dictionary import InBatch, Queue
from lookalike.learn.labelled import Classes
from lookalike.learn.learner import Outcome
from lookalike.pretext.image import ViewPair
from lookalike.recipes.recipe import Recipe
from lookalike.types import Batch, View

GRAPHS = "LOOKALIKE_GRAPHS"
"""Environment variable: 0 has every kernel started anew, to look at one."""

_WARM = 3  # steps that are made as usual first: libraries start, and kernels are compiled

Work = Callable[[Batch], Outcome]


def repeated(work: Work, module: nn.Module, recipe: Recipe) -> Work:
    """``work``, which adds gradients to ``module``, or the same repeated by the GPU where that is the same."""
    return Replayed(work, module) if can_repeat(recipe) else work


def can_repeat(recipe: Recipe) -> bool:
    """Whether every step is the same kernels with the same numbers from the host, on tensors of the same shapes.

    Texts have other lengths each step, a bank that draws is told the step by the host, and ranks wait for each other.
    """
    pictures = isinstance(recipe.pretext, ViewPair) and isinstance(recipe.dictionary, Queue | InBatch | Classes)
    return pictures and device().type == "cuda" and dist.world() == 1 and os.environ.get(GRAPHS) != "0"


class Replayed:
    """What it gives is overwritten by the next call."""

    def __init__(self, work: Work, module: nn.Module) -> None:
        self._work, self._module = work, module
        # One stream for all: where gradients add up is decided by the stream of the pass that first met a parameter.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch) -> Outcome:
        """The outcome of a batch, whose gradients are in the module after it."""
        self._calls += 1
        if self._calls <= _WARM:
            return self._as_usual(batch)
        if self._graph is None:
            self._record(batch)
        assert self._graph is not None
        for static, part in zip(_parts(self._batch), _parts(batch)):
            static.copy_(part)
        self._graph.replay()
        for parameter, gradient in self._gradients:  # the loop has let go of them
            parameter.grad = gradient
        return self._outcome

    def _as_usual(self, batch: Batch) -> Outcome:
        using = torch.cuda.current_stream()
        self._stream.wait_stream(using)
        with torch.cuda.stream(self._stream):
            outcome = self._work(batch)
        using.wait_stream(self._stream)
        return outcome

    def _record(self, batch: Batch) -> None:
        """Nothing is computed: kernels are written down, with the memory that they use."""
        self._batch = Batch(batch.index.clone(), _copied(batch.first), _copied(batch.second))
        if batch.second is batch.first:
            self._batch = self._batch._replace(second=self._batch.first)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._outcome = self._work(self._batch)
        self._gradients = [(p, p.grad) for p in self._module.parameters() if p.grad is not None]
        self._graph = graph


def _copied(view: View) -> View:
    return {name: part.clone() for name, part in view.items()}


def _parts(batch: Batch) -> Iterator[Tensor]:
    """All tensors of a batch, each once."""
    yield batch.index
    yield from batch.first.values()
    if batch.second is not batch.first:
        yield from batch.second.values()
