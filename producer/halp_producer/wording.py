"""What `halp-producer` says about reports, runs and dead letters. Values in, text out."""

from __future__ import annotations

from halp_producer.activity import STOPPED
from halp_producer.intake import EnqueueReport
from halp_producer.letters import DeadLetter
from halp_producer.problem import printable
from halp_producer.status import RunStatus, WorkerStatus


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
    run = "" if report.run == "default" else f" --run {report.run}"
    if report.stopped:
        return "mend the lines above, or take the others with --on-invalid skip"
    if report.dry_run:
        return "the same command without --dry-run"
    work = f"halp-worker run --store STORE{run}, and halp-producer status{run} to watch"
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
    """One line of counts, one of rate, one for each worker."""
    lines = [sum_text(found)]
    if found.finished:
        lines.append("nothing left to do")
    elif found.rows_per_second > 0:
        seconds = (found.waiting + found.delayed + found.in_flight) / found.rows_per_second
        lines.append(f"{found.rows_per_second:,.1f} rows/s, about {_duration(seconds)} left")
    else:
        lines.append("no worker reports progress; start one: halp-worker run --store STORE")
    rows = [_worker_cells(one) for one in found.workers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def _worker_cells(worker: WorkerStatus) -> list[str]:
    seen = "never seen"
    if worker.seen_seconds_ago is not None:
        seen = f"seen {_duration(worker.seen_seconds_ago)} ago"
    name, held = printable(worker.worker), f"{worker.in_flight:,} in flight"
    if worker.activity is None:
        return [name, "unknown", held, "", "", "", seen]
    activity = worker.activity
    return [
        name,
        printable(activity.state) if worker.alive or activity.state == STOPPED else "gone?",
        held,
        f"{activity.done:,} done",
        f"{activity.failed:,} failed",
        f"{activity.rows_per_second:,.1f} rows/s",
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
        "image": letter.image,
        "question": letter.question,
        "ground_truth": letter.ground_truth,
        "metadata": letter.metadata,
    }
    width = 1 + max(map(len, named))
    lines = [f"{name + ':':<{width}} {printable(value)}".rstrip() for name, value in named.items()]
    if letter.traceback:
        lines += ["traceback:", *(f"  {printable(one)}" for one in letter.traceback.splitlines())]
    return "\n".join(lines)


def _when(letter: DeadLetter) -> str:
    return f"{letter.failed_at:%Y-%m-%d %H:%M:%S} UTC" if letter.failed_at else "at unknown time"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
