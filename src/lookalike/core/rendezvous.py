"""The rendezvous of the ranks of one attempt of a run.

torchrun keeps one store for all attempts (observed in torch 2.14). What an attempt that died has written there is read
by the next one: a rank that starts sooner than its peer dials the address of a dead process, and its group fails or
waits for ever. So ranks first agree on a name that no earlier attempt can know, and keep their keys under it.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import PrefixStore, Store

POLL = 0.02  # seconds between two looks


def alive(store: Store, rank: int, world: int, patience: timedelta) -> PrefixStore:
    """The part of the store that the ``world`` ranks of this attempt share, and nobody else.

    Each rank writes a token of its own. The first rank proposes a name together with the tokens it has read, again and
    again, until all have accepted; another rank accepts the proposal that has its token of this attempt. Raises
    ``DistStoreError`` where one does not come within ``patience``.
    """
    store = PrefixStore("lookalike", store)
    store.set_timeout(patience)
    own, limit = uuid4().hex, time.monotonic() + patience.total_seconds()
    name = _propose(store, own, world, limit) if rank == 0 else _accept(store, own, rank, limit)
    return PrefixStore(name, store)


def _propose(store: Store, name: str, world: int, limit: float) -> str:
    while True:
        tokens = [store.get(f"hello {rank}").decode() for rank in range(1, world)]
        store.set("proposal", json.dumps([name, tokens]))
        if store.check([f"{name} {token}" for token in tokens]):
            return name
        _pause(limit)


def _accept(store: Store, token: str, rank: int, limit: float) -> str:
    store.set(f"hello {rank}", token)
    while True:
        name, tokens = json.loads(store.get("proposal"))
        if tokens[rank - 1 : rank] == [token]:
            store.set(f"{name} {token}", "accepted")
            return str(name)
        _pause(limit)


def _pause(limit: float) -> None:
    if time.monotonic() > limit:
        raise DistStoreError("another rank did not come")
    time.sleep(POLL)
