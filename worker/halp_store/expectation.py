"""`Expectation`: what a data set and a run say a store should hold.

The one place of this room that asks the producer's; it is imported when a data set or a run is
given, and not before: who reads a store has never heard of either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from halp_store.errors import StoreError
from halp_store.verification import Problem, ProblemKind


class NotAvailable(StoreError):  # noqa: N818 - the house's errors say what is wrong
    """A data set or a run cannot be read; the message says why and what to do."""


@dataclass(frozen=True)
class Expectation:
    """As the arguments of `verify_store`; None for what nobody was asked about.

    problems: lines of the data set that are bad.
    """

    expected: Mapping[str, str] | None = None
    failed: Mapping[str, str] | None = None
    queued: frozenset[str] | None = None
    problems: tuple[Problem, ...] = ()


def read_expectation(
    dataset: Path | None,
    mapping: Iterable[str],
    inline_root: Path | None,
    run: str | None,
    redis_url: str | None,
) -> Expectation:
    """To be read before the store. What is expected are the ids of the data set, or without one
    those that were enqueued to the run. Raises NotAvailable.

    inline_root: where the images are that travelled inside their jobs; None if they did not.
    """
    known = failed = queued = None
    if run is not None:
        known, failed, queued = _read_run(run, redis_url)
    if dataset is None:
        return Expectation(known, failed, queued)
    expected, problems = _read_dataset(dataset, mapping, inline_root)
    return Expectation(expected, failed, queued, problems)


def _read_run(
    run: str, redis_url: str | None
) -> tuple[Mapping[str, str], Mapping[str, str], frozenset[str]]:
    import redis

    from halp_producer.account import run_account
    from halp_producer.keys import RunKeys
    from halp_producer.server import DEFAULT_URL, ServerError, connect, explained
    from halp_producer.status import UnknownRunError

    url = redis_url or DEFAULT_URL
    try:
        with closing(connect(url)) as client:
            account = run_account(client, RunKeys(run))
    except (ServerError, UnknownRunError) as error:
        raise NotAvailable(str(error)) from error
    except redis.RedisError as error:
        raise NotAvailable(str(explained(error, url))) from error
    return account.known, account.failed, account.queued


def _read_dataset(
    path: Path, mapping: Iterable[str], inline_root: Path | None
) -> tuple[dict[str, str], tuple[Problem, ...]]:
    """Question id -> content hash, of the good lines; and the bad ones."""
    from halp_producer.columns import Columns
    from halp_producer.dataset import Dataset
    from halp_producer.images import ImageRoot
    from halp_producer.job import MAX_IMAGE_BYTES
    from halp_producer.problem import DatasetError, LineProblem

    found: dict[str, str] = {}
    problems: list[LineProblem] = []
    try:
        source = Dataset(
            path,
            Columns.from_options(mapping),
            ImageRoot(inline_root) if inline_root else None,
            inline_bytes=MAX_IMAGE_BYTES if inline_root else None,
        )
        for record in source.read():
            problems += record.problems
            if (job := record.job) is None:
                continue
            content = job.content_hash
            if found.setdefault(job.question_id, content) != content:
                what = f"{job.question_id!r} is also on an earlier line, with other content"
                problems.append(LineProblem(path, record.line, "question_id", what))
    except DatasetError as error:
        raise NotAvailable(str(error)) from error
    return found, tuple(_bad_line(one) for one in problems)


def _bad_line(problem: object) -> Problem:
    return Problem(ProblemKind.DATASET, f"{problem}; correct the line and verify again")
