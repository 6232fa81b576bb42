"""Pruning: only what a generation stands for goes, and nobody who reads or writes is harmed."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from halp_store import generation_writer
from halp_store.compaction import compact
from halp_store.errors import DamagedSegment, PruneRefused
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.verify import verify_store

from .conftest import assert_columns

IDS = [f"question_comb_{number}" for number in range(40)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(generation_writer, "SHARD_ROWS", 16)
    monkeypatch.setattr(generation_writer, "CHUNK_ROWS", 8)


@pytest.fixture
def path(tmp_path, fill):
    """A generation of 30 rows, the segments that it covers, and two more."""
    fill(tmp_path, IDS[:30], rows=10)
    compact(LocalStorage(tmp_path))
    fill(tmp_path, IDS[30:], rows=5, worker="later")
    return tmp_path


def _segments(path):
    """Without the marker of the prune."""
    return list((path / "segments").glob("[!.]*"))


def test_what_a_generation_covers_goes_and_the_rest_stays(path, holds):
    """Covered segments are removed to the last file; the others are not touched."""
    kept = set(open_store(path).segments)
    done = prune(LocalStorage(path), grace_seconds=0)
    assert (done.segments, done.generations, done.waiting, done.seconds) == (3, 0, 0, None)
    assert {segment.name for segment in _segments(path)} == kept
    assert not list((path / "compacted" / ".plans").glob("*"))
    holds(path, IDS)
    assert prune(LocalStorage(path), grace_seconds=0).files == 0


def test_the_generation_has_to_be_old_enough(path, holds):
    """Within the grace time nothing goes, and the answer says how long it still takes."""
    done = prune(LocalStorage(path), grace_seconds=600)
    assert (done.segments, done.files, done.waiting) == (0, 0, 3)
    assert 500 < done.seconds <= 600
    _age(path / "compacted/000001", 700)
    assert prune(LocalStorage(path), grace_seconds=600).segments == 3
    holds(path, IDS)


def _age(generation, seconds):
    then = time.time() - seconds
    os.utime(generation / "zarr.json", (then, then))


def test_an_older_generation_lets_go_what_it_covered(path, holds):
    """A young generation keeps its predecessor and its own segments, not those of before."""
    _age(path / "compacted/000001", 700)
    compact(LocalStorage(path))
    done = prune(LocalStorage(path), grace_seconds=600)
    assert (done.segments, done.generations, done.waiting) == (3, 0, 3)
    assert (path / "compacted/000001").exists()
    holds(path, IDS)
    _age(path / "compacted/000002", 700)
    done = prune(LocalStorage(path), grace_seconds=600)
    assert (done.segments, done.generations) == (2, 1)
    assert not (path / "compacted/000001").exists()
    assert _segments(path) == []
    holds(path, IDS)


def test_a_store_without_a_generation_is_left_alone(tmp_path, fill, holds):
    """Nothing stands for its segments."""
    fill(tmp_path, IDS[:5])
    assert prune(LocalStorage(tmp_path), grace_seconds=0).files == 0
    holds(tmp_path, IDS[:5])


def test_a_generation_that_is_not_whole_prunes_nothing(path, holds):
    """Before anything goes the generation is read; what is damaged keeps its segments."""
    shard = path / "compacted/000001/query_token/c.1.0.0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(PruneRefused, match=r"nothing was removed.*query_token"):
        prune(LocalStorage(path), grace_seconds=0)
    with pytest.raises(DamagedSegment, match="generation compacted/000001: array query_token"):
        open_store(path).read()
    shutil.rmtree(path / "compacted/000001")
    compact(LocalStorage(path))
    holds(path, IDS)


def test_odd_numbers_of_a_worker_keep_no_segment(tmp_path, make_rows, open_writer):
    """What was wrong in the segment already is no reason to keep it: verify tells it either way."""
    rows = make_rows(IDS[:3])
    rows.integers["query_token_position"][1] = 5000
    writer = open_writer(tmp_path)
    writer.append(rows)
    writer.flush()
    compact(LocalStorage(tmp_path))
    assert prune(LocalStorage(tmp_path), grace_seconds=0).segments == 1
    assert [one.kind for one in verify_store(tmp_path).problems] == ["numbers"]


def test_a_view_outlives_what_it_was_opened_on(path, make_rows):
    """Rows that were in segments when the view was made are found in the generation."""
    before = open_store(path)
    part = before[IDS[3:9]]
    assert_columns(before.read(), make_rows(sorted(IDS)))
    compact(LocalStorage(path))
    prune(LocalStorage(path), grace_seconds=0)
    assert len(_segments(path)) == 0
    assert_columns(part.read(), make_rows(IDS[3:9]))
    assert_columns(before.read(), make_rows(sorted(IDS)))
    assert before[IDS[0]].question_id == IDS[0]


def test_a_generation_that_was_pruned_is_followed_too(path, fill, make_rows):
    """A view of one generation goes on in the next one."""
    compact(LocalStorage(path))
    view = open_store(path)
    view.read(["answer"])
    fill(path, ["another"], worker="third")
    compact(LocalStorage(path))
    prune(LocalStorage(path), grace_seconds=0)
    assert [one.name for one in (path / "compacted").glob("0*")] == ["000003"]
    assert_columns(view.read(), make_rows(sorted(IDS)))


def test_who_knew_a_generation_finds_the_newest_though_the_next_ones_have_gone(
    path, fill, make_rows, open_writer, holds
):
    """A worker that was paused while two came and one of them went: 000002 is no step any more."""
    store, writer = open_store(path), open_writer(path)
    for number in (2, 3, 4):
        fill(path, [f"more {number}"], worker=f"w{number}")
        compact(LocalStorage(path))
        prune(LocalStorage(path), grace_seconds=0)
    assert [one.name for one in (path / "compacted").glob("0*")] == ["000004"]
    store.refresh()
    assert store.generation == "compacted/000004"
    assert len(store) == len(IDS) + 3
    rows = make_rows(IDS[30:33])
    assert writer.receipt_for(rows.keys).rows == rows.keys
    holds(path, [*IDS, "more 2", "more 3", "more 4"])


def test_generations_go_from_the_oldest_on(path, fill):
    """While one is there, all that were published after it are: readers rest on it."""
    deleted = []

    class Watched(LocalStorage):
        def delete(self, prefix, keep=frozenset()):
            if prefix.startswith("compacted/0"):
                deleted.append(prefix)
            return super().delete(prefix, keep)

    for number in (2, 3, 4):
        fill(path, [f"more {number}"], worker=f"w{number}")
        compact(LocalStorage(path))
    prune(Watched(path), grace_seconds=0)
    assert deleted[:3] == [f"compacted/00000{number}/zarr.json" for number in (1, 2, 3)]


def test_a_writer_knows_rows_whose_segments_have_gone(path, open_writer, make_rows, holds):
    """A redelivered row is acknowledged and not written again, whenever it was pruned."""
    old = open_writer(path)
    compact(LocalStorage(path))
    prune(LocalStorage(path), grace_seconds=0)
    for writer in (old, open_writer(path)):
        rows = make_rows(IDS[:3])
        assert {writer.lookup(key) for key in rows.keys} == {"stored"}
        assert writer.receipt_for(rows.keys).rows == rows.keys
        writer.append(rows)
        flush = writer.flush()
        assert (flush.segment, flush.receipt.rows) == (None, rows.keys)
    assert old.fence(["worker", "later"]) == 0
    holds(path, IDS)
    assert _segments(path) == []


def test_killed_at_any_time_it_goes_on(path, holds, fork, tmp_path_factory):
    """Half removed segments are nothing to readers, to writers and to the next prune."""

    class Dies(LocalStorage):
        left = 0

        def delete(self, prefix, keep=()):
            type(self).left -= 1
            if type(self).left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().delete(prefix, keep)

    for left in range(7):
        copy = Path(shutil.copytree(path, tmp_path_factory.mktemp("copy") / "s"))

        def work(copy=copy, left=left):
            Dies.left = left
            prune(Dies(copy), grace_seconds=0)

        os.waitpid(fork(work), 0)
        holds(copy, IDS)
        prune(LocalStorage(copy), grace_seconds=0)
        assert len(_segments(copy)) == 2
        holds(copy, IDS)


def test_reading_goes_on_while_it_is_compacted_and_pruned(tmp_path, fill, make_rows, fork):
    """Old and new views, without a grace time: every read is whole."""
    fill(tmp_path, IDS[:4], rows=2)

    def churn():
        for number in range(6):
            fill(tmp_path, [f"new_{number}_{one}" for one in range(6)], rows=3, worker=f"w{number}")
            compact(LocalStorage(tmp_path))
            prune(LocalStorage(tmp_path), grace_seconds=0)

    child, reads = fork(churn), 0
    first = open_store(tmp_path)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert_columns(first.read(), make_rows(sorted(IDS[:4])))
        store = open_store(tmp_path)
        assert set(IDS[:4]) <= set(store)
        assert_columns(store.read(), make_rows(store.ids))
        reads += 1
    assert reads > 3
    assert len(open_store(tmp_path)) == 40


@pytest.mark.parametrize("grace", [-1, -0.5])
def test_a_negative_grace_is_refused(path, grace):
    """Nothing can be younger than now."""
    with pytest.raises(ValueError, match="expected 0 or more"):
        prune(LocalStorage(path), grace_seconds=grace)
