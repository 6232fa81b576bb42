"""`imbalances`: whether the numbers a run keeps agree with each other. Values in, sentences out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_NEW_RUN = (
    "to get all of them stored, enqueue the data set into a new run (--run NAME) over the same "
    "store: what is stored is not computed again"
)


@dataclass(frozen=True)
class Books:
    """What a run keeps, all of it at one moment.

    enqueued, done, failed: the counters. stream: entries on the jobs stream. pending: those of them
    that a consumer holds. delayed: those of these that DELAYED holds. due: jobs with a due time.
    reasons: sum of the counters of failed ones by reason. letters: entries on the failed stream.
    known: ids. attempts: jobs with one.
    """

    enqueued: int
    done: int
    failed: int
    reasons: int
    stream: int
    pending: int
    delayed: int
    due: int
    letters: int
    known: int
    attempts: int


def imbalances(books: Books) -> tuple[str, ...]:
    """Everything that does not hold, each with what it means and what to do; empty if all holds."""
    return tuple(_imbalances(books))


def _imbalances(books: Books) -> Iterator[str]:
    more = books.stream + books.done + books.failed - books.enqueued
    if more > 0:
        yield (
            f"{_jobs(more)} more on the stream, done or failed than {_was(more)} enqueued: "
            "something other than halp-producer added entries to the stream, or the counts were "
            "changed; such an entry is done or failed as any other, and dropping one that failed "
            "(`halp-producer failed drop`) mends the sum"
        )
    if more < 0:
        yield (
            f"{_jobs(-more)} fewer on the stream, done or failed than {_was(-more)} enqueued: "
            "something other than halp-worker removed entries from the stream, or the server lost "
            f"writes; {_NEW_RUN}"
        )
    if books.pending > books.stream:
        missing = books.pending - books.stream
        yield (
            f"{_jobs(missing)} more in flight or delayed than on the stream: something other than "
            "halp-worker deleted entries without acknowledging them; workers let go of them when "
            f"they find them gone; {_NEW_RUN}"
        )
    if books.due != books.delayed:
        yield (
            f"{_jobs(books.delayed)} delayed, but {books.due:,} with a due time: something other "
            "than halp-worker changed pending entries or due times; a delayed job without a due "
            "time is never tried again: `halp-producer cancel` and `failed retry` bring it back"
        )
    if books.reasons != books.failed:
        yield (
            f"{books.failed:,} failed by the count, but {books.reasons:,} by the counts of each "
            "reason: something other than halp-producer and halp-worker changed them, or an older "
            "version of these failed jobs of this run; this costs the view by reason and nothing "
            "else"
        )
    if books.letters != books.failed:
        yield (
            f"{books.failed:,} failed by the count, but {books.letters:,} on the failed stream: "
            "something other than halp-producer and halp-worker added or removed letters; do not "
            "trim or delete the failed stream, use `halp-producer failed drop`"
        )
    if books.known != books.enqueued:
        yield (
            f"{books.enqueued:,} enqueued by the count, but {books.known:,} known by id: something "
            "other than halp-producer changed the counts or the known ids; an id that is not known "
            "any more is enqueued a second time when its data set is (its row is stored once)"
        )
    if books.attempts > books.pending:
        yield (
            f"{_jobs(books.attempts)} with attempts, but {books.pending:,} in flight or delayed: "
            "entries were acknowledged or deleted by something other than halp-worker; this costs "
            "memory and nothing else"
        )


def _jobs(number: int) -> str:
    return f"{number:,} job{'' if number == 1 else 's'}"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"
