"""The queue: unit rows from step 0, first in first out across any wrap, in the checkpoint, no key its own negative."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lookalike.learn.dictionary import Queue
from lookalike.learn.objective import InfoNCE


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).float()


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_first_in_first_out_across_any_wrap(size: int, lengths: list[int]) -> None:
    queue = Queue(size).build(8, 1000)
    history = list(queue.keys.clone())
    for length in lengths:
        keys = unit(length, 8)
        queue.absorb(keys, keys, torch.arange(length))
        history += list(keys)
        oldest = int(queue.oldest)
        in_order = torch.cat([queue.keys[oldest:], queue.keys[:oldest]])
        assert torch.equal(in_order, torch.stack(history[-size:]))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 20), wait=st.integers(0, 20), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_a_key_is_scored_once_so_many_newer_ones_have_come(size: int, wait: int, lengths: list[int]) -> None:
    queue = Queue(size, wait=wait).build(8, 1000)
    history = list(queue.keys.clone())
    for length in lengths:
        keys = unit(length, 8)
        queue.absorb(keys, keys, torch.arange(length))
        history += list(keys)
        scored = queue.look_up(keys, keys, torch.arange(length)).negatives
        start = 0 if wait else int(queue.oldest)  # without a wait they are not put in order
        in_order = torch.cat([scored[start:], scored[:start]])
        assert torch.equal(in_order, torch.stack(history[-size - wait : len(history) - wait]))


def test_rows_have_unit_norm_from_step_0() -> None:
    queue = Queue(1000).build(128, 10_000)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(1000), rtol=0, atol=1e-6)


def test_random_unit_keys_give_a_first_loss_of_log_k_plus_1() -> None:
    # With dim 2048 and temperature 1 cosines are near 0, so every logit is; the rest is (E[s²])/2 = 1/4096.
    queue = Queue(4096).build(2048, 100_000)
    query, key = unit(64, 2048), unit(64, 2048)
    loss = InfoNCE(1.0)(query, queue.look_up(query, key, torch.arange(64)))
    assert abs(float(loss) - math.log(4097)) < 0.01


def test_a_key_is_never_among_its_own_negatives() -> None:
    queue = Queue(64).build(16, 1000)
    for step in range(10):
        keys = unit(16, 16)
        entries = queue.look_up(keys, keys, torch.arange(16))
        # All 64 negatives are other vectors: none has cosine 1 with a key of this step.
        assert float((keys @ entries.negatives.T).max()) < 0.9999
        queue.absorb(keys, keys, torch.arange(16) + 16 * step)
        assert float((keys @ queue.keys.T).max()) > 0.9999


def test_look_up_changes_nothing() -> None:
    queue = Queue(32).build(8, 100)
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    keys = unit(4, 8)
    queue.look_up(keys, keys, torch.arange(4))
    assert all(torch.equal(before[name], value) for name, value in queue.state_dict().items())


def test_the_state_is_in_the_state_dict() -> None:
    queue = Queue(10).build(4, 100)
    queue.absorb(unit(7, 4), unit(7, 4), torch.arange(7))
    other = Queue(10).build(4, 100)
    other.load_state_dict(queue.state_dict())
    assert set(queue.state_dict()) == {"keys", "oldest"}
    assert torch.equal(other.keys, queue.keys)
    assert int(other.oldest) == 7


@given(size=st.integers(1, 10**6), wait=st.integers(0, 10**6), examples=st.integers(2, 10**6))
def test_a_fitted_queue_is_never_longer_than_half_the_data(size: int, wait: int, examples: int) -> None:
    fitted = Queue(size, wait=wait).fitted(examples)
    assert fitted.size == min(size, examples // 2)
    assert fitted.wait == min(wait, examples // 2 - fitted.size)
