"""In which order a file is enqueued: the questions of an image together, whatever the format."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import time
import uuid
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from halp_producer import cli, lines
from halp_producer.dataset import Dataset
from halp_producer.intake import OnInvalid, Silence, enqueue_dataset
from halp_producer.job import decode
from halp_producer.keys import RunKeys
from halp_producer.lines import Lines
from halp_producer.order import GroupBy, Order
from halp_producer.problem import DatasetError
from halp_producer.scratch import ScratchError, scratch_database
from processes import Process

FORMATS = ["d.jsonl", "d.csv", "d.jsonl.gz", "d.csv.gz"]
COLUMNS = ["question_id", "image", "question", "answer"]

SCATTERED = ["a1", "b1", "c1", "a2", "c2", "b2", "a3"]
"""Ids; the letter is the image."""


def fields(name: str, **changes: str) -> dict[str, str]:
    return {
        "question_id": name,
        "image": f"{name[0]}.jpg",
        "question": f'Is "{name}",\nwell,\r\n\nred?',
        "answer": "犬",
        **changes,
    }


def text(suffix: str, records: list[dict[str, str] | None]) -> bytes:
    """JSONL, or CSV whose rows hold line ends; None is a bad line."""
    if suffix == ".jsonl":
        return b"".join(
            (json.dumps(one, ensure_ascii=False) if one else "{").encode() + b"\n"
            for one in records
        )
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for one in records:
        writer.writerow(one.values() if one else ["one cell"])
    return file.getvalue().encode()


def written(path: Path, content: bytes) -> Dataset:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return Dataset(path)


def dataset(path: Path, *names: str) -> Dataset:
    return written(path, text(Path(path.name).suffixes[0], [fields(one) for one in names]))


def ids(client, keys: RunKeys) -> list[str]:
    return [decode(one).question_id for _, one in client.xrange(keys.jobs)]


class Recorder(Silence):
    """Remembers problems and progress."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.seen: list[tuple[int, int]] = []

    def problem(self, problem: Any) -> None:
        self.problems.append(str(problem))

    def progress(self, bytes_read: int, records: int) -> None:
        self.seen.append((bytes_read, records))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (SCATTERED, ["a1", "a2", "a3", "b1", "b2", "c1", "c2"]),
        (["b1", "a1", "b2", "a2", "b3", "a3"], ["b1", "b2", "b3", "a1", "a2", "a3"]),
        (["c1", "c2", "a9", "b2", "b1"], ["c1", "c2", "a9", "b2", "b1"]),
        (["a1", "b1", "b2", "c1", "a2"], ["a1", "a2", "b1", "b2", "c1"]),
    ],
    ids=["scattered", "interleaved", "grouped", "one-late"],
)
def test_the_questions_of_an_image_are_neighbours(client, run, tmp_path, name, names, expected):
    """Images as they first appear, the questions of each as in the file; none: as in the file."""
    source = dataset(tmp_path / name, *names)
    assert enqueue_dataset(source, RunKeys(run), client).added == len(names)
    assert ids(client, RunKeys(run)) == expected
    plain = RunKeys(f"{run}-plain")
    enqueue_dataset(source, plain, client, group_by=GroupBy.NONE)
    assert ids(client, plain) == names


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.lists(
        st.none() | st.tuples(st.sampled_from("abcde"), st.integers(0, 9), st.booleans()),
        max_size=40,
    ),
    name=st.sampled_from(FORMATS),
)
def test_grouped_is_a_stable_sort_by_first_appearance(client, tmp_path, entries, name):
    """With bad lines, repeats and ids used twice among them, which are skipped."""
    keys = RunKeys(uuid.uuid4().hex)
    records = [
        one and fields(f"{one[0]}{one[1]}", answer="yes" if one[2] else "no") for one in entries
    ]
    source = written(tmp_path / name, text(Path(name).suffixes[0], records))
    report = enqueue_dataset(source, keys, client, on_invalid=OnInvalid.SKIP)
    good = list(dict.fromkeys(one["question_id"] for one in records if one))
    images = list(dict.fromkeys(one[0] for one in good))
    expected = sorted(good, key=lambda one: images.index(one[0]))
    assert ids(client, keys) == expected
    assert report.added == report.questions == len(expected)


@given(st.lists(st.tuples(st.text("xyzé", min_size=1, max_size=2), st.integers(1, 3))))
def test_stretches_are_as_few_as_can_be_and_cover_every_line(entries):
    """What follows in the file and in the order is one stretch: for a grouped file, all of it."""
    line, placed = 0, []
    with scratch_database() as database:
        order = Order(database, GroupBy.IMAGE)
        for image, step in entries:
            line += step
            placed.append((line, image))
            order.good(line, line * 100, image)
        stretches = list(order.stretches())
    images = list(dict.fromkeys(image for _, image in placed))
    expected = sorted(placed, key=lambda one: images.index(one[1]))
    covered = [one for _, first, last in stretches for one in placed if first <= one[0] <= last]
    assert covered == expected
    breaks = sum(
        placed.index(after) != placed.index(before) + 1 for before, after in pairwise(expected)
    )
    assert len(stretches) == (breaks + 1 if placed else 0)
    for number, stretch in enumerate(stretches):
        start = (stretch.first * 100, stretch.first) if number else (0, 1)
        assert stretch[:2] == start


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv.gz"])
def test_a_grouped_file_is_read_from_start_to_end(client, run, tmp_path, name, monkeypatch):
    """Bad lines before, in and after it too: without a seek, and .gz without a temporary file."""
    monkeypatch.delattr(Lines, "seek")
    names = ["b1", "b2", "a1", "c1", "c2"]
    records = [None, fields("b1"), None, *(fields(one) for one in names), None]
    source = written(tmp_path / name, text(Path(name).suffixes[0], records))
    enqueue_dataset(source, RunKeys(run), client, on_invalid=OnInvalid.SKIP)
    assert ids(client, RunKeys(run)) == names


def test_offsets_are_right_whatever_the_lines_are(client, run, tmp_path, monkeypatch):
    """A byte order mark, blank lines, CRLF, a line too long and one that is not UTF-8 in between,
    and no line end at the end."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    one = {name: text(".jsonl", [fields(name)]).rstrip() for name in SCATTERED}
    content = (
        b"\xef\xbb\xbf" + one["a1"] + b"\r\n\r\n \n" + one["b1"] + b"\n" + b"x" * 5000 + b"\n"
        + one["c1"] + b"\n\xff\n" + one["a2"] + b"\r\n" + one["c2"] + b"\n\n" + one["b2"]
        + b"\n" + b"y" * 1001 + b"\n" + one["a3"]
    )  # fmt: skip
    for name in ("d.jsonl", "d.jsonl.gz"):
        keys = RunKeys(f"{run}-{name.replace('.', '-')}")
        source = written(tmp_path / name, content)
        report = enqueue_dataset(source, keys, client, on_invalid=OnInvalid.SKIP)
        assert (report.added, report.bad) == (7, 3)
        assert ids(client, keys) == ["a1", "a2", "a3", "b1", "b2", "c1", "c2"]


@pytest.mark.parametrize("name", FORMATS)
def test_problems_name_the_line_of_the_file(client, run, tmp_path, name):
    """Bad lines in the file's order, conflicts with the run by the line that each is on."""
    keys, suffix = RunKeys(run), Path(name).suffixes[0]
    other_ids = ["a3", "b1", "c2"]
    other = [fields(one, answer="other") for one in other_ids]
    enqueue_dataset(written(tmp_path / f"other{suffix}", text(suffix, other)), keys, client)
    records = [fields(one) if one != "a2" else None for one in SCATTERED]
    source, listener = written(tmp_path / name, text(suffix, records)), Recorder()
    report = enqueue_dataset(source, keys, client, on_invalid=OnInvalid.SKIP, listener=listener)
    assert (report.added, report.conflicts, report.bad) == (3, 3, 1)
    starts = dict(zip(SCATTERED, range(1, 8), strict=True))
    if suffix == ".csv":  # a header, and rows of four lines; the bad one has one
        starts = dict(zip(SCATTERED, (2, 6, 10, 14, 15, 19, 23), strict=True))
    expected = [(starts["a2"], "record"), *((starts[one], "question_id") for one in other_ids)]
    found = [one.removeprefix(f"{source.path}:").split(": ")[:2] for one in listener.problems]
    assert [(int(line), field) for line, field in found] == expected
    assert ids(client, keys)[3:] == ["a1", "b2", "c1"]


def test_a_kill_in_the_middle_loses_and_doubles_nothing(server, client, run, tmp_path):
    """kill -9 while a scattered .gz is enqueued, then the same command: each id once, in order."""
    keys, count, images = RunKeys(run), 10_000, 700
    names = [f"{number % images}-{number}" for number in range(count)]
    path = tmp_path / "d.jsonl.gz"
    written(path, text(".jsonl", [fields(one, image=one.split("-")[0]) for one in names]))
    command = [*(sys.executable, "-m", "halp_producer"), "enqueue", str(path), "--json"]
    command += ["--run", run, "--redis-url", server.url]
    held = [*command, "--max-backlog", "9000"]  # it waits there, if it is not killed before
    with Process(held, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while client.xlen(keys.jobs) < 1000:
            assert first.poll() is None
            time.sleep(0.001)
        first.kill()
    reached = client.xlen(keys.jobs)
    assert 1000 <= reached < count
    report = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (report["known"], report["added"]) == (reached, count - reached)
    assert ids(client, keys) == sorted(names, key=lambda one: int(one.split("-")[0]))
    assert client.hlen(keys.known) == int(client.hget(keys.counts, "enqueued")) == count


def test_a_broken_gz_gives_what_was_checked(client, run, tmp_path):
    """Every line before the break, regrouped; the break is a bad line."""
    names = [f"{number % 50}-{number}" for number in range(20_000)]
    records = [fields(one, image=one.split("-")[0], answer=os.urandom(60).hex()) for one in names]
    path = tmp_path / "d.jsonl.gz"
    packed = gzip.compress(text(".jsonl", records), 1)
    path.write_bytes(packed[: -len(packed) // 4])
    report = enqueue_dataset(Dataset(path), RunKeys(run), client, on_invalid=OnInvalid.SKIP)
    assert report.bad == 1
    assert 10_000 < report.added < 20_000
    expected = sorted(names[: report.added], key=lambda one: int(one.split("-")[0]))
    assert ids(client, RunKeys(run)) == expected


@pytest.mark.parametrize("change", ["insert", "truncate", "swap"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_scattered_file_that_changes_between_the_passes_is_refused(
    client, run, tmp_path, name, change
):
    """However it changed: by what is read, or by the file's own time and size in the end."""
    source = dataset(tmp_path / name, *SCATTERED)

    class Meddler(Silence):
        def phase(self, name: str, total_bytes: int) -> None:
            if name == "enqueueing":
                names = {"insert": ["z1", *SCATTERED], "truncate": SCATTERED[:3],
                         "swap": SCATTERED[::-1]}[change]  # fmt: skip
                dataset(source.path, *names)
                os.utime(source.path, ns=(1, 1))

    with pytest.raises(DatasetError, match="changed while it was being read"):
        enqueue_dataset(source, RunKeys(run), client, listener=Meddler())


def test_no_room_to_unzip_is_an_error_that_says_what_to_do(client, run, tmp_path, monkeypatch):
    """Only for a .gz that has to be reordered."""
    full = partial(Path("/dev/full").open, "r+b")
    monkeypatch.setattr(lines, "scratch_file", full)
    source = dataset(tmp_path / "d.jsonl.gz", *SCATTERED)
    enqueue_dataset(source, RunKeys(f"{run}-plain"), client, group_by=GroupBy.NONE)
    with pytest.raises(ScratchError, match=r"No space left on device.*TMPDIR"):
        enqueue_dataset(source, RunKeys(run), client)


@pytest.mark.parametrize("name", FORMATS)
def test_progress_rises_to_the_size_of_the_file(client, run, tmp_path, name):
    """Also where lines are read out of order or unzipped elsewhere."""
    source = dataset(tmp_path / name, *(f"{'abc'[number % 3]}{number}" for number in range(700)))
    listener = Recorder()
    enqueue_dataset(source, RunKeys(run), client, listener=listener)
    size = source.path.stat().st_size
    second = listener.seen[listener.seen.index((size, 700)) + 1 :]
    assert second == sorted(second)
    assert second[0][0] < size
    assert second[-1] == (size, 700)


def test_memory_does_not_depend_on_the_length_of_a_scattered_file(server, run, tmp_path, peak_mib):
    """Eight times the lines and images take less than 16 MiB more."""
    peaks = []
    for count in (5_000, 40_000):
        path = tmp_path / f"{count}.jsonl.gz"
        names = [f"{number % (count // 2)}-{number}" for number in range(count)]
        written(path, text(".jsonl", [fields(one, image=f"{one.split('-')[0]}") for one in names]))
        options = ["--redis-url", server.url, "--run", f"{run}-{count}"]
        peaks.append(peak_mib("enqueue", str(path), *options))
    assert peaks[1] - peaks[0] < 16


def test_the_command_groups_unless_it_is_told_not_to(server, client, run, tmp_path, monkeypatch):
    """By option or by variable; any other word is wrong usage."""
    monkeypatch.setenv("HALP_REDIS_URL", server.url)
    path = str(dataset(tmp_path / "d.jsonl", *SCATTERED).path)

    def enqueued(name: str, *options: str) -> list[str]:
        result = CliRunner().invoke(cli.app, ["enqueue", path, "--run", f"{run}-{name}", *options])
        assert result.exit_code == 0
        return ids(client, RunKeys(f"{run}-{name}"))

    assert enqueued("default") == sorted(SCATTERED)
    assert enqueued("option", "--group-by", "none") == SCATTERED
    monkeypatch.setenv("HALP_GROUP_BY", "none")
    assert enqueued("variable") == SCATTERED
    assert enqueued("both", "--group-by", "image") == sorted(SCATTERED)
    wrong = CliRunner().invoke(cli.app, ["enqueue", path, "--group-by", "picture"])
    assert wrong.exit_code == 2
