"""What survives: the same faults for lookalike, for lightly's MoCo example under Lightning, and for lightly-train.

    PYTHONPATH=src python benchmarks/survival.py lookalike --work /dev/shm/survival
    python benchmarks/survival.py lightning --work /dev/shm/survival          # pip install lightly-train==0.18.0
    python benchmarks/survival.py lightly_train --work /dev/shm/survival --faults kill twice

The process imports the product once and forks each run (``survival_kit.py``). One JSON line a case: exit code, whether
the final weights equal those of the undisturbed run, the last lines that it wrote; what a message is worth is for the
reader. Temporary files lie on the file system of the output, which favours whoever moves a file into place; ``disk``
tries another one, too. ``disk`` and ``network`` want root, ``order`` and ``network`` strace. With SURVIVAL_STATEFUL=1
Lightning is given the loader of torchdata.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from survival_kit import BATCH, PRODUCTS, QUIET, Case, Kit


@contextmanager
def mounted(kit: Kit) -> Iterator[Path]:
    """Another file system, of 3 GB."""
    (mount := kit.work / "mount").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "none", mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def kill(kit: Kit) -> Iterator[Case]:
    """SIGKILL at ten moments, every third at the appearance of a new file, in the output or among temporary files."""
    chance = random.Random(0)
    for case in range(10):
        out, began = kit.folder(), time.monotonic()
        pid, seen, news = kit.begin(out), set[Path](), chance.randrange(3, 12)
        moment = kit.seconds * chance.uniform(0.05, 0.95)
        while time.monotonic() - began < 3 * kit.seconds:
            if case % 3 == 2:
                files = {*out.rglob("*"), *kit.temporary.iterdir()}
                news -= len({file for file in files - seen if file.is_file() and file.parent.name != "tb"})
                seen |= files
                if news <= 0:
                    time.sleep(chance.uniform(0, 0.05))
                    break
            elif time.monotonic() - began > moment:
                break
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        kit.wait(pid)
        left = [file.name for file in kit.temporary.iterdir() if file.is_file()]
        yield {"case": "in a save" if case % 3 == 2 else f"{moment:.1f} s", "temporary": left, **kit.resumed(out)}


def torn(kit: Kit) -> Iterator[Case]:
    """SIGKILL while the newest checkpoint shrinks, with temporary files on another file system, as /tmp may be."""
    for case in range(3):
        with mounted(kit) as mount:
            out, big = kit.folder(), 0
            pid = kit.begin(out, temporary=mount)
            while not kit.ended(pid):
                newest = kit.newest(out)
                size = newest.stat().st_size if newest and newest.is_file() else 0
                if size < big or (kit.product == "lookalike" and len(kit.checkpoints(out)) > 1):
                    break
                big = size
            os.kill(pid, signal.SIGKILL)
            kit.wait(pid)
            yield {"case": case, "shrunk": size < big, **kit.resumed(out)}


def twice(kit: Kit) -> Iterator[Case]:
    yield {"case": "again", **kit.resumed(kit.folder())}


def damage(kit: Kit) -> Iterator[Case]:
    for how in ("cut", "flip", "delete"):
        out = kit.folder()
        kit.killed(out)
        newest = kit.newest(out)
        assert newest
        file = newest / "learner.safetensors" if newest.is_dir() else newest
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x40
        if how == "delete":
            shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
        else:
            file.write_bytes(content[: len(content) // 2] if how == "cut" else content)
        yield {"case": how, "others": [path.name for path in kit.checkpoints(out)], **kit.resumed(out)}


def fill(mount: Path) -> None:
    """Takes all but 30 MB, however much a run beside it writes meanwhile."""
    with (mount / "ballast").open("wb") as ballast:
        while (free := os.statvfs(mount)).f_bavail * free.f_frsize > 30_000_000:
            with suppress(OSError):
                os.posix_fallocate(ballast.fileno(), ballast.seek(0, 2), free.f_bavail * free.f_frsize - 29_000_000)


def disk(kit: Kit) -> Iterator[Case]:
    """A file system that something else fills after the third checkpoint; then there is space again."""
    for where in ("temporary files on it", "temporary files elsewhere"):
        with mounted(kit) as mount:
            out = kit.folder(mount)
            (mount / "tmp").mkdir()
            more = {"temporary": mount / "tmp"} if where.endswith("it") else {}
            pid = kit.begin(out, **more)
            kit.until(out, 6, pid)
            fill(mount)
            code, says = kit.wait(pid), kit.tail(out)
            state = {path.name: kit.step(path) for path in kit.checkpoints(out)}
            (mount / "ballast").unlink()
            yield {"case": where, "full": code, "full_says": says, "then": state, **kit.resumed(out, **more)}


def nan(kit: Kit) -> Iterator[Case]:
    """A learning rate of 1e30, which makes weights and loss infinite at once."""
    out = kit.folder()
    code = kit.wait(kit.begin(out, lr=1e30))
    finite = {path.name: kit.finite(path) for path in kit.checkpoints(out)}
    yield {"case": "lr 1e30", "code": code, "finite": finite, "says": kit.tail(out)}


def second(kit: Kit) -> Iterator[Case]:
    """The same command while the first still runs: as if new, and as one resumes."""
    for case in range(3):
        for again in (True, False) if kit.product == "lightly_train" else (True,):
            out = kit.folder()
            first = kit.begin(out)
            kit.until(out, 4, first)
            kit.log(out).rename(kit.work / "first.log")
            code = kit.wait(kit.begin(out, again=again))
            both = {"again": again, "second": code, "says": kit.tail(out), "first": kit.wait(first)}
            files = [path.name for path in kit.checkpoints(out)]
            yield {"case": case, **both, "files": files, "equal": kit.weights(out) == kit.expected}


def sigterm(kit: Kit) -> Iterator[Case]:
    for _ in range(2):
        out = kit.folder()
        code = kit.killed(out, sign=signal.SIGTERM)
        yield {"case": "SIGTERM", "ended": code, "ended_says": kit.tail(out), **kit.resumed(out)}


def corrupt(kit: Kit) -> Iterator[Case]:
    for how in ("cut", "text"):
        data = shutil.copytree(kit.data, kit.folder())
        path = data / "d" / "100.png"
        path.write_bytes(path.read_bytes()[:90] if how == "cut" else b"no picture")
        yield {"case": how, **kit.resumed(kit.folder(), data=data)}


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def hostile(kit: Kit) -> Iterator[Case]:
    """A pickle that makes a folder: as the checkpoint that a run goes on from, and as weights to begin with."""
    import torch

    for how in ("resume", "load"):
        out, canary, file = kit.folder(), kit.work / f"canary-{how}", kit.work / "evil.ckpt"
        torch.save({"state_dict": Evil(canary), "global_step": 6}, file)
        if how == "resume":
            kit.killed(out)
            for path in kit.checkpoints(out):
                shutil.copy(file, path / "learner.safetensors" if path.is_dir() else path)
        code = kit.wait(kit.begin(out, load=file if how == "load" else None))  # this process must not read it itself
        yield {"case": how, "executed": canary.exists(), "code": code, "says": kit.tail(out)}
        shutil.rmtree(canary, ignore_errors=True)


def changed(kit: Kit) -> Iterator[Case]:
    data, out = shutil.copytree(kit.data, kit.folder()), kit.folder()
    kit.killed(out, data=data)
    (data / "d" / "100.png").unlink()
    yield {"case": "one picture deleted", **kit.resumed(out, data=data)}


def apart(kit: Kit, out: Path, strace: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A run in a process of its own, imports included, under strace."""
    words = [sys.executable, __file__, kit.product, "--work", kit.work, "--once", out]
    with kit.log(out).open("ab") as log:
        return subprocess.Popen(
            ["strace", "-f", "-qq", *strace, *words], stdout=log, stderr=log, env={**env, "TMPDIR": str(kit.temporary)}
        )


def order(kit: Kit) -> Iterator[Case]:
    """Which pictures the steps up to a kill read, and which the resumed run read to the end of that epoch."""
    out, reads = kit.folder(), list[list[str]]()
    for ends in (False, True):
        trace = kit.work / "opens"
        run = apart(kit, out, ["-s", "300", "-e", "trace=openat,open", "-o", str(trace)], dict(os.environ))
        if not ends:
            kit.until(out, 6, run.pid)
            children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
        run.wait()
        reads.append(re.findall(r"(\d{3}\.png)\", O_RDONLY[^\n]*= \d", trace.read_text()))
    before, rest = reads[0][: 6 * BATCH], reads[1][: 2 * BATCH]
    again = {"again": len({*before} & {*rest}), "from_the_start": rest == before[: 2 * BATCH]}
    yield {"case": "killed after step 6", "read": [len(names) for names in reads], **again}


def network(kit: Kit) -> Iterator[Case]:
    """Attempts to reach another machine, from a network namespace that has none, with default settings."""
    trace, out = kit.work / "connects", kit.folder()
    env = {name: value for name, value in os.environ.items() if name not in QUIET} | {"OMP_NUM_THREADS": "1"}
    run = apart(kit, out, ["-e", "trace=connect,sendto", "-o", str(trace), "unshare", "-n"], env)
    code = run.wait()
    lines = [line for line in trace.read_text().splitlines() if "AF_INET" in line]
    there = [line for line in lines if "127." not in line and '"::1"' not in line]
    yield {"case": "defaults", "code": code, "inet": len(lines), "elsewhere": len(there), "lines": there[:6]}


FAULTS = [kill, torn, twice, damage, disk, nan, second, sigterm, corrupt, hostile, changed, order, network]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("product", choices=PRODUCTS)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder with 4 GB of space")
    parser.add_argument("--faults", nargs="+", choices=[fault.__name__ for fault in FAULTS])
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        PRODUCTS[asked.product](asked.work / "data", asked.once)
        return
    os.environ.update(QUIET)
    kit = Kit(asked.product, asked.work.resolve())
    for fault in FAULTS:
        if asked.faults and fault.__name__ not in asked.faults:
            continue
        for case in fault(kit):
            print(json.dumps({"product": kit.product, "fault": fault.__name__, **case}), flush=True)
            for path in [*kit.work.glob(f"{kit.product}-*"), *kit.temporary.iterdir()]:
                if path != kit.whole:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
