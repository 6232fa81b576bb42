"""`questions_of`: the rows of a store as judges see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from halp_probe.judging.verdict import Question

if TYPE_CHECKING:
    from halp_store.view import View

_COLUMNS: Final = ("question_text", "ground_truth", "answer", "finish_reason")


def questions_of(store: View) -> tuple[Question, ...]:
    """All rows, in order of id. Raises DamagedSegment."""
    columns = store.read(_COLUMNS)
    rows = zip(store.ids, *(columns[name].tolist() for name in _COLUMNS), strict=True)
    return tuple(Question(*row) for row in rows)
