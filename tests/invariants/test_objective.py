"""InfoNCE equals the plain cross-entropy, value and gradient, whatever the chunk, the type and the ignored entries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lookalike.learn.dictionary import Entries
from lookalike.learn.objective import InfoNCE, top1


def plain(query: torch.Tensor, entries: Entries, temperature: float) -> torch.Tensor:
    negative = query @ entries.negatives.T
    if entries.ignore is not None:
        negative = negative.masked_fill(entries.ignore, -torch.inf)
    logits = torch.cat([(query * entries.positive).sum(1, keepdim=True), negative], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def case(batch: int, size: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parts = [F.normalize(torch.randn(n, 16, generator=generator, dtype=dtype), dim=1) for n in (batch, batch, size)]
    return parts[0].requires_grad_(), parts[1].requires_grad_(), parts[2].requires_grad_()


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 9),
    size=st.integers(1, 50),
    chunk=st.integers(1, 60),
    temperature=st.sampled_from([0.01, 0.07, 0.2, 1.0]),
    masked=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_plain_cross_entropy(
    batch: int, size: int, chunk: int, temperature: float, masked: bool, wide: bool, seed: int
) -> None:
    query, key, negatives = case(batch, size, torch.float64 if wide else torch.float32, seed)
    ignore = torch.rand(batch, size, generator=torch.Generator().manual_seed(seed)) < 0.4 if masked else None
    entries = Entries(key, negatives, ignore)
    ours, expected = InfoNCE(temperature, chunk)(query, entries), plain(query, entries, temperature)
    # fp32: logits reach 1/τ = 100, whose last place is 8e-6.
    tolerance = 1e-10 if wide else 1e-5 * max(1.0, 0.1 / temperature)
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    inputs = (query, key, negatives)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=10 * tolerance, atol=10 * tolerance / temperature)


def test_everything_ignored_leaves_only_the_positive() -> None:
    query, key, negatives = case(3, 5, torch.float32, 0)
    loss = InfoNCE(0.1, chunk=2)(query, Entries(key, negatives, torch.ones(3, 5, dtype=torch.bool)))
    assert loss.item() == 0.0
    loss.backward()
    assert query.grad is not None
    assert bool(torch.isfinite(query.grad).all())


def test_queue_gets_no_gradient_unless_it_asks() -> None:
    query, key, negatives = case(4, 8, torch.float32, 1)
    frozen = negatives.detach()
    InfoNCE(0.1)(query, Entries(key.detach(), frozen)).backward()
    assert query.grad is not None
    assert frozen.grad is None


def test_bf16_products_keep_fp32_sums() -> None:
    query, key, negatives = case(32, 5000, torch.float32, 2)
    entries = Entries(key, negatives)
    with torch.autocast("cpu", torch.bfloat16):
        ours = InfoNCE(0.2, chunk=1000)(query, entries)
    assert ours.dtype == torch.float32
    # bf16 keeps 8 bits: each logit is off by up to 2^-8 of 1/τ = 5, and a mean over 5,000 is far closer.
    assert abs((ours - plain(query, entries, 0.2)).item()) < 0.02


def test_memory_does_not_hold_the_logits() -> None:
    query, key, negatives = case(8, 4096, torch.float32, 3)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        InfoNCE(0.1, chunk=256)(query, Entries(key.detach(), negatives.detach()))
    assert max(kept) == negatives.numel()  # the queue itself, by reference; no (B, K) tensor of 8 × 4096 logits beside
    assert 8 * 4096 not in kept


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_top1_counts_positives_above_all_negatives(chunk: int) -> None:
    query, key, negatives = (part.detach() for part in case(50, 20, torch.float32, 4))
    expected = ((query * key).sum(1) > (query @ negatives.T).amax(1)).float().mean()
    assert float(top1(query, Entries(key, negatives), chunk)) == float(expected)
