"""Label tables: whole or not there, never written over, and never taken for what they are not."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from halp_probe.cli import app
from halp_probe.errors import ProbeError
from halp_probe.judging.verdict import Kind, Label, Verdict
from halp_probe.labels import (
    DamagedLabels,
    NoLabels,
    ensure_labels,
    labels_folder,
    list_labels,
    read_labels,
    write_labels,
)
from halp_store import open_store

ROWS = (
    {"question": "Is there a dog?", "truth": "no", "answer": "No, there is none."},
    {"question": "Is there a cat?", "truth": "n, o", "answer": "Yes."},
    {"question": "How many dogs?", "truth": "3", "answer": "four"},
    {"question": "What is it?", "truth": "dog", "answer": "I cannot tell."},
    {"question": "Why?", "truth": "", "answer": "Because."},
)

VERDICTS = {
    "q00000": Verdict(Label.RIGHT, "r: as, the truth", Kind.YES_NO),
    "q00001": Verdict(
        Label.WRONG, 'r: "no"', Kind.YES_NO, 'a note, "with"\nlines; \r and ünï\u2603'
    ),
    "q00003": Verdict(Label.ABSTAINED, "r", Kind.SHORT),
    "q00004": Verdict(Label.UNJUDGED, "r", Kind.NONE),
}


@pytest.fixture
def path(make_store):
    """Of a store with ROWS."""
    return make_store(ROWS)


@pytest.fixture
def store(path):
    return open_store(path)


@pytest.fixture
def halp_probe(path):
    """`halp_probe(command, *options)`: its result on the store."""

    def run(command, *options):
        return CliRunner().invoke(app, [command, str(path), *map(str, options)])

    return run


@pytest.mark.parametrize(
    ("store", "folder"),
    [
        ("/a/run1.zarr", "/a/run1.labels"),
        ("/a/run1", "/a/run1.labels"),
        ("/a/run1.v2", "/a/run1.v2.labels"),
        ("/a/b.zarr/run1.zarr/", "/a/b.zarr/run1.labels"),
    ],
)
def test_tables_are_beside_the_store(store, folder):
    """Whatever the store is called."""
    assert labels_folder(store) == Path(folder)
    assert labels_folder(store, Path("/c")) == Path("/c")


def test_a_store_in_a_bucket_needs_a_folder():
    """The error names the option."""
    with pytest.raises(ProbeError, match="--labels DIR"):
        labels_folder("s3://bucket/run1.zarr")
    assert labels_folder("s3://bucket/run1.zarr", Path("/c")) == Path("/c")


def test_what_was_written_is_read(store):
    """Each verdict with all that it says, in its order."""
    written = write_labels(store, "mine", VERDICTS, options={"prompt": "a\nb"})
    found = read_labels(store, "mine")
    assert found == written
    assert list(found.verdicts.items()) == list(VERDICTS.items())
    assert (found.judge, found.version) == ("mine", 1)
    assert found.path == labels_folder(store.path) / "mine" / "000001"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(), st.text(), st.sampled_from(Label), st.sampled_from(Kind), st.text()),
        unique_by=lambda one: one[0],
    )
)
def test_any_text_survives(tmp_path_factory, rows):
    """Control characters, line breaks of all kinds and quotes; surrogates are no text."""
    folder = tmp_path_factory.mktemp("labels")
    store = _Stored()
    verdicts = {one: Verdict(label, rule, kind, note) for one, rule, label, kind, note in rows}
    write_labels(store, "any", verdicts, given=folder)
    assert read_labels(store, "any", None, folder).verdicts == verdicts


class _Stored:
    """What `write_labels` asks of a store."""

    path = "run1.zarr"

    class layout:  # noqa: N801 - an attribute
        fingerprint = {"model": "m"}  # noqa: RUF012

    def __len__(self):
        return 0


def test_a_table_says_what_it_is_of(store):
    """Counts, options, the store with its fingerprint, the version that wrote it, and when."""
    write_labels(store, "mine", VERDICTS, options={"model": "m"})
    about = json.loads((labels_folder(store.path) / "mine" / "000001" / "labels.json").read_text())
    assert about["labels"] == {"right": 1, "wrong": 1, "abstained": 1, "unjudged": 1}
    assert about["rules"] == {"r": 2, "r: as, the truth": 1, 'r: "no"': 1}
    assert about["kinds"]["yes/no"] == {"right": 1, "wrong": 1, "abstained": 0, "unjudged": 0}
    assert about["options"] == {"model": "m"}
    assert about["store"] == {
        "path": store.path,
        "rows": 5,
        "fingerprint": dict(store.layout.fingerprint),
    }
    assert {"judge", "version", "rows", "halp_stream", "created"} <= set(about)
    assert about["created"].endswith("+00:00")


def test_the_same_judge_again_is_the_next_version(store):
    """Nothing that was written changes."""
    write_labels(store, "mine", VERDICTS)
    folder = labels_folder(store.path)
    before = {one: one.read_bytes() for one in folder.rglob("*.*") if one.is_file()}
    write_labels(store, "mine", {})
    write_labels(store, "other", {})
    assert {one: one.read_bytes() for one in before} == before
    assert [(judge, version) for judge, version, _ in list_labels(store)] == [
        *(("mine", 1), ("mine", 2), ("other", 1))
    ]
    assert read_labels(store, "mine").verdicts == {}
    assert read_labels(store, "mine", 1).verdicts == VERDICTS


def test_versions_go_on_after_the_highest(store):
    """A version that was taken away does not come again while a later one is there."""
    for _ in range(3):
        write_labels(store, "mine", {})
    shutil.rmtree(labels_folder(store.path) / "mine" / "000001")
    assert write_labels(store, "mine", {}).version == 4


def test_writers_at_once_all_survive(store):
    """The loser of a race takes the next number."""
    start = threading.Barrier(8)

    def write(number):
        start.wait()
        for _ in range(5):
            write_labels(store, "mine", {f"by {number}": VERDICTS["q00000"]})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found = [read_labels(store, "mine", version) for version in range(1, 41)]
    assert sorted(next(iter(one.verdicts)) for one in found) == sorted(
        f"by {number}" for number in range(8) for _ in range(5)
    )
    assert not [one for one in (labels_folder(store.path) / "mine").iterdir() if len(one.name) != 6]


@pytest.mark.slow
def test_processes_at_once_all_survive(path):
    """Each as a command; none sees half a table of another's."""
    command = [sys.executable, "-m", "halp_probe", "label", str(path), "--judge", "auto", "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    said = [json.loads(one.communicate()[0]) for one in running]
    assert [one.returncode for one in running] == [0, 0, 0]
    assert sorted(one["version"] for one in said) == [1, 2, 3]
    store = open_store(path)
    tables = [read_labels(store, "auto", version).verdicts for version in (1, 2, 3)]
    assert tables[0] == tables[1] == tables[2]


def test_a_write_that_fails_leaves_nothing(store, monkeypatch):
    """At any step, and what was there before stays."""
    write_labels(store, "mine", VERDICTS)
    for step in ("write_rows", "write_about", "sync"):
        with monkeypatch.context() as patched:

            def fail(*_):
                raise OSError("no room")

            patched.setattr(f"halp_probe.labels.{step}", fail)
            with pytest.raises(OSError, match="no room"):
                write_labels(store, "mine", {})
        assert read_labels(store, "mine").version == 1
        assert [one.name for one in (labels_folder(store.path) / "mine").iterdir()] == ["000001"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "ü", "a b", "x" * 101])
def test_a_judge_that_is_no_name_of_a_folder_is_refused(store, name):
    """Before anything is written."""
    with pytest.raises(ProbeError, match="names a folder"):
        write_labels(store, name, VERDICTS)
    assert not labels_folder(store.path).exists()


def test_what_is_not_there_is_said_with_what_is(store):
    """A judge, a version, or any table."""
    with pytest.raises(NoLabels, match=r"no labels of judge 'auto'; there are no labels"):
        read_labels(store, "auto")
    write_labels(store, "mine", VERDICTS)
    with pytest.raises(NoLabels, match="there are labels of mine"):
        read_labels(store, "auto")
    with pytest.raises(NoLabels, match="no version 7; there are 1"):
        read_labels(store, "mine", 7)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("labels.csv", lambda text: text.replace("abstained", "good"), "labels.csv:6: "),
        ("labels.csv", lambda text: text.replace("label,", "says,"), "labels.csv:1: "),
        ("labels.csv", lambda text: text[: text.index("q00003")], "expected 4 rows"),
        ("labels.csv", lambda text: text.replace("q00003", "q00000"), "is there twice"),
        ("labels.csv", lambda text: text.replace("q00003,", "q00003"), "expected 5 cells"),
        ("labels.csv", lambda text: text.replace("short", "tall"), "tall"),
        ("labels.csv", lambda text: "", "labels.csv:1: "),
        ("labels.csv", lambda text: None, "labels.csv: is missing"),
        ("labels.json", lambda text: None, "labels.json: is missing"),
        ("labels.json", lambda text: text[:-5], "labels.json: is no JSON"),
        ("labels.json", lambda text: "[]", "labels.json: expected an object"),
        ("labels.json", lambda text: text.replace('"mine"', '"auto"'), "judge: expected 'mine'"),
        (
            "labels.json",
            lambda text: text.replace('"format_version": 1', '"format_version": 2'),
            "1",
        ),
    ],
)
def test_a_damaged_table_is_said_with_file_and_line(store, name, change, said):
    """And never taken for labels."""
    file = write_labels(store, "mine", VERDICTS).path / name
    changed = change(file.read_text(encoding="utf-8"))
    if changed is None:
        file.unlink()
    else:
        file.write_text(changed, encoding="utf-8", newline="")
    with pytest.raises(DamagedLabels) as caught:
        read_labels(store, "mine")
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_what_a_killed_run_left_is_no_table(store):
    """Nor is anything else that somebody puts there."""
    folder = write_labels(store, "mine", VERDICTS).path.parent
    shutil.copytree(folder / "000001", folder / ".partial-x")
    (folder / "0000002").mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder.parent / "README").write_text("mine")
    assert [(judge, version) for judge, version, _ in list_labels(store)] == [("mine", 1)]
    assert write_labels(store, "mine", {}).version == 2


def test_labels_are_made_where_there_are_none(store):
    """Once: then the newest table is taken, whoever made it."""
    found = ensure_labels(store)
    assert (found.judge, found.version) == ("auto", 1)
    assert [found.verdicts[one].label for one in store] == [
        *(Label.RIGHT, Label.WRONG, Label.WRONG, Label.ABSTAINED, Label.UNJUDGED)
    ]
    assert ensure_labels(store) == found
    assert ensure_labels(store, judge="exact").judge == "exact"
    with pytest.raises(NoLabels, match="no labels of judge 'anna'"):
        ensure_labels(store, judge="anna")


def test_labels_that_rows_came_after_are_made_again(store):
    """As the next version; those of a judge with options of its own are left alone."""
    first, *_ = ensure_labels(store).verdicts
    some = {first: ensure_labels(store).verdicts[first]}
    write_labels(store, "auto", some)
    assert ensure_labels(store).version == 3
    assert set(ensure_labels(store).verdicts) == set(store)
    write_labels(store, "auto", some, options={"synonyms": [["couch", "seat"]]})
    assert set(ensure_labels(store).verdicts) == {first}


def test_the_tables_of_a_store_are_listed(halp_probe, store):
    """With their counts, for people and for programs."""
    assert halp_probe("labels").exit_code == 0
    assert "no labels yet" in halp_probe("labels").stderr
    for judge in ("auto", "halp-reference", "auto"):
        assert halp_probe("label", "--judge", judge).exit_code == 0
    said = halp_probe("labels").stdout
    lines = [one.split()[:7] for one in said.splitlines() if one]
    assert lines[1:4] == [
        ["auto", "1", "5", "1", "2", "1", "1"],
        ["auto", "2", "5", "1", "2", "1", "1"],
        ["halp-reference", "1", "5", "5", "0", "0", "0"],
    ]
    found = json.loads(halp_probe("labels", "--json").stdout)
    assert [(one["judge"], one["version"]) for one in found["tables"]] == [
        *(("auto", 1), ("auto", 2), ("halp-reference", 1))
    ]
    assert found["labels"] == str(labels_folder(store.path))


def test_a_damaged_table_ends_a_command_with_a_sentence(halp_probe, store):
    """And exit code 1."""
    file = write_labels(store, "mine", VERDICTS).path / "labels.json"
    file.write_text("{")
    done = halp_probe("labels")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"{file}: is no JSON")
