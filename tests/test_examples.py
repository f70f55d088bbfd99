"""Every example in Python runs as it stands, and what it says of itself is so."""

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import lookalike
from lookalike.core.errors import UserError
from lookalike.models.image import ResNet
from lookalike.recipes import tiny
from lookalike.recipes.parts import PARTS
from lookalike.train.embeddings import write_embeddings

pytestmark = pytest.mark.any_precision  # what they show is how parts fit together

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


# What exports are used for: each script is given an export, and pictures in a folder for each class


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    images, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(images[:48], labels[:48])):
        picture = Image.fromarray((image.reshape(8, 8) * 15).astype(np.uint8)).resize((40, 48 if number % 2 else 30))
        (tmp_path / "digits" / str(label)).mkdir(parents=True, exist_ok=True)
        picture.convert("RGB").save(tmp_path / "digits" / str(label) / f"{number}.png")
    return tmp_path / "digits"


def exported(target: str, digits: Path, **model: object) -> Path:
    run, out = digits.parent / "run", digits.parent / "out"
    settings = {"pretext.first.size": 24, "pretext.whole": 32, "canvas": 40}
    recipe = replace(tiny, **model)
    lookalike.pretrain(digits, run, recipe=recipe, steps=2, workers=0, quiet=True, settings=settings)
    lookalike.export(run, target, out)
    return out


def script(name: str, *arguments: object) -> list[str]:
    """What it prints, in a process of its own, which says what it has imported in the end."""
    told = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    told += "; print(*(name for name in ('torch', 'lookalike') if name in sys.modules))"
    command = [sys.executable, "-c", told, EXAMPLES / f"{name}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_export_is_fine_tuned_in_timm(digits: Path) -> None:
    *lines, imported = script("finetune_in_timm", exported("timm", digits, model=ResNet("resnet18")), digits)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert len(losses) == 3
    assert losses[2] < losses[0]
    assert imported == "torch"


def test_an_export_detects_in_torchvision(digits: Path) -> None:
    out = exported("torchvision", digits, model=ResNet("resnet18"))
    *lines, imported = script("detect_in_torchvision", out, "resnet18")
    losses = [float(line.split("loss ")[1]) for line in lines]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    assert imported == "torch"


def test_an_export_searches_by_onnx_alone_as_the_run_does(digits: Path) -> None:
    pytest.importorskip("onnxruntime")
    out, query = exported("onnx", digits), digits / "3" / "3.png"
    *lines, imported = script("search_by_onnx", out, digits, query)
    assert imported == ""
    hits = {Path(line.split("  ")[1]).relative_to(digits).as_posix(): float(line.split("  ")[0]) for line in lines}
    assert next(iter(hits.items())) == ("3/3.png", 1.0)
    table = lookalike.embed(digits.parent / "run", digits, workers=0)
    cosines = dict(zip(table.path, table.vectors @ table.vectors[table.path.index("3/3.png")]))
    # Pillow rounds pixels after each of the two resizes.
    assert all(abs(cosines[path] - cosine) < 0.03 for path, cosine in hits.items())


def test_a_table_goes_to_qdrant_and_is_searched_there_as_here(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client", reason="no qdrant-client here; CI has none")
    run, table = tmp_path / "run", tmp_path / "table.parquet"
    lookalike.pretrain(digits, run, recipe="tiny", steps=1, workers=0, quiet=True)
    write_embeddings(lookalike.embed(run, digits, workers=0), table)
    *lines, _ = script("to_qdrant", table)
    first = pq.read_table(table)["path"][0].as_py()
    assert lines[0] == f"1.0000  {first}"
    hits = lookalike.search(table, [first], 4)[0]
    scores = {line.split("  ")[1]: float(line.split("  ")[0]) for line in lines[1:]}
    assert scores == pytest.approx({hit.path: hit.cosine for hit in hits}, abs=1e-4)


def test_every_other_script_is_checked_for_syntax() -> None:
    for script in EXAMPLES.glob("*.sh"):
        assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
