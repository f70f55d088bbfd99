"""Memory for batches is used again when nobody holds what was in it, and never sooner."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lookalike.data.prepared import _BATCHES, _Room

HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "the tensor": lambda batch: batch,
    "a view": lambda batch: batch.view(2, 2, 3)[1, :, 0],
    "its storage": lambda batch: batch.untyped_storage(),
    "an array": lambda batch: batch.numpy(),
    "a slice of an array": lambda batch: batch.numpy()[1:, :2],
    "a tensor of a slice of an array": lambda batch: torch.from_numpy(batch.numpy()[1:]),
    "a buffer": lambda batch: memoryview(batch.numpy())[1:],
    "a graph": lambda batch: torch.ones(6, requires_grad=True) * batch.view(torch.uint8),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_memory_is_used_again_when_nobody_holds_the_batch(name: str) -> None:
    room = _Room()
    batch = room.of(2, 6)
    place = batch.data_ptr()
    held = HOLDERS[name](batch)
    del batch
    other = room.of(2, 6)
    if name != "a graph":  # whose product is a tensor of its own
        assert other.data_ptr() != place
    del held
    gc.collect()
    assert room.of(2, 6).data_ptr() == place


def test_a_batch_keeps_what_was_written_while_others_come_and_go() -> None:
    room = _Room()
    batches = [room.of(4, 3).fill_(i) for i in range(2 * _BATCHES)]
    kept = batches[::2]
    del batches
    for i in range(3 * _BATCHES):
        room.of(4, 3).fill_(100 + i)
    assert [batch.unique().tolist() for batch in kept] == [[i] for i in range(0, 2 * _BATCHES, 2)]


def test_only_so_much_is_kept_and_of_one_size() -> None:
    room = _Room()
    batches = [room.of(4, 3) for _ in range(3 * _BATCHES)]
    del batches
    gc.collect()
    assert len(room._free) == _BATCHES
    room.of(5, 3)  # a last batch that is shorter, say
    gc.collect()
    assert [len(memory) for memory in room._free] == [15]
