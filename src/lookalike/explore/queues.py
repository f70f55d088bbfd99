"""What is wrong with the pictures, as queues that a person works through; found in a thread, one after the other."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lookalike.core.errors import UserError
from lookalike.core.progress import Progress
from lookalike.curate.duplicates import duplicates_among, leaks_among
from lookalike.curate.labels import suspicious_labels
from lookalike.curate.outliers import outlying
from lookalike.curate.same import Same, same_pictures
from lookalike.curate.table import Finding, Table

Finder = Callable[[Table, Progress], list[Finding]]


def finders() -> dict[str, Finder]:
    """What is looked for, in the order of the page; pictures are read once for all."""
    known = list[Same]()

    def same(table: Table, progress: Progress) -> Same:
        if not known:
            known.append(same_pictures(table, workers=0, progress=progress))  # a server with threads does not fork
        return known[0]

    return {
        "leaks": lambda table, progress: leaks_among(table, same(table, progress)),
        "duplicates": lambda table, progress: duplicates_among(table, same(table, progress)),
        "labels": suspicious_labels,
        "outliers": lambda table, progress: outlying(table, same(table, progress).seen, 0, progress),
    }


@dataclass
class Worklist:
    """One of them, while it is looked for and after."""

    state: str = "waiting"  # then "looking", "found" or "failed"
    words: str = ""  # how far it is, or why it failed
    findings: tuple[Finding, ...] = ()


class Queues:
    """All of them, of one table."""

    def __init__(self, given: Mapping[str, Finder] | None = None) -> None:
        self._finders = finders() if given is None else given
        self.of: dict[str, Worklist] = {name: Worklist() for name in self._finders}

    def look(self, table: Table, ended: threading.Event) -> None:
        """Fill them, until the end is wanted; one that fails says why, and the next begins."""
        for name, queue in self.of.items():

            def told(what: str, done: int, total: int, queue: Worklist = queue) -> None:
                if ended.is_set():
                    raise InterruptedError
                queue.words = f"{what} {done:,}/{total:,}"

            queue.state = "looking"
            try:
                queue.findings = tuple(self._finders[name](table, told))
                queue.state, queue.words = "found", ""
            except InterruptedError:
                return
            except UserError as error:
                queue.state, queue.words = "failed", str(error)
            except Exception as error:  # of one finder; the page lives on
                traceback.print_exc()
                queue.state, queue.words = "failed", f"{type(error).__name__}: {error}"

    def about(self) -> list[dict[str, Any]]:
        """For the page."""
        return [
            {"name": name, "state": queue.state, "words": queue.words, "count": len(queue.findings)}
            for name, queue in self.of.items()
        ]
