"""The house, as its sources show it: few rooms, few floors, short functions, and names that mean one thing."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

import lookalike

ROOT = Path(lookalike.__file__).parent
MODULES = {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
MOST_MODULES = 194
Function = ast.FunctionDef | ast.AsyncFunctionDef

TWICE: dict[str, str] = {}  # class names that the package defines more than once, and why
LATE = {  # what a function may import: packages of extras, and those whose import costs a second
    "av": "[video]",
    "faster_coco_eval": "[detect]",
    "fsspec": "[remote]",
    "lookalike": "what needs one of the slow ones as a whole",
    "onnxruntime": "[export]",
    "pillow_heif": "[heif]",
    "pillow_jxl": "[jxl]",
    "scipy": "slow",
    "sklearn": "slow",
    "tensorboard": "[log]",
    "timm": "slow",
    "tokenizers": "[text]",
    "torchvision": "slow",
    "transformers": "[text]",
}


def functions() -> Iterator[tuple[str, Function]]:
    """(where, function) for each but Triton's kernels, which the compiler wants in one piece."""
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, Function) and not name.endswith("_triton.py"):
                yield f"{name}: {node.name}", node


def lines(function: Function) -> int:
    """Of its body, without a docstring."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return int(function.end_lineno or 0) - body[0].lineno + 1


def imports(function: Function) -> Iterator[str]:
    """The packages that are imported inside."""
    for node in ast.walk(function):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or ".").split(".")[0]


def test_the_rooms_are_few() -> None:
    entries = {name.split("/")[0] for name in MODULES} | {"py.typed"}
    assert len(entries) <= 18  # explore, which only its own verb imports
    assert len(MODULES) <= MOST_MODULES
    (contract,) = tomllib.loads(PYPROJECT.read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    assert len(contract["layers"]) <= 13
    assert contract["exhaustive"]


def test_the_packages_that_everybody_needs_are_few() -> None:
    assert len(tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["dependencies"]) <= 10


def test_functions_are_short() -> None:
    lengths = {where: lines(function) for where, function in functions()}
    assert {where: length for where, length in lengths.items() if length > 46} == {}
    assert median(lengths.values()) <= 7


def test_a_class_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1 and name not in TWICE} == {}
    assert {name for name in TWICE if len(homes[name]) < 2} == set()


def test_functions_import_nothing_but_extras() -> None:
    late = {where: name for where, function in functions() for name in imports(function) if name not in LATE}
    assert late == {}


@pytest.mark.parametrize("name", lookalike.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(lookalike, name) is not None
