"""A flush that asks which rows are still ours: when it asks, and what becomes of the rest."""

import pytest

from halp_store.errors import PublishFailed
from halp_store.features import RowKey
from halp_store.fence import is_fenced
from halp_store.local import LocalStorage
from halp_store.reader import open_store


class Server:
    """Says which rows are ours, and remembers what it was asked."""

    def __init__(self, *taken_at):
        """taken_at: for each question asked, ids that somebody has taken by then."""
        self.taken_at, self.taken, self.asked = list(taken_at), set(), []

    def __call__(self, rows):
        self.asked.append([row.question_id for row in rows])
        if self.taken_at:
            self.taken |= set(self.taken_at.pop(0))
        return [row for row in rows if row.question_id not in self.taken]


class LoggingStorage(LocalStorage):
    def __init__(self, root):
        super().__init__(root)
        self.log = []

    def write(self, key, value):
        super().write(key, value)
        if key.startswith("segments/"):
            self.log.append("write")

    def publish(self, key, value):
        self.log.append("publish")
        return super().publish(key, value)


def _ids(rows):
    return [row.question_id for row in rows]


def test_it_is_asked_before_anything_is_written_and_again_when_all_is_staged(
    tmp_path, open_writer, make_rows
):
    """Once before the rows cost anything, once as late as can be: between staging and publish."""
    disk = LoggingStorage(tmp_path)
    writer = open_writer(tmp_path, storage=disk)
    writer.append(make_rows(["a", "b"]))
    disk.log.clear()

    def ask(rows):
        disk.log.append("ask")
        assert rows == make_rows(["a", "b"]).keys
        return set(rows)

    assert writer.flush(ask).withheld == ()
    assert [one for at, one in enumerate(disk.log) if one != "write" or at == 1] == [
        "ask",
        "write",
        "ask",
        "publish",
    ]
    assert list(open_store(tmp_path)) == ["a", "b"]


def test_a_row_that_is_not_ours_is_withheld_and_leaves_the_buffer(tmp_path, open_writer, make_rows):
    """The others are committed without it, in one segment."""
    server = Server(["b"])
    writer = open_writer(tmp_path)
    writer.append(make_rows(["a", "b", "c"]))
    flush = writer.flush(server)
    assert _ids(flush.receipt.rows) == ["a", "c"]
    assert flush.withheld == (RowKey("b", "a-b"),)
    assert flush.conflicts == ()
    assert writer.rows_buffered == 0
    assert list(open_store(tmp_path)) == ["a", "c"]
    assert LocalStorage(tmp_path).list_names("segments") == [flush.segment]
    assert server.asked == [["a", "b", "c"], ["a", "c"], ["a", "c"]]


def test_a_row_lost_while_its_segment_was_staged_costs_the_segment(
    tmp_path, open_writer, make_rows
):
    """The segment is fenced and its files go; the rest is staged again and published."""
    writer = open_writer(tmp_path)
    writer.append(make_rows(["a", "b"]))
    flush = writer.flush(Server([], ["a"]))
    assert (_ids(flush.receipt.rows), _ids(flush.withheld)) == (["b"], ["a"])
    assert list(open_store(tmp_path)) == ["b"]
    disk = LocalStorage(tmp_path)
    (given_up,) = set(disk.list_names("segments")) - {flush.segment}
    assert is_fenced(disk, given_up)
    assert disk.list_keys(f"segments/{given_up}") == [f"segments/{given_up}/zarr.json"]


@pytest.mark.parametrize("asked", [0, 1], ids=["before", "after staging"])
def test_with_every_row_lost_nothing_is_published(tmp_path, open_writer, make_rows, asked):
    """No receipt, no segment, and an empty buffer."""
    writer = open_writer(tmp_path)
    writer.append(make_rows(["a", "b"]))
    flush = writer.flush(Server(*[[]] * asked, ["a", "b"]))
    assert (flush.receipt, flush.segment, _ids(flush.withheld)) == (None, None, ["a", "b"])
    assert writer.rows_buffered == 0
    assert len(open_store(tmp_path)) == 0


@pytest.mark.parametrize("asked", [1, 2])
def test_what_it_raises_comes_out_with_the_buffer_as_before(
    tmp_path, open_writer, make_rows, asked
):
    """A server that is away means: do not know, so do not publish, and keep the rows."""
    calls = []

    def away(rows):
        calls.append(rows)
        if len(calls) == asked:
            raise ConnectionError("away")
        return rows

    writer = open_writer(tmp_path)
    writer.append(make_rows(["a", "b"]))
    with pytest.raises(ConnectionError, match="away"):
        writer.flush(away)
    assert writer.rows_buffered == 2
    assert len(open_store(tmp_path)) == 0
    assert writer.flush(Server()).receipt.rows == make_rows(["a", "b"]).keys


def test_rows_that_are_stored_need_no_permission(tmp_path, open_writer, make_rows):
    """They get their receipt, whoever wrote them, and nobody is asked."""
    late, early = open_writer(tmp_path, worker="late"), open_writer(tmp_path, worker="early")
    for writer in (late, early):
        writer.append(make_rows(["a"]))
    early.flush()
    server = Server(["a"])
    flush = late.flush(server)
    assert flush.receipt.rows == make_rows(["a"]).keys
    assert (flush.withheld, flush.segment, server.asked) == ((), None, [])


def test_a_withheld_row_that_its_new_owner_stored_meanwhile_is_stored(
    tmp_path, open_writer, make_rows
):
    """A row is in the receipt or withheld, never both."""
    heir = open_writer(tmp_path, worker="heir")
    heir.append(make_rows(["a"]))

    def taken_and_stored(rows):
        heir.flush()
        return [row for row in rows if row.question_id != "a"]

    writer = open_writer(tmp_path)
    writer.append(make_rows(["a", "b"]))
    flush = writer.flush(taken_and_stored)
    assert (_ids(flush.receipt.rows), flush.withheld) == (["a", "b"], ())
    assert open_store(tmp_path)["b"].segment == flush.segment


def test_lost_rows_are_no_failed_publishes(tmp_path, open_writer, make_rows):
    """However many rows are lost one after the other while staging, the last is committed."""
    ids = list("abcdefgh")
    losses = [[], *(loss for one in ids[:-1] for loss in ([one], []))]
    writer = open_writer(tmp_path)
    writer.append(make_rows(ids))
    flush = writer.flush(Server(*losses))
    assert (_ids(flush.receipt.rows), _ids(flush.withheld)) == (["h"], ids[:-1])


def test_tombstones_stay_bounded_and_are_asked_about_again(tmp_path, open_writer, make_rows):
    """A lost name is a reason to ask anew; a lost name again and again is an error."""

    class Fenced(LocalStorage):
        times = 1

        def publish(self, key, value):
            if key.startswith("segments/") and self.times:
                self.times -= 1
                super().publish(key, b'{"attributes": {"tombstone": true}}')
            return super().publish(key, value)

    disk, server = Fenced(tmp_path), Server()
    writer = open_writer(tmp_path, storage=disk)
    writer.append(make_rows(["a"]))
    assert writer.flush(server).receipt
    assert server.asked == [["a"]] * 4
    disk.times = 99
    writer.append(make_rows(["b"]))
    with pytest.raises(PublishFailed):
        writer.flush(Server())
    assert writer.rows_buffered == 1


def test_a_withheld_content_makes_room_for_another(tmp_path, open_writer, make_rows):
    """Of two contents of one id in the buffer, the first that is ours is written."""
    writer = open_writer(tmp_path)
    writer.append(make_rows(["a"], "first"))
    writer.append(make_rows(["a"], "second"))
    flush = writer.flush(lambda rows: [row for row in rows if row.content_hash != "first-a"])
    assert flush.receipt.rows == (RowKey("a", "second-a"),)
    assert open_store(tmp_path)["a"].content_hash == "second-a"
