"""Every objective over every dictionary equals its formula written out; what makes no sense is refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lookalike.core.errors import UserError
from lookalike.core.seeding import reseed
from lookalike.learn.dictionary import Dictionary, Entries, InBatch, MemoryBank, Neighbours, Queue
from lookalike.learn.keys import EndToEnd, Momentum, Stored
from lookalike.learn.learner import Learner
from lookalike.learn.objective import DCL, NCE, InfoNCE, Objective, PolyView, SupCon, top1
from lookalike.pretext.image import MOCO_CIFAR, OneView, TwoViews
from lookalike.recipes import RECIPES
from lookalike.recipes.images import small
from lookalike.recipes.recipe import Recipe, meaningless
from lookalike.recipes.serialize import from_plain, to_plain
from lookalike.types import Batch
from tests.invariants.test_learner import batch

B, D, N = 6, 8, 20
"""Queries, width, examples."""

DICTIONARIES = {
    "queue": Queue(11),
    "narrow queue": Queue(11, "bf16"),
    "batch": InBatch(),
    "batch and queries": InBatch(queries=True),
    "bank": MemoryBank(),
    "drawn bank": MemoryBank(draws=7),
    "neighbours": Neighbours(11),
}


def rows(count: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, D, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def listed(
    dictionary: str, state: Dictionary, query: Tensor, key: Tensor, index: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(who asks, positive, negatives) for each query, one after the other, from what the paper says."""
    if dictionary == "neighbours":
        stored = state.keys.to(key.dtype)
        near = [stored[(stored - k).square().sum(1).argmin()] for k in key]
        return [(near[i], query[i], torch.stack([query[j] for j in range(B) if j != i])) for i in range(B)]
    return [(query[i], *found) for i, found in enumerate(answers(dictionary, state, query, key, index))]


def answers(
    dictionary: str, state: Dictionary, query: Tensor, key: Tensor, index: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """(positive, negatives) of each query where it asks itself."""
    if "batch" in dictionary:
        others = [[key[j] for j in range(B) if j != i] for i in range(B)]
        if "queries" in dictionary:
            others = [some + [query[j] for j in range(B) if j != i] for i, some in enumerate(others)]
        return [(key[i], torch.stack(some)) for i, some in enumerate(others)]
    if dictionary == "bank":
        return [(key[i], torch.stack([state.rows[n] for n in range(N) if n != index[i]])) for i in range(B)]
    if dictionary == "drawn bank":
        drawn = gathered(state.look_up(query, key, index)).negatives
        known = state.rows.to(drawn.dtype)
        assert all(any(torch.equal(row, other) for other in known) for row in drawn.flatten(0, 1))
        return [(key[i], drawn[i]) for i in range(B)]
    return [(key[i], state.keys.to(query.dtype)) for i in range(B)]


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    scores = torch.cat([(query @ positive)[None], negatives @ query]) / 0.2
    return -torch.log(scores.exp()[0] / scores.exp().sum())


def dcl(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    return -torch.log((query @ positive / 0.2).exp() / (negatives @ query / 0.2).exp().sum())


SCORES: dict[str, tuple[Objective, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "InfoNCE": (InfoNCE(0.2, chunk=3), info_nce),
    "DCL": (DCL(0.2, chunk=3), dcl),
}


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dictionary", DICTIONARIES)
@pytest.mark.parametrize("objective", SCORES)
def test_an_objective_over_a_dictionary_is_its_formula(objective: str, dictionary: str, wide: bool) -> None:
    dtype = torch.float64 if wide else torch.float32
    query, key = rows(B, 1, dtype).requires_grad_(), rows(B, 2, dtype).requires_grad_()
    reseed(3)
    state = DICTIONARIES[dictionary].build(D, N)
    state = state if "narrow" in dictionary else state.to(dtype)
    index = torch.tensor([3, 19, 0, 7, 8, 4])
    ours, formula = SCORES[objective]
    found = ours(query, state.look_up(query, key, index))
    expected = torch.stack([formula(*some) for some in listed(dictionary, state, query, key, index)]).mean()
    tolerance = 1e-10 if wide else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    grads = [torch.autograd.grad(loss, (query, key), allow_unused=True) for loss in (found, expected)]
    for mine, theirs in zip(*grads):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("dictionary", ["queue", "drawn bank"])
def test_nce_is_its_formula_with_z_of_the_first_batch(dictionary: str) -> None:
    """InstDisc, equations 3 to 8: noise 1/N, exp(s/τ)/Z, and Z the mean of exp over the first batch, times N."""
    reseed(3)
    state, nce = DICTIONARIES[dictionary].build(D, N).double(), NCE(0.2).build(N).double()
    kept: float | None = None
    for step in range(3):
        query, key = rows(B, 10 + step, torch.float64).requires_grad_(), rows(B, 20 + step, torch.float64)
        index = torch.arange(B)
        entries = state.look_up(query, key, index)
        asked = listed(dictionary, state, query, key, index)
        scores = torch.stack([(torch.cat([p[None], n]) @ q / 0.2).exp() for q, p, n in asked])
        kept = kept or float(scores.detach().mean()) * N
        p, noise = scores / kept, (scores.shape[1] - 1) / N
        expected = -(torch.log(p[:, 0] / (p[:, 0] + noise)) + torch.log(noise / (p[:, 1:] + noise)).sum(1)).mean()
        found = nce(query, entries)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        mine, theirs = (torch.autograd.grad(loss, query)[0] for loss in (found, expected))
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
        nce.settle(query, entries)
        state.absorb(query.detach(), key, index)


def test_nce_over_all_others_with_the_exact_z_has_the_gradient_of_the_full_softmax_in_the_limit_of_its_noise() -> None:
    """Gutmann & Hyvarinen 2012, theorem 1: with k noise samples the two gradients meet as k grows."""
    query, positive = rows(B, 1, torch.float64).requires_grad_(), rows(B, 2, torch.float64)
    others = rows(N - 1, 3, torch.float64)
    scores = torch.cat([(query * positive).sum(1, keepdim=True), query @ others.T], 1) / 0.2
    softmax = -F.log_softmax(scores, 1)[:, 0].mean()
    log_z = torch.logsumexp(scores.detach(), 1)[:, None]
    errors = []
    for copies in (1, 10, 100):  # every instance drawn so often
        noise = torch.cat([positive[:, None], others.expand(B, -1, -1)], 1).repeat(1, copies, 1)
        losses = [
            NCE(0.2).loss(q[None], Entries(p[None], n[None]), N, z) for q, p, n, z in zip(query, positive, noise, log_z)
        ]
        grads = [
            torch.autograd.grad(loss, query, retain_graph=True)[0] for loss in (torch.stack(losses).mean(), softmax)
        ]
        errors.append(float((grads[0] - grads[1]).norm() / grads[1].norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


@settings(max_examples=25, deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=B, max_size=B), seed=st.integers(0, 9))
def test_supervised_contrast_is_its_formula(labels: list[int], seed: int) -> None:
    """Equation 2 over the 2B views of a batch, as the sum over both directions at weight one half."""
    first, second = (rows(B, 2 * seed + i, torch.float64).requires_grad_() for i in range(2))
    views, label = torch.cat([first, second]), torch.tensor(labels).repeat(2)
    logits = (views @ views.T / 0.1).masked_fill(torch.eye(2 * B, dtype=torch.bool), -torch.inf)
    log_p = logits - logits.logsumexp(1, keepdim=True)
    alike = (label[:, None] == label) & ~torch.eye(2 * B, dtype=torch.bool)
    expected = -(log_p.masked_fill(~alike, 0).sum(1) / alike.sum(1)).mean()
    batch, index = InBatch(queries=True).build(D, N), torch.tensor(labels)
    found = sum(SupCon(0.1, weight=0.5)(q, batch.look_up(q, k, index)) for q, k in ((first, second), (second, first)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    grads = [torch.autograd.grad(loss, (first, second)) for loss in (found, expected)]
    for mine, theirs in zip(*grads):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def nnclr() -> Learner:
    """The recipe's learner in double precision, with a network of a few thousand weights."""
    recipe = RECIPES["small_nnclr"].fitted(1000, 16)
    model = replace(recipe.model, widths=(4, 8), blocks=(1, 1))
    head, predictor = replace(recipe.head, widths=(12, 12, 8)), replace(recipe.predictor, widths=(12, 8))
    made = replace(recipe, model=model, head=head, predictor=predictor, dictionary=Neighbours(40), whiten=False)
    return replace(made, batch=16, group=8).build(1000).double().train()


def doubled(step: int = 0) -> Batch:
    given_batch = batch(step)
    views = ({name: part.double() for name, part in view.items()} for view in (given_batch.first, given_batch.second))
    return Batch(given_batch.index, *views)


def test_nnclr_is_its_published_loss_and_gradient_in_both_directions() -> None:
    """Equation 3 with the predictions of the batch, half of each direction, as solo-learn and lightly have it."""
    learner, given_batch = nnclr(), doubled()
    found = learner(given_batch)
    encoder, queue = learner.encoder, learner.dictionary.keys
    z1, z2 = (encoder.project(**view) for view in (given_batch.first, given_batch.second))
    p1, p2 = (F.normalize(learner.predictor(z), dim=1) for z in (z1, z2))
    near1, near2 = (queue[torch.cdist(F.normalize(z, dim=1), queue).argmin(1)] for z in (z1, z2))
    each = torch.arange(len(z1))
    directions = [F.cross_entropy(near @ p.T / 0.1, each) for near, p in ((near2, p1), (near1, p2))]
    parameters = [*encoder.parameters(), *learner.predictor.parameters()]
    for n, expected in enumerate(directions):
        query, entries = found.pairs[n][0], found.entries[n]
        compare(learner.objective(query, entries), 0.5 * expected, parameters)
    compare(found.loss, 0.5 * sum(directions), parameters)


def compare(found: Tensor, expected: Tensor, parameters: list[nn.Parameter]) -> None:
    """Values and gradients to rounding in double precision."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (found, expected)]
    mine, theirs = (torch.cat([part.flatten() for part in grad]) for grad in grads)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert float(F.cosine_similarity(mine, theirs, dim=0)) == pytest.approx(1, abs=1e-12)


def test_of_a_symmetric_step_one_view_of_each_example_enters_the_queue_that_is_searched() -> None:
    learner = nnclr()
    for step in range(3):
        outcome = learner(doubled(step))
        learner.advance(outcome, doubled(step), 0.0)
    assert int(learner.dictionary.oldest) == 3 * 16 % 40
    keys = [key.detach() for _, key in outcome.pairs]
    held = [float((key @ learner.dictionary.keys.T).amax(1).min()) for key in keys]
    assert held[0] == pytest.approx(1, abs=1e-12)
    assert held[1] < 0.9999


def test_the_nearest_is_found_in_full_precision_whatever_the_context() -> None:
    """Each row is nearest to itself, by far less than a step of bf16 (4e-3) and more than one of fp32 (6e-8)."""
    queue = Neighbours(300).build(D, 1000)
    queue.keys.copy_(F.normalize(1 + 0.03 * rows(300, 1, torch.float32), dim=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert float((queue.keys @ queue.keys.T).argmax(1).eq(torch.arange(300)).float().mean()) < 0.5
        assert torch.equal(queue.nearest(queue.keys), queue.keys)


def test_a_bank_row_moves_toward_its_key_and_no_other_row_moves() -> None:
    bank = MemoryBank(momentum=0.5).build(D, N).double()
    before, key, index = bank.rows.clone(), rows(3, 1, torch.float64), torch.tensor([4, 17, 2])
    bank.absorb(key, key, index)
    torch.testing.assert_close(bank.rows[index], F.normalize(0.5 * before[index] + 0.5 * key, dim=1))
    rest = [n for n in range(N) if n not in index]
    assert torch.equal(bank.rows[rest], before[rest])
    still = MemoryBank(momentum=1.0).build(D, N).double()
    before = still.rows.clone()
    still.absorb(key, key, index)
    torch.testing.assert_close(still.rows, before, rtol=0, atol=1e-7)  # they were normalised in fp32, now in fp64


def gathered(entries: Entries) -> Entries:
    """With rows (B, K, D) of their own in the place of the numbers of those that were drawn."""
    return (
        entries if entries.drawn is None else entries._replace(negatives=entries.negatives[entries.drawn], drawn=None)
    )


def test_a_bank_draws_the_same_for_the_same_step_and_row_whatever_else_is_in_the_batch() -> None:
    bank = MemoryBank(draws=50).build(D, N)
    reseed(0, 7)
    query = rows(4, 1, torch.float32)
    all_four = gathered(bank.look_up(query, query, torch.tensor([5, 1, 9, 2]))).negatives
    two = gathered(bank.look_up(query[1:3], query[1:3], torch.tensor([1, 9]))).negatives
    assert torch.equal(all_four[1:3], two)
    reseed(0, 8)
    assert not torch.equal(all_four, gathered(bank.look_up(query, query, torch.tensor([5, 1, 9, 2]))).negatives)
    assert {tuple(row.tolist()) for row in all_four.flatten(0, 1)} == {tuple(row.tolist()) for row in bank.rows}


def test_drawn_rows_are_scored_by_products_with_all_rows_as_with_rows_of_their_own() -> None:
    bank, nce = MemoryBank(draws=50).build(D, N).double(), NCE(0.2).build(N).double()
    query, key, index = rows(4, 1, torch.float64).requires_grad_(), rows(4, 2, torch.float64), torch.arange(4)
    entries = bank.look_up(query, key, index)
    assert entries.negatives is bank.rows
    assert entries.per_query == gathered(entries).per_query == 50
    assert top1(query, entries) == top1(query, gathered(entries))
    for objective in (nce, InfoNCE(0.2), DCL(0.2)):
        found = [objective(query, some) for some in (entries, gathered(entries))]
        torch.testing.assert_close(*found, rtol=1e-12, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(loss, query)[0] for loss in found), rtol=1e-11, atol=1e-13)
    few = MemoryBank(draws=1).build(D, 33)  # more rows than are worth it
    assert few.look_up(query, key, index).negatives.shape == (4, 1, D)


@pytest.mark.parametrize("draws", [None, 7])
def test_the_neighbours_of_a_row_are_positives_as_labels_would_make_them(draws: int | None) -> None:
    bank = MemoryBank(draws=draws, filled=True, neighbours=3).build(D, N).double()
    kept, query, index = rows(N, 1, torch.float64), rows(4, 2, torch.float64), torch.tensor([5, 1, 9, 2])
    bank.fill(kept)
    near = (kept @ kept.T).fill_diagonal_(-2).topk(3).indices
    assert torch.equal(bank.near, torch.cat([torch.arange(N)[:, None], near], 1))
    entries = bank.look_up(query, bank.stored(index), index)
    pull = (query * kept[bank.near[index]].mean(1)).sum(1)
    own, others = (query * kept[index]).sum(1), query @ gathered(entries).negatives.mT
    scores = others if draws is None else others[torch.arange(4), torch.arange(4)]
    kept_out = scores.masked_fill(entries.ignore, -torch.inf) if entries.ignore is not None else scores
    total = torch.cat([own[:, None], kept_out], 1).div(0.1).logsumexp(1)
    expected = (total - pull / 0.1).mean()
    torch.testing.assert_close(InfoNCE(0.1)(query, entries), expected)
    if draws is None:  # supervised contrast over the whole bank, where labels say the same
        alike = torch.zeros(4, N, dtype=torch.bool).scatter_(1, near[index], True)
        labelled = entries._replace(alike=alike, ignore=entries.ignore | alike, target=None)
        torch.testing.assert_close(SupCon(0.1)(query, labelled), expected)


def test_stored_keys_are_the_rows_and_the_query_is_what_is_kept() -> None:
    recipe = replace(RECIPES["small_instdisc_softmax"].fitted(1000, 32), whiten=False)
    learner = recipe.build(1000).train()
    given_batch = batch()
    outcome = learner(given_batch)
    before = learner.dictionary.rows.clone()
    ((query, key),) = outcome.pairs
    assert torch.equal(key, before[given_batch.index])
    learner.advance(outcome, given_batch, 0.0)
    expected = F.normalize(0.5 * before[given_batch.index] + 0.5 * query.detach(), dim=1)
    torch.testing.assert_close(learner.dictionary.rows[given_batch.index], expected)


def test_a_rising_momentum_ends_at_one_and_a_fixed_one_stays() -> None:
    rising = Momentum(0.99, rising=True)
    assert [round(rising.at(p), 6) for p in (0.0, 0.5, 1.0)] == [0.99, 0.995, 1.0]
    assert [Momentum(0.99).at(p) for p in (0.0, 1.0)] == [0.99, 0.99]


def test_several_pairs_of_views_are_positives_of_each_other_and_no_negatives() -> None:
    """Every ordered pair of views of an example by the formula of InfoNCE, with all views of other examples."""
    views = [rows(B, seed, torch.float64).requires_grad_() for seed in range(6)]
    losses = []
    for example in range(B):
        own = [view[example] for view in views]
        others = torch.cat([torch.cat([view[:example], view[example + 1 :]]) for view in views])
        losses += [info_nce(query, key, others) for query in own for key in own if key is not query]
    first, second, index = torch.cat(views[::2]), torch.cat(views[1::2]), torch.arange(B).repeat(3)
    batch, objective = InBatch(queries=True).build(D, N), PolyView(0.2, weight=0.5)
    found = sum(objective(q, batch.look_up(q, k, index)) for q, k in ((first, second), (second, first)))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    grads = [torch.autograd.grad(loss, views) for loss in (found, expected)]
    for mine, theirs in zip(*grads):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    plain = batch.look_up(first[:B], second[:B], torch.arange(B))
    torch.testing.assert_close(PolyView(0.2)(first[:B], plain), InfoNCE(0.2)(first[:B], plain))


def test_guessing_with_several_pairs_is_among_all_views_of_other_pictures() -> None:
    recipe = RECIPES["small_simclr"].fitted(50_000, 32)
    others = 2 * recipe.pairs * (recipe.batch - 1)
    assert recipe.pairs > 1
    assert recipe.chance_loss(50_000) == pytest.approx(math.log(others + 1))


def test_guesses_are_what_equal_scores_cost() -> None:
    same = torch.ones(B, D, dtype=torch.float64) / math.sqrt(D)
    entries = Entries(same, same[:1].expand(11, -1))
    for objective in (InfoNCE(0.1), DCL(0.1, weight=2.0), NCE(0.1)):
        assert float(objective(same, entries)) == pytest.approx(objective.chance_loss(11))
    supervised = Entries(same, same[:1].expand(11, -1), *(torch.zeros(B, 11, dtype=torch.bool) for _ in range(2)))
    assert float(SupCon(0.1)(same, supervised)) == pytest.approx(SupCon(0.1).chance_loss(11))


BASE = small
NONSENSE: dict[str, Recipe] = {
    "stored keys are rows of a memory bank": replace(BASE, keys=Stored()),
    "one view a step": replace(BASE, pretext=OneView(MOCO_CIFAR)),
    "must know the labels": replace(BASE, objective=SupCon()),
    "several positives of a query": replace(BASE, objective=PolyView()),
    "several pairs of views": replace(BASE, pretext=TwoViews(MOCO_CIFAR, pairs=2)),
    "too long to sum": replace(BASE, dictionary=MemoryBank(), objective=NCE()),
    "neighbours are those of a start": replace(BASE, dictionary=MemoryBank(neighbours=3)),
    "InfoNCE alone takes them": replace(BASE, dictionary=MemoryBank(filled=True, neighbours=3), objective=DCL()),
    "cannot be compared": replace(BASE, predictor=replace(BASE.head, widths=(64,))),
    "slices need entries": replace(BASE, keys=EndToEnd(), slices=2),
    "the Z of NCE": replace(BASE, dictionary=MemoryBank(draws=8), objective=NCE(), slices=2),
}


@pytest.mark.parametrize("words", NONSENSE)
def test_what_makes_no_sense_is_refused_in_words(words: str) -> None:
    with pytest.raises(UserError, match=words):
        NONSENSE[words].build(50_000)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_sense_and_is_a_value_that_json_keeps(name: str) -> None:
    recipe = RECIPES[name].fitted(50_000, 32)
    assert meaningless(recipe) is None
    assert from_plain(to_plain(recipe)) == recipe


def test_every_mechanism_goes_with_every_objective_that_can_be_built() -> None:
    """Three kinds of keys, five dictionaries, five objectives: each either trains or is refused with a reason."""
    built = refused = 0
    for keys in (Momentum(0.9), Momentum(0.9, symmetric=True), EndToEnd(), EndToEnd(False), Stored()):
        for dictionary in (Queue(9), InBatch(), InBatch(True), MemoryBank(), MemoryBank(draws=5), Neighbours(9)):
            for objective in (InfoNCE(), DCL(), PolyView(), SupCon(), NCE()):
                recipe = replace(tiny_recipe(), keys=keys, dictionary=dictionary, objective=objective)
                if meaningless(recipe):
                    refused += 1
                    continue
                built += 1
                learner = recipe.build(30).train()
                learner.labels = torch.arange(30) % 3
                data = batch(size=8)
                data = data._replace(index=data.index % 30)
                outcome = learner(data)
                outcome.loss.backward()
                assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learner.encoder.parameters())
                learner.advance(outcome, data, 0.5)
    assert built > 60
    assert refused > 30


def tiny_recipe() -> Recipe:
    recipe = RECIPES["tiny"].fitted(64, 16)
    return replace(recipe, model=replace(recipe.model, widths=(4, 8)), head=replace(recipe.head, widths=(8,)), group=4)
