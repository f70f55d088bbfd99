"""The command line: it does what it says, and says no in one line, with the right exit code, and nothing lost."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import lookalike
from lookalike.cli.flags import VERBS
from lookalike.cli.main import main
from lookalike.core.errors import UserError
from tests.support.forks import digest
from tests.support.packs import pictures as packed

pytestmark = pytest.mark.any_precision

Said = tuple[int, str, str]
LIGHT = ("--recipe", "tiny", "--model.widths", "4,8", "--head.widths=16", "--workers", "0")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures: bright ones in one class folder, dark ones in the other."""
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(60):
        path = folder / ("bright", "dark")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((noise.integers(0, 100, (16, 16, 3)) + (150 if i % 2 == 0 else 0)).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", str(pictures), "--out", str(out), "--steps", "4", "--save-every", "1", "--quiet", *LIGHT])
    assert stopped.value.code == 0
    return out


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# It does


def test_the_same_command_again_continues_and_here_there_is_nothing_left_to_do(
    say: Callable[..., Said], pictures: Path, trained: Path
) -> None:
    before = digest(trained)
    code, out, err = say("pretrain", pictures, "--out", trained, "--steps", 4, *LIGHT)
    assert (code, err) == (0, "")
    assert "step 4 of 4: done" in out
    assert digest(trained) == before


def test_knn_and_fewshot_print_and_write_their_numbers(
    say: Callable[..., Said], pictures: Path, trained: Path, tmp_path: Path
) -> None:
    code, out, err = say(
        "evaluate", "knn", trained, pictures, "--k", 5, "--json", tmp_path / "a/knn.json", "--workers", 0
    )
    assert (code, err) == (0, "")
    knn = json.loads((tmp_path / "a" / "knn.json").read_text())
    assert knn["accuracy"] == 1.0  # bright and dark
    assert "kNN accuracy 100.00% on 12 pictures against 48" in out
    assert (knn["k"], knn["queries"], knn["reference"], knn["step"]) == (5, 12, 48, 4)
    arguments = ("--labels", 1, 5, "--draws", 4, "--json", tmp_path / "few.json", "--workers", 0)
    code, out, err = say("evaluate", "fewshot", trained, pictures, *arguments)
    assert (code, err) == (0, "")
    few = json.loads((tmp_path / "few.json").read_text())
    assert 0 <= few["accuracy_1"] <= 1
    assert few["accuracy_5"] > 0.7
    assert few["interval_5"] >= 0
    assert "5 labels a class (10 of 48, 20.8%, of 2 classes): accuracy" in out


def test_embed_writes_the_table(say: Callable[..., Said], pictures: Path, trained: Path, tmp_path: Path) -> None:
    code, out, err = say("embed", trained, pictures, "--out", tmp_path / "new" / "table.parquet", "--workers", 0)
    assert (code, err) == (0, "")
    assert pq.read_table(tmp_path / "new" / "table.parquet").num_rows == 60
    assert "60 embeddings of width 8" in out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.parquet"]


def test_brackets_in_a_path_are_no_markup(say: Callable[..., Said], pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "[bold] [/red]"
    code, printed, err = say("pretrain", pictures, "--out", out, "--steps", 1, *LIGHT)
    assert (code, err) == (0, "")
    assert str(out) in printed


def test_overwrite_moves_the_old_run_aside(say: Callable[..., Said], pictures: Path, tmp_path: Path) -> None:
    command = ("pretrain", pictures, "--out", tmp_path / "run", "--quiet", *LIGHT)
    assert say(*command, "--steps", 1) == (0, "", "")
    old = snapshot(tmp_path / "run")
    assert say(*command, "--steps", 2, "--overwrite") == (0, "", "")
    assert snapshot(tmp_path / "run.old-1") == old
    assert json.loads(digest(tmp_path / "run")["state.json"])["step"] == 2


# It says no


def refused(said: Said, code: int, *words: str) -> None:
    found, out, err = said
    assert found == code, err
    assert err.startswith("lookalike: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err + out
    for word in words:
        assert word in err


def test_data_that_is_none(say: Callable[..., Said], tmp_path: Path) -> None:
    empty, text = tmp_path / "empty", tmp_path / "text"
    empty.mkdir()
    text.mkdir()
    (text / "notes.txt").write_text("no picture")
    for data in (tmp_path / "missing", empty, text, text / "notes.txt"):
        refused(say("pretrain", data, "--out", tmp_path / "run", *LIGHT), 65, str(data))
        assert not (tmp_path / "run").exists()


def test_pictures_that_cannot_be_read(say: Callable[..., Said], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(20):
        Image.new("RGB", (16, 16), (i, i, i)).save(data / f"{i:02}.png")
    (data / "03.png").write_bytes(b"<html>")
    command = ("pretrain", data, "--out", tmp_path / "run", "--steps", 1, "--quiet", *LIGHT)
    refused(say(*command), 65, "1 of 20 pictures", "03.png", "--max-bad")
    assert "03.png" in (tmp_path / "run" / "bad_files.csv").read_text()
    assert say(*command, "--max-bad", 0.1) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--recipe", "moco_v4"), ("unknown recipe 'moco_v4'", "did you mean moco_v")),
        (
            ("--recipe", "small", "--dictionary.sise", 64),
            ("no field 'dictionary.sise'", "did you mean dictionary.size?"),
        ),
        (("--optimizer.lr", "fast"), ("--optimizer.lr cannot be 'fast'", "float")),
        (("--overwrit",), ("unknown argument '--overwrit'", "did you mean --overwrite?")),
        (("--minute", 5), ("unknown argument '--minute'", "did you mean --minutes?")),
        (("--bach", 5), ("unknown argument '--bach'", "did you mean --batch?")),
        (("--steps", 3, "--epochs", 1), ("choose one of --minutes, --epochs and --steps",)),
        (("--steps", 0), ("--steps must be above 0",)),
        (("--minutes", "nan"), ("must be above 0",)),
        (("--workers", -1), ("--workers must be at least 0",)),
        (("--save-every", 0), ("--save-every must be at least 1",)),
        (("--max-bad", -1), ("--max-bad must be at least 0",)),
    ],
)
def test_what_it_does_not_know_or_cannot_do(
    say: Callable[..., Said], pictures: Path, tmp_path: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    before = snapshot(pictures)
    refused(say("pretrain", pictures, "--out", tmp_path / "run", "--workers", 0, *arguments), 2, *words)
    assert not (tmp_path / "run").exists()
    assert snapshot(pictures) == before


@pytest.mark.parametrize(
    ("verb", "hint"), [("pretrian", "did you mean pretrain?"), ("qqqq", "the verbs are demo, pretrain")]
)
def test_a_verb_that_does_not_exist(say: Callable[..., Said], verb: str, hint: str) -> None:
    refused(say(verb, "pictures", "--out", "run"), 2, f"unknown verb {verb!r}", hint)


WRITING = [  # every verb that writes, and what of it names a file or a folder
    (("embed", "RUN", "DATA", "--workers", 0), "--out", "a.parquet"),
    (("embed", "RUN", "DATA", "--workers", 0), "--out", "a.npy"),
    (("search", "RUN", "bright/00.png"), "--json", "a.json"),
    (("search", "RUN", "bright/00.png"), "--page", "a.html"),
    (("evaluate", "knn", "RUN", "DATA", "--workers", 0), "--json", "a.json"),
    (("evaluate", "segment", "RUN", "DATA", "--workers", 0), "--page", "a.html"),
    (("evaluate", "detect", "RUN", "DATA", "--workers", 0), "--out", None),
    (("compare", "RUN", "--on", "DATA", "--task", "knn"), "--out", None),
    (("preview", "DATA"), "--out", "a.png"),
    (("prepare", "DATA", "--workers", 0), "--out", None),
    (("doctor", "DATA", "--quick", "--workers", 0), "--out", None),
    (("doctor", "DATA", "--quick", "--workers", 0), "--json", "a.json"),
    (("pretrain", "DATA", *LIGHT), "--out", None),
    (("supervised", "DATA", *LIGHT), "--out", None),
    (("demo",), "--out", None),
]


@pytest.mark.parametrize(("command", "flag", "name"), WRITING)
def test_a_result_that_cannot_be_written_is_refused_before_the_work(
    say: Callable[..., Said],
    pictures: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[object, ...],
    flag: str,
    name: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder" / (name or "a")).mkdir(parents=True)
    before, run = snapshot(tmp_path), snapshot(trained)
    command = tuple({"RUN": trained, "DATA": pictures}.get(str(part), part) for part in command)
    file, long = name or "run", "n" * 300
    outs = [
        f"file/{file}",
        f"new/{long}{file}",
        f"{long}/{file}",
        f"/proc/{file}",
        *([f"folder/{name}"] if name else []),
    ]
    for out in outs:
        code, said, err = say(*command, flag, out)
        refused(
            (code, said, err),
            74,
            f"cannot write {'' if name else 'to '}{out} (",
            "choose another",
        )
        assert said == ""
    if name is None:
        refused(say(*command, flag, "file"), 74 if command[0] in ("evaluate", "compare", "doctor") else 2, "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (snapshot(tmp_path), snapshot(trained)) == (before, run)


@pytest.mark.parametrize(
    "command", [("embed", "RUN", "nowhere", "--out", "new/a.csv"), ("doctor", "nowhere", "--json", "new/a")]
)
def test_a_folder_for_results_is_not_made_for_data_that_is_refused(
    say: Callable[..., Said],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(say(*(trained if part == "RUN" else part for part in command)), 65, "nowhere")
    refused(say("embed", trained, "digits", "--out", "new/a.txt"), 2, "new/a.txt: embeddings are written as .parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_letters_that_a_terminal_obeys_is_shown_in_one_line(
    say: Callable[..., Said], tmp_path: Path
) -> None:
    refused(say("pretrain", tmp_path / "\x1b[2J\n", "--out", tmp_path / "run"), 65, r"\x1b[2J\n: no such file")


def test_a_batch_that_is_larger_than_the_data(say: Callable[..., Said], pictures: Path, tmp_path: Path) -> None:
    command = ("pretrain", pictures, "--out", tmp_path / "run", "--batch", 64, *LIGHT)
    refused(say(*command), 65, "a batch of 64 is larger than the data, 60 examples", "--batch 8")


@pytest.mark.parametrize("out", ["file/run", "file", "/proc/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_to(say: Callable[..., Said], pictures: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("precious")
    found = say("pretrain", pictures, "--out", tmp_path / out, *LIGHT)
    refused(found, 2 if out == "file" else 74, str(tmp_path / out), "--out")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    "names", [["notes.txt"], ["checkpoints/model.pt"], ["metrics.jsonl"], ["run.lock", "thesis.tex"]]
)
@pytest.mark.parametrize("flag", [(), ("--overwrite",)])
def test_a_folder_of_somebody_elses_files(
    say: Callable[..., Said], pictures: Path, tmp_path: Path, names: list[str], flag: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("precious")
    before = snapshot(tmp_path)
    refused(say("pretrain", pictures, "--out", tmp_path / "run", *LIGHT, *flag), 2, str(tmp_path / "run"))
    assert snapshot(tmp_path) == before


def test_a_published_recipe_trains_on_little_data_with_the_batch_that_fits(
    say: Callable[..., Said], pictures: Path, tmp_path: Path
) -> None:
    light = ("--model", "timm:resnet10t", "--canvas", 32, "--pretext.first.size", 32, "--steps", 1, "--workers", 0)
    code, printed, err = say("pretrain", pictures, "--out", tmp_path / "run", "--recipe", "moco_v2", *light)
    assert (code, err) == (0, "")
    assert "batches of 8, not 256 as moco_v2 has them: there are 60 examples" in printed
    code, printed, _ = say(
        "pretrain", pictures, "--out", tmp_path / "own", "--recipe", "moco_v2", *light, "--batch", 16
    )
    assert code == 0
    assert "steps of 16" in printed
    assert "batches of" not in printed
    assert json.loads((tmp_path / "own" / "recipe.json").read_text())["model"]["name"] == "resnet10t"


def test_other_settings_in_a_run_that_began(say: Callable[..., Said], pictures: Path, trained: Path) -> None:
    before = snapshot(trained)
    command = ("pretrain", pictures, "--out", trained, *LIGHT, "--steps", 4)
    changed = say(*command, "--dictionary.size", 16, "--objective.temperature", 0.5)
    refused(changed, 2, "dictionary.size: 30 -> 16", "objective.temperature: 0.1 -> 0.5", "--overwrite")
    assert snapshot(trained) == before
    refused(say(*command, "--steps", 5), 2, "length.steps: 4 -> 5")
    assert snapshot(trained) == before


def test_other_data_in_a_run_that_began(say: Callable[..., Said], pictures: Path, trained: Path) -> None:
    before = snapshot(trained)
    refused(say("pretrain", pictures / "dark", "--out", trained, *LIGHT, "--steps", 4), 65, "60 then, 30 now")
    assert snapshot(trained) == before


def test_data_that_changes_is_refused_by_name_unless_it_is_allowed(
    say: Callable[..., Said], pictures: Path, trained: Path, tmp_path: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, data)
    shutil.copytree(trained, run)
    command = ("pretrain", data, "--out", run, *LIGHT, "--steps", 4)
    assert say(*command, "--quiet") == (0, "", "")  # a copy is the same data
    (data / "dark" / "01.png").rename(data / "dark" / "99.png")
    (data / "dark" / "03.png").write_bytes((data / "dark" / "05.png").read_bytes())
    (data / "bright" / "00.png").unlink()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(data / "bright" / "98.png")
    before = snapshot(run)
    told = (
        "1 added (bright/98.png), 1 removed (bright/00.png), 1 renamed (dark/01.png -> dark/99.png), "
        "1 replaced (dark/03.png)"
    )
    refused(say(*command), 65, "(60 then, 60 now)", told, "--allow-data-change")
    assert snapshot(run) == before
    (data / "dark" / "07.png").unlink()
    refused(say(*command, "--allow-data-change", "--batch", 8), 2, "batch: 16 -> 8")
    assert snapshot(run) == before
    assert say(*command, "--allow-data-change", "--quiet") == (0, "", "")
    assert "goes on with other data: 1 added" in (run / "train.log").read_text()
    assert say(*command, "--quiet") == (0, "", "")
    assert json.loads((run / "environment.json").read_text())["data"]["examples"] == 59


def test_a_run_that_is_damaged(say: Callable[..., Said], pictures: Path, trained: Path, tmp_path: Path) -> None:
    command = ("pretrain", pictures, "--out", tmp_path / "run", *LIGHT, "--steps", 4, "--quiet")
    assert say(*command, "--save-every", 1) == (0, "", "")
    newest, older = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    (newest / "learner.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="passed over a damaged checkpoint"):
        assert say(*command) == (0, "", "")  # from the older one, the same steps again
    assert "passed over a damaged checkpoint" in (tmp_path / "run" / "train.log").read_text()
    assert digest(tmp_path / "run") == digest(trained)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    before = snapshot(tmp_path / "run")
    refused(say(*command), 65, "no whole checkpoint is left", "--overwrite")
    assert snapshot(tmp_path / "run") == before
    refused(say("evaluate", "knn", tmp_path / "run", pictures), 65, "no whole checkpoint is left")
    assert older.is_dir()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.json", "{}"),
        ("recipe.json", '{"flour": "200 g"}'),
        ("recipe.json", '{"kind": "Recipe", "_target_": "os.system"}'),
        ("environment.json", "[]"),
        ("environment.json", '{"data": {"examples": "many"}}'),
    ],
)
def test_a_run_of_somebody_else(
    say: Callable[..., Said], pictures: Path, trained: Path, tmp_path: Path, name: str, content: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in ("recipe.json", "environment.json"):
        (run / file).write_bytes((trained / file).read_bytes())
    (run / name).write_text(content)
    before = snapshot(run)
    for command in (
        ("pretrain", pictures, "--out", run, *LIGHT, "--steps", 4),
        ("evaluate", "knn", run, pictures, "--untrained"),
        ("embed", run, pictures, "--out", tmp_path / "table.parquet"),
    ):
        with pytest.warns(UserWarning, match="is damaged") if content == "[]" else nullcontext():
            refused(say(*command), 65)
    assert snapshot(run) == before | ({"run.lock": b""} if (run / "run.lock").exists() else {})


def test_evaluations_of_what_is_no_run_or_has_no_labels(
    say: Callable[..., Said], pictures: Path, trained: Path, tmp_path: Path
) -> None:
    refused(say("evaluate", "knn", tmp_path, pictures), 65, "is not a run", "lookalike pretrain")
    refused(say("evaluate", "knn", trained, pictures / "dark"), 65, "has no labels")
    refused(say("evaluate", "knn", trained, tmp_path / "missing"), 65, "missing")
    refused(say("evaluate", "knn", trained, pictures, "--k", 0), 2, "--k must be at least 1")
    refused(say("evaluate", "knn", trained, pictures, "--steps", 3), 2, "unknown argument '--steps'")
    refused(say("evaluate", "fewshot", trained, pictures, "--labels", 0), 2, "--labels must be at least 1")
    file = tmp_path / "file"
    file.touch()
    refused(say("embed", trained, pictures, "--out", file / "table.parquet", "--workers", 0), 74)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_debug_shows_where(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown recipe"):
        main(["pretrain", str(pictures), "--out", str(tmp_path / "run"), "--recipe", "none", "--debug"])


def test_the_version_a_script_for_completion_and_a_line_for_each_verb(
    say: Callable[..., Said], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert say("--version") == (0, f"{lookalike.__version__}\n", "")
    command = [sys.executable, "-m", "lookalike", "--tyro-print-completion", "bash"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    (tmp_path / "completion.sh").write_text(out)
    script = f"source {tmp_path / 'completion.sh'} && complete -p lookalike"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stderr) == (0, "")
    for word in ("pretrain", "knn", "--temperature", "--save-every"):
        assert word in out
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert "--version" in listed
    assert "--tyro-print-completion" in listed
    for verb in VERBS:
        assert listed.count(f"• {verb} ") == 1


@pytest.mark.parametrize("verb", ["pretrain", "duplicates"])
@pytest.mark.parametrize("width", [60, 100])
def test_help_fills_its_lines(
    verb: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    out = capsys.readouterr().out
    assert "None" not in out  # a default that the text says
    assert "default: False" not in out
    rows = [row.strip("│").rstrip() for row in out.splitlines()]  # in a box, where there is Unicode
    texts = [(row, after) for row, after in pairwise(rows) if row.startswith(" " * 8) and after.startswith(" " * 8)]
    assert texts
    for row, after in texts:
        assert len(row) <= width
        assert len(row) + 1 + len(after.split()[0]) > width - 3, row


# The package


def test_every_public_name_is_there_and_importing_costs_no_torch() -> None:
    assert {"pretrain", "load", "embed", "evaluate", "compare", "part", "UserError"} < set(lookalike.__all__)
    assert sorted(lookalike.__all__) == lookalike.__all__
    assert set(lookalike.__all__) <= set(dir(lookalike))
    for name in lookalike.__all__:
        assert getattr(lookalike, name) is not None
    assert callable(lookalike.pretrain)  # and not the module of this name, which was imported above
    assert callable(__import__("lookalike.train.pretrain").pretrain)
    with pytest.raises(AttributeError, match="'lookalike' has no attribute 'nothing'"):
        _ = lookalike.nothing
    check = (
        "import sys, lookalike, lookalike.cli.main; "
        "assert 'torch' not in sys.modules, 'torch'; print(lookalike.__version__)"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", check], capture_output=True, text=True, timeout=60)
    assert (found.stderr, found.stdout.strip()) == ("", lookalike.__version__)


def test_a_warning_is_a_line_without_code(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [picture.data for picture in packed(9, 8)]}), tmp_path / "a.parquet")
    small = "from lookalike.data.formats import tables; tables._KEEP = tables._SLOW = 100"
    command = f"{small}; from lookalike.cli.main import main; main(['preview', {str(tmp_path)!r}, '--out', 'v.png'])"
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"lookalike: row groups of .*lookalike prepare .*\n", done.stderr), done.stderr
