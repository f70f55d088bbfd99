"""What may happen to the files of a checkpoint."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

FILES = ("learner.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
Damage = Callable[[Path], object]
"""Of the newest checkpoint, by its folder; the one before is of step 1."""


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def flip(path: Path, share: float, bit: int = 4) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(share * len(data)), len(data) - 1)] ^= 1 << bit
    path.write_bytes(data)


def swap(path: Path, other: Path) -> None:
    kept = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n\0")


DAMAGE: dict[str, Damage] = {
    **{
        f"{how.__name__} {name} at {share}": lambda p, how=how, name=name, share=share: how(p / name, share)
        for how in (cut, flip)
        for name in FILES
        for share in (0.0, 0.01, 0.5, 0.99)
    },
    **{f"no {name}": lambda p, name=name: (p / name).unlink() for name in FILES},
    "no file at all": lambda p: [file.unlink() for file in p.iterdir()],
    "a file in the place of the folder": lambda p: (shutil.rmtree(p), p.write_text("")),
    "a folder in the place of a file": lambda p: ((p / FILES[0]).unlink(), (p / FILES[0]).mkdir()),
    "a manifest of other files": lambda p: (p / "manifest.json").write_text('{"../../x": "0"}'),
    "a manifest that is a list": lambda p: (p / "manifest.json").write_text("[]"),
    "a manifest nested too deep": lambda p: (p / "manifest.json").write_text("[" * 100_000),
    "another step under its name": lambda p: (
        shutil.rmtree(p),
        shutil.copytree(p.with_name("step-000000001"), p),
    ),
}


def drawn(count: int, seed: int = 0) -> dict[str, Damage]:
    """So many random cuts, flips of one bit and additions of a few bytes; what they are, and their doing."""
    chance, found = random.Random(seed), dict[str, Damage]()
    while len(found) < count:
        name, share, bit = chance.choice(FILES[:3]), chance.random(), chance.randrange(8)
        how: dict[str, Damage] = {
            f"bit {bit} of {name} at {share:.4f}": lambda p, n=name, s=share, b=bit: flip(p / n, s, b),
            f"{name} cut at {share:.4f}": lambda p, n=name, s=share: cut(p / n, s),
            f"{name} grown": lambda p, n=name: grow(p / n),
        }
        found |= dict([chance.choices(list(how.items()), (4, 2, 1))[0]])
    return found
