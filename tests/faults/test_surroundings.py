"""What every verb can do without: a network, a HOME, data that can be written, a clock that runs forward."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.kit import Tracer
from tests.support.forks import Forks, digest
from tests.support.runs import command, done

_INTERNET = re.compile(r"sa_family=AF_INET6?, .*(?:inet_addr\(|inet_pton\(AF_INET6, )\"(?P<address>[^\"]+)\"")
Words = dict[str, list[object]]


def verbs(run: Path, data: Path, out: Path) -> Words:
    """The main verbs, in an order in which each finds what it needs."""
    return {
        "pretrain": command(data, run, steps=2, save=1),
        "evaluate": ["evaluate", "knn", run, data, "--json", out / "knn.json"],
        "embed": ["embed", run, data, "--out", out / "table.parquet"],
        "search": ["search", out / "table.parquet", data / "a" / "00.png", "--page", out / "hits.html"],
        "prepare": ["prepare", data, "--out", out / "cache", "--quiet"],
        "doctor": ["doctor", data, "--out", out / "doctor", "--quick"],
        "doctor of a run": ["doctor", run, "--out", out / "doctor"],
        "preview": ["preview", data, "tiny", "--out", out / "preview.png"],
    }


@pytest.fixture
def read_only(pictures: Path, tmp_path: Path) -> Iterator[Path]:
    """Data in folders and files that nobody may write; the modes bind root, too, in the processes of ``forks``."""
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    paths = [data, *data.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield data
    for path in paths:
        path.chmod(0o755)


def state(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Size, mode, and when each file was last written."""
    stats = {path: path.stat() for path in (folder, *folder.rglob("*"))}
    return {path: (at.st_size, at.st_mode, at.st_mtime_ns) for path, at in stats.items()}


@pytest.mark.parametrize("home", ["/nonexistent", None])
def test_no_verb_writes_to_the_data_or_wants_a_home(
    forks: Forks, read_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    before = state(read_only)
    for words in verbs(tmp_path / "run", read_only, tmp_path).values():
        done(forks.run(words))
    assert state(read_only) == before


def test_no_verb_speaks_to_another_machine(tracer: Tracer, pictures: Path, tmp_path: Path) -> None:
    called = list[str]()
    for words in verbs(tmp_path / "run", pictures, tmp_path).values():
        done(tracer.run(words, "trace=connect,sendto,sendmsg,sendmmsg"))
        called += [found["address"] for found in _INTERNET.finditer(tracer.log.read_text("utf-8", "replace"))]
    assert [address for address in called if not address.startswith("127.") and address != "::1"] == []


@pytest.mark.usefixtures("long_tier")
def test_a_fresh_process_needs_no_network(pictures: Path, tmp_path: Path) -> None:
    offline = ["unshare", "-rn"]
    if shutil.which("unshare") is None or subprocess.run([*offline, "true"], capture_output=True).returncode:
        pytest.skip("no process can be taken off the network here (unshare -n)")
    for words in verbs(tmp_path / "run", pictures, tmp_path).values():
        fresh([*offline, *program(words)])


def program(words: list[object]) -> list[str]:
    return [sys.executable, "-m", "lookalike", *map(str, words)]


def fresh(words: list[str], **environment: str) -> None:
    """In a new process."""
    ran = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.usefixtures("long_tier")
def test_a_clock_that_jumps_changes_nothing(forks: Forks, pictures: Path, tmp_path: Path) -> None:
    """A run that begins after 2038 and goes on in 2001 and then a day ahead; what is newest is decided by steps."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("there is no libfaketime")
    out, reference = tmp_path / "run", tmp_path / "reference"
    for steps, when in ((2, "@2038-01-20 00:00:00"), (4, "@2001-01-01 00:00:00"), (6, "+1d")):
        more = ["--extend"] if steps > 2 else []
        done(forks.run(command(pictures, reference, *more, steps=steps, save=1)))
        clock = {"LD_PRELOAD": str(library), "FAKETIME": when, "OMP_NUM_THREADS": "1"}
        fresh(program(command(pictures, out, *more, steps=steps, save=1)), **clock)
        assert digest(out) == digest(reference)
