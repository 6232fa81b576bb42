"""Dataset files: every good line is a job, every bad one says all that is wrong, neither harms
its neighbours."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halp_producer import lines
from halp_producer.columns import Columns
from halp_producer.dataset import Dataset
from halp_producer.images import ImageRoot
from halp_producer.job import MAX_TEXT_BYTES, Job
from halp_producer.problem import DatasetError, LineProblem

HEADER = "question_id,image,question,ground_truth"


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "question_id": f"q{number}",
        "image": f"{number}.jpg",
        "question": f"What is {number}?",
        "ground_truth": "a dog",
        **changes,
    }


def line(number: int, **changes: Any) -> bytes:
    return json.dumps(record(number, **changes), ensure_ascii=False).encode() + b"\n"


def read(path: Path, **options: Any) -> tuple[dict[int, Job], list[str]]:
    """Jobs by their line, and the problems without the path."""
    jobs, problems = {}, []
    for one in Dataset(path, **options).read():
        if one.job is not None:
            jobs[one.line] = one.job
        problems += [str(problem).removeprefix(f"{path}:") for problem in one.problems]
    return jobs, problems


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_line_becomes_a_job(tmp_path):
    """The four fields, the metadata object, and every other column as metadata."""
    path = written(tmp_path / "d.jsonl", line(1, metadata={"a": [1, 2.5, None]}, dataset="AMBER"))
    jobs, problems = read(path)
    assert problems == []
    assert jobs == {
        1: Job(
            question_id="q1",
            image="1.jpg",
            question="What is 1?",
            ground_truth="a dog",
            metadata={"a": [1, 2.5, None], "dataset": "AMBER"},
        )
    }


BAD_JSON = {
    "not JSON": (b"{oops\n", "2: record: is not JSON: Expecting property name enclosed in double"),
    "column is named": (b'{"a": 1,, "b": 2}\n', "at column 9"),
    "cut off": (b'{"question_id": "q2\n', "2: record: is not JSON"),
    "array": (b"[1, 2]\n", "2: record: expected a JSON object, got an array"),
    "null": (b"null\n", "2: record: expected a JSON object, got null"),
    "two objects": (line(2).strip() + line(2), "2: record: is not JSON: Extra data"),
    "NaN": (b'{"score": NaN}\n', "2: record: NaN is not JSON"),
    "-Infinity": (b'{"score": -Infinity}\n', "2: record: -Infinity is not JSON"),
    "key twice": (b'{"image": "a", "image": "b"}\n', "2: record: the key 'image' is there twice"),
    "inner key twice": (line(2, metadata={}).replace(b"{}", b'{"k":1,"k":2}'), "the key 'k' is"),
    "bytes": (line(2).replace(b"dog", b"d\xffg"), "2: record: is not UTF-8 (byte "),
    "latin-1": ("é\n".encode("latin-1"), "2: record: is not UTF-8"),
    "deep": (b'{"m": ' + b"[" * 100_000 + b"\n", "2: record: is nested too deeply"),
    "deepish": (line(2, m=eval("[" * 90 + "1" + "]" * 90)), ""),  # noqa: S307 (a literal)
    "deeper": (line(2, m=1).replace(b": 1}", b": " + b"[" * 150 + b"]" * 150 + b"}"), "metadata:"),
    "huge integer": (b'{"a": ' + b"9" * 5000 + b"}\n", "2: record: Exceeds the limit"),
    "infinite float": (line(2, m=1).replace(b": 1}", b": 1e999}"), "2: metadata: is not JSON"),
    "lone surrogate": (line(2).replace(b"dog", b"\\ud800"), "2: ground_truth: is not valid"),
    "surrogate key": (line(2, x=1).replace(b'"x"', b'"\\ud800"'), "2: metadata: is not valid"),
    "no id": (b'{"image":"a","question":"b","answer":"c"}\n', "2: question_id: is missing (no"),
    "no image": (
        b'{"question_id":"a","question":"b","answer":"c"}\n',
        "2: image: is missing (no column 'image', 'image_name' or 'image_id')",
    ),
    "null question": (line(2, question=None), "2: question: is missing"),
    "null truth": (line(2, ground_truth=None), "2: ground_truth: is missing"),
    "empty id": (line(2, question_id=""), "2: question_id: is empty"),
    "blank id": (line(2, question_id="\u2003"), "2: question_id: is empty"),
    "control in id": (line(2, question_id="a\tb"), "2: question_id: has a control character"),
    "fraction as id": (line(2, question_id=1.5), "expected text or an integer, got 1.5"),
    "boolean as id": (line(2, question_id=True), "expected text or an integer, got true"),
    "list as truth": (line(2, ground_truth=["x"]), "expected text or a number, got an array"),
    "number as image": (line(2, image=7), "2: image: expected text, got int"),
    "metadata text": (line(2, metadata="{"), "2: metadata: is not JSON"),
    "metadata array": (line(2, metadata=[1]), "2: metadata: expected a JSON object, got an array"),
    "metadata twice": (
        line(2, metadata={"a": 1}, a=2),
        "2: metadata: 'a': both in the metadata object and a column",
    ),
    "NUL in image": (line(2, image="a\0b"), "2: image: has a NUL"),
    "question too long": (line(2, question="x" * (MAX_TEXT_BYTES + 1)), "the limit is 1048576"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_bad_json_line_says_what_is_wrong_and_spares_its_neighbours(tmp_path, name):
    """Each kind of bad line is one problem with its line number; line 1 and 3 are jobs."""
    bad, reason = BAD_JSON[name]
    path = written(tmp_path / "d.jsonl", line(1) + bad + line(3))
    jobs, problems = read(path)
    if not reason:
        assert (sorted(jobs), problems) == ([1, 2, 3], [])
        return
    assert sorted(jobs) == [1, 3]
    assert reason in problems[0]
    assert all(problem.startswith("2: ") for problem in problems)


def test_every_problem_of_a_line_is_reported(tmp_path):
    """A line with four faults says all four at once."""
    path = written(
        tmp_path / "d.jsonl", b'{"question_id": "", "ground_truth": {}, "metadata": 3}\n'
    )
    _, problems = read(path)
    assert {problem.split(":")[1].strip() for problem in problems} == {
        "question_id", "ground_truth", "metadata", "image", "question",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("truth", "text"),
    [("1.50", "1.50"), ("17", "17"), ("-0", "-0"), ("1E3", "1E3"), ("true", "true"),
     ("false", "false"), ('"1.50"', "1.50"), ("1e999", "1e999"), ('""', "")],
)  # fmt: skip
def test_a_truth_that_is_a_number_is_kept_as_it_is_written(tmp_path, truth, text):
    """`1.50` stays `1.50`; numbers in metadata stay numbers."""
    raw = line(1, ground_truth=0, score=1.50).replace(b'truth": 0', b'truth": ' + truth.encode())
    jobs, problems = read(written(tmp_path / "d.jsonl", raw))
    assert problems == []
    assert jobs[1].ground_truth == text
    assert jobs[1].metadata == {"score": 1.5}


def test_an_integer_id_becomes_its_text(tmp_path):
    """Ids from spreadsheets are numbers; the store's keys are text."""
    jobs, _ = read(written(tmp_path / "d.jsonl", line(1, question_id=6253)))
    assert jobs[1].question_id == "6253"


@pytest.mark.parametrize(
    ("columns", "image", "truth", "rest"),
    [
        ({"image_id": "a", "answer": "x"}, "a", "x", {}),
        ({"image_name": "a", "image_id": "b", "answer": "x"}, "a", "x", {"image_id": "b"}),
        ({"image": "a", "gt_answer": "x", "answer": "y"}, "a", "x", {"answer": "y"}),
        (
            {"image": "a", "ground_truth_answer": "x", "gt_answer": "y"},
            "a",
            "x",
            {"gt_answer": "y"},
        ),
        ({"image": "a", "ground_truth": None, "answer": "y"}, "a", "y", {}),
        ({"image": "a", "ground_truth": "", "answer": "y"}, "a", "", {"answer": "y"}),
    ],
)
def test_the_published_column_names_are_understood(tmp_path, columns, image, truth, rest):
    """The first name that is there wins, null is as good as absent, the others are metadata."""
    content = json.dumps({"question_id": "q", "question": "?", **columns})
    jobs, problems = read(written(tmp_path / "d.jsonl", content))
    assert problems == []
    assert (jobs[1].image, jobs[1].ground_truth, jobs[1].metadata) == (image, truth, rest)


def test_a_mapped_column_replaces_a_fields_own_names(tmp_path):
    """`--map image=path_column` takes that column and no other; `image` is then metadata."""
    path = written(tmp_path / "d.jsonl", line(1, path_column="p.jpg") + line(2))
    jobs, problems = read(path, columns=Columns.from_options(["image=path_column"]))
    assert (jobs[1].image, jobs[1].metadata) == ("p.jpg", {"image": "1.jpg"})
    assert problems == ["2: image: is missing (no column 'path_column' (--map image=path_column))"]


@pytest.mark.parametrize("option", ["image", "image=", "=x", "colour=x", ""])
def test_a_mapping_that_says_nothing_is_refused(option):
    """`field=column`, with a field of a job."""
    with pytest.raises(ValueError, match="expected field=column"):
        Columns.from_options([option])


def test_a_field_is_mapped_once():
    """Two columns for one field is a contradiction."""
    with pytest.raises(ValueError, match="already mapped to 'a'"):
        Columns.from_options(["image=a", "image=b"])


def test_blank_lines_and_the_byte_order_mark_are_nothing(tmp_path):
    """Line numbers count blank lines; a mark before the first line is not part of it."""
    content = codecs.BOM_UTF8 + line(1) + b"\n  \r\n" + line(4).replace(b"\n", b"\r\n")
    jobs, problems = read(written(tmp_path / "d.jsonl", content))
    assert (sorted(jobs), problems) == ([1, 4], [])


def test_the_last_line_needs_no_line_end(tmp_path):
    """Nor is one bad line read when the file ends without."""
    jobs, problems = read(written(tmp_path / "d.jsonl", line(1) + line(2).rstrip()))
    assert (sorted(jobs), problems) == ([1, 2], [])


def test_utf_16_is_one_error(tmp_path):
    """A file in another encoding is one clear error, not one for each line."""
    path = written(tmp_path / "d.jsonl", (line(1) + line(2)).decode().encode("utf-16"))
    with pytest.raises(DatasetError, match="is UTF-16; expected UTF-8"):
        read(path)


def test_a_line_too_long_is_skipped_without_being_held(tmp_path, monkeypatch):
    """The bound is on bytes, and the next line is read as if nothing had been."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    for size in (1001, 3_000_000):
        content = line(1) + b"x" * size + b"\n" + line(3)
        jobs, problems = read(written(tmp_path / "d.jsonl", content))
        assert (sorted(jobs), problems) == ([1, 3], ["2: record: is longer than 1000 bytes"])


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.ndjson.gz", "d.jsonl", "D.JSONL.GZ"])
def test_gzip_is_recognised_by_its_bytes(tmp_path, name):
    """Whatever the name says; several members in one file too."""
    packed = gzip.compress(line(1)) + gzip.compress(line(2))
    jobs, problems = read(written(tmp_path / name, packed))
    assert (sorted(jobs), problems) == ([1, 2], [])
    jobs, problems = read(written(tmp_path / name, line(1)))
    assert (sorted(jobs), problems) == ([1], [])


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage"])
def test_broken_gzip_is_a_problem_with_a_line(tmp_path, damage):
    """Lines before the break are read; the break is reported where it is, once."""
    plain = b"".join(line(number, pad=os.urandom(60).hex()) for number in range(20_000))
    packed = bytearray(gzip.compress(plain, 1))
    if damage == "cut":
        del packed[-len(packed) // 4 :]
    elif damage == "flipped":
        packed[-6] ^= 0xFF  # the checksum at the very end
    else:
        packed += b"garbage"
    jobs, problems = read(written(tmp_path / "d.jsonl.gz", bytes(packed)))
    assert len(problems) == 1
    number, rest = problems[0].split(": ", 1)
    assert int(number) == max(jobs) + 1
    assert rest.startswith("record: the file cannot be read from about here on: ")


@pytest.mark.parametrize("name", ["d.parquet", "d.json", "d", "d.jsonl.zst", "d.gz"])
def test_an_unknown_format_is_refused(tmp_path, name):
    """The suffix decides; the error lists what would do."""
    with pytest.raises(DatasetError, match=r"unknown format .* expected \.jsonl"):
        Dataset(tmp_path / name)


def test_only_a_regular_file_is_read(tmp_path):
    """A directory, a pipe or nothing cannot be read twice."""
    with pytest.raises(DatasetError, match="cannot be opened: No such file"):
        read(tmp_path / "no.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DatasetError, match="expected a regular file"):
        read(tmp_path / "pipe.jsonl")


def test_csv_rows_become_jobs(tmp_path):
    """Quoted commas, quotes and line ends belong to the cell; numbers count where a row starts."""
    path = tmp_path / "d.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["question_id", "image_id", "question", "answer", "category", "metadata"])
        writer.writerow(["q1", "a.jpg", 'Is "it", well,\r\nred?\n', " yes ", "x", '{"n": 1.5}'])
        writer.writerow(["q2", "b.jpg", "Größe? 犬 👩‍👩‍👧", "", "", ""])
    jobs, problems = read(path)
    assert problems == []
    assert sorted(jobs) == [2, 5]
    assert jobs[2].question == 'Is "it", well,\r\nred?\n'
    assert jobs[2].ground_truth == " yes "
    assert jobs[2].metadata == {"category": "x", "n": 1.5}
    assert jobs[5] == Job(
        question_id="q2",
        image="b.jpg",
        question="Größe? 犬 👩‍👩‍👧",
        ground_truth="",
        metadata={"category": ""},
    )


BAD_CSV = {
    "too few cells": (b"q2,2.jpg,What?\n", "3: record: expected 4 cells as in the header, got 3"),
    "too many cells": (b"q2,2.jpg,What?,a,b\n", "3: record: expected 4 cells as in the header"),
    "bytes": (b"q2,2.jpg,Wh\xfft?,a\n", "3: question: is not UTF-8"),
    "NUL": (b"q2,2.jpg,What?,a\0b\n", "3: ground_truth: has a NUL character"),
    "text after a quote": (b'q2,2.jpg,"What"?,a\n', "3: record: is not CSV: ',' expected after"),
    "empty id": (b",2.jpg,What?,a\n", "3: question_id: is empty"),
    "cell too long": (
        b"q2,2.jpg," + b"x" * (MAX_TEXT_BYTES + 1) + b",a\n",
        "3: record: is not CSV: field larger than field limit",
    ),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_bad_csv_row_says_what_is_wrong_and_spares_its_neighbours(tmp_path, name):
    """Each kind of bad row is a problem with its line number; the rows around it are jobs."""
    bad, reason = BAD_CSV[name]
    content = f"{HEADER}\nq1,1.jpg,What?,a\n".encode() + bad + b"q3,3.jpg,What?,a\n"
    jobs, problems = read(written(tmp_path / "d.csv", content))
    assert len(problems) == 1
    assert problems[0].startswith(reason)
    assert sorted(jobs) == [2, 4]


def test_a_quote_that_never_closes_is_reported_where_it_opens(tmp_path):
    """The reader cannot know where it was meant to close; it says how far it looked."""
    content = f'{HEADER}\nq1,1.jpg,What?,a\nq2,"2.jpg,What?,a\nq3,3.jpg,What?,a\n'
    jobs, problems = read(written(tmp_path / "d.csv", content))
    assert sorted(jobs) == [2]
    assert problems == ["3: record: is not CSV: unexpected end of data (read up to line 4)"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "1: header: is missing: the file is empty"),
        ("image,image,question\n" + "a,b,c\n" * 9, "1: header: 'image': one name for several"),
        (
            "question_id,question,answer\n" + "a,b,c\n" * 9,
            "1: image: is missing (no column 'image', 'image_name' or 'image_id'; "
            "the header has 'question_id', 'question', 'answer')",
        ),
        ('question_id,"image\n', "1: header: is not CSV"),
    ],
)
def test_a_bad_csv_header_is_one_problem(tmp_path, content, expected):
    """What is wrong with the header is said once, not for each row."""
    jobs, problems = read(written(tmp_path / "d.csv", content))
    assert jobs == {}
    assert len(problems) == 1
    assert problems[0].startswith(expected)


def test_a_mapped_csv_column_must_be_in_the_header(tmp_path):
    """A typing error in --map is one problem that shows the header."""
    path = written(tmp_path / "d.csv", f"{HEADER}\n" + "a,b,c,d\n" * 5)
    _, problems = read(path, columns=Columns.from_options(["metadata=mtea"]))
    assert problems == [
        "1: metadata: is missing (no column 'mtea' (--map metadata=mtea); the header has "
        "'question_id', 'image', 'question', 'ground_truth')"
    ]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(questions=st.lists(CELL.filter(str.strip), min_size=1, max_size=5), packed=st.booleans())
def test_any_text_survives_a_csv_file(tmp_path, questions, packed):
    """What csv.writer wrote is read back to the code point, gzipped or not."""
    path = tmp_path / "d.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["question_id", "image", "question", "answer"])
        for number, question in enumerate(questions):
            writer.writerow([f"q{number}", "a.jpg", question, question])
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    jobs, problems = read(path)
    assert problems == []
    assert [job.question for job in jobs.values()] == questions
    assert [job.ground_truth for job in jobs.values()] == questions


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), name=st.sampled_from(["d.jsonl", "d.csv"]))
def test_any_bytes_at_all_are_jobs_or_problems(tmp_path, content, name):
    """No file makes the reader fail in a way of its own."""
    try:
        jobs, problems = read(written(tmp_path / name, content))
    except DatasetError as error:
        assert "UTF-16" in str(error)  # noqa: PT017 (one of two allowed ends)
    else:
        assert all("\n" not in problem for problem in problems)
        assert len(jobs) + len(problems) <= content.count(b"\n") * 6 + 6


def test_a_problem_is_one_printable_line():
    """Nothing in a dataset can forge a line of the report or drive the terminal."""
    problem = LineProblem(Path("d.jsonl"), 3, "image", "not found: a\nb\x1b[31m\ud800")
    assert str(problem) == "d.jsonl:3: image: not found: a\\nb\\x1b[31m\\ud800"


@pytest.fixture
def root(tmp_path):
    """An image root with a file, links that stay inside and links that leave."""
    (tmp_path / "secret.jpg").write_bytes(b"x")
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    (real / "sub" / "a.jpg").write_bytes(b"x")
    (real / "inside.jpg").symlink_to("sub/a.jpg")
    (real / "outside.jpg").symlink_to("../secret.jpg")
    (real / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "root").symlink_to("real")
    (tmp_path / "real-too").mkdir()
    (tmp_path / "real-too" / "b.jpg").write_bytes(b"x")
    return ImageRoot(tmp_path / "root")


@pytest.mark.parametrize(
    "image",
    ["sub/a.jpg", "inside.jpg", "./sub/../sub/a.jpg", "{root}/sub/a.jpg", "http://x/a.jpg",
     "HTTPS://x/a.jpg"],
)  # fmt: skip
def test_an_image_below_the_root_is_fine(root, image):
    """Links are resolved, absolute paths inside are allowed, URLs are not looked at."""
    assert root.problem(image.format(root=root.path)) is None


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("no.jpg", r"not found: no.jpg \(looked under .*root\)"),
        ("sub/a.jpg/b", "not found"),
        ("outside.jpg", "outside the image root: outside.jpg is .*secret.jpg"),
        ("../secret.jpg", "outside the image root"),
        ("../real-too/b.jpg", "outside the image root"),
        ("{root}/../secret.jpg", "outside the image root"),
        ("sub", "not a file: sub"),
        ("loop.jpg", "cannot be read: loop.jpg"),
        ("x" * 300, "cannot be read"),
        ("ftp://x/a.jpg", "not found"),
    ],
)
def test_an_image_that_a_worker_would_refuse_is_a_bad_line(root, tmp_path, image, reason):
    """Missing, outside after resolving links, or no file: said before anything is enqueued."""
    import re

    image = image.format(root=root.path)
    assert re.match(reason, root.problem(image) or "")
    path = written(tmp_path / "d.jsonl", line(1, image=image) + line(2, image="sub/a.jpg"))
    jobs, problems = read(path, images=root)
    assert sorted(jobs) == [2]
    assert problems[0].startswith("1: image: ")


def test_reading_needs_no_heavy_library():
    """The producer room costs only itself."""
    import subprocess

    code = (
        "import sys, halp_producer.cli; "
        "print([m for m in ('torch', 'numpy', 'zarr', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
