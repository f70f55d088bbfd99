"""One description of each evaluation: ``evaluate``, ``compare``, records and Python take the same and mean the same."""

from __future__ import annotations

import json
import shutil
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from lookalike.cli.main import parsed
from lookalike.cli.verbs import settings_of
from lookalike.core.errors import Limit, UserError
from lookalike.evaluation.compare import compare
from lookalike.evaluation.evaluate import evaluate
from lookalike.evaluation.settings import EVALUATIONS, Detect, Evaluation, Segment, configured
from tests.cli.test_cli import refused
from tests.conftest import Said
from tests.evaluation.test_evaluations import trained  # noqa: F401  (a fixture)


def by_evaluate(task: str, *flags: str) -> Evaluation:
    """What ``lookalike evaluate TASK`` makes of flags."""
    command, rest = parsed(["evaluate", task, "run", "data", *flags])
    assert not rest
    return command.settings  # type: ignore[attr-defined, no-any-return]


def by_compare(task: str, *flags: str) -> Evaluation:
    """What ``lookalike compare --task TASK`` makes of flags."""
    command, rest = parsed(["compare", "run", "--on", "data", "--task", task, *flags])
    return settings_of(command, rest)  # type: ignore[arg-type]


def hint_of(kind: type[Evaluation], name: str) -> Any:
    """The type of a field, without what may be None and without notes."""
    hint = get_type_hints(kind)[name]
    return next(part for part in get_args(hint) if part is not type(None)) if type(None) in get_args(hint) else hint


def limits_of(kind: type[Evaluation], name: str) -> list[Limit]:
    """Those that stand at a field."""
    notes = getattr(get_type_hints(kind, include_extras=True)[name], "__metadata__", ())
    return [note for note in notes if isinstance(note, Limit)]


def another(kind: type[Evaluation], name: str) -> Any:
    """A value that is not the default, and within its limits."""
    default, hint = getattr(kind, name), hint_of(kind, name)
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != default)
    if get_origin(hint) is tuple:
        return tuple(each(1) for each in get_args(hint) if each is not ...)
    if hint in (str, bool):
        return "words" if hint is str else not default
    numbers = (hint(number) for number in (64, 65, 0.5, 1.5) if number != default)
    return next(number for number in numbers if all(limit.holds(number) for limit in limits_of(kind, name)))


def flags(name: str, value: Any) -> list[str]:
    """A field on the command line."""
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, *map(str, value if isinstance(value, tuple) else [value])]


@pytest.mark.parametrize("task", EVALUATIONS)
def test_every_field_is_a_flag_of_both_verbs_a_keyword_and_a_setting_of_the_record(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = EVALUATIONS[task]
    names = [field.name for field in fields(kind)]
    assert by_evaluate(task) == configured(task, {}) == kind()
    assert by_compare(task) == configured(task, {}, trials=True) == kind(**kind.TRIALS)
    assert set(kind().settings()) == set(names)
    with pytest.raises(SystemExit):
        parsed(["evaluate", task, "--help"])
    shown = capsys.readouterr().out
    for name in names:
        assert f"--{name.replace('_', '-')} " in shown, name
        value = another(kind, name)
        changed = kind(**{name: value})
        assert changed != kind()
        assert by_evaluate(task, *flags(name, value)) == configured(task, {name: value}) == changed, name
        assert by_compare(task, *flags(name, value)) == kind(**{**kind.TRIALS, name: value}), name
        assert changed.settings()[name] == value
    with pytest.raises(UserError, match="has no setting 'nothing'"):
        configured(task, {"nothing": 1})


LIMITS = [
    (task, field.name, limit)
    for task, kind in EVALUATIONS.items()
    for field in fields(kind)
    for limit in limits_of(kind, field.name)
]


def test_all_numbers_have_limits() -> None:
    limited = {(task, name) for task, name, _ in LIMITS}
    for task, kind in EVALUATIONS.items():
        for field in fields(kind):
            hint = hint_of(kind, field.name)
            number = {int, float} & {hint, *get_args(hint)} and get_origin(hint) is not Literal
            assert not number or (task, field.name) in limited, (task, field.name)


@pytest.mark.parametrize(("task", "name", "limit"), LIMITS)
def test_a_number_outside_its_limit_is_refused_by_the_name_of_its_flag(task: str, name: str, limit: Limit) -> None:
    hint, low = hint_of(EVALUATIONS[task], name), limit.low if limit.above else limit.low - 1
    for number in (low, limit.high + 1, float("nan")):
        if limit.holds(number):
            continue
        count = len(typing.get_args(hint)) - (... in typing.get_args(hint)) if get_origin(hint) is tuple else 0
        with pytest.raises(UserError, match=f"^--{name} must be {limit}$"):
            configured(task, {name: (number,) * count if count else number})
        if float(number).is_integer():
            for verb in (by_evaluate, by_compare):
                with pytest.raises(UserError, match=f"^--{name} must be {limit}$"):
                    verb(task, f"--{name}", *[str(int(number))] * max(1, count))


def test_words_are_no_numbers_and_choices_are_few() -> None:
    with pytest.raises(UserError, match=r"^--layer must be one of backbone, head$"):
        configured("knn", {"layer": "tail"})
    with pytest.raises(UserError, match="--k must be at least 1"):
        configured("knn", {"k": "many"})


def test_what_follows_from_other_settings_follows_however_they_were_set() -> None:
    for verb in (by_evaluate, by_compare):
        large = verb("detect", "--size", "320", "--batch", "4")
        assert large == Detect(size=320, batch=4)
        assert (large.settings()["longest"], large.settings()["group"]) == (512, 4)
        assert verb("detect", "--size", "320", "--longest", "256").settings()["longest"] == 256
        assert verb("segment", "--batch", "4").settings()["group"] == 4
    assert (Detect().long_side, Detect().grouped, Segment().grouped) == (256, 8, 8)
    assert configured("masks", {"steps": 3}) == Detect(masks=True, steps=3)
    assert (Detect().metric, Detect(masks=True).metric) == ("AP", "mask_AP")


CHEAP: dict[str, dict[str, Any]] = {
    "knn": {"k": 5, "share": 0.3},
    "probe": {"share": 0.05},
    "fewshot": {"labels": (2,), "shares": (0.02,), "draws": 2},
    "retrieve": {"share": 0.1},
    "clusters": {"draws": 1, "starts": 1},
    "finetune": {"shares": (0.02,), "rates": (1e-3,), "steps": 2, "batch": 16, "draws": 1},
}


@pytest.mark.parametrize("task", CHEAP)
def test_a_trial_of_compare_is_evaluate_with_its_seed(
    say: Callable[..., Said],
    trained: Path,  # noqa: F811
    tmp_path: Path,
    task: str,
) -> None:
    settings, kind = CHEAP[task], EVALUATIONS[task]
    table = compare([trained], "digits", task, trials=2, workers=0, seed=3, **settings)
    for trial in range(2):
        alone = evaluate(trained, "digits", task, workers=0, seed=3 + trial, **settings)
        assert table.rows[-1].values[trial] == alone.value
        assert table.metric == alone.metric
    beside = {"baselines": "none"} if hasattr(kind, "baselines") else {}  # compare has a row for the untrained network
    assert table.settings == kind(seed=3, **settings, **beside).settings()
    words = [word for name, value in settings.items() for word in flags(name, value)]
    said = say("evaluate", task, trained, "digits", *words, "--seed", 4, "--workers", 0, "--json", tmp_path / "a.json")
    assert said[0] == 0
    assert said[1].splitlines()[1:] == alone.lines  # the first says what it is tested on
    record = json.loads((tmp_path / "a.json").read_text())
    assert record[alone.metric] == alone.value
    assert {name: record[name] for name in kind().settings()} == json.loads(json.dumps(alone.settings))
    assert record.keys() >= alone.numbers.keys() | alone.facts.keys()


def test_compare_says_where_its_defaults_are_other_than_those_of_evaluate(trained: Path) -> None:  # noqa: F811
    lines: list[str] = []
    table = compare([trained], "digits", "knn", trials=2, workers=0, say=lines.append)
    assert lines[0] == "defaults for trials, other than those of lookalike evaluate knn: share 0.5 (not 1.0)"
    assert table.settings["share"] == 0.5
    lines.clear()
    whole = compare([trained], "digits", "knn", trials=2, workers=0, share=1.0, say=lines.append)
    assert (whole.trials, len(whole.rows[0].values)) == (1, 1)
    assert not any("default" in line for line in lines)


def test_slips_get_the_hint_that_helps(say: Callable[..., Said], trained: Path, tmp_path: Path) -> None:  # noqa: F811
    run, out = ("--out", tmp_path / "run"), tmp_path / "table.parquet"
    refused(say("evaluate", "knn", "digits", trained), 2, f"{trained} is a run and digits is data: swap them")
    refused(say("embed", "digits", trained, "--out", out), 2, "swap them")
    refused(say("evaluate", "know", trained, "digits"), 2, "no evaluation 'know'; did you mean knn?")
    refused(say("evaluate", "finetune", trained, "digits", "--share", 0.1), 2, "did you mean --shares?")
    refused(say("pretrain", trained, *run), 2, f"{trained} is a run, not data")
    refused(say("pretrain", "digits", *run, "--lr", 0.1), 2, "did you mean --optimizer.lr?")
    refused(say("pretrain", "digits", *run, "--temperature=0.1"), 2, "--objective.temperature")
    refused(
        say("pretrain", "digits", *run, "--model", "resnet5000"),
        2,
        "torchvision has no resnet5000; did you mean resnet50?",
    )
    assert not (tmp_path / "run").exists()


def test_digits_are_data_even_where_a_run_has_their_name(
    say: Callable[..., Said],
    trained: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(trained, tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert say("evaluate", "knn", "digits", "digits", "--workers", 0)[0] == 0
    refused(say("pretrain", "digits", "--out", "run", "--lr", 0.1), 2, "did you mean --optimizer.lr?")
