"""Recipes as values and files, a run folder, and a run that stops before its weights are spoilt."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import sys
import time
from dataclasses import replace
from functools import reduce
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lookalike.core.errors import BAD_DATA, LOCKED, USAGE, UserError
from lookalike.core.files import as_json, publish, write_atomically, write_json
from lookalike.data.example import Rows, Source
from lookalike.data.loader import Loader
from lookalike.data.source import open_source
from lookalike.learn.dictionary import MemoryBank, Queue
from lookalike.learn.objective import DCL
from lookalike.learn.optim import AdamW
from lookalike.models.encoder import MLP
from lookalike.models.image import ResNet, Timm
from lookalike.models.vit import ViT
from lookalike.recipes import RECIPES, recipe_named
from lookalike.recipes.images import moco_cifar, moco_v1, moco_v2, small, tiny
from lookalike.recipes.recipe import Length, Recipe, Stage
from lookalike.recipes.serialize import KINDS, differences, flat, from_plain, override, to_plain
from lookalike.train.length import Budget, Clock, extend, train_to_end
from lookalike.train.pretrain import Request, begin, carry_out, recipe_for
from lookalike.train.run import Run, read_environment, read_recipe
from lookalike.train.screen import Screen
from lookalike.train.trained import Checkup
from tests.support.forks import digest

PICTURES = torch.rand(48, 8, 8, generator=torch.Generator().manual_seed(0))


def asked(out: Path, *settings: tuple[str, object], steps: int | None = 4, **more: object) -> Request:
    light = {"model.widths": "4,8", "head.widths": "16", **dict(settings)}
    options = {"recipe": "tiny", "steps": steps, "settings": light, "workers": 0, "quiet": True}
    return Request(PICTURES, out, **options | more)  # type: ignore[arg-type]


# Recipes


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("examples", "side"), [(16, 8), (1797, 8), (1_281_167, 500)])
def test_a_recipe_is_what_its_file_says(tmp_path: Path, name: str, examples: int, side: int) -> None:
    recipe = recipe_named(name, examples, side)
    assert type(recipe) is Recipe
    assert 2 * recipe.group <= recipe.batch <= examples or recipe.group == RECIPES[name].group
    write_json(tmp_path / "recipe.json", to_plain(recipe))
    again = read_recipe(tmp_path / "recipe.json")
    assert again == recipe
    assert differences(recipe, again) == []
    assert hash(again) == hash(recipe)
    assert recipe.name == name


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'moco_v4'; did you mean moco_v[123]\?"):
        recipe_named("moco_v4", 1000, 32)
    with pytest.raises(UserError, match="there are small, "):
        recipe_named("qqqq", 1000, 32)


OVERRIDES = [
    ("batch", "128", 128),
    ("optimizer.lr", "0.5", 0.5),
    ("optimizer.lr", "1", 1.0),
    ("optimizer.lr", "1e-3", 1e-3),
    ("keys.symmetric", "True", True),
    ("keys.shuffle", "false", False),
    ("precision", "fp32", "fp32"),
    ("model.name", "resnet18", "resnet18"),
    ("head.widths", "64,32", (64, 32)),
    ("head.widths", "64", (64,)),
    ("head.widths", "(64, 32)", (64, 32)),
    ("schedule.at", "0.5,0.75", (0.5, 0.75)),
    ("pretext.first.scale", "[0.5, 1]", (0.5, 1.0)),
    ("length.epochs", "none", None),
    ("length.epochs", "1.5", 1.5),
    ("length.steps", "7", 7),
    ("pretext.second", "none", None),
    ("batch", 64, 64),
    ("optimizer.lr", 0.5, 0.5),
    ("head.widths", [64, 32], (64, 32)),
]


@pytest.mark.parametrize(("path", "text", "value"), OVERRIDES)
def test_a_field_of_any_type_is_set_by_its_path(path: str, text: object, value: object) -> None:
    recipe = moco_v1
    found: object = override(recipe, path, text)
    others = flat(recipe).keys() - {path}
    assert {name: flat(found)[name] for name in others} == {name: flat(recipe)[name] for name in others}
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("batch", "1.5"), ("batch", "many"), ("batch", ""), ("optimizer.lr", "fast"), ("keys.shuffle", "1"),
        ("precision", "fp8"), ("head.widths", "a,b"), ("head.widths", "64.5"), ("head.widths", "__import__('os')"),
        ("pretext.first.scale", "0.5"), ("pretext.first.scale", "0,1,2"), ("length", "5"),
        ("pretext.second", "Queue"), ("keys", "Queue"), ("pretext", "TwoViews"), ("length.steps", "5.5"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_name(path: str, text: str) -> None:
    with pytest.raises(UserError, match=f"--{path} cannot be") as refused:
        override(moco_v1, path, text)
    assert refused.value.code == USAGE


@pytest.mark.parametrize(
    ("path", "name", "part"),
    [
        ("model", "resnet18", ResNet("resnet18")),
        ("model", "torchvision:resnet34", ResNet("resnet34")),
        ("model", "timm:convnext_tiny", Timm("convnext_tiny")),
        ("model", "convnext_tiny", Timm("convnext_tiny")),
        ("model", "ViT", ViT()),
        ("dictionary", "MemoryBank", MemoryBank()),
        ("optimizer", "AdamW", AdamW()),
        ("objective", DCL(0.2), DCL(0.2)),
        ("predictor", "MLP", MLP()),
    ],
)
def test_a_part_is_set_by_its_name_or_its_value(path: str, name: object, part: object) -> None:
    assert getattr(override(moco_v1, path, name), path) == part


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("torchvision:resnet51", "did you mean resnet"),
        ("resnet51", "did you mean resnet"),
        ("timm:convnext_tinny", "did you mean convnext_tin"),
        ("kaggle:resnet50", "torchvision or timm"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        override(moco_v1, "model", name)


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("optimiser.lr", "optimizer.lr"), ("dictionary.sise", "dictionary.size"), ("bacth", "batch"),
        ("keys.momentun", "keys.momentum"), ("pretext.first.hues", "pretext.first.hue"),
    ],
)  # fmt: skip
def test_an_unknown_path_is_refused_with_the_nearest(path: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {near}\\?"):
        override(moco_v1, path, "1")


@pytest.mark.parametrize("path", ["kind", "__class__", "optimizer.build", "optimizer.__class__", "", ".", "keys."])
def test_nothing_but_fields_can_be_set(path: str) -> None:
    with pytest.raises(UserError, match="has no field"):
        override(moco_v1, path, "1")


def test_every_field_that_differs_is_named() -> None:
    recipe = moco_v1
    paths = {path for path, part in flat(recipe).items() if isinstance(part, int | float) and type(part) is not bool}
    for path in paths:
        part = flat(recipe)[path]
        changed = override(recipe, path, str(part + 1 if isinstance(part, int) else part / 2 or 0.5))
        assert flat(changed)[path] != part
        assert differences(recipe, changed) == [f"{path}: {part} -> {flat(changed)[path]}"]
    assert len(paths) > 25
    assert differences(recipe, replace(recipe, optimizer=AdamW())) == [
        "optimizer: SGD -> AdamW",
        "optimizer.betas: None -> [0.9, 0.999]",
        "optimizer.decay: None -> matrices",
        "optimizer.lr: 0.03 -> 0.001",
        "optimizer.momentum: 0.9 -> None",
        "optimizer.weight_decay: 0.0001 -> 0.01",
    ]


def plain() -> dict[str, object]:
    return json.loads(json.dumps(to_plain(tiny)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "Recepe"}, "unknown kind 'Recepe'"),
        ({"dictionary": {"kind": "os.system", "size": 1}}, "unknown kind 'os.system'"),
        ({"dictionary": {"kind": "builtins.print"}}, "unknown kind"),
        ({"dictionary": {"kind": ["Queue"]}}, "unknown kind"),
        ({"dictionary": {"size": 64}}, "unknown kind None"),
        ({"dictionary": {"kind": "Queue", "sise": 64}}, "unknown field 'sise' of Queue"),
        ({"_target_": "os.system"}, "unknown field '_target_' of Recipe"),
        ({"dictionary": {"kind": "InfoNCE"}}, "dictionary of Recipe cannot be"),
        ({"dictionary": 64}, "dictionary of Recipe cannot be"),
        ({"batch": "16"}, "batch of Recipe cannot be"),
        ({"batch": 16.0}, "batch of Recipe cannot be"),
        ({"batch": True}, "batch of Recipe cannot be"),
        ({"precision": "fp8"}, "precision of Recipe cannot be"),
        ({"head": {"kind": "MLP", "widths": ["64"]}}, "widths of MLP cannot be"),
        ({"head": {"kind": "MLP", "widths": 64}}, "widths of MLP cannot be"),
    ],
)
def test_a_recipe_file_with_an_unknown_kind_field_or_type_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    write_json(tmp_path / "recipe.json", plain() | changed)
    with pytest.raises(UserError, match=message) as refused:
        read_recipe(tmp_path / "recipe.json")
    assert refused.value.code == BAD_DATA


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"[" * 100_000, b"\xff\xfe", b'{"kind": "Queue"}']
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_recipe(tmp_path / "recipe.json")
    assert refused.value.code == BAD_DATA


def test_a_recipe_file_without_a_field_that_has_no_default_is_refused() -> None:
    with pytest.raises(UserError, match="missing"):
        from_plain({name: part for name, part in plain().items() if name != "pretext"})


def test_a_kind_in_a_file_never_imports(tmp_path: Path) -> None:
    (tmp_path / "canary_module.py").write_text("class Queue: ...")
    sys.path.insert(0, str(tmp_path))
    try:
        for kind in ("canary_module", "canary_module.Queue", "canary_module:Queue", "../canary_module"):
            with pytest.raises(UserError):
                from_plain(plain() | {"dictionary": {"kind": kind}})
    finally:
        sys.path.remove(str(tmp_path))
    assert "canary_module" not in sys.modules
    assert all(kind.__module__.startswith("lookalike.") and dataclasses.is_dataclass(kind) for kind in KINDS.values())


NAMES = st.sampled_from(["kind", "batch", "size"]) | st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(plain())), JSON)
def test_whatever_a_file_holds_is_a_recipe_or_is_refused(name: str, value: object) -> None:
    try:
        recipe = from_plain(plain() | {name: value})
    except UserError:
        return
    assert type(getattr(recipe, name)) is not dict


# What fits the data


@settings(deadline=None)
@given(size=st.integers(1, 10**6), examples=st.integers(2, 10**6))
def test_a_queue_is_never_longer_than_half_the_data(size: int, examples: int) -> None:
    recipe = replace(moco_cifar, batch=2, dictionary=Queue(size)).fitted(examples)
    assert recipe.dictionary.size == max(1, min(size, examples // 2))


@pytest.mark.parametrize("examples", [1, 3, 4, 100, 255])
def test_a_batch_larger_than_the_data_is_refused_with_one_that_fits(examples: int) -> None:
    with pytest.raises(UserError, match=f"a batch of 256 is larger than the data, {examples} examples") as refused:
        moco_v1.fitted(examples, change=lambda recipe: override(recipe, "batch", "256"))
    if examples < 4:
        assert "add examples" in str(refused.value)
    else:
        advised = str(refused.value).split("try --batch ")[1]
        fitted = moco_v1.fitted(examples, change=lambda recipe: override(recipe, "batch", advised))
        assert fitted.batch == int(advised)


def test_the_recipes_own_batch_shrinks_by_itself_and_says_so() -> None:
    sentences: list[str] = []
    recipe = moco_v2.fitted(200, tell=sentences.append)
    assert (recipe.batch, recipe.group, recipe.dictionary.size) == (32, 16, 100)
    assert sentences == ["batches of 32, not 256 as moco_v2 has them: there are 200 examples"]
    assert moco_v2.fitted(300, tell=sentences.append).batch == 256
    assert small.fitted(300, tell=sentences.append).batch == 16  # as it is meant to
    assert len(sentences) == 1


def test_what_a_person_sets_is_kept_or_its_change_is_said() -> None:
    sentences: list[str] = []
    change = lambda recipe: override(override(recipe, "dictionary.size", "65536"), "batch", "16")  # noqa: E731
    recipe = small.fitted(200, change=change, tell=sentences.append)
    assert (recipe.batch, recipe.dictionary.size) == (16, 100)
    assert sentences == [
        "queue of 100 keys, not queue of 65,536 keys: a query must not meet an earlier key of its own example"
    ]
    assert moco_v2.fitted(200, change=lambda r: override(r, "batch", "8"), tell=sentences.append).batch == 8
    assert len(sentences) == 1


@settings(deadline=None)
@given(examples=st.integers(16, 10**7), side=st.integers(1, 2000))
def test_the_default_fits_any_data(examples: int, side: int) -> None:
    recipe = small.fitted(examples, side)
    assert recipe.batch <= examples
    assert recipe.pretext.first.size <= max(recipe.canvas, 32)


def test_an_hour_has_a_wider_network_and_a_run_goes_on_with_its_own(tmp_path: Path) -> None:
    digits = open_source("digits")
    many = Rows(digits, torch.arange(8192) % len(digits))

    def name_for(out: str, minutes: float | None, source: Source = many, **more: object) -> str:
        request = Request("digits", tmp_path / out, minutes=minutes, **more)  # type: ignore[arg-type]
        return recipe_for(request, source).name

    by_minutes = {minutes: name_for("new", minutes) for minutes in (None, 59.9, 60, 600)}
    assert by_minutes == {None: "small_simclr", 59.9: "small_simclr", 60: "wide_simclr", 600: "wide_simclr"}
    assert name_for("new", 60, Rows(many, torch.arange(8191))) == "small_simclr"
    assert name_for("new", 60, model="resnet18") == "small_simclr"
    assert name_for("new", 60, settings={"model": "resnet18"}) == "small_simclr"
    assert name_for("new", 60, settings={"model.widths": "8,16,32,64"}) == "wide_simclr"
    for begun in ("small_simclr", "wide_simclr"):
        (tmp_path / begun).mkdir()
        write_json(tmp_path / begun / "recipe.json", to_plain(recipe_named(begun, 1797, 8)))
        assert {name_for(begun, minutes, extend=True) for minutes in (10, 60)} == {begun}
    assert name_for("wide_simclr", 10, overwrite=True) == "small_simclr"


def test_the_wide_default_is_the_small_one_with_twice_the_widths_and_batch() -> None:
    twice = {"model.widths": "64,128,256,512", "batch": "256"}

    def change(recipe: Recipe) -> Recipe:
        return reduce(lambda changed, item: override(changed, *item), twice.items(), recipe)

    small, wide = RECIPES["small_simclr"], RECIPES["wide_simclr"]
    assert replace(small.fitted(50_000, 32, change), name="wide_simclr") == wide.fitted(50_000, 32)


@pytest.mark.parametrize("changed", [{"batch": 1}, {"batch": 0}, {"group": 0}, {"canvas": 0}, {"checkups": -1}])
def test_numbers_that_cannot_work_are_refused(changed: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least"):
        replace(tiny, **changed).fitted(1000)  # type: ignore[arg-type]


# The folder


def test_one_folder_one_run_and_the_second_is_told_who(tmp_path: Path) -> None:
    with Run(tmp_path / "run"):
        with (
            pytest.raises(UserError, match=r"is in use by pid \d+ on .* since \d{4}-") as refused,
            Run(tmp_path / "run"),
        ):
            pass
        assert refused.value.code == LOCKED
        with pytest.raises(UserError) as refused, Run(tmp_path / "run"):  # the refusal did not free it
            pass
        assert refused.value.code == LOCKED
    with Run(tmp_path / "run"):
        pass


def test_a_metric_that_was_written_in_part_is_dropped_with_all_after_the_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics.write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n{"step": 3, "loss": 3}\n{"step": 2')
    run.rewind(2)
    assert run.metrics.read_text() == '{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n'
    assert "goes on from step 2, the newest that is saved: steps up to 3" in (tmp_path / "train.log").read_text()
    run.rewind(0)
    assert run.metrics.read_text() == ""


def test_a_file_is_published_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError, match=r"folder\.json"):
        write_atomically(tmp_path / "folder.json", b"three")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file.json", "folder.json"]


def test_an_old_run_is_moved_aside_under_a_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / str(number)).touch()
        (tmp_path / "run" / "recipe.json").touch()
        monkeypatch.chdir(tmp_path / "run" if number == 2 else tmp_path)
        with Run(Path("." if number == 2 else "run"), overwrite=True) as run:
            (run.folder / "new").touch()
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["new", "run.lock"]
        shutil.rmtree(tmp_path / "run")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("[12]")) == ["run.old-1/1", "run.old-2/2"]


# The run


def finite(run: Path) -> bool:
    last = max((run / "checkpoints").iterdir())
    return all(
        bool(tensor.isfinite().all())
        for name in ("learner", "optimizer")
        for tensor in load_file(last / f"{name}.safetensors").values()
    )


def test_a_loss_that_is_no_number_stops_the_run_before_it_reaches_the_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(at|after) step (\d+): no checkpoint holds it") as refused:
        carry_out(asked(tmp_path / "run", ("optimizer.lr", "1e30"), steps=20, save_every=1))
    assert refused.value.code == BAD_DATA
    last = max((tmp_path / "run" / "checkpoints").iterdir())
    assert f" step {int(last.name[5:]) + 1}: " in str(refused.value)
    assert "--optimizer.lr" in str(refused.value)
    assert finite(tmp_path / "run")


def test_a_gradient_that_is_no_number_under_a_loss_that_is_stops_it_too(tmp_path: Path) -> None:
    # 1 / temperature is finite in float32, and so is the loss; a gradient, which is divided by norms as well, is not.
    with pytest.raises(UserError, match=r"the loss is [-+0-9.e]+, the norm of its gradient (nan|inf), at step 1:"):
        carry_out(asked(tmp_path / "run", ("objective.temperature", "1e-38"), save_every=1))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_check_up_and_the_log_leave_training_unaffected(tmp_path: Path) -> None:
    dull = carry_out(asked(tmp_path / "dull", ("checkups", "0"), steps=5))
    watched = carry_out(asked(tmp_path / "watched", ("checkups", "5"), steps=5, save_every=1))
    one, other = dull.learner.state_dict(), watched.learner.state_dict()
    learned = [name for name in one if "whitening" not in name]
    assert len(learned) > 20
    assert all(torch.equal(one[name], other[name]) for name in learned)


def test_minutes_measured_once_are_no_other_setting_but_other_steps_are(tmp_path: Path) -> None:
    run = tmp_path / "run"
    carry_out(asked(run, ("length", Length(minutes=2, steps=3))))
    assert carry_out(asked(run, steps=None, minutes=2)).total == 3
    for other in (Length(minutes=3), Length(minutes=2, steps=4), Length(steps=3)):
        with pytest.raises(UserError, match=r"length\.(minutes|steps)"):
            carry_out(asked(run, ("length", other)))


def test_other_data_is_refused_in_a_run_that_began(tmp_path: Path) -> None:
    run = tmp_path / "run"
    carry_out(asked(run))
    with pytest.raises(UserError, match=r"other data \(48 then, 47 now\)") as refused:
        carry_out(replace(asked(run), data=PICTURES[:47]))
    assert refused.value.code == BAD_DATA
    assert carry_out(asked(run)).step == 4


def test_a_run_begins_with_the_weights_of_another_even_when_its_beginning_was_cut_short(tmp_path: Path) -> None:
    given = dict(carry_out(asked(tmp_path / "donor", steps=3)).learner.encoder.named_parameters())
    for cut in (False, True):
        out = tmp_path / f"run {cut}"
        if cut:
            carry_out(asked(out, steps=1, init_from=tmp_path / "donor"))
            shutil.rmtree(out / "checkpoints")
        started = carry_out(asked(out, steps=1, init_from=tmp_path / "donor"))
        weights = dict(started.learner.encoder.named_parameters())
        assert all(torch.equal(weights[name], given[name]) for name in given)  # the first step of a warm-up has rate 0


def test_another_model_to_begin_with_is_refused_in_a_run_that_began(tmp_path: Path) -> None:
    donor, other, run, plain = (tmp_path / name for name in ("donor", "other", "run", "plain"))
    for folder in (donor, other, plain):
        carry_out(asked(folder, steps=1))
    carry_out(asked(run, steps=1, init_from=donor))
    for begun, words in ((run, f"with --init-from {donor}: name that"), (plain, "without --init-from: leave it out")):
        with pytest.raises(UserError, match=re.escape(words)):
            carry_out(asked(begun, steps=1, init_from=other))
    assert carry_out(asked(run, steps=1, init_from=donor)).step == 1


def test_to_begin_with_the_weights_of_no_run_is_refused_every_time(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="is not a run") as refused:
            carry_out(asked(tmp_path / "run", init_from=tmp_path / "nothing"))
        assert refused.value.code == BAD_DATA


def test_what_a_run_was_asked_and_where_it_ran_is_on_record(tmp_path: Path) -> None:
    finished = carry_out(asked(tmp_path / "run"))
    assert read_recipe(tmp_path / "run" / "recipe.json").length == Length(steps=4)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["threads"] == torch.get_num_threads()
    assert environment["torch"] == torch.__version__
    assert environment["data"]["examples"] == 48
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all({"loss", "top1", "lr"} == line.keys() - {"step"} for line in lines)
    assert finished.step == finished.total == 4


@pytest.mark.parametrize(("allowed", "then"), [(4, 2), (3, 3), (8, 8)])
@pytest.mark.usefixtures("threads_come_back")
def test_a_run_goes_on_with_the_threads_that_were_fastest(tmp_path: Path, allowed: int, then: int) -> None:
    carry_out(asked(tmp_path / "run"))
    recorded = read_environment(tmp_path / "run")
    assert recorded["threads_allowed"] == torch.get_num_threads()
    publish(tmp_path / "run", {"environment.json": as_json(recorded | {"threads": 2, "threads_allowed": 4})})
    torch.set_num_threads(allowed)
    with Run(tmp_path / "run") as run:
        run.restore_threads()
        assert torch.get_num_threads() == then
    assert torch.get_num_threads() == allowed


# How long a run is


def test_minutes_that_are_too_few_are_refused_and_leave_room_for_others(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"are 0 steps here: .* 30 steps need about [0-9.]+ minutes: --mi"
        ) as refused:
            carry_out(asked(tmp_path / "run", steps=None, minutes=1e-5))
        assert refused.value.code == USAGE
    assert carry_out(asked(tmp_path / "run", steps=2)).step == 2


@pytest.mark.parametrize("waited", [0, 3600])
def test_minutes_count_from_when_the_person_began_to_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], waited: float
) -> None:
    source = open_source(PICTURES)
    loader = Loader(source, 32, workers=0)
    spec = replace(tiny.fitted(48, 8), length=Length(minutes=60), checkups=4)
    with Run(tmp_path) as run, Screen("test") as screen:
        checkup = Checkup.of(loader, spec)
        began = time.perf_counter() - waited  # listing and decoding took this long
        if waited:
            with pytest.raises(UserError, match="getting started took 36"):
                begin(asked(tmp_path), spec, run, loader, checkup, screen, began)
            return
        recipe, clock = begin(asked(tmp_path), spec, run, loader, checkup, screen, began)
    assert recipe == read_recipe(tmp_path / "recipe.json")
    assert recipe.length.steps is not None
    assert recipe.length.steps > 1000
    assert clock is not None
    assert clock.total == recipe.length.steps
    assert f"about {recipe.length.steps:,} steps of 16 in 54 to 66 minutes" in capsys.readouterr().out


def test_a_run_whose_pace_changes_gets_another_length_on_record_and_repeats_by_it(tmp_path: Path) -> None:
    spec = replace(tiny.fitted(48, 8), length=Length(minutes=1, steps=60), checkups=3, precision="fp32")
    loader, seconds = Loader(open_source(PICTURES), spec.canvas, workers=0), count(step=2.0)  # measured was one
    clock = Clock(Budget(60.0, 0.0, 0.0, 3, 1.0), 60, now=lambda: next(seconds))
    with Run(tmp_path / "run") as run:
        run.begin(spec, {"examples": 48}, b"")
        done = train_to_end(spec, run, loader, Checkup.of(loader, spec), lambda _: None, None, clock)
    recipe = read_recipe(tmp_path / "run" / "recipe.json")
    assert [stage.total for stage in recipe.length.stages][-1] == done.step == done.total
    assert 20 <= done.total <= 40  # 30 would fill the minute, of which each look at the clock takes a little, too
    assert "slower than was measured" in (tmp_path / "run" / "train.log").read_text()
    again = replace(asked(tmp_path / "again"), recipe=recipe, steps=None, settings={})
    assert carry_out(again).step == done.step
    assert digest(tmp_path / "again") == digest(tmp_path / "run")


# Longer than it was


def test_a_longer_run_goes_on_at_the_rate_of_its_new_length_and_is_on_record(tmp_path: Path) -> None:
    run, quick = tmp_path / "run", ("optimizer.lr", "0.5")
    carry_out(asked(run, quick, steps=6))
    longer = asked(run, quick, steps=12, extend=True)
    assert carry_out(longer).step == 12
    recipe = read_recipe(run / "recipe.json")
    assert recipe.length == Length(steps=6, stages=(Stage(6, 12),))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if "lr" in line}
    full = 0.5 * math.sqrt(recipe.batch / 256)  # Muon's
    shares = [recipe.schedule.share((step - 1) / (6 if step <= 6 else 12)) for step in range(1, 13)]
    assert [rates[step] for step in range(1, 13)] == pytest.approx([full * share for share in shares])
    assert "made longer after step 6: 12 steps instead of 6" in (run / "train.log").read_text()
    for same in (longer, asked(run, quick, steps=6)):  # what made it longer, and what began it, ask for nothing new
        assert carry_out(same).step == 12
        assert read_recipe(run / "recipe.json") == recipe


def test_the_momentum_of_keys_that_rises_counts_by_the_length_of_its_step() -> None:
    length = Length(steps=6, stages=(Stage(6, 12), Stage(9, 11)))
    assert [length.total_at(3, step) for step in (1, 6, 7, 9, 10, 11)] == [6, 6, 12, 12, 11, 11]
    assert length.total(3) == 11
    assert Length(epochs=2.0, stages=(Stage(4, 9),)).total_at(3, 4) == 6
    assert length.original == Length(steps=6)


def test_epochs_are_all_and_minutes_are_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    carry_out(asked(run, steps=None, epochs=1))
    assert carry_out(asked(run, steps=None, epochs=2, extend=True)).step == 6
    source = open_source(PICTURES)
    loader, recipe = Loader(source, 32, workers=0), read_recipe(run / "recipe.json")
    with Run(run) as opened:
        checkup = Checkup.of(loader, recipe)
        longer, clock = extend(recipe, Length(minutes=60), opened, loader, checkup, time.perf_counter())
        assert clock is not None
        last = longer.length.stages[-1]
        assert last == Stage(6, clock.total, 60)
        assert clock.total > 1000
        # Not ended, so the same minutes are those that it got; others are more.
        assert extend(longer, Length(minutes=60), opened, loader, checkup, time.perf_counter()) == (longer, None)
        more, _ = extend(longer, Length(minutes=30), opened, loader, checkup, time.perf_counter())
        assert more.length.stages[-1].total > clock.total
        with pytest.raises(UserError, match="30 steps need about"):
            extend(longer, Length(minutes=1e-5), opened, loader, checkup, time.perf_counter())
        assert read_recipe(run / "recipe.json") == more


def test_what_cannot_be_made_longer_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="holds no run that could be made longer"):
        carry_out(asked(run, extend=True))
    assert not run.exists()
    carry_out(asked(run))
    began = (run / "recipe.json").read_bytes()
    for more, words in [
        ({"overwrite": True}, "choose one"),
        ({"steps": None}, "needs a length"),
        ({"steps": 3}, "is 4 steps long, and --extend asks for 3"),
        ({"steps": 8, "settings": {"seed": "1"}}, r"other settings \((.*; )?seed: 0 -> 1"),
    ]:
        with pytest.raises(UserError, match=words) as refused:
            carry_out(asked(run, **{"extend": True, **more}))  # type: ignore[arg-type]
        assert refused.value.code == USAGE
    with pytest.raises(UserError, match=r"length\.steps: 4 -> 8\): .*--extend to make it longer"):
        carry_out(asked(run, steps=8))
    assert (run / "recipe.json").read_bytes() == began


def test_stages_without_blocks_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.widths has 3 stages, model\.blocks 2: set both"):
        carry_out(asked(tmp_path / "run", ("model.widths", "4,8,16")))
    carry_out(asked(tmp_path / "run", ("model.widths", "4,8,16"), ("model.blocks", "1,1,1"), steps=1))
