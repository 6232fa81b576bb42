"""What `halp-producer` says about reports, runs and dead letters. Values in, text out."""

from __future__ import annotations

from typing import Final

from halp_producer.activity import STOPPED
from halp_producer.intake import EnqueueReport
from halp_producer.letters import DeadLetter
from halp_producer.look import Look
from halp_producer.problem import in_short, printable
from halp_producer.status import RunStatus, WorkerStatus

_REASONS: Final = 6
_REASON_CHARACTERS: Final = 40
"""Of a worker's own words there are sixteen, the longest has 18 characters; anybody who can write
to the server can make up others."""


def report_text(report: EnqueueReport) -> str:
    """Counts, and in the last line what to do next."""
    lines = []
    if report.bad:
        lines.append(f"{report.dataset}: {_count(report.bad, 'bad line')}")
    if report.repeated:
        lines.append(
            f"{report.dataset}: {_count(report.repeated, 'line')} said again what was said"
        )
    if report.stopped or report.dry_run:
        reason = "dry run" if report.dry_run else "bad lines"
        good = "would be enqueued" if report.dry_run and not report.stopped else "good"
        lines.append(
            f"run {report.run}: nothing enqueued ({reason}), "
            f"{_count(report.questions, 'question')} {good}"
        )
    else:
        lines.append(_sent_text(report))
    return "\n".join([*lines, f"next: {_next_step(report)}"])


def _sent_text(report: EnqueueReport) -> str:
    rate = report.questions / max(report.seconds, 1e-3)
    conflicts = f", {_count(report.conflicts, 'conflict')}" if report.conflicts else ""
    return (
        f"run {report.run}: {report.added:,} added, {report.known:,} already there{conflicts} "
        f"({report.seconds:,.1f} s, {rate:,.0f} questions/s)"
    )


def _next_step(report: EnqueueReport) -> str:
    run = run_option(report.run)
    if report.stopped:
        return "mend the lines above, or take the others with --on-invalid skip"
    if report.dry_run:
        return "the same command without --dry-run"
    work = f"halp-worker run --store STORE{run}, and halp-producer status{run} --watch"
    if report.bad or report.conflicts:
        return f"mend the lines above and repeat the command; meanwhile {work}"
    return work


def sum_text(found: RunStatus) -> str:
    """Where every question is, in one line."""
    return (
        f"run {found.run}: {found.enqueued:,} enqueued = {found.waiting:,} waiting + "
        f"{found.delayed:,} delayed + {found.in_flight:,} in flight + {found.done:,} done + "
        f"{found.failed:,} failed"
    )


def status_text(found: RunStatus) -> str:
    """One line of counts, one of rate, one of reasons where jobs failed, one for each worker."""
    lines = [sum_text(found), progress_text(Look(found, found.rows_per_second))]
    if found.failed_by_reason:
        lines.append(f"failed for: {reasons_text(found)}")
    rows = [_worker_cells(one) for one in found.workers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def watch_line(look: Look) -> str:
    """All of a look in one line, for where nobody sees a screen."""
    problem = f"; {look.problem}" if look.problem else ""
    return f"{sum_text(look.found)}; {progress_text(look)}{problem}"


def progress_text(look: Look) -> str:
    """How fast it goes and how long it takes, or why it does not."""
    found = look.found
    if found.finished:
        return "nothing left to do: every question is done or failed"
    if not look.has_worker:
        run = run_option(found.run)
        return f"no worker is running: start one with halp-worker run --store STORE{run}"
    if look.seconds_left is None:
        return "nothing was stored lately"
    return f"{look.rows_per_second:,.1f} rows/s, about {duration(look.seconds_left)} left"


def reasons_text(found: RunStatus) -> str:
    """Why jobs failed, most frequent first: `60 image_missing, 3 not_finite`."""
    named = [
        f"{count:,} {in_short(reason, _REASON_CHARACTERS)}"
        for reason, count in found.failed_by_reason.items()
    ]
    more = len(named) - _REASONS
    return ", ".join(named[:_REASONS]) + (f" and {_count(more, 'more reason')}" if more > 0 else "")


def run_option(run: str) -> str:
    """What a command needs to be about this run; with a space before it."""
    return "" if run == "default" else f" --run {run}"


def state_text(worker: WorkerStatus) -> str:
    """Its own word, as long as it can be believed."""
    if worker.activity is None:
        return "unknown"
    is_word = worker.alive or worker.activity.state == STOPPED
    return printable(worker.activity.state) if is_word else "gone?"


def _worker_cells(worker: WorkerStatus) -> list[str]:
    seen = "never seen"
    if worker.seen_seconds_ago is not None:
        seen = f"seen {duration(worker.seen_seconds_ago)} ago"
    name, held = printable(worker.worker), f"{worker.in_flight:,} in flight"
    if worker.activity is None:
        return [name, state_text(worker), held, "", "", "", "", seen]
    activity = worker.activity
    return [
        name,
        state_text(worker),
        held,
        f"{activity.done:,} done",
        f"{activity.failed:,} failed",
        f"{activity.rows_per_second:,.1f} rows/s",
        f"batches of {activity.batch_jobs:,}" if activity.batch_jobs else "",
        f"{seen} on {printable(activity.host)} ({printable(activity.device)})",
    ]


def letter_text(letter: DeadLetter) -> str:
    """One line: the question's id, the reason, where and when."""
    attempts = "" if letter.attempts is None else f"{_count(letter.attempts, 'attempt')}, "
    return printable(
        f"{letter.question_id or letter.entry_id}: {letter.reason or 'no reason'}: {letter.error} "
        f"({letter.image}; {letter.worker or 'no worker'}, {attempts}{_when(letter)})"
    )


def letter_page(letter: DeadLetter) -> str:
    """A line for each field, then the traceback."""
    named = {
        "question_id": letter.question_id,
        "letter": letter.entry_id,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": "unknown" if letter.attempts is None else f"{letter.attempts:,}",
        "worker": letter.worker,
        "failed": _when(letter),
        "image": letter.image + _inside(letter),
        "question": letter.question,
        "ground_truth": letter.ground_truth,
        "metadata": letter.metadata,
    }
    width = 1 + max(map(len, named))
    lines = [f"{name + ':':<{width}} {printable(value)}".rstrip() for name, value in named.items()]
    if letter.traceback:
        lines += ["traceback:", *(f"  {printable(one)}" for one in letter.traceback.splitlines())]
    return "\n".join(lines)


def _inside(letter: DeadLetter) -> str:
    return "" if letter.image_bytes is None else f" ({letter.image_bytes:,} bytes inside the job)"


def _when(letter: DeadLetter) -> str:
    return f"{letter.failed_at:%Y-%m-%d %H:%M:%S} UTC" if letter.failed_at else "at unknown time"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`2 h 5 min`, `3 min 9 s`, `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
