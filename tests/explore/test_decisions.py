"""The file of decisions: lines that are only added, whole on the disk, and read again whatever happened to it."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from lookalike.core.errors import UserError
from lookalike.explore.decisions import Decision, Decisions

ONE, TWO = Decision("a.png", "outliers", "drop"), Decision("b.png", "labels", "relabel", "dress")


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    file = Decisions(path := tmp_path / "decisions.jsonl")
    file.add(ONE)
    file.add(TWO)
    file.close()
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        file = Decisions(path)
        assert list(file.standing()) == ([ONE, TWO] if cut == len(whole) - 1 else [ONE])
        file.add(TWO)
        file.close()
        file = Decisions(path)
        assert list(file.standing())[-1] == TWO
        assert file.undo() == TWO
        file.close()


@pytest.mark.parametrize(
    "line", ["[]", "7", '{"id": 9}', '{"id": [], "undo": 1}', '{"id": 1e999, "undo": 1}', "[" * 9999, "\x00"]
)
def test_a_line_of_others_is_passed_over(tmp_path: Path, line: str) -> None:
    file = Decisions(path := tmp_path / "decisions.jsonl")
    file.add(ONE)
    file.close()
    path.write_text(path.read_text() + line + "\n")
    file = Decisions(path)
    assert (list(file.standing()), file.passed_over) == ([ONE], 1)
    file.close()


def test_a_file_of_another_kind_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("milk\n")
    with pytest.raises(UserError, match="holds no decisions"):
        Decisions(path)
    assert path.read_text() == "milk\n"
    (link := tmp_path / "link").symlink_to(path)
    with pytest.raises(UserError, match="--decisions"):
        Decisions(link)


def test_two_cannot_write_at_once(tmp_path: Path) -> None:
    file = Decisions(tmp_path / "decisions.jsonl")
    with pytest.raises(UserError, match="in use by another explore"):
        Decisions(tmp_path / "decisions.jsonl")
    file.close()
    assert not (tmp_path / "decisions.jsonl").exists()  # made for nothing


def test_what_could_not_be_written_does_not_stand(tmp_path: Path) -> None:
    """A child whose files may be 200 bytes long, as on a disk that is full."""
    if (child := os.fork()) == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            file = Decisions(tmp_path / "decisions.jsonl")
            file.add(ONE)
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
            with suppress(UserError):
                while True:
                    file.add(TWO)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert all(standing in (ONE, TWO) for standing in file.standing())
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    file = Decisions(tmp_path / "decisions.jsonl")
    assert next(file.standing()) == ONE
    file.close()
