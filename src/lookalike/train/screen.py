"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lookalike.core.errors import visible
from lookalike.train.watch import StepReport

_WIDE = 115  # columns that a live line with everything takes; on fewer it has the numbers alone, without a bar
_PLAIN_SECONDS = 15.0  # between lines where there is no terminal: a log should stay readable
_SILENT_SECONDS = 60.0  # of work that is no training: short work prints its result alone


class _Output:
    """sys.stdout at the time of writing; what it cannot show is escaped, and if it is gone nothing is written.

    A run does not end because nobody reads its output: behind ``| head``, in a daemon, on a terminal that was closed.
    """

    def __getattr__(self, name: str) -> Any:
        """What rich needs: encoding, isatty, fileno."""
        return getattr(_stdout(), name)

    def write(self, text: str) -> int:
        """Never raises for what is wrong with the stream."""
        with suppress(OSError, ValueError, AttributeError):
            encoding = _stdout().encoding or "utf-8"
            _stdout().write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """As ``write``."""
        with suppress(OSError, ValueError, AttributeError):
            _stdout().flush()


def _stdout() -> Any:
    """A live line of rich stands in for sys.stdout and would send here what comes from here."""
    stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return getattr(stream, "obeyed", stream)  # what is said has been made visible: the rest are rich's own sequences


class Screen:
    """Shows the steps of one run, whose examples are called ``rows``; a context manager."""

    def __init__(self, title: str, quiet: bool = False, rows: str = "pictures") -> None:
        self.console = Console(file=_Output(), quiet=quiet)  # type: ignore[arg-type]
        self.wide = self.console.width >= _WIDE
        self.progress = Progress(
            *((TextColumn("{task.description}", markup=False), BarColumn(bar_width=20)) if self.wide else ()),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[state]}", markup=False),
            *((TimeElapsedColumn(),) if self.wide else ()),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        self.title, self.rows = title, rows
        self.tasks: dict[str, TaskID] = {}
        self.next_plain = 0.0
        self.next_work = time.monotonic() + _SILENT_SECONDS

    def __enter__(self) -> Screen:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.progress.disable:  # rich before 14.1 would print an empty line
            self.progress.stop()

    def say(self, text: str) -> None:
        """One line that stays, or several; what a terminal would obey is escaped, since names of files may hold it."""
        text = "\n".join(map(visible, text.split("\n")))
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def work(self, what: str, done: int, total: int) -> None:
        """Progress of a piece of work that is no training: decoding, embedding."""
        self._show(what, done, total, "")
        if not self.console.is_terminal and time.monotonic() >= self.next_work:
            self.next_work = time.monotonic() + _SILENT_SECONDS
            self.say(f"{what} {done}/{total}")

    def step(self, report: StepReport) -> None:
        """Progress of training."""
        shown = " ".join(f"{name} {value:.3f}" for name, value in report.metrics.items())
        speed = (
            f"{report.examples_per_second:.0f} {self.rows}/s  " if report.seconds_per_step else ""
        )  # known from step 2 on
        hidden = {"top1"} if report.filling else set()
        measures = "".join(f"  {name} {value:.3f}" for name, value in report.measures.items() if name not in hidden)
        beside = "random keys left" if report.filling else f"chance {report.chance_loss:.3f}"
        state = f"{speed}loss {report.loss:.3f} ({beside}){measures}  {shown}".rstrip()
        self._show(self.title, report.step, report.total, state)
        if not self.console.is_terminal and (time.monotonic() >= self.next_plain or report.step == report.total):
            self.next_plain = time.monotonic() + _PLAIN_SECONDS
            minutes = (report.total - report.step) * report.seconds_per_step / 60
            left = f"  {minutes:.1f} min left" if minutes else ""
            self.say(f"step {report.step}/{report.total}  {state}{left}")

    def _show(self, what: str, done: int, total: int, state: str) -> None:
        what, state = visible(what), visible(state)
        if not self.wide:
            state = state.replace("  ", " ").replace(f" {self.rows}/s", "/s") or what
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total, state=state)
        self.progress.update(self.tasks[what], completed=done, total=total, state=state)
        if done >= total:
            self.progress.update(self.tasks[what], visible=False)
