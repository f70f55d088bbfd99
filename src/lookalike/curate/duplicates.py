"""``lookalike duplicates`` and ``leaks``: the same pictures within a table, which to keep, and between its splits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from lookalike.core.errors import UserError
from lookalike.curate.same import BYTES, PIXELS, REASONS, Same, pictured
from lookalike.curate.survey import Numbers, sharpness
from lookalike.curate.table import Finding, Table
from lookalike.data.formats.files import TEST, TRAIN, VALIDATION

_RANK = {TRAIN: 0, VALIDATION: 1, TEST: 2}  # of splits: where one of two must go, it is that of the lower


def duplicates_among(table: Table, same: Same) -> list[Finding]:
    """The pictures that need not be kept, each beside the one that stands for it, the surest first.

    Each is the same as the one that is kept, never only as another that is not.
    """
    order = preferred(table, same)
    firsts = np.full(len(table), -1)  # the best of each class of equal bytes
    for row in order[::-1].tolist():
        firsts[same.exact[row]] = row
    known = dict(zip(map(tuple, same.pairs.tolist()), zip(same.scores.tolist(), same.reasons.tolist())))
    best = order[firsts[same.exact[order]] == order]
    stars = kept(same.exact[best], same.pairs, len(table))
    found = []
    for row in range(len(table)):
        own, star = int(same.exact[row]), int(stars[same.exact[row]])
        score, reason = known[(min(own, star), max(own, star))] if star != own else (1.0, _equal(same))
        if row != firsts[star]:
            found.append((reason, Finding(row, score, REASONS[reason], (int(firsts[star]),))))
    return _surest(found)


def _equal(same: Same) -> int:
    """What equal content is: bytes of files, or pixels of what has none."""
    return BYTES if same.seen.lengths.any() else PIXELS


def _surest(found: list[tuple[int, Finding]]) -> list[Finding]:
    return [finding for _, finding in sorted(found, key=lambda one: (one[0] > PIXELS, -one[1].score, one[1].row))]


def preferred(table: Table, same: Same) -> Numbers:
    """(N,) all rows, those first that should be kept: not in test, labelled, many pixels, sharp, a large file."""
    seen = same.seen
    names = np.argsort(np.argsort(np.array(table.rows.path, object), kind="stable"))
    splits = np.array([_RANK.get(split, 0) for split in table.rows.split])
    keys = (names, -seen.lengths, -sharpness(seen), -seen.sizes.prod(1), table.rows.label < 0, splits)
    return np.lexsort(keys)


def kept(order: Numbers, pairs: Numbers, count: int) -> Numbers:
    """(N,) which row stands for each of ``count``, by stars: in their ``order``, rows take what is the same as they.

    ``pairs`` (P, 2) says what is the same. Groups are never chained: where b is the same as a and as c, but a is not
    the same as c, then a keeps b, and c is kept too.
    """
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    starts = np.searchsorted(both[:, 0], np.arange(count + 1))
    stars = np.full(count, -1)
    for row in order.tolist():
        if stars[row] < 0:
            others = both[starts[row] : starts[row + 1], 1]
            stars[others[stars[others] < 0]] = row
            stars[row] = row
    return np.where(stars < 0, np.arange(count), stars)


def leaks_among(table: Table, same: Same) -> list[Finding]:
    """The pictures of validation and test that a split before them has too, train before all; the surest first."""
    members: dict[int, list[int]] = {}
    for row in np.lexsort((np.arange(len(table)), same.exact)).tolist():
        members.setdefault(int(same.exact[row]), []).append(row)
    alike: dict[int, list[tuple[int, float, int]]] = {}
    for (one, other), score, reason in zip(same.pairs.tolist(), same.scores.tolist(), same.reasons.tolist()):
        alike.setdefault(one, []).append((reason, score, other))
        alike.setdefault(other, []).append((reason, score, one))
    rank = [_RANK.get(split, 0) for split in table.rows.split]
    found = []
    for row, own in enumerate(same.exact.tolist()):
        ways = [(_equal(same), 1.0, own), *alike.get(own, ())] if rank[row] else []
        hits = [
            (rank[other] > 0, reason > PIXELS, -score, other, reason)
            for reason, score, first in ways
            for other in members[first]
            if rank[other] < rank[row]
        ]
        if hits:
            _, _, score, other, reason = min(hits)
            words = f"{REASONS[reason]}, {table.rows.split[row]} has what {table.rows.split[other]} has"
            found.append((reason, Finding(row, -score, words, (other,))))
    return _surest(found)


def write_tree(table: Table, found: list[Finding], root: Path, folder: Path, say: Callable[[str], None]) -> int:
    """Hard links in ``folder`` to all files below ``root`` but those of the findings; copies on another file system.

    Returns how many there are. Raises UserError where pictures are no files of a folder, or ``folder`` holds something.
    """
    source, gone = pictured(table), {finding.row for finding in found}
    if not root.is_dir():
        raise UserError(f"{root} is no folder of pictures, so there is nothing to link to: use --out")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something already: name a new folder as --keep-tree")
    names = [path for row, path in enumerate(source.paths) if row not in gone]
    if bad := [path for path in names if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts]:
        raise UserError(f"{bad[0]} lies outside of {root}, so there is nothing to link to: use --out")
    copied = 0
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(root / name, folder / name)
        except FileNotFoundError:
            raise UserError(f"{root / name} is not there, so it cannot be linked to: use --out") from None
        except OSError:
            shutil.copy2(root / name, folder / name)
            copied += 1
    if copied:
        say(f"{copied:,} of {len(names):,} are copies, since {folder} cannot hold hard links to {root}")
    return len(names)
