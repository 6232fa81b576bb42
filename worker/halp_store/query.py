"""`Query`: which rows of a store meet all of some conditions, such as `answer_tokens>5`.

A condition is `COLUMN OPERATOR VALUE`; nothing in it is ever run as code.

    = !=         the same text or number, and all the rows that `=` leaves out
    < <= > >=    numbers by size, texts by their characters
    ~ !~         a regular expression is found in the text (`(?i)` for any case), or is not

Integer columns compare as integers, scores as numbers, text columns as texts. A value within the
metadata compares as a number if both sides are numbers (also written in a text, as in a CSV), or
else as text: what is neither text nor number as its JSON. What is not there meets `!=` and `!~`
alone.
"""

from __future__ import annotations

import json
import math
import operator
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from halp_store.fields import METADATA_COLUMN, Field, UnknownField, columns_of, scalar_of
from halp_store.layout import Layout

if TYPE_CHECKING:
    from halp_store.view import View

# Of a few texts each: what is read at once stays below some hundred megabytes.
BATCH_ROWS: Final = 2**17

_CONDITION: Final = re.compile(r"\s*([^=!<>~]+?)\s*(<=|>=|!=|!~|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
# No number of a data set is longer, and a longer text is not one.
_NUMBER_CHARACTERS: Final = 64

_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}
_TO_INTEGERS: Final = ("<", "<=", ">", ">=", "=", "!=")
# What joins conditions elsewhere; here it would be a part of the value.
_JOINED: Final = re.compile(r"\s(and|or)\s|&&|\|\|", re.IGNORECASE)
# Of the names within the metadata: enough to see the right one.
_NAMED: Final = 12


class FilterError(ValueError):
    """A condition that cannot be understood; the message says what was expected."""


@dataclass(frozen=True)
class Condition:
    """One test of one value. text: as the user wrote it. meets: whether a value that is there does,
    for the operator without its `!`."""

    text: str
    field: Field
    is_negated: bool
    meets: Callable[[Any], bool]

    def __call__(self, value: object) -> bool:
        return (value is not None and self.meets(value)) is not self.is_negated


@dataclass(frozen=True)
class Query:
    """All conditions have to hold; without any, every row is wanted."""

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, layout: Layout, filters: Sequence[str]) -> Query:
        """Raises FilterError with all that is wrong."""
        found, wrong = [], []
        for text in filters:
            try:
                found.append(_condition(layout, text))
            except (FilterError, UnknownField) as error:
                wrong.append(f"{text}: {error}")
        if wrong:
            raise FilterError("\n".join(wrong))
        return cls(tuple(found))

    def ids(self, view: View) -> list[str]:
        """Of the rows that meet all conditions, in the order of `view`. Reads only the columns
        that are compared.

        Raises DamagedSegment, or UnknownField for metadata that no row has.
        """
        if not self.conditions:
            return list(view.ids)
        fields = [one.field for one in self.conditions]
        chosen: list[str] = []
        known: set[str] = set()
        missing = {field.name for field in fields if field.key is not None}
        for start in range(0, len(view), BATCH_ROWS):
            part = view[start : start + BATCH_ROWS]
            columns = part.read(columns_of(fields))
            keep = [True] * len(part)
            for condition in self.conditions:
                values = condition.field.values(columns)
                if condition.field.name in missing and any(one is not None for one in values):
                    missing.discard(condition.field.name)
                keep = [kept and condition(one) for kept, one in zip(keep, values, strict=True)]
            if missing:
                known |= _names(columns[METADATA_COLUMN])
            chosen += [one for one, kept in zip(part.ids, keep, strict=True) if kept]
        if missing and len(view):
            raise UnknownField(_nowhere(sorted(missing), sorted(known)))
        return chosen

    @property
    def hint(self) -> str | None:
        """What may have gone wrong where no row was found."""
        for one in self.conditions:
            if _JOINED.search(one.text):
                return f"{one.text!r} is one condition; give each as an argument of its own"
        return None


def _condition(layout: Layout, text: str) -> Condition:
    parts = _CONDITION.fullmatch(text)
    if parts is None:
        raise FilterError(
            "expected COLUMN, one of = != < <= > >= ~ !~, and a value, all of it in quotes for the "
            "shell, as in 'answer_tokens>5'"
        )
    name, sign, value = parts.groups()
    value = _unquoted(value)
    field = scalar_of(layout, name)
    is_negated = sign.startswith("!")
    sign = "~" if sign == "!~" else "=" if sign in {"!=", "=="} else sign
    if field.is_integer:
        meets = _of_integers(field, sign, value)
    elif field.is_score:
        meets = _of_scores(field, sign, value)
    elif sign == "~":
        meets = _of_pattern(value)
    elif field.key is None:
        meets = _of_texts(_ORDERS[sign], value)
    else:
        meets = _of_metadata(_ORDERS[sign], value)
    return Condition(text, field, is_negated, meets)


def _of_integers(field: Field, sign: str, value: str) -> Callable[[Any], bool]:
    if sign not in _ORDERS:
        raise FilterError(f"{field.name} holds integers: expected one of {' '.join(_TO_INTEGERS)}")
    if not re.fullmatch(r"[+-]?\d{1,64}", value, re.ASCII):
        more = "; give each condition as an argument of its own" if _JOINED.search(value) else ""
        raise FilterError(f"{field.name} holds integers: expected one, got {value!r}{more}")
    number, order = int(value), _ORDERS[sign]
    return lambda one: order(one, number)


def _of_scores(field: Field, sign: str, value: str) -> Callable[[Any], bool]:
    number = _number(value)
    if sign not in _ORDERS or number is None:
        more = "; give each condition as an argument of its own" if _JOINED.search(value) else ""
        raise FilterError(
            f"{field.name} holds numbers: expected one of {' '.join(_TO_INTEGERS)} and a number, "
            f"got {value!r}{more}"
        )
    # As it is stored: 0.8 is no float32, and what is stored as 0.8 should be found by it.
    limit, order = _as_stored(float(number)), _ORDERS[sign]
    return lambda one: order(one, limit)


def _as_stored(number: float) -> float:
    """The nearest float32; beyond the largest, infinite."""
    try:
        found: float = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return math.copysign(math.inf, number)
    return found


def _of_texts(order: Callable[[Any, Any], bool], value: str) -> Callable[[Any], bool]:
    return lambda one: order(one, value)


def _of_metadata(order: Callable[[Any, Any], bool], value: str) -> Callable[[Any], bool]:
    number = _number(value)

    def meets(one: object) -> bool:
        if number is not None and (found := _number(one)) is not None:
            return order(found, number)
        return order(_text(one), value)

    return meets


def _of_pattern(value: str) -> Callable[[Any], bool]:
    try:
        pattern = re.compile(value)
    except re.error as error:
        raise FilterError(f"not a regular expression: {error}") from None
    return lambda one: pattern.search(_text(one)) is not None


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: object) -> Decimal | None:
    """Exact, so that long ids stay apart."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, float) and math.isfinite(value):
        return Decimal(repr(value))
    if isinstance(value, str) and len(value) <= _NUMBER_CHARACTERS and _NUMBER.fullmatch(value):
        return Decimal(value)
    return None


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _names(documents: Iterable[str]) -> set[str]:
    names: set[str] = set()
    for text in documents:
        names.update(json.loads(text))
    return names


def _nowhere(missing: Sequence[str], known: Sequence[str]) -> str:
    there = ", ".join(f"{METADATA_COLUMN}.{one}" for one in known[:_NAMED]) or "nothing"
    more = f" and {len(known) - _NAMED:,} more" if len(known) > _NAMED else ""
    return f"no row has {', '.join(missing)}; the metadata holds {there}{more}"
