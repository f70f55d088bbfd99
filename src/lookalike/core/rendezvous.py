"""The rendezvous of the ranks of one attempt of a run, and the signs of life that they give each other after it.

torchrun keeps one store for all attempts (observed in torch 2.14). What an attempt that died has written there is read
by the next one: a rank that starts sooner than its peer dials the address of a dead process, and its group fails or
waits for ever. So ranks first agree on a name that no earlier attempt can know, and keep their keys under it.

A collective waits as long as the first rank evaluates, say, so how long it takes tells nothing. That a rank is alive is
told by a thread of its own, which a stopped process does not have either. That thread also sees where the main thread
hangs in a read that no worker does.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import PrefixStore, Store

from lookalike.core.errors import IO, UserError
from lookalike.core.waiting import Hang, Process, end_at_once

POLL = 0.02  # seconds between two looks
_BEAT = 1.0  # seconds between two signs of life, which take a rank four requests
_GRACE = 5.0  # seconds that a process has to leave in order where another one has ended

CONTINUE = "the last checkpoint is whole; the same command continues, and torchrun --max-restarts=3 does so by itself"


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
        tokens = [_come(store, rank, limit) for rank in range(1, world)]
        store.set("proposal", json.dumps([name, tokens]))
        if store.check([f"{name} {token}" for token in tokens]):
            return name
        late = [rank for rank, token in enumerate(tokens, 1) if not store.check([f"{name} {token}"])]
        _pause(limit, f"rank {', '.join(map(str, late))}")


def _come(store: Store, rank: int, limit: float) -> str:
    """The token of a rank, waited for."""
    while not store.check([f"hello {rank}"]):
        _pause(limit, f"rank {rank}")
    return store.get(f"hello {rank}").decode()


def _accept(store: Store, token: str, rank: int, limit: float) -> str:
    store.set(f"hello {rank}", token)
    while True:
        name, tokens = json.loads(store.get("proposal")) if store.check(["proposal"]) else ("", [])
        if tokens[rank - 1 : rank] == [token]:
            store.set(f"{name} {token}", "accepted")
            return str(name)
        _pause(limit, "the first rank, or another one,")


def _pause(limit: float, who: str) -> None:
    if time.monotonic() > limit:
        raise DistStoreError(f"{who} did not come")
    time.sleep(POLL)


# ---- after it ----


class Lost(UserError):
    """Another rank is not there any more: a consequence, of which no rank is told."""


class Verdict(NamedTuple):
    """Why the run ends on every rank, as one of them has found; ``process`` is what does not answer, if that is why."""

    words: str
    code: int
    process: Process | None = None


class Heartbeat:
    """Tells the other ranks that this one lives, and ends this process where another one does not; a context manager.

    Each rank looks at the next one alone and at the verdict of all, so a beat costs as much of a thousand ranks as of
    two. After an error of another rank the main thread leaves by itself, since its collective fails; one that does not
    is ended.
    """

    def __init__(self, store: Store, rank: int, world: int, patience: float, doing: Callable[[], str]) -> None:
        """``store`` is a connection that nothing else waits for. ``doing`` says where this rank is."""
        self._store, self._rank, self._world, self._patience, self._doing = store, rank, world, patience, doing
        self._every, self._own = min(_BEAT, patience / 10), Process.own()
        self.verdict: Verdict | None = None
        self._since = self._heard = time.monotonic()  # of the verdict, of the next rank
        self._asked: float | None = None  # since when the store does not answer
        self._next, self._last = (rank + 1) % world, list[Any]()
        self._leaving, self._left = threading.Event(), threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._beats.start()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Leave; what this rank leaves for, the others do, too."""
        if error is not None and not isinstance(error, Lost | SystemExit) and self.verdict is None:
            words, code = f"ended by {type(error).__name__}: {error}", IO
            if isinstance(error, UserError):
                words, code = str(error), error.code
            self._judge(Verdict(f"rank {self._rank} on {self._own.host}: {words}", code))
        self._leaving.set()
        self._beats.join()
        with suppress(RuntimeError):  # the store is gone
            self._tell(left=True)
        self._left.set()

    def reason(self) -> tuple[str, int] | None:
        """Why a rank is gone, in words and as an exit code: what it said, or that it is no process any more."""
        limit, died = time.monotonic() + 3 * self._every, None
        while self.verdict is None and time.monotonic() < limit and not (died := self._died()):
            time.sleep(POLL)
        if self.verdict is not None:
            return self.verdict.words, self.verdict.code
        return (f"{died} has died: {CONTINUE}", IO) if died else None

    def _died(self) -> str | None:
        """A rank on this machine whose process has ended without a word."""
        with suppress(RuntimeError):  # of a store that is gone
            for rank, beat in enumerate(self._store.multi_get([f"beat {rank}" for rank in range(self._world)])):
                _, _, process, left = json.loads(beat)
                if not left and Process(*process).ended():
                    return f"rank {rank} ({Process(*process)})"
        return None

    def _beat(self) -> None:
        count = 0
        while not self._leaving.is_set():
            self._asked = self._asked or time.monotonic()
            with suppress(RuntimeError):  # of a store that is gone: it does not answer either
                self._tell(count := count + 1)
                self._listen()
                self._asked = None
            self._leaving.wait(self._every)

    def _tell(self, count: int = 0, left: bool = False) -> None:
        """Give a sign of life; the verdict of this rank becomes that of all, unless they have one."""
        self._store.set(f"beat {self._rank}", json.dumps([count, self._doing(), self._own, left]))
        found = self._store.compare_set("verdict", "", json.dumps(self.verdict) if self.verdict else "")
        if found:
            words, code, process = json.loads(found)
            self._judge(Verdict(words, code, Process(*process) if process else None))

    def _listen(self) -> None:
        """Hear the next rank that has not left."""
        while self._next != self._rank and self._store.check([f"beat {self._next}"]):
            *beat, left = json.loads(self._store.get(f"beat {self._next}"))
            if beat != self._last:
                self._last, self._heard = beat, time.monotonic()
            if not left:
                return
            self._next = (self._next + 1) % self._world

    def _watch(self) -> None:
        """The one thread that never waits for the store, which may lie in a process that is stopped."""
        looked, hang = time.monotonic(), Hang(self._patience, self._every / 2)
        while not self._left.wait(self._every / 2):
            gap, looked = time.monotonic() - looked, time.monotonic()
            if gap > 4 * self._every:  # this process was stopped itself, perhaps with all others
                self._heard, self._since, self._asked = self._heard + gap, self._since + gap, None
            if (words := hang.seen()) is not None:
                self._judge(Verdict(f"rank {self._rank} ({self._own}) {words}", IO))
            self._look(looked)

    def _look(self, now: float) -> None:
        if self.verdict is not None:
            # An error leaves time to leave in order; what does not answer is named before it is killed.
            if now - self._since > (2 * self._every if self.verdict.process else _GRACE):
                self._end(self.verdict)
        elif self._asked is not None and now - self._asked > self._patience:
            self._judge(self._silent("the store of torchrun", "", Process()))
        elif self._next != self._rank and now - self._heard > self._patience:
            doing, process = self._last[1:] or ("its beginning", ())
            who = f"rank {self._next} ({Process(*process)})"
            self._judge(self._silent(who, f", last at {doing}", Process(*process)))

    def _silent(self, who: str, where: str, process: Process) -> Verdict:
        return Verdict(f"{who} has not answered for {self._patience:g} s{where}: {CONTINUE}", IO, process)

    def _judge(self, verdict: Verdict) -> None:
        if self.verdict is None:
            self._since, self.verdict = time.monotonic(), verdict

    def _end(self, verdict: Verdict) -> None:
        if verdict.process is not None:
            verdict.process.kill()  # torchrun would leave it half a minute
        end_at_once(verdict.words, verdict.code)
