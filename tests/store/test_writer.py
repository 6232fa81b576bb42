"""The writer's buffer: when it is due, what it knows of a row, what a flush says."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from halp_store.compaction import compact
from halp_store.errors import StoreGone, StoreMismatch
from halp_store.features import Receipt, RowKey
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.writer import Flush


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_flush_is_due_by_rows(tmp_path, open_writer, make_rows):
    """With `flush_rows` rows in the buffer a flush is due at once."""
    writer = open_writer(tmp_path, flush_rows=3, clock=Clock())
    writer.append(make_rows(["a", "b"]))
    assert (writer.rows_buffered, writer.seconds_until_due()) == (2, 5.0)
    writer.append(make_rows(["c"]))
    assert (writer.rows_buffered, writer.seconds_until_due()) == (3, 0.0)


def test_a_flush_is_due_by_seconds_since_the_first_row(tmp_path, open_writer, make_rows):
    """Later rows do not put a flush off, and an empty buffer is never due."""
    clock = Clock()
    writer = open_writer(tmp_path, flush_seconds=5.0, clock=clock)
    assert writer.seconds_until_due() is None
    writer.append(make_rows(["a"]))
    clock.now += 3
    writer.append(make_rows(["b"]))
    assert writer.seconds_until_due() == 2.0
    clock.now += 9
    assert writer.seconds_until_due() == 0.0
    writer.flush()
    assert writer.seconds_until_due() is None


def test_lookup_tells_new_buffered_stored_and_conflict_apart(tmp_path, open_writer, make_rows):
    """Content decides: the same id with other content is a conflict, buffered or stored."""
    writer = open_writer(tmp_path)
    ours, other = RowKey("a", "a-a"), RowKey("a", "b-a")
    assert (writer.lookup(ours), writer.lookup(other)) == ("new", "new")
    writer.append(make_rows(["a"]))
    assert (writer.lookup(ours), writer.lookup(other)) == ("buffered", "conflict")
    writer.flush()
    assert (writer.lookup(ours), writer.lookup(other)) == ("stored", "conflict")
    again = open_writer(tmp_path)
    assert (again.lookup(ours), again.lookup(other)) == ("stored", "conflict")


def test_an_empty_buffer_flushes_to_nothing(tmp_path, open_writer):
    """No rows: no receipt, no segment."""
    assert open_writer(tmp_path).flush() == Flush(None, (), None)
    assert not (tmp_path / "segments").exists()


def test_a_row_appended_twice_is_stored_once(tmp_path, open_writer, make_rows):
    """The same id with the same content is the same row, within a batch and over batches."""
    writer = open_writer(tmp_path)
    writer.append(make_rows(["a", "b", "a"]))
    writer.append(make_rows(["b", "c"]))
    assert writer.rows_buffered == 3
    assert [key.question_id for key in writer.flush().receipt.rows] == ["a", "b", "c"]
    assert open_store(tmp_path).text("answer") == make_rows(["a", "b", "c"]).text["answer"]


def test_stored_rows_leave_the_flush_with_a_receipt(tmp_path, open_writer, make_rows):
    """Rows that another writer committed are in the receipt and are not written again."""
    late, early = open_writer(tmp_path, worker="late"), open_writer(tmp_path, worker="early")
    late.append(make_rows(["a", "b"]))
    early.append(make_rows(["a", "b"]))
    early.flush()
    flush = late.flush()
    assert flush.segment is None
    assert flush.receipt.rows == make_rows(["a", "b"]).keys
    late.append(make_rows(["b", "c"]))
    flush = late.flush()
    assert flush.receipt.rows == make_rows(["b", "c"]).keys
    assert open_store(tmp_path)["c"].segment == flush.segment
    assert open_store(tmp_path)["b"].segment != flush.segment


def test_other_content_for_a_stored_id_is_a_conflict(tmp_path, open_writer, make_rows):
    """What is stored stays; the newcomer is named, and its neighbours are committed."""
    writer, rival = open_writer(tmp_path), open_writer(tmp_path, worker="rival")
    writer.append(make_rows(["a"]))
    writer.flush()
    rival.append(make_rows(["a", "b"], "other"))
    flush = rival.flush()
    assert flush.conflicts == (RowKey("a", "other-a"),)
    assert flush.receipt.rows == (RowKey("b", "other-b"),)
    assert rival.rows_buffered == 0
    store = open_store(tmp_path)
    assert store.text("content_hash") == ("a-a", "other-b")
    assert store.contradictions == ()


def test_other_content_for_a_buffered_id_is_a_conflict(tmp_path, open_writer, make_rows):
    """Of two contents in one buffer the first is stored, the other is named."""
    writer = open_writer(tmp_path)
    writer.append(make_rows(["a"], "first"))
    writer.append(make_rows(["a", "b"], "second"))
    flush = writer.flush()
    assert flush.receipt.rows == (RowKey("a", "first-a"), RowKey("b", "second-b"))
    assert flush.conflicts == (RowKey("a", "second-a"),)
    assert open_store(tmp_path).text("content_hash") == ("first-a", "second-b")


def test_a_receipt_comes_from_a_commit_only(tmp_path, open_writer, make_rows):
    """Nobody else can make one, nor change one; stored rows get one without computing."""
    with pytest.raises(TypeError, match="never made by hand"):
        Receipt((RowKey("a", "a-a"),))
    with pytest.raises(TypeError, match="never made by hand"):
        Receipt((RowKey("a", "a-a"),), object())
    writer = open_writer(tmp_path)
    writer.append(make_rows(["a", "b"]))
    with pytest.raises(ValueError, match=r"not: \['a'\]"):
        writer.receipt_for([RowKey("a", "a-a")])
    receipt = writer.flush().receipt
    with pytest.raises(dataclasses.FrozenInstanceError):
        receipt.rows = ()
    with pytest.raises(TypeError, match="never made by hand"):
        dataclasses.replace(receipt, stored=(), _seal=None)
    assert writer.receipt_for([RowKey("a", "a-a")]).rows == (RowKey("a", "a-a"),)
    with pytest.raises(ValueError, match=r"not: \['a'\]"):
        writer.receipt_for([RowKey("b", "a-b"), RowKey("a", "other-a")])


def test_rows_of_another_layout_are_refused(tmp_path, open_writer, make_rows, layout):
    """A batch of another layout is an error that names the fields; the buffer is as before."""
    writer = open_writer(tmp_path)
    other = dataclasses.replace(layout, hidden_size=4)
    with pytest.raises(StoreMismatch, match="hidden_size: the store has 8, this configuration has"):
        writer.append(make_rows(["a"], of=other))
    assert writer.rows_buffered == 0


@pytest.mark.parametrize(
    ("worker", "start"),
    [("gpu-1.example", "gpu-1.example-"), ("../../etc", "etc-"), ("a/b c\0é", "a-b-c-")],
)
def test_a_worker_name_cannot_leave_its_folder(tmp_path, open_writer, make_rows, worker, start):
    """What a file name cannot hold becomes a dash; provenance keeps the name as it was."""
    writer = open_writer(tmp_path, worker=worker)
    writer.append(make_rows(["a"]))
    name = writer.flush().segment
    assert name.startswith(start)
    document = json.loads((tmp_path / "segments" / name / "zarr.json").read_bytes())
    assert document["attributes"]["provenance"] == {"worker": worker, "test": True}


@pytest.mark.parametrize("options", [{"worker": "///"}, {"worker": ""}, {"flush_rows": 0}])
def test_options_that_cannot_work_are_refused(tmp_path, open_writer, options):
    """A nameless worker and a flush of no rows are errors, before anything is made."""
    with pytest.raises(ValueError, match=r"^(worker|flush_rows): expected"):
        open_writer(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_a_row_that_another_writer_published_is_made_durable_first(
    tmp_path, open_writer, make_rows
):
    """A receipt for a row seen before its writer's own sync waits for a sync of that segment."""
    from halp_store.local import LocalStorage

    class Watching(LocalStorage):
        def __init__(self, root):
            super().__init__(root)
            self.synced = []

        def sync(self, prefixes):
            self.synced += prefixes
            super().sync(self.synced)

    other = open_writer(tmp_path, worker="other")
    other.append(make_rows(["a"]))
    segment = other.flush().segment
    disk = Watching(tmp_path)
    writer = open_writer(tmp_path, storage=disk)
    writer.receipt_for(make_rows(["a"]).keys)
    assert disk.synced == [f"segments/{segment}"]


def test_a_receipt_says_where_each_row_is_and_what_was_answered(tmp_path, open_writer, make_rows):
    """Of rows that were just written, and of those that another writer had stored before."""
    early, late = open_writer(tmp_path, worker="early"), open_writer(tmp_path, worker="late")
    late.append(make_rows(["a", "b", "c"]))
    early.append(make_rows(["x", "b"]))
    first = early.flush().segment
    flush = late.flush()
    found = {
        one.key.question_id: (one.segment, one.row, one.answer) for one in flush.receipt.stored
    }
    assert found == {
        "a": (flush.segment, 0, "answer of a, a"),
        "b": (first, 1, "answer of b, a"),
        "c": (flush.segment, 1, "answer of c, a"),
    }
    for one in flush.receipt.stored:
        rows = make_rows([one.key.question_id])
        assert one.finish_reason == rows.text["finish_reason"][0]
        assert one.risk == rows.scores["risk"][0]
    for one in late.receipt_for([RowKey("c", "a-c"), RowKey("b", "a-b")]).stored:
        assert (one.segment, one.row, one.answer) == found[one.key.question_id]
        assert open_store(tmp_path)[one.key.question_id].answer == one.answer


def test_a_compacted_row_has_its_place_in_the_generation(tmp_path, open_writer, make_rows):
    """And its answer, though its segment is gone."""
    writer = open_writer(tmp_path)
    writer.append(make_rows(["b", "a"]))
    writer.flush()
    compact(LocalStorage(tmp_path))
    (one,) = open_writer(tmp_path).receipt_for([RowKey("b", "a-b")]).stored
    assert (one.segment, one.row, one.answer) == ("compacted/000001", 1, "answer of b, a")
    assert one.finish_reason == "finish_reason of b, a"
    assert one.risk == make_rows(["b"]).scores["risk"][0]


@pytest.mark.parametrize("scores", [(), ("mean_logprob",), ("risk",)])
def test_a_row_without_a_risk_has_none_in_its_receipt(
    tmp_path, open_writer, make_rows, layout, scores
):
    """In a store without risks, and where the risk is NaN; just written, and stored before."""
    of = dataclasses.replace(layout, scores=scores)
    rows = make_rows(["a"], of=of)
    for values in rows.scores.values():
        values[:] = np.nan
    writer = open_writer(tmp_path, of)
    writer.append(rows)
    for receipt in (writer.flush().receipt, open_writer(tmp_path, of).receipt_for(rows.keys)):
        (one,) = receipt.stored
        assert (one.answer, one.finish_reason, one.risk) == (
            "answer of a, a",
            "finish_reason of a, a",
            None,
        )


def test_an_answer_that_cannot_be_read_is_not_given(tmp_path, open_writer, make_rows):
    """The row is committed all the same; what is damaged is the business of `halp-store verify`."""
    writer = open_writer(tmp_path)
    writer.append(make_rows(["a"]))
    segment = writer.flush().segment
    for chunk in (tmp_path / "segments" / segment / "answer").glob("c*"):
        chunk.write_bytes(b"damaged") if chunk.is_file() else shutil.rmtree(chunk)
    (one,) = writer.receipt_for([RowKey("a", "a-a")]).stored
    assert (one.segment, one.row, one.answer) == (segment, 0, None)


@pytest.mark.parametrize("instead", [None, "another"])
def test_segments_that_are_moved_away_take_no_row_along(instead, tmp_path, open_writer, make_rows):
    """The root is still there, but what is acknowledged has to be where the other rows are."""
    writer = open_writer(tmp_path)
    writer.append(make_rows(["a"]))
    writer.flush()
    (tmp_path / "segments").rename(tmp_path / "away")
    if instead:
        (tmp_path / "segments").mkdir()
    writer.append(make_rows(["b"]))
    with pytest.raises(StoreGone, match="segments were unmounted, moved or deleted"):
        writer.flush()
    if instead:
        (tmp_path / "segments").rmdir()
    (tmp_path / "away").rename(tmp_path / "segments")
    assert writer.flush().receipt is not None
    assert list(open_store(tmp_path).ids) == ["a", "b"]
