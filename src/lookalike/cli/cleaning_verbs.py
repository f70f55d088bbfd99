"""The verbs that find what is wrong with data, thin over the functions that do it; imported only when one is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lookalike.cli import cleaning_flags as flags
from lookalike.cli.arguments import Verb
from lookalike.cli.checks import LOADED, picked, write_record
from lookalike.core.errors import UserError, visible
from lookalike.curate import clean
from lookalike.curate.duplicates import duplicates_among, leaks_among, write_tree
from lookalike.curate.finding import Finding
from lookalike.curate.labels import suspicious_labels
from lookalike.curate.outliers import outlying
from lookalike.curate.same import Same, same_pictures
from lookalike.curate.sample import sampled
from lookalike.curate.table import Table, open_table
from lookalike.report.findings import write_findings
from lookalike.train.screen import Screen


def duplicates(command: flags.Duplicates) -> int:
    """Prints and writes the duplicates, and what is kept."""
    refuse_odd_out(command.out, (".csv", ".parquet"))
    with Screen("duplicates") as screen:
        table = _opened(command, screen)
        same = _same(command, table, screen)
        found = duplicates_among(table, same)
        extra = len({finding.others for finding in found})
        lead = f"{len(found):,} of {len(table):,} pictures are the same as one of {extra:,} that are kept"
        _told(command, table, found, lead, screen)
        if command.out and command.out.lower().endswith(".parquet"):
            clean.write_marked(table, command.where, found, Path(command.out))
            screen.say(f"written: {command.out}")
        if command.keep_tree:
            count = write_tree(table, found, Path(command.keep_tree), screen.say)
            screen.say(f"{count:,} pictures to keep in {command.keep_tree}")
    return 0


def leaks(command: flags.Leaks) -> int:
    """Prints and writes what splits share."""
    refuse_odd_out(command.out)
    with Screen("leaks") as screen:
        table = _opened(command, screen)
        found = leaks_among(table, _same(command, table, screen))
        sizes = Counter(table.rows.split)
        if len(sizes) < 2:
            screen.say(f"{table.name} has no splits, so nothing can leak between them")
        for split, count in Counter(table.rows.split[finding.row] for finding in found).items():
            screen.say(f"{count:,} of {sizes[split]:,} pictures of {split} ({count / sizes[split]:.1%}) leak")
        _told(command, table, found, f"{len(found):,} pictures are in a split before theirs, too", screen)
    return 0


def labels(command: flags.Labels) -> int:
    """Prints and writes the labels that seem wrong."""
    refuse_odd_out(command.out)
    with Screen("labels") as screen:
        table = _opened(command, screen)
        found = suspicious_labels(table, screen.work)
        count = int((table.rows.label >= 0).sum())
        _told(command, table, found, f"{len(found):,} of {count:,} labels seem wrong", screen)
    return 0


def outliers(command: flags.Outliers) -> int:
    """Prints and writes the odd pictures."""
    refuse_odd_out(command.out)
    with Screen("outliers") as screen:
        table = _opened(command, screen)
        found = outlying(table, None, command.workers, screen.work)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(one.reason for one in found).most_common())
        lead = f"{len(found):,} of {len(table):,} pictures are odd{': ' if kinds else ''}{kinds}"
        _told(command, table, found, lead, screen)
    return 0


def sample(command: flags.Sample) -> int:
    """Prints and writes the rows to label."""
    refuse_odd_out(command.out)
    with Screen("sample") as screen:
        table = _opened(command, screen)
        found = sampled(table, command.n, command.how)
        _told(command, table, found, f"{len(found):,} {command.how} pictures of {len(table):,}, to label next", screen)
    return 0


def refuse_odd_out(out: str | None, kinds: Sequence[str] = (".csv",)) -> None:
    """Raise UserError for a list that is to be no .csv, before any work."""
    if out and not out.lower().endswith(tuple(kinds)):
        raise UserError(f"--out {out}: end its name in {' or '.join(kinds)}")


def _opened(command: flags.Finds, screen: Screen) -> Table:
    refuse_odd_out(command.csv)
    how = picked(command, *LOADED, "workers")
    return open_table(command.where, command.data, progress=screen.work, say=screen.say, **how)


def _same(command: flags.Duplicates | flags.Leaks, table: Table, screen: Screen) -> Same:
    same = same_pictures(table, command.precision, command.crops, command.workers, screen.work)
    screen.say(same.threshold.words)
    return same


def _told(command: flags.Finds, table: Table, found: Sequence[Finding], lead: str, screen: Screen) -> None:
    """The lead and the first findings on the screen; all of them in the files that were asked for."""
    screen.say(lead)
    rows = list(clean.listed(table, found))
    for path, _, score, reason, beside in rows[: command.top]:
        screen.say(visible(f"  {score:.3f}  {path}  {reason}{f', {beside}' if beside else ''}"))
    if len(rows) > command.top:
        screen.say(f"  and {len(rows) - command.top:,} more: --csv FILE has all, --page FILE shows pictures")
    lists = {path for path in (command.csv, getattr(command, "out", None)) if path and path.lower().endswith(".csv")}
    for path in sorted(lists):
        clean.write_list(table, found, Path(path))
        screen.say(f"written: {path}")
    if command.page:
        write_findings(Path(command.page), f"{type(command).__name__} in {Path(table.name).name}", lead, table, found)
        screen.say(f"written: {command.page}")
    record = [dict(zip(clean.HEAD, row)) for row in rows]
    write_record(command.json, {"where": command.where, "data": command.data, "lead": lead, "found": record})


ACTIONS: dict[type[Verb], Callable[[Any], int]] = {
    flags.Duplicates: duplicates,
    flags.Leaks: leaks,
    flags.Labels: labels,
    flags.Outliers: outliers,
    flags.Sample: sample,
}
"""What carries out each."""
