"""``lookalike export``: a model, and what is known of where it comes from, in a form that another library opens."""

from __future__ import annotations

import copy
import os
import re
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lookalike.core.devices import isolated
from lookalike.core.errors import BAD_DATA, UserError, meant
from lookalike.core.files import read_json
from lookalike.data.fingerprint import from_table
from lookalike.exchange.card import Facts
from lookalike.exchange.export import Exported, Subject, refuse, refuse_filled
from lookalike.exchange.export import export as write
from lookalike.train.history import collect
from lookalike.train.run import Run, is_run
from lookalike.train.trained import Trained, load

_LOOKED, _PART = 5000, 5  # training examples that a checkup draws at most, a fifth of which are its queries


@isolated()
def export(model: Trained | str | Path, to: str, out: str | Path, numbers: Sequence[str | Path] = ()) -> Exported:
    """Write a model into the new or empty folder ``out`` as ``to`` opens it, checked by that library.

    ``model`` is a run, a public model by its name, or what ``load`` gave; ``to`` is timm, huggingface, torchvision,
    onnx or detectron2; ``numbers`` are files of ``evaluate --json`` to quote in the card. Raises UserError, and then
    leaves nothing.
    """
    from lookalike.exchange.targets import TARGETS

    if to not in TARGETS:
        raise UserError(f"unknown target {to!r}; {meant(to, TARGETS)}")
    refuse_filled(Path(out))
    quoted = [quote(Path(file)) for file in numbers]
    trained = model if isinstance(model, Trained) else load(model)
    refuse(trained.recipe, TARGETS[to], TARGETS.values())
    encoder = copy.deepcopy(trained.encoder).cpu().float().eval()
    encoder.evaluated_in = "fp32"
    name = trained.run or trained.recipe.name
    command = shlex.join(["lookalike", "export", pathless(name), "--to", to, "--out", pathless(str(out))])
    facts = facts_of(trained, name, command, quoted)
    return write(Subject(trained.recipe, encoder, facts), TARGETS[to], Path(out))


def facts_of(trained: Trained, name: str, command: str, numbers: list[str]) -> Facts:
    """What is known of a model, without the folders of this machine."""
    if not is_run(trained.run):
        return Facts(pathless(name), command, numbers=numbers, licence=getattr(trained.named, "licence", ""))
    run, recipe = Run(Path(trained.run)), trained.recipe
    data, history = run.data(), collect(run.folder)
    (start, licence), argv = start_of(data), history.environment.get("command")
    if (knn := history.last("knn")) is not None:
        count = max(1, min(history.examples(), _LOOKED) // _PART)
        numbers = [*numbers, f"kNN in training, about {count:,} training examples whose labels it never saw: {knn:.1%}"]
    program, *words = map(pathless, map(str, argv if isinstance(argv, list) and argv else ["lookalike"]))
    training = {
        "recipe": f"{recipe.name}, {trained.step:,} steps of {recipe.batch}",
        "data": f"{pathless(str(data.get('data')))}, {data['examples']:,} examples",
        "fingerprint of the data": from_table(run.data_table).digest()[:16],
        "began from": pathless(start) or "random weights",
        "command": shlex.join([program.replace("__main__.py", "lookalike"), *words]),
        "with": f"lookalike {version('lookalike')}, torch {history.environment.get('torch')}",
    }
    return Facts(pathless(name), command, training, numbers, pathless(start), licence)


def start_of(data: Any, deep: int = 8) -> tuple[str, str]:
    """The model that a run began from, as its record ``data`` has it, and the licence that holds since; "" for none.

    A start may have a start, which is where the licence is.
    """
    start = data.get("start") if isinstance(data, dict) else None
    if not isinstance(start, dict):
        return "", ""
    run = str(start.get("run", ""))
    if run and deep and is_run(run):
        return run, start_of(Run(Path(run)).data(), deep - 1)[1]
    return str(start.get("model", run)), str(start.get("licence", ""))


def quote(file: Path) -> str:
    """The numbers of a file that ``lookalike evaluate --json`` wrote, in one line; raises UserError."""
    record = read_json(file)
    if not isinstance(record, dict) or "data" not in record:
        raise UserError(f"{file} holds no numbers: name what lookalike evaluate TASK --json wrote", BAD_DATA)
    numbers = {name.replace("_", " "): value for name, value in record.items() if type(value) in (int, float)}
    listed = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    return f"{file.stem} on {pathless(str(record['data']))}: {listed}"


def pathless(word: str) -> str:
    """A word of a command without the folders of an absolute path, and without what an address may keep secret."""
    if "://" in word:
        return re.sub(r"//[^/@]*@", "//", word.split("?")[0])
    parts = re.split("([=:,])", word)
    return "".join(os.path.basename(part.rstrip("/")) if part.startswith(("/", "~")) else part for part in parts)
