"""No verb loads a damaged checkpoint in silence: it says which one it passes over and takes the one before, or refuses.
So it is with the other files of a run that it reads again.

What is taken is compared: the numbers of each verb are those of a run that never had the damaged checkpoint.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import publish
from lookalike.recipes.modality import load_tokenizer
from lookalike.recipes.text import simcse
from tests.faults.conftest import ALL
from tests.faults.kit import every
from tests.support.damage import DAMAGE, Damage, drawn, flip
from tests.support.forks import Ended, Forks, digest
from tests.support.runs import TINY, command, done

pytestmark = pytest.mark.any_precision

NAMED = ("recipe.json", "environment.json", "hashes.json")
NEWEST = "step-000000002"
QUIETLY = [word for word in TINY if word != "--quiet"]  # --quiet leaves out warnings, too


class Verb(NamedTuple):
    """What a verb does with a run: the words, and what came of it, which the weights alone decide."""

    words: Callable[[Path, Path, Path], list[object]]  # of the run, the data, and a path for what it writes
    came: Callable[[Path, Path], object]  # of the run and that path
    long: int = 1  # takes so much longer that it meets but one in so many


def vectors(_: Path, out: Path) -> object:
    return pq.read_table(out / "table.parquet").column("embedding").to_pylist()


def numbers(_: Path, out: Path) -> object:
    record = json.loads((out / "numbers.json").read_text())
    assert record["found"] if "found" in record else record["step"] == 1
    return {name: record[name] for name in record if name not in ("run", "table")}


def trained(_: Path, out: Path) -> object:
    return digest(out / "run")["learner.safetensors"]


def beginning(data: Path, out: Path) -> list[object]:
    return ["pretrain", data, "--out", out / "run", "--steps", 1, "--workers", 0, "--checkups", 0]


def evaluated(name: str, *more: object, long: int = 1) -> Verb:
    return Verb(
        lambda run, data, out: ["evaluate", name, run, data, "--workers", 0, "--json", out / "numbers.json", *more],
        numbers,
        long,
    )


VERBS = {
    "evaluate knn": evaluated("knn"),
    "evaluate finetune": evaluated("finetune", "--steps", 1, "--shares", 1, long=2),
    "evaluate retrieve": evaluated("retrieve"),
    "embed": Verb(lambda run, data, out: ["embed", run, data, "--workers", 0, "--out", out / "table.parquet"], vectors),
    "search": Verb(
        lambda run, data, out: ["search", run, data / "a" / "00.png", "--json", out / "numbers.json"], numbers
    ),
    "export": Verb(
        lambda run, _, out: ["export", run, "--to", "onnx", "--out", out / "onnx"],
        lambda _, out: (out / "onnx" / "model.onnx").stat().st_size,
        long=24,
    ),
    "doctor": Verb(
        lambda run, _, out: ["doctor", run, "--out", out / "sheet", "--json", out / "numbers.json"], lambda *_: None
    ),
    "pretrain": Verb(
        lambda run, data, _: [*command(data, run, "--checkups", 0, steps=2, save=1)[:8], *QUIETLY, "--checkups", 0],
        lambda run, _: digest(run),
    ),
    "pretrain --extend": Verb(
        lambda run, data, _: ["pretrain", data, "--out", run, "--steps", 3, "--extend", *QUIETLY, "--checkups", 0],
        lambda run, _: digest(run)["learner.safetensors"],
    ),
    "pretrain --init-from": Verb(
        lambda run, data, out: [*beginning(data, out), "--init-from", run],
        trained,
        long=2,
    ),
    "pretrain --teacher": Verb(
        lambda run, data, out: [*beginning(data, out), "--teacher", run, "--recipe", "tiny"],
        trained,
        long=2,
    ),
    "compare": Verb(
        lambda run, data, out: ["compare", run, "--on", data, "--task", "knn", "--trials", 1, "--out", out / "trials"],
        lambda _, out: (out / "trials" / "knn.md").read_text(),
        long=2,
    ),
}
"""Every verb that opens a run."""


@pytest.fixture(scope="module")
def run(forks: Forks, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 1 and 2."""
    run = tmp_path_factory.mktemp("damage") / "run"
    done(forks.run(command(pictures, run, "--checkups", 0, steps=2, save=1)))
    return run


def carried_out(forks: Forks, verb: Verb, run: Path, data: Path, out: Path) -> Ended:
    """All but the doctor warn; what is damaged is its answer."""
    out.mkdir()
    ended = forks.run(verb.words(run, data, out))
    if verb is not VERBS["doctor"] or ended.code:
        return ended
    states = json.loads((out / "numbers.json").read_text())["checkpoints"]
    damaged = [f"step-{int(step):09}" for step, state in states.items() if state != "whole"]
    return ended._replace(errors=f"{ended.errors}{' '.join(damaged)}")


def copied(run: Path, out: Path, damage: Damage) -> Path:
    copy = Path(shutil.copytree(run, out.with_name(f"{out.name} of") / "run"))
    damage(copy / "checkpoints" / NEWEST)
    return copy


@pytest.mark.parametrize("name", VERBS)
def test_no_damage_is_loaded_in_silence(
    forks: Forks, pictures: Path, run: Path, tmp_path: Path, thorough: Callable[[int, int], int], name: str
) -> None:
    verb = VERBS[name]
    if verb.long > 2 and not ALL:
        pytest.skip("long: runs with LOOKALIKE_FAULTS=all")
    before = copied(run, tmp_path / "before", shutil.rmtree)
    assert carried_out(forks, verb, before, pictures, tmp_path / "before").code == 0
    reference = verb.came(before, tmp_path / "before")

    def damaged(which: str, out: Path) -> None:
        copy = copied(run, out, damages[which])
        ended = carried_out(forks, verb, copy, pictures, out)
        assert "Traceback" not in ended.errors
        assert NEWEST in ended.errors, f"exit {ended.code}, and nothing is said: {ended.errors}"
        if ended.code == 0:
            assert verb.came(copy, out) == reference
        else:
            assert ended.code == 65
            assert ended.errors.count("\n") == 1
        shutil.rmtree(out)
        shutil.rmtree(copy.parent)

    damages = DAMAGE | drawn(thorough(0, 90))
    chosen = list(damages)[sum(map(ord, name)) % 5 :: thorough(19, 1) * verb.long]
    every(f"{name}: damage", chosen, damaged, tmp_path)


@pytest.mark.parametrize("name", VERBS)
def test_no_other_file_of_a_run_is_damaged_in_silence(
    forks: Forks, pictures: Path, run: Path, tmp_path: Path, thorough: Callable[[int, int], int], name: str
) -> None:
    """One bit of them: most of such files can still be read, as another recipe, say."""
    verb, chance = VERBS[name], random.Random(name)

    def damaged(case: tuple[str, float, int], out: Path) -> None:
        file, share, bit = case
        copy = copied(run, out, lambda _: None)
        flip(copy / file, share, bit)
        ended = carried_out(forks, verb, copy, pictures, out)
        assert "Traceback" not in ended.errors
        assert ended.code in (0, 65), ended.errors
        if file == "recipe.json":
            assert (ended.code, ended.errors.count("\n")) == (65, 1), ended.errors
        if file == "hashes.json" and file not in ended.errors:  # of a name in it, or beside the names
            assert ended.code == 0, ended.errors
        else:
            assert str(copy / file) in ended.errors or "not as it was written" in ended.errors

    some = [(file, chance.random(), chance.randrange(8)) for file in NAMED for _ in range(thorough(1, 12))]
    every(f"{name}: damage of {', '.join(NAMED)}", some[:: verb.long], damaged, tmp_path)


@pytest.mark.parametrize("file", ["start.safetensors", "result.json", "result.safetensors"])
def test_nor_is_what_a_run_began_with_and_what_was_kept(
    forks: Forks, pictures: Path, run: Path, tmp_path: Path, file: str
) -> None:
    out = tmp_path / "adapted"
    began = [*beginning(pictures, tmp_path), "--init-from", run, "--held-out", 0.25]
    began[began.index("--out") + 1] = out
    done(forks.run(began))
    measure = ["evaluate", "knn", out, pictures, "--workers", 0]
    done(forks.run(measure))
    flip(out / file, 0.99 if file.endswith("safetensors") else 0.1, bit=0)
    ended = forks.run(measure)
    assert (ended.code, ended.errors.count("\n")) == (65, 1), ended.errors
    assert file in ended.errors


def test_nor_is_a_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    publish(tmp_path, {"tokenizer.json": b'{"a": 1}'})
    flip(tmp_path / "tokenizer.json", 0.6, bit=0)
    with pytest.raises(UserError, match=r"tokenizer\.json is not as it was written") as refused:
        load_tokenizer(tmp_path, simcse)
    assert refused.value.code == BAD_DATA


@pytest.mark.parametrize("name", VERBS)
def test_where_every_checkpoint_is_damaged_all_is_refused(
    forks: Forks, pictures: Path, run: Path, tmp_path: Path, name: str
) -> None:
    copy = copied(run, tmp_path / "out", DAMAGE["flip learner.safetensors at 0.99"])
    (copy / "checkpoints" / "step-000000001" / "manifest.json").unlink()
    ended = carried_out(forks, VERBS[name], copy, pictures, tmp_path / "out")
    assert ended.code == 0 if name == "doctor" else (ended.code, ended.errors.count("\n")) == (65, 1)
    assert "step-000000001" in ended.errors
    assert NEWEST in ended.errors
