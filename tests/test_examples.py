"""Every example in Python runs as it stands, and what it says of itself is so."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import lookalike
from lookalike.core.errors import UserError
from lookalike.recipes.parts import PARTS

EXAMPLES = Path(__file__).parent.parent / "examples"
OWN = ["own_backbone", "own_view", "own_objective", "own_data", "notebook"]


@pytest.mark.parametrize("name", OWN)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "kNN accuracy" in printed
    trained = lookalike.load(tmp_path / "runs" / name)
    assert trained.step == lookalike.load(tmp_path / "runs" / name).step > 0
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert 15 <= len(lines) <= 45


def test_a_run_of_a_registered_part_wants_its_module_and_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "own_backbone.py"), run_name="__main__")
    monkeypatch.delitem(PARTS, "Patches")
    before = set(sys.modules)
    with pytest.raises(UserError, match=r"unknown kind 'Patches'.*import the module that defines it.*before lookalike"):
        lookalike.load("runs/own_backbone")
    assert set(sys.modules) == before
    runpy.run_path(str(EXAMPLES / "own_backbone.py"), run_name="own_backbone")
    assert lookalike.load("runs/own_backbone").step == 30


def test_every_other_script_is_checked_for_syntax() -> None:
    for script in EXAMPLES.glob("*.sh"):
        assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
