"""`Search`: the rows that match what was asked for, as far as they were looked through.

Looks a bounded time and says how far it came; asked again, it goes on from there. Rows are read in
the order in which they are stored, each stored chunk once; found ids are given in order of id.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy.typing as npt

from halp_probe.judging.judges import judge_auto
from halp_probe.judging.verdict import Label, Question
from halp_store.fields import columns_of
from halp_store.query import FilterError, Query
from halp_store.view import View

TEXTS: Final = ("question_text", "ground_truth", "answer")
"""Where a text is looked for, besides the id."""

_FINISH: Final = "finish_reason"

LOOK_S: Final = 2.0
"""Longer than a person waits without a word."""

_BATCH_ROWS: Final = 4096
_KEPT: Final = 8
"""Searches of some browsers. Each may hold the rows that it reads next: about 64 MiB."""

_TURN_S: Final = 5.0

_Columns = dict[str, npt.NDArray[Any]]


class SearchBusy(Exception):  # noqa: N818 - named for what it says
    """Others are searching; there is one search at a time, so that the page stays alive."""


@dataclass(frozen=True)
class Wanted:
    """text: found in id, question, truth or answer, in any case. conditions: as in `Query`.

    verdict: of the judge `auto`.
    """

    text: str = ""
    conditions: tuple[str, ...] = ()
    verdict: Label | None = None

    @property
    def is_everything(self) -> bool:
        return self == Wanted()

    def query(self, view: View) -> Query:
        """Raises FilterError. A regular expression may run for ever, so none is taken here."""
        for one in self.conditions:
            if (sign := re.search(r"!?[=<>~]", one)) and sign.group().endswith("~"):
                raise FilterError(
                    f"{one}: the page takes no regular expressions: use the search field, or "
                    f"halp-store query STORE '{one}'"
                )
        return Query.parse(view.layout, self.conditions)


class Search:
    """Over one view, which does not change. Not for several threads at once."""

    def __init__(self, view: View, wanted: Wanted) -> None:
        """Raises FilterError."""
        self.view, self._wanted = view, wanted
        self._query = wanted.query(view)
        self._text = wanted.text.casefold()
        self._found: list[str] = []
        self._batches: Iterator[_Columns] | None = None
        self.searched = 0
        self.was_stopped = False

    @property
    def ids(self) -> list[str]:
        """Found so far, sorted."""
        return self._found

    @property
    def is_over(self) -> bool:
        """Whether every row was looked at."""
        return self.searched >= len(self.view)

    def go_on(self, seconds: float) -> None:
        """Look at more rows, at least one batch. Raises DamagedSegment."""
        deadline = time.monotonic() + seconds
        try:
            if self._batches is None:
                # The seed does not matter: it asks for rows as they lie on the disk.
                self._batches = self.view.iter_batches(
                    self._columns, batch_rows=_BATCH_ROWS, shuffle_seed=0
                )
            while not self.is_over:
                columns = next(self._batches)
                self._found += self._matching(columns)
                self.searched += len(columns["question_id"])
                if time.monotonic() >= deadline:
                    break
        except BaseException:
            self._batches, self._found, self.searched = None, [], 0
            raise
        self.was_stopped = self.was_stopped or not self.is_over
        self._found.sort()

    @cached_property
    def _columns(self) -> list[str]:
        conditions = columns_of([one.field for one in self._query.conditions])
        judged = () if self._wanted.verdict is None else (_FINISH,)
        return list(dict.fromkeys([*TEXTS, *judged, *conditions]))

    def _matching(self, columns: _Columns) -> list[str]:
        ids = columns["question_id"].tolist()
        questions, truths, answers = (columns[name].tolist() for name in TEXTS)
        keep = [True] * len(ids)
        if text := self._text:
            places = zip(ids, questions, truths, answers, strict=True)
            keep = [any(text in one.casefold() for one in row) for row in places]
        for condition in self._query.conditions:
            values = condition.field.values(columns)
            keep = [kept and condition(one) for kept, one in zip(keep, values, strict=True)]
        if wanted := self._wanted.verdict:
            # Last: it costs more than all the others.
            ends = columns[_FINISH].tolist()
            rows = map(Question, ids, questions, truths, answers, ends)
            keep = [
                kept and judge_auto(one).label is wanted
                for kept, one in zip(keep, rows, strict=True)
            ]
        return [one for one, kept in zip(ids, keep, strict=True) if kept]


class Searches:
    """The last few, so that the next page of one, and its next rows, need no new start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Wanted, Search] = OrderedDict()

    def look(self, view: View, wanted: Wanted, *, anew: bool = False) -> Search:
        """The search for it, gone on for LOOK_S at most.

        One that was stopped stays with the rows that it began with (`anew` begins with those of
        now): it would never come to an end in a store that grows. Others begin with `view`.
        Raises FilterError, DamagedSegment or SearchBusy.
        """
        if not self._lock.acquire(timeout=_TURN_S):
            raise SearchBusy("other searches are under way; try again in some seconds")
        try:
            search = self._kept.pop(wanted, None)
            is_old = search is None or (search.view is not view and not search.was_stopped)
            if search is None or is_old or anew:
                search = Search(view, wanted)
            if not search.is_over:
                search.go_on(LOOK_S)
            self._kept[wanted] = search
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return search
        finally:
            self._lock.release()
