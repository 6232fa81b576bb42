"""A whole file into a run: two passes, duplicates, changes meanwhile."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halp_producer import scratch as scratch_module
from halp_producer.dataset import Dataset
from halp_producer.intake import OnInvalid, Silence, enqueue_dataset
from halp_producer.job import decode
from halp_producer.keys import RunKeys
from halp_producer.ledger import Ledger
from halp_producer.problem import DatasetError, LineProblem
from halp_producer.scratch import ScratchError, scratch_database

KEYS = RunKeys("unused")


class Recorder(Silence):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.problems: list[LineProblem] = []
        self.phases: list[str] = []

    def phase(self, name: str, total_bytes: int) -> None:
        self.phases.append(name)

    def problem(self, problem: LineProblem) -> None:
        self.problems.append(problem)


def row(question_id: object, question: str = "What?") -> str:
    return json.dumps(
        {"question_id": question_id, "image": "a.jpg", "question": question, "ground_truth": "x"}
    )


def dataset(folder: Path, *rows: str) -> Dataset:
    path = folder / "d.jsonl"
    path.write_text("\n".join(rows))
    return Dataset(path)


def ids(client, run) -> list[str]:
    return [decode(fields).question_id for _, fields in client.xrange(RunKeys(run).jobs)]


def test_a_file_with_a_bad_line_enqueues_nothing_by_default(client, run, tmp_path):
    """stop: the run stays as it was, and every bad line is reported."""
    listener = Recorder()
    source = dataset(tmp_path, row("a"), "{", row("b"), row(""))
    report = enqueue_dataset(source, RunKeys(run), client, listener=listener)
    assert (report.stopped, report.bad, report.added, report.ok) == (True, 2, 0, False)
    assert [one.line for one in listener.problems] == [2, 4]
    assert client.keys(f"halp:{{{run}}}:*") == []


def test_skip_enqueues_the_rest(client, run, tmp_path):
    """skip: the good lines are in the run, in their order; the report counts the others."""
    source = dataset(tmp_path, row("a"), "{", row("b"), row(""), row("c"))
    report = enqueue_dataset(source, RunKeys(run), client, on_invalid=OnInvalid.SKIP)
    assert (report.stopped, report.bad, report.added, report.ok) == (False, 2, 3, False)
    assert ids(client, run) == ["a", "b", "c"]


def test_a_dry_run_needs_no_server(tmp_path):
    """Without a client everything is checked and nothing is sent."""
    listener = Recorder()
    report = enqueue_dataset(dataset(tmp_path, row("a"), row("a")), KEYS, None, listener=listener)
    assert (report.dry_run, report.questions, report.repeated, report.added) == (True, 1, 1, 0)
    assert listener.phases == ["checking"]


def test_the_same_line_twice_is_harmless_and_other_content_is_not(client, run, tmp_path):
    """The first line of an id counts; the same again is a repeat, anything else a bad line."""
    listener = Recorder()
    rows = [row("a"), row("b"), row("a"), row("a", "Other?"), row("b")]
    source = dataset(tmp_path, *rows)
    report = enqueue_dataset(
        source, RunKeys(run), client, on_invalid=OnInvalid.SKIP, listener=listener
    )
    assert (report.added, report.repeated, report.bad) == (2, 2, 1)
    assert ids(client, run) == ["a", "b"]
    assert [str(one) for one in listener.problems] == [
        f"{source.path}:4: question_id: 'a' is already used on line 1, with other content"
    ]


def test_a_conflict_with_the_run_is_reported_with_its_line(client, run, tmp_path):
    """The run keeps what it has; every other line of the file is enqueued."""
    keys = RunKeys(run)
    enqueue_dataset(dataset(tmp_path, row("b")), keys, client)
    listener = Recorder()
    source = dataset(tmp_path, row("a"), "", row("b", "Other?"), row("c"))
    report = enqueue_dataset(source, keys, client, listener=listener)
    assert (report.added, report.conflicts, report.stopped, report.ok) == (2, 1, False, False)
    (problem,) = listener.problems
    assert str(problem).startswith(f"{source.path}:3: question_id: 'b' is already in this run")
    assert ids(client, run) == ["b", "a", "c"]


def test_an_empty_file_is_nothing_to_do(client, run, tmp_path):
    """No lines, no problems, no jobs."""
    report = enqueue_dataset(dataset(tmp_path), RunKeys(run), client)
    assert (report.ok, report.questions, report.added) == (True, 0, 0)


@pytest.mark.parametrize("change", ["append", "replace", "touch"])
def test_a_file_that_changes_between_the_passes_is_refused(client, run, tmp_path, change):
    """What is enqueued is what was checked: a writer in between is an error that says so."""
    source = dataset(tmp_path, row("a"), row("b"))

    class Meddler(Recorder):
        def phase(self, name: str, total_bytes: int) -> None:
            if name == "enqueueing" and change == "append":
                with source.path.open("a") as file:
                    file.write("\n" + row("c"))
            elif name == "enqueueing" and change == "replace":
                (tmp_path / "new").write_text(row("c", "Other?") + "\n" + row("d", "Other?"))
                (tmp_path / "new").replace(source.path)
            elif name == "enqueueing":
                os.utime(source.path, ns=(1, 1))

    with pytest.raises(DatasetError, match="changed while it was being read"):
        enqueue_dataset(source, RunKeys(run), client, listener=Meddler())
    assert "c" not in ids(client, run) or change == "replace"


@given(
    st.lists(st.none() | st.tuples(st.sampled_from("abcdé"), st.sampled_from("0123")), max_size=60)
)
def test_the_ledger_agrees_with_a_dictionary(entries):
    """Which lines are duplicates, of what, and which to skip: as a plain loop would say."""
    first: dict[str, tuple[int, str]] = {}
    expected, skipped = [], []
    with scratch_database() as database:
        ledger = Ledger(database)
        for number, entry in enumerate(entries, 1):
            if entry is None:
                ledger.bad(number)
                skipped.append(number)
                continue
            name, content = entry
            ledger.good(number, name, content * 32)
            if name in first:
                line, known = first[name]
                expected.append((name, number, line, known == content))
                skipped.append(number)
            else:
                first[name] = (number, content)
        assert sorted(map(tuple, ledger.duplicates())) == sorted(expected)
        assert list(ledger.skipped(1, len(entries))) == skipped
        assert list(ledger.skipped(3, 7)) == [one for one in skipped if 3 <= one <= 7]


def test_many_duplicates_and_bad_lines_are_found(tmp_path):
    """Beyond one batch of the ledger, in an order that is not the file's."""
    source = random.Random(7)
    numbers = [source.randrange(4000) for _ in range(9000)]
    rows = [row(f"q{one}") if one % 3 else "{" for one in numbers]
    report = enqueue_dataset(dataset(tmp_path, *rows), KEYS, None, on_invalid=OnInvalid.SKIP)
    good = [one for one in numbers if one % 3]
    assert report.bad == len(numbers) - len(good)
    assert report.questions == len(set(good))
    assert report.repeated == len(good) - len(set(good))


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    """The books need room for temporary files; where there is none, TMPDIR can point to some."""
    limited = scratch_module._SETUP + "PRAGMA max_page_count = 20;"
    monkeypatch.setattr(scratch_module, "_SETUP", limited)
    source = dataset(tmp_path, *(row(f"q{number}") for number in range(5000)))
    with pytest.raises(ScratchError, match=r"disk is full.*TMPDIR"):
        enqueue_dataset(source, KEYS, None)


def test_progress_ends_at_the_size_of_the_file(client, run, tmp_path):
    """Both passes are counted in bytes of the file, up to its end."""
    seen: list[tuple[int, int]] = []

    class Meter(Recorder):
        def progress(self, bytes_read: int, records: int) -> None:
            seen.append((bytes_read, records))

    source = dataset(tmp_path, *(row(f"q{number}") for number in range(600)))
    enqueue_dataset(source, RunKeys(run), client, listener=Meter())
    size = source.path.stat().st_size
    assert seen.count((size, 600)) >= 2
    assert all(0 < bytes_read <= size for bytes_read, _ in seen)


def test_memory_does_not_depend_on_the_length_of_the_file(tmp_path, peak_mib):
    """Eight times the lines take less than 16 MiB more (the ledger's page cache, not the lines)."""
    peaks = []
    for count in (5_000, 40_000):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            file.writelines(row(f"q{number}", "What? " * 30) + "\n" for number in range(count))
        peaks.append(peak_mib("enqueue", str(path), "--dry-run"))
    assert peaks[1] - peaks[0] < 16
