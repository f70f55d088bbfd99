"""Text through the same loop: two processes equal one, a killed run ends as one that never was, and what follows."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lookalike.data.order import Order
from lookalike.data.text.loader import TextLoader, Tokenizer
from lookalike.data.text.source import find_text
from lookalike.learn.dictionary import Queue
from lookalike.learn.optim import SGD
from lookalike.models.text import Transformer
from lookalike.recipes import RECIPES
from lookalike.recipes.recipe import Recipe
from lookalike.train.loop import batches
from tests.support.forks import Ended, Forks, Moment, digest
from tests.support.ranks import ranks
from tests.support.steps import in_double

pytestmark = pytest.mark.exact

pytest.importorskip("tokenizers", reason="tokenizers is not installed")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the package warns of forks

WORDS = ("a", "man", "plays", "the", "flute", "while", "two", "dogs", "run", "over", "hills", "at", "night")
STEPS, BATCH = 8, 16
NAMES = ["simcse", "moco_text", "text_pairs", "mlm"]


def sentence(number: int) -> str:
    draw = np.random.default_rng(number)
    return " ".join(draw.choice(WORDS, draw.integers(2, 12)))


def miniature(name: str) -> Recipe:
    recipe = RECIPES[name].fitted(4000, 0)
    return replace(
        recipe,
        pretext=replace(recipe.pretext, drop=0.1, shuffle=1),  # type: ignore[arg-type]
        model=Transformer(vocabulary=320, width=16, depth=2, heads=2),
        head=replace(recipe.head, widths=(8,) if recipe.head.widths else ()),
        dictionary=Queue(40) if name == "moco_text" else recipe.dictionary,
        optimizer=SGD(lr=0.02),
        whiten=False,
        batch=BATCH,
        precision="fp32",
    )


def trained(name: str, tokens: str) -> dict[str, Any]:
    """A few steps in double precision; every rank calls it."""
    recipe = miniature(name)
    pairs = [[sentence(i), sentence(i + 1000)] for i in range(60)]
    source = find_text(pairs, pairs=True).rows(None)
    reader = TextLoader(source, Tokenizer(tokens), 16)
    return in_double(recipe, reader, STEPS)


def every(tokens: str) -> dict[str, dict[str, Any]]:
    return {name: trained(name, tokens) for name in NAMES}


def test_two_processes_do_the_mathematics_of_one() -> None:
    tokens = Tokenizer.trained(map(sentence, range(200)), 320, True).json
    alone, together = every(tokens), ranks(2, every, tokens)[0]
    for name in NAMES:
        assert alone[name].keys() == together[name].keys()
        for part, value in alone[name].items():
            np.testing.assert_allclose(together[name][part], value, rtol=1e-9, atol=1e-10, err_msg=f"{name}: {part}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scored pairs in two splits, labelled lines, and lines that are none."""
    folder = tmp_path_factory.mktemp("text")
    for split, start in (("train", 0), ("test", 500)):
        rows = [f"{sentence(i)},{sentence(i + 1)},{i % 6}" for i in range(start, start + 40)]
        (folder / f"pairs-{split}.csv").write_text("sentence1,sentence2,score\n" + "\n".join(rows))
    lines = [f"{i % 2}\t{sentence(i) if i % 2 else 'night ' + sentence(i)}" for i in range(60)]
    (folder.parent / "labelled.tsv").write_text("label\ttext\n" + "\n".join(lines))
    (folder / "train-more.txt").write_bytes(b"\n" + b"a song \xff\n" + b"a long song " * 90_000 + b"\n")
    return folder


def command(data: Path, out: Path, *more: object, recipe: str = "moco_text") -> list[object]:
    return [
        *("pretrain", data, "--out", out, "--recipe", recipe, "--steps", 6, "--save-every", 2, "--workers", 0),
        *("--batch", 16, "--checkups", 1, "--quiet", "--max-bad", 0.05, "--model.vocabulary", 300),
        *("--model.width", 16, "--model.depth", 1, "--model.heads", 2, *more),
    ]


def done(ended: Ended) -> None:
    assert ended.code == 0, ended.errors


@pytest.fixture(scope="module")
def run(forks: Forks, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "run"
    done(forks.run(command(data, out)))
    return out


@pytest.mark.parametrize(
    "moment", [Moment("tokenizer.json", 2), Moment("recipe.json", 2), Moment(".step-000000004", 4)]
)
def test_a_killed_run_ends_as_if_it_never_was(
    moment: Moment, forks: Forks, data: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended = forks.run(command(data, out), moment)
    assert ended.code == -signal.SIGKILL, ended.errors
    done(forks.run(command(data, out)))
    assert digest(out) == digest(run)
    assert (out / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()


def test_lines_that_are_no_rows_stand_in_bad_files(run: Path) -> None:
    assert (run / "bad_files.csv").read_text().splitlines() == [
        "path,reason",
        'train-more.txt,"1 blank lines, which are no rows"',
        "train-more.txt:2,no valid UTF-8",
    ]


def test_a_run_is_not_continued_on_other_lines(forks: Forks, data: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for file in data.iterdir():
        (tmp_path / "data" / file.name).write_bytes(file.read_bytes().replace(b"flute", b"piano"))
    ended = forks.run(command(tmp_path / "data", run))
    assert ended.code == 65
    assert "began with other data" in ended.errors


def test_what_was_learned_is_measured_and_embedded(forks: Forks, data: Path, run: Path, tmp_path: Path) -> None:
    numbers, labelled = tmp_path / "numbers.json", data.parent / "labelled.tsv"
    named = f"{data}/pairs-test.csv:sentence1,sentence2,score"
    for asked in ([run, named], [run, named, "--untrained"], [run, data / "pairs-train.csv"]):
        done(forks.run(["evaluate", "sts", *asked, "--json", numbers]))
        found = json.loads(numbers.read_text())
        assert found["pairs"] == 40
        assert -1 <= found["spearman"] <= 1
    for verb in ("knn", "probe"):
        done(forks.run(["evaluate", verb, run, labelled, "--json", numbers]))
        assert 0 <= json.loads(numbers.read_text())["accuracy"] <= 1
    done(forks.run(["embed", run, labelled, "--out", tmp_path / "table.parquet"]))
    table = pq.read_table(tmp_path / "table.parquet")
    assert table["path"].to_pylist()[0] == "labelled.tsv:2"
    vectors = np.stack(table["embedding"].to_numpy())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_a_run_starts_from_a_masked_language_model(forks: Forks, data: Path, tmp_path: Path) -> None:
    warm, cold = tmp_path / "warm", tmp_path / "cold"
    done(forks.run(command(data, warm, recipe="mlm")))
    done(forks.run(command(data / "pairs-train.csv", cold, "--init-from", warm, recipe="text_pairs")))
    assert (cold / "tokenizer.json").read_bytes() == (warm / "tokenizer.json").read_bytes()
    losses = [json.loads(line) for line in (warm / "metrics.jsonl").read_text().splitlines()]
    assert any("words" in line for line in losses)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pretrain", "{data}", "--out", "{out}"], 65, "--recipe simcse"),
        (["pretrain", "{data}/train-more.txt", "--out", "{out}"], 65, "--recipe simcse"),
        (["supervised", "{data}/../labelled.tsv", "--out", "{out}", "--recipe", "simcse"], 2, "made for pictures"),
        (["evaluate", "finetune", "{run}", "{data}/../labelled.tsv"], 2, "fine-tuning is for pictures"),
        (["evaluate", "sts", "{run}", "{data}/train-more.txt"], 65, "a pair is wanted"),
        (["pretrain", "{run}/checkpoints", "--out", "{out}", "--recipe", "simcse"], 65, "no text among"),
    ],
)
def test_text_where_pictures_are_wanted_and_the_other_way_round_is_one_line(
    arguments: list[str], code: int, words: str, forks: Forks, data: Path, run: Path, tmp_path: Path
) -> None:
    ended = forks.run([word.format(data=data, out=tmp_path / "out", run=run) for word in arguments])
    assert ended.code == code, ended.errors
    assert words in ended.errors
    assert ended.errors.count("\n") == 1


def test_a_step_draws_from_no_generator() -> None:
    recipe = miniature("simcse")
    learner = recipe.build(60).train()
    source = find_text([sentence(i) for i in range(60)]).rows(None)
    reader = TextLoader(source, Tokenizer.trained(map(sentence, range(60)), 320, True), 16)
    (batch,) = batches(reader, recipe, Order(60, BATCH, 0), 0, 1)
    before = torch.get_rng_state()
    learner(batch)
    assert torch.equal(torch.get_rng_state(), before)
