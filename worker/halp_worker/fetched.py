"""`Fetched`: an entry as the stream hands it out, before anybody knows whether it is a job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from halp_producer.keys import DELAYED
from halp_producer.pages import of_one_stream


class Fetched(NamedTuple):
    """fields: names and values as bytes; None if the entry was deleted. attempts, taken_from: as
    `Delivery` has them."""

    entry_id: str
    fields: Any
    attempts: int = 0
    taken_from: str = ""

    @property
    def question_id(self) -> str:
        """For the log: of what is no job, whatever it calls itself, or else the entry's own id."""
        found: bytes = (self.fields or {}).get(b"question_id", b"")
        return found.decode("utf-8", "replace") or self.entry_id

    @property
    def why(self) -> str:
        """Why it comes to us though it is not new, for the log."""
        match self.taken_from:
            case "":
                return "due again"
            case holder if holder == DELAYED:
                return "given back"
            case worker:
                return f"left by {worker}"


def fetched_taken(answer: Iterable[Any]) -> list[Fetched]:
    """Of a script: (id, flat fields and values, attempts, from whom) each."""
    return [
        Fetched(
            entry_id.decode(),
            dict(zip(fields[::2], fields[1::2], strict=True)),
            int(attempts),
            taken_from.decode(),
        )
        for entry_id, fields, attempts, taken_from in answer
    ]


def fetched_new(answer: Any) -> list[Fetched]:
    """Of XREADGROUP on one stream."""
    return [Fetched(entry_id.decode(), fields) for entry_id, fields in of_one_stream(answer)]
