"""Conditions on rows mean what Python would mean by them, and what is none is refused in a line."""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.core.errors import UserError
from lookalike.curate.where import NUMBERS, TEXTS, selected

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
SIGNS = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip
ROWS = st.lists(
    st.fixed_dictionaries(
        {name: WORDS | st.none() for name in TEXTS} | {name: st.integers(-2, 3) | st.none() for name in NUMBERS}
    ),
    min_size=1,
    max_size=6,
)


def comparisons() -> st.SearchStrategy[tuple[str, Any]]:
    """(text, what it says of a row)."""

    def one(name: str) -> st.SearchStrategy[tuple[str, Any]]:
        value = WORDS if name in TEXTS else st.integers(-2, 3)

        def written(value: Any) -> str:
            return str(value) if name in NUMBERS else "'" + value.replace("'", "''") + "'"

        def compared(sign: str, value: Any) -> tuple[str, Any]:
            return f"{name} {sign} {written(value)}", lambda row: SIGNS[sign](row[name], value)

        def among(values: list[Any]) -> tuple[str, Any]:
            return f"{name} IN ({', '.join(map(written, values))})", lambda row: row[name] in values

        return st.builds(compared, st.sampled_from(sorted(SIGNS)), value) | st.builds(
            among, st.lists(value, min_size=1, max_size=3)
        )

    return st.sampled_from([*TEXTS, *NUMBERS]).flatmap(one)


def joined(parts: st.SearchStrategy[tuple[str, Any]]) -> st.SearchStrategy[tuple[str, Any]]:
    def both(one: Any, other: Any) -> tuple[str, Any]:
        return f"({one[0]}) and {other[0]}", lambda row: one[1](row) and other[1](row)

    def either(one: Any, other: Any) -> tuple[str, Any]:
        return f"({one[0]} or ({other[0]}))", lambda row: one[1](row) or other[1](row)

    def negated(one: Any) -> tuple[str, Any]:
        return f"not({one[0]})", lambda row: not one[1](row)

    return st.builds(both, parts, comparisons()) | st.builds(either, parts, parts) | st.builds(negated, parts)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, condition=st.recursive(comparisons(), joined, max_leaves=6))
def test_a_condition_means_what_python_means(rows: list[dict[str, Any]], condition: tuple[str, Any]) -> None:
    missing = dict.fromkeys(TEXTS, "") | {"label": -1, "width": 0, "height": 0}
    kinds = [(name, pa.string()) for name in TEXTS] + [(name, pa.int64()) for name in NUMBERS]
    filled = [{name: missing[name] if value is None else value for name, value in row.items()} for row in rows]
    columns, text = pa.Table.from_pylist(rows, pa.schema(kinds)), condition[0]
    truth = [bool(condition[1](row)) for row in filled]
    if any(truth):
        assert selected(columns, text).tolist() == truth
    else:
        with pytest.raises(UserError, match="no row of"):
            selected(columns, text)


def test_and_binds_more_than_or_and_not_more_than_both() -> None:
    columns = pa.table({"label": [0, 1, 2]})
    assert selected(columns, "label = 0 or label = 1 and label = 2").tolist() == [True, False, False]
    assert selected(columns, "not label = 0 and label < 2").tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("", "at the end: a column is expected"),
        ("split = train", "at 'train', letter 9: text in single quotes is expected"),
        ("label = 'x'", "at \"'x'\", letter 9: a number is expected"),
        ("(label = 1", "at the end: a closing parenthesis"),
        ("label = 1 width = 2", "at 'width = 2', letter 11: and, or, or the end"),
        ("label = 1; import os", "at '; import os', letter 10: this is no word"),
        ("os = 1", "at 'os = 1', letter 1: a column is expected: path, split, class"),
        ("label in 1", "at '1', letter 10: a list is expected"),
        ("label in (1", "at the end: a comma or a closing"),
        ("label ~ 1", "at '~ 1', letter 7"),
        ("label not 1", "at 'not 1', letter 7: ="),
        ("path = 'it", 'at "\'it", letter 8'),
        ("(" * 99 + "label = 1", "letter 51: more than 50 inside each other"),
        ("not " * 99 + "label = 1", "more than 50 inside each other"),
        ("label = 1 or " * 2000 + "label = 1", "letters long"),
        ("width = 1", "names a column that this table does not have; it has path, label"),
    ],
)
def test_what_is_no_condition_is_refused_where_it_goes_wrong(condition: str, said: str) -> None:
    columns = pa.table({"label": [0, 1], "path": ["a", "b"]})
    with pytest.raises(UserError) as refused:
        selected(columns, condition)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


TOKENS = st.lists(st.sampled_from([*"()=<>!',", "label", "1", "and", "or", "not", "in"])).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | TOKENS)
def test_no_text_gets_past_the_grammar(text: str) -> None:
    with suppress(UserError):
        rows = selected(pa.table({"label": [0, 1], "path": ["a", "b"]}), text)
        assert rows.shape == (2,)
        assert rows.dtype == bool


def test_a_long_chain_is_no_deep_one() -> None:
    assert selected(pa.table({"label": [0, 1]}), " or ".join(["label = 1"] * 700)).tolist() == [False, True]
