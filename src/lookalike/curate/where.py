"""Which rows of a table are looked at: ``split = 'train' and class in ('dress', 'shirt') and not width < 200``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.core.errors import UserError

TEXTS, NUMBERS = ("path", "split", "class", "text"), ("label", "width", "height")
"""The columns; what is missing is '', -1 for label, and 0 for sizes."""
_LONGEST, _DEEPEST = 10_000, 50  # letters, and parentheses or nots inside each other
_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+(?:\.\d+)?)|(?P<word>\w+)|(?P<sign>[<>!]=|[=<>(),]))"
)
_SIGNS: dict[str, Callable[[pc.Expression, object], pc.Expression]] = {
    "=": lambda column, value: column == value,
    "!=": lambda column, value: column != value,
    "<": lambda column, value: column < value,
    ">": lambda column, value: column > value,
    "<=": lambda column, value: column <= value,
    ">=": lambda column, value: column >= value,
}


class _Token(NamedTuple):
    kind: str  # text, number, word, sign, end
    word: str
    at: int


def expression(condition: str) -> pc.Expression:
    """The condition as pyarrow has it; raises UserError, which points at the place."""
    return _Reader(condition).whole()


def selected(columns: pa.Table, condition: str) -> npt.NDArray[np.bool_]:
    """(N,) which rows of the columns meet the condition. Raises UserError."""
    wanted = expression(condition)
    known = {name: columns[name].fill_null("" if name in TEXTS else -1 if name == "label" else 0) for name in
             (*TEXTS, *NUMBERS) if name in columns.column_names}  # fmt: skip
    rows = pa.table(known | {"row": pa.array(np.arange(len(columns)))})
    try:
        chosen = rows.filter(wanted)["row"].to_numpy()
    except pa.ArrowInvalid:
        has = ", ".join(known)
        raise UserError(f"--where {condition!r} names a column that this table does not have; it has {has}") from None
    mask = np.zeros(len(columns), np.bool_)
    mask[chosen] = True
    if not len(chosen):
        raise UserError(f"no row of {len(columns):,} meets --where {condition!r}")
    return mask


class _Reader:
    """Reads a condition from left to right; ``or`` binds least, then ``and``, then ``not``."""

    def __init__(self, condition: str) -> None:
        self._condition, self._tokens, self._next, self._depth = condition, list[_Token](), 0, 0
        if len(condition) > _LONGEST:
            raise UserError(f"--where is {len(condition):,} letters long, and {_LONGEST:,} are read")
        at, end = 0, len(condition.rstrip())
        while at < end:
            found = _TOKEN.match(condition, at)
            if found is None or found.lastgroup is None:
                at += len(condition[at:]) - len(condition[at:].lstrip())
                raise self._wrong("this is no word, number, 'text' or sign", at)
            self._tokens.append(_Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
            at = found.end()
        self._tokens.append(_Token("end", "the end", end))

    def whole(self) -> pc.Expression:
        found = self._any()
        if self._token.kind != "end":
            raise self._wrong("and, or, or the end is expected")
        return found

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _wrong(self, reason: str, at: int | None = None) -> UserError:
        at = self._token.at if at is None else at
        here = f"at {self._condition[at : at + 20]!r}, letter {at + 1}" if at < len(self._condition) else "at the end"
        return UserError(f"--where {here}: {reason}")

    def _take(self, *words: str) -> str | None:
        """The next token, if it is one of these words or signs."""
        token = self._token
        if token.kind in ("word", "sign") and token.word.lower() in words:
            self._next += 1
            return token.word.lower()
        return None

    def _any(self) -> pc.Expression:
        found = self._all()
        while self._take("or"):
            found = found | self._all()
        return found

    def _all(self) -> pc.Expression:
        found = self._one()
        while self._take("and"):
            found = found & self._one()
        return found

    def _one(self) -> pc.Expression:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._wrong(f"more than {_DEEPEST} inside each other")
        if self._take("not"):
            found = ~self._one()
        elif self._take("("):
            found = self._any()
            if not self._take(")"):
                raise self._wrong("a closing parenthesis is expected")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> pc.Expression:
        name = self._take(*TEXTS, *NUMBERS)
        if name is None:
            raise self._wrong(f"a column is expected: {', '.join((*TEXTS, *NUMBERS))}")
        if self._take("in"):
            return pc.field(name).isin(self._values(name))
        sign = self._take(*_SIGNS)
        if sign is None:
            raise self._wrong(f"{', '.join(_SIGNS)} or in is expected")
        return _SIGNS[sign](pc.field(name), self._value(name))

    def _values(self, name: str) -> list[str | float]:
        if not self._take("("):
            raise self._wrong("a list is expected: ('a', 'b')")
        values = [self._value(name)]
        while self._take(","):
            values.append(self._value(name))
        if not self._take(")"):
            raise self._wrong("a comma or a closing parenthesis is expected")
        return values

    def _value(self, name: str) -> str | float:
        token = self._token
        if token.kind != ("text" if name in TEXTS else "number"):
            kind = "text in single quotes" if name in TEXTS else "a number"
            raise self._wrong(f"{kind} is expected, since {name} is {'text' if name in TEXTS else 'a number'}")
        self._next += 1
        return token.word[1:-1].replace("''", "'") if name in TEXTS else float(token.word)
