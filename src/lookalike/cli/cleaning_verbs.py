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
from lookalike.curate.labels import suspicious_labels
from lookalike.curate.outliers import outlying
from lookalike.curate.same import Same, same_pictures
from lookalike.curate.sample import sampled
from lookalike.curate.table import Finding, Table, data_of, open_table
from lookalike.report.findings import write_findings
from lookalike.train.screen import Screen

Found = tuple[list[Finding], str]
"""Findings, and a sentence about them."""


def duplicates(command: flags.Duplicates, table: Table, screen: Screen) -> Found:
    """What need not be kept, and the table and the tree of what is."""
    found = duplicates_among(table, _same(command, table, screen))
    if command.out and command.out.lower().endswith(".parquet"):
        clean.write_marked(table, command.where, found, Path(command.out))
    if command.keep_tree:
        root = Path(command.data or data_of(command.where) or "")
        count = write_tree(table, found, root, Path(command.keep_tree), screen.say)
        screen.say(f"{count:,} pictures to keep in {command.keep_tree}")
    verb = "is" if len(found) == 1 else "are"
    return found, f"{len(found):,} of {len(table):,} pictures {verb} the same as one that is kept"


def leaks(command: flags.Leaks, table: Table, screen: Screen) -> Found:
    """What splits share."""
    found, sizes = leaks_among(table, _same(command, table, screen)), Counter(table.rows.split)
    if len(sizes) < 2:
        return found, f"{table.name} has no splits, so nothing can leak between them"
    counts = Counter(table.rows.split[finding.row] for finding in found)
    parts = [f"{count:,} of {sizes[split]:,} in {split}" for split, count in counts.items()]
    return found, f"pictures that a split before theirs has, too: {', '.join(parts) or 'none'}"


def labels(command: flags.Labels, table: Table, screen: Screen) -> Found:
    """Labels that seem wrong."""
    found = suspicious_labels(table, screen.work)
    return found, f"{len(found):,} of {int((table.rows.label >= 0).sum()):,} labels seem wrong"


def outliers(command: flags.Outliers, table: Table, screen: Screen) -> Found:
    """Odd pictures."""
    found = outlying(table, None, command.workers, screen.work)
    kinds = [f"{count:,} {kind}" for kind, count in Counter(one.reason for one in found).most_common()]
    return found, f"{len(found):,} of {len(table):,} pictures are odd{': ' if kinds else ''}{', '.join(kinds)}"


def sample(command: flags.Sample, table: Table, screen: Screen) -> Found:
    """Rows to label."""
    found = sampled(table, command.n, command.how)
    return found, f"{len(found):,} {command.how} pictures of {len(table):,}, to label next"


_FINDERS: dict[type[Verb], Callable[[Any, Table, Screen], Found]] = {
    flags.Duplicates: duplicates,
    flags.Leaks: leaks,
    flags.Labels: labels,
    flags.Outliers: outliers,
    flags.Sample: sample,
}


def find(command: flags.Finds) -> int:
    """Any of them: opens the table, prints and writes the findings."""
    kinds = (".csv", ".parquet") if isinstance(command, flags.Duplicates) else (".csv",)
    if command.out and not command.out.lower().endswith(kinds):
        raise UserError(f"--out {command.out}: end its name in {' or '.join(kinds)}")
    with Screen(type(command).__name__.lower()) as screen:
        how = picked(command, *LOADED, "workers")
        table = open_table(command.where, command.data, progress=screen.work, say=screen.say, **how)
        found, lead = _FINDERS[type(command)](command, table, screen)
        _told(command, table, found, lead, screen)
    return 0


def _same(command: flags.Duplicates | flags.Leaks, table: Table, screen: Screen) -> Same:
    same = same_pictures(table, command.precision, command.workers, screen.work)
    screen.say(same.threshold.words)
    return same


def _told(command: flags.Finds, table: Table, found: Sequence[Finding], lead: str, screen: Screen) -> None:
    """The lead and the first findings on the screen; all of them in the files that were asked for."""
    screen.say(lead)
    rows = list(clean.listed(table, found))
    for path, _, score, reason, beside in rows[: command.top]:
        screen.say(visible(f"  {score:.3f}  {path}  {reason}{f', {beside}' if beside else ''}"))
    if len(rows) > command.top:
        screen.say(f"  and {len(rows) - command.top:,} more: --out FILE.csv has all, --page FILE shows pictures")
    if command.out and command.out.lower().endswith(".csv"):
        clean.write_list(table, found, Path(command.out))
    if command.page:
        write_findings(Path(command.page), f"{type(command).__name__} in {Path(table.name).name}", lead, table, found)
    for path in filter(None, (command.out, command.page)):
        screen.say(f"written: {path}")
    record = [dict(zip(clean.HEAD, row)) for row in rows]
    write_record(command.json, {"where": command.where, "data": command.data, "lead": lead, "found": record})


ACTIONS: dict[type[Verb], Callable[[Any], int]] = dict.fromkeys(_FINDERS, find)
"""What carries out each."""
