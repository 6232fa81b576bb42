"""Hostile dataset files: every line a job or problems with reasons, its neighbours unharmed."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from halp_producer import RunKeys
from halp_producer.cli import app
from halp_producer.dataset import Dataset
from halp_producer.enqueue import Outcome, enqueue_jobs
from halp_producer.job import MAX_TEXT_BYTES, decode, hash_fields
from halp_producer.problem import DatasetError

FUZZ = settings(settings.get_profile("fuzz"), max_examples=250)
FIELDS = ("question_id", "image", "question", "ground_truth", "metadata", "extra")


def record(name, **changes):
    return {
        "question_id": name,
        "image": "a/b.jpg",
        "question": "What is it?",
        "ground_truth": "a dog",
        **changes,
    }


def line(name, **changes):
    return json.dumps(record(name, **changes)).encode() + b"\n"


def nested(depth):
    return b"[" * depth + b"]" * depth


VALUES = {
    "null": b"null",
    "true": b"true",
    "zero": b"0",
    "minus zero": b"-0.0",
    "integer of 4,300 digits": b"9" * 4_300,
    "integer of 5,000 digits": b"9" * 5_000,
    "integer of a million digits": b"-" + b"1" * 1_000_000,
    "large float": b"1e308",
    "float beyond the largest": b"-1e309",
    "float of many digits": b"0." + b"3" * 100_000,
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "empty text": b'""',
    "blanks": b'" \\t\\u2003\\u3000"',
    "NUL": b'"a\\u0000b"',
    "controls": b'"\\u0001\\u001b[31m\\u0007\\u009b\\r\\n"',
    "control as it is": b'"a\x01b"',
    "line separator": '"a\u2028b\u0085c"'.encode(),
    "lone high surrogate": b'"a\\ud800b"',
    "lone low surrogate": b'"\\udfff"',
    "surrogates in the wrong order": b'"\\udc00\\ud800"',
    "a pair of surrogates": b'"\\ud83d\\udc31"',
    "surrogate as bytes": b'"\xed\xa0\x80"',
    "not UTF-8": b'"\xff\xfe"',
    "overlong": b'"\xc0\xaf"',
    "byte order mark": b'"\xef\xbb\xbf"',
    "right to left": '"\u202e\u2066abc"'.encode(),
    "a mebibyte": b'"' + b"x" * MAX_TEXT_BYTES + b'"',
    "a mebibyte and one": b'"' + b"x" * (MAX_TEXT_BYTES + 1) + b'"',
    "a mebibyte in two bytes each": '"{}"'.format("é" * (MAX_TEXT_BYTES // 2 + 1)).encode(),
    "512 bytes": b'"' + b"x" * 512 + b'"',
    "513 bytes": b'"' + b"x" * 513 + b'"',
    "escapes": b'"' + b"\\u0041" * 100_000 + b'"',
    "a bad escape": b'"\\x41"',
    "half an escape": b'"\\u12',
    "empty array": b"[]",
    "empty object": b"{}",
    "object": b'{"a": {"b": [1, 2.5, null, "\\u00e9"]}}',
    "empty key": b'{"": {"": ""}}',
    "key with a surrogate": b'{"\\ud800": 1}',
    "key with a line end": b'{"\\n\\u001b": NaN}',
    "key twice": b'{"a": 1, "a": 1}',
    "key twice deep down": b'{"a": [{"b": 1, "b": 2}]}',
    "100 levels": nested(100),
    "101 levels": nested(101),
    "1,000 levels": nested(1_000),
    "a million levels": b"[" * 1_000_000,
    "levels of objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "JSON in text": b'"{\\"a\\": NaN}"',
    "deep JSON in text": b'"' + nested(3_000) + b'"',
    "huge integer in text": b'"{\\"a\\": ' + b"9" * 5_000 + b'}"',
    "comment": b"/* */ 1",
    "single quotes": b"'a'",
    "nothing": b"",
    "line end": b'"a\nb"',
    "carriage return": b'"a"\r',
    "trailing comma": b"1,",
    "second object": b'1} {"a": 2',
}
"""What may stand for a value in a line of JSON."""


def with_value(field, value):
    """A line whose `field` is `value`, byte for byte."""
    return line("hostile", **{field: "@"}).replace(b'"@"', value)


def read(path, content, **options):
    """Good jobs by id, and problems; what must hold for all of them is checked here."""
    path.write_bytes(content)
    jobs = {}
    problems = []
    for one in Dataset(path, **options).read():
        assert (one.job is None) == bool(one.problems)
        for problem in one.problems:
            text = str(problem)
            assert text.startswith(f"{path}:{one.line}: "), text
            assert problem.field.strip(), text
            assert problem.reason.strip(), text
            assert text.isprintable(), text
            assert len(text) < 5_000
            problems.append(text)
        if one.job is not None:
            jobs[one.job.question_id] = one.job
            fields = one.job.encode()
            again = decode({name.encode(): value.encode() for name, value in fields.items()})
            assert again == one.job
            assert hash_fields(again.encode()) == hash_fields(fields)
    return jobs, problems


@pytest.mark.parametrize("value", VALUES)
def test_a_hostile_value_in_any_field_spares_its_neighbours(tmp_path, value):
    """One file for each value, one line for each field: the good lines between them are jobs."""
    lines = [line("first")]
    for field in FIELDS:
        lines += [with_value(field, VALUES[value]) + b"\n", line(f"after-{field}")]
    jobs, _ = read(tmp_path / "d.jsonl", b"".join(lines))
    assert {"first", *(f"after-{field}" for field in FIELDS)} <= jobs.keys()


def test_all_of_them_at_once_through_the_command(tmp_path):
    """`enqueue --dry-run` says every problem and ends with 1, never with a traceback."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(with_value(f, VALUES[v]) for v in VALUES for f in FIELDS))
    result = CliRunner().invoke(app, ["enqueue", str(path), "--dry-run", "--json"])
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert json.loads(result.stdout)["bad"] > 100
    assert all(text.isprintable() for text in result.stderr.split("\n"))


def test_what_is_accepted_goes_through_a_real_server(tmp_path, client, run):
    """Every job that hostile lines gave comes back from the stream as its equal."""
    content = b"".join(
        with_value(field, value).replace(b"hostile", f"{name} {field}".encode()) + b"\n"
        for name, value in VALUES.items()
        for field in FIELDS
    )
    jobs = list(read(tmp_path / "d.jsonl", content)[0].values())
    assert len(jobs) > 60
    keys = RunKeys(run)
    for job in jobs:
        assert enqueue_jobs(client, keys, [job])[0].outcome is Outcome.ADDED
    entries = client.xrange(keys.jobs)
    assert [decode(fields) for _, fields in entries] == jobs
    again = [enqueue_jobs(client, keys, [decode(fields)])[0].outcome for _, fields in entries]
    assert set(again) == {Outcome.KNOWN}
    client.delete(keys.jobs, keys.known, keys.counts)


def test_nesting_is_a_problem_at_every_depth(tmp_path):
    """Around the interpreter's own limit too, which one reader meets before the other."""
    path = tmp_path / "d.jsonl"
    for depth in range(800, 1_010):
        hostile = line("deep", ground_truth=1.5, extra="@").replace(b'"@"', nested(depth))
        jobs, problems = read(path, hostile + line("good"))
        assert list(jobs) == ["good"]
        assert "nested" in problems[0]


@pytest.mark.timeout(60)
def test_a_line_of_very_many_keys_takes_no_square_of_time(tmp_path):
    """A million keys, the last of them twice; a hundred thousand columns, two of one name."""
    keys = b"{" + b",".join(b'"%d":1' % number for number in range(1_000_000)) + b',"7":1}\n'
    jobs, problems = read(tmp_path / "d.jsonl", keys + line("good"))
    assert list(jobs) == ["good"]
    assert "the key '7' is there twice" in problems[0]
    header = b",".join(b"c%d" % number for number in range(1_000_000))
    _, problems = read(tmp_path / "d.csv", header + b",c7\n1,2\n")
    assert problems == [
        f"{tmp_path}/d.csv:1: header: 'c7': one name for several columns",
    ]
    _, problems = read(tmp_path / "d.csv", header + b"\n1,2\n")
    assert len(problems) == 4


FRAGMENTS = [
    *(b"\0", b"\r", b"\r\n", b"\n", b"\n\n\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"\x1a"),
    *(b'"', b'""', b"'", b"\\", b"\\u", b"\\ud83d", b",", b",,,,", b":", b"{", b"}", b"[", b"]"),
    *(b"NaN", b"1e999", b"-", b"null", b"9" * 4_301, b"\x0b\x0c\x1c\x85", b"\xe2\x80\xa8", b"#"),
    *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"question_id", b'"image": 1,', b";", b"\t", b" "),
]
EDITS = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.sampled_from([0, 0, 1, 1, 2, 20, 100]),
        st.sampled_from(FRAGMENTS) | st.binary(max_size=4),
    ),
    min_size=1,
    max_size=6,
)
"""(where, how many bytes to remove, what to put there)"""


def edited(content, edits):
    for at, removed, put in edits:
        at = at % (len(content) + 1)
        content = content[:at] + put + content[at + removed :]
    return content


@FUZZ
@given(edits=EDITS, packed=st.booleans())
def test_a_mutated_json_line_spares_its_neighbours(tmp_path, edits, packed):
    """Bytes put in, taken out and changed at random: problems of that line (or lines) only."""
    hostile = edited(line("q", metadata={"a": [1, {"b": 2.5}]}), edits)
    content = line("first") + hostile + b"\n" + line("last")
    jobs, _ = read(tmp_path / "d.jsonl", gzip.compress(content, 1) if packed else content)
    assert {"first", "last"} <= jobs.keys()


@FUZZ
@given(edits=EDITS)
def test_a_mutated_csv_row_spares_its_neighbours(tmp_path, edits):
    """Rows before it always; rows after it unless a quote was opened, which is then said."""
    header = b"question_id,image,question,ground_truth,metadata,\n"
    hostile = edited(b'q,a.jpg,"What, ""is"" it?",a dog,"{""a"": 1}",x\n', edits)
    content = header + b"first,a,b,c,,\n" + hostile + b"\nlast,a,b,c,,\n"
    jobs, problems = read(tmp_path / "d.csv", content)
    assert "first" in jobs
    assert "last" in jobs or problems


@FUZZ
@given(edits=EDITS)
def test_a_mutated_csv_header_is_said_or_understood(tmp_path, edits):
    """Every row is then a job or has problems, under whatever names the columns have now."""
    header = edited(b"question_id,image,question,ground_truth,metadata\n", edits)
    try:
        read(tmp_path / "d.csv", header + b"\nq,a.jpg,b,c,\xff\nq2,a.jpg,b,c,\n" + b"a,b\n")
    except DatasetError as error:
        assert "UTF-16" in str(error)  # noqa: PT017 (one of two allowed ends)


@FUZZ
@given(edits=EDITS, name=st.sampled_from(["d.jsonl.gz", "d.csv.gz", "d.jsonl"]))
def test_a_mutated_gzip_file_is_a_problem_where_it_breaks(tmp_path, edits, name):
    """Its lines up to there are jobs; broken from the start, it is one problem."""
    packed = edited(gzip.compress(line("q") * 50, mtime=0), edits)
    try:
        read(tmp_path / name, packed)
    except DatasetError as error:
        assert "UTF-16" in str(error)  # noqa: PT017 (one of two allowed ends)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\xef\xbb\xbf", b"\0", b" \r\n\t", b"\r\r\r", b"\x1f\x8b", b"{", b'"', b"\x1a"],
)
@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.csv.gz", "d.ndjson.gz"])
def test_next_to_nothing_is_no_job(tmp_path, content, name):
    """Empty files, blanks, a byte order mark, the first bytes of a gzip file."""
    assert read(tmp_path / name, content)[0] == {}


def bomb(parts):
    """What a gzip file of these parts would be, a part at a time."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([*(packer.compress(part) for part in parts), packer.flush()])


MEBIBYTE = 1 << 20
BOMBS = {
    "one line of half a gibibyte": ("d.jsonl.gz", lambda: [bytes(MEBIBYTE)] * 512),
    "one CSV cell of a quarter gibibyte": (
        "d.csv.gz",
        lambda: [b"question_id,image,question,answer\n", *[b"x" * MEBIBYTE] * 256],
    ),
    "quoted line ends without end": (
        "d.csv.gz",
        lambda: [b'question_id,image,question,answer\n"', *[(b"x" * 1023 + b"\n") * 1024] * 64],
    ),
    "a line of commas": (
        "d.csv.gz",
        lambda: [b"question_id,image,question,answer\n", *[b"," * MEBIBYTE] * 15],
    ),
    "a line of empty objects": ("d.jsonl.gz", lambda: [b"[", *[b"{}," * 349_525] * 15, b"1]"]),
    "a gzip file in a gzip file": (
        "d.jsonl.gz",
        lambda: [bomb([bytes(MEBIBYTE)] * 256)],
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_unpacks_to_far_more_takes_no_more_memory(tmp_path, name):
    """The command runs with a bound on its memory, and reports a bad line as always."""
    file, parts = BOMBS[name]
    path = tmp_path / file
    path.write_bytes(bomb(parts()))
    assert path.stat().st_size < 2 * MEBIBYTE
    bound = 1280 * MEBIBYTE

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))

    done = subprocess.run(
        [sys.executable, "-m", "halp_producer", "enqueue", str(path), "--dry-run", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=limit,
    )
    assert done.returncode == 1, done.stderr[-2_000:]
    assert json.loads(done.stdout)["bad"] >= 1
    assert f"{path}:" in done.stderr
    assert "Traceback" not in done.stderr
