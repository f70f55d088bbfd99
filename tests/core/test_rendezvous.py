"""Ranks that meet again in a store that an attempt which died has written to."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import DistStoreError, HashStore, Store

from lookalike.core.rendezvous import alive

SOON = timedelta(seconds=30)


def attempt(store: Store, number: int, delays: list[float]) -> list[bytes]:
    """Each rank comes after its delay, writes its address where it has met the others, and reads the first rank's."""

    def rank(r: int) -> bytes:
        time.sleep(delays[r])
        met = alive(store, r, len(delays), SOON)
        met.set(f"address of {r}", f"attempt {number}")
        return b", ".join(met.get(f"address of {other}") for other in range(len(delays)))

    with ThreadPoolExecutor(len(delays)) as pool:
        return list(pool.map(rank, range(len(delays))))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_no_rank_reads_what_an_earlier_attempt_has_left(late: int) -> None:
    store = HashStore()
    for number in range(3):
        delays = [0.1 if rank == late else 0.0 for rank in range(3)]
        assert attempt(store, number, delays) == [b", ".join([f"attempt {number}".encode()] * 3)] * 3


def test_a_rank_that_has_come_in_an_attempt_that_died_is_not_taken_for_one_of_today() -> None:
    store, patience = HashStore(), timedelta(seconds=0.3)
    with pytest.raises(DistStoreError, match="the first rank"):  # rank 1 says hello and waits for one that never comes
        alive(store, 1, 2, patience)
    with pytest.raises(DistStoreError, match="rank 1 did not come"):  # nobody confirms the hello that is read today
        alive(store, 0, 2, patience)
    assert attempt(store, 1, [0.0, 0.1]) == [b"attempt 1, attempt 1"] * 2
