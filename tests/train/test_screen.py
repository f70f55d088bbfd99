"""What is said where there is no terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lookalike.learn.dictionary import InBatch, MemoryBank, Neighbours, Queue
from lookalike.recipes import tiny
from lookalike.train.screen import Screen
from lookalike.train.watch import StepReport


def test_long_work_says_where_it_is_and_short_work_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen("detect") as screen:
        screen.work("fitting", 1, 9)
        assert capsys.readouterr().out == ""
        screen.next_work = 0.0  # a minute later
        screen.work("random, trial 1 of 3: fitting", 3, 9)
        screen.work("random, trial 1 of 3: fitting", 4, 9)
    assert capsys.readouterr().out == "random, trial 1 of 3: fitting 3/9\n"


def test_quiet_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen("prepare", quiet=True) as screen:
        screen.next_work = 0.0
        screen.work("decoding", 3, 9)
    assert capsys.readouterr().out == ""


def test_speed_is_told_in_what_the_rows_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen("simcse", rows="sentences") as screen:
        screen.step(StepReport(3, 9, 1.5, 2.0, {}, 70.4, 0.1, {}))
    assert capsys.readouterr().out == "step 3/9  70 sentences/s  loss 1.500 (chance 2.000)  0.0 min left\n"


def test_while_keys_are_random_their_numbers_are_not_shown_as_if_they_meant_something(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for filling, numbers in (
        (True, "(random keys left)  pixels 0.500"),
        (False, "(chance 2.000)  top1 1.000  pixels 0.500"),
    ):
        with Screen("moco") as screen:
            screen.step(StepReport(9, 9, 0.1, 2.0, {"top1": 1.0, "pixels": 0.5}, 70.4, 0.1, {}, filling))
        assert capsys.readouterr().out == f"step 9/9  70 pictures/s  loss 0.100 {numbers}\n"


def test_a_queue_has_filled_when_no_random_key_is_left() -> None:
    recipe = tiny.fitted(1000)
    for size, batch, views, steps in ((64, 32, 1, 2), (65, 32, 1, 3), (64, 32, 2, 1)):
        keys = replace(recipe.keys, symmetric=views == 2)
        trained = replace(recipe, dictionary=Queue(size), batch=batch, keys=keys)
        assert trained.filling(1000) == steps
        queue = trained.dictionary.build(8, 1000)
        random = queue.keys.clone()
        for _ in range(steps):
            assert bool((queue.keys == random).all(1).any())  # some random key is met
            rows = F.normalize(torch.randn(batch * views, 8), dim=1)
            queue.absorb(rows, rows, torch.arange(batch * views))
        assert not bool((queue.keys == random).all(1).any())
    assert replace(recipe, dictionary=Neighbours(64), batch=32, keys=keys).filling(1000) == 2
    assert replace(recipe, dictionary=InBatch()).filling(1000) == 0


def test_a_memory_bank_is_random_for_an_epoch() -> None:
    recipe = replace(tiny.fitted(1000), dictionary=MemoryBank(), batch=32)
    assert recipe.filling(100) == 3
    bank = recipe.dictionary.build(8, 100)
    random = bank.rows.clone()
    for step in range(3):
        assert bool((bank.rows == random).all(1)[32 * step :].all())
        rows = F.normalize(torch.randn(32, 8), dim=1)
        bank.absorb(rows, rows, torch.arange(32 * step, 32 * (step + 1)))
    assert int((bank.rows == random).all(1).sum()) == 4  # of the batch that an epoch has no room for
