"""Compaction: one sorted group that plain xarray opens, whatever is killed, raced or damaged."""

import contextlib
import os
import random
import shutil
import signal
import time
from collections import namedtuple

import numpy as np
import pytest
import zarr

from halp_store import generation, generation_writer, scratch
from halp_store.compaction import compact
from halp_store.errors import DamagedSegment, GenerationMissing, NoRoom, NotAStore
from halp_store.layout import Layout
from halp_store.local import LocalStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.scratch import ScratchColumn

from .conftest import assert_columns
from .dying import DyingStorage

IDS = [f"question_comb_{number}" for number in range(50)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Many shards, chunks and passes, and a last one that is not full, of few rows."""
    monkeypatch.setattr(generation_writer, "SHARD_ROWS", 16)
    monkeypatch.setattr(generation_writer, "CHUNK_ROWS", 8)
    monkeypatch.setattr(generation_writer, "TEXT_ROWS", 12)
    monkeypatch.setattr(generation_writer, "_SMALL_CELLS", 120)  # several passes


def test_a_generation_has_every_row_once_sorted(tmp_path, fill, holds):
    """Plain xarray opens it: all columns, one row per question, in order of the ids."""
    fill(tmp_path, IDS)
    done = compact(LocalStorage(tmp_path))
    assert (done.generation, done.rows, done.segments) == ("compacted/000001", 50, 8)
    assert (done.dropped, done.contradictions, done.resumed) == (0, (), False)
    store = holds(tmp_path, IDS)
    assert (store.generation, store.segments) == (done.generation, [])


@pytest.mark.parametrize("consolidated", [True, False])
def test_a_generation_opens_with_plain_zarr(tmp_path, fill, make_rows, consolidated):
    """Also by the arrays' own metadata, and with nothing in its folder that Zarr does not know."""
    fill(tmp_path, IDS)
    compact(LocalStorage(tmp_path))
    group = zarr.open_group(tmp_path / "compacted/000001", mode="r", use_consolidated=consolidated)
    expected = make_rows(sorted(IDS))
    assert set(group.array_keys()) == {
        "layer", "segment", *expected.text, *expected.numbers
    }  # fmt: skip
    np.testing.assert_array_equal(group["query_token"][...], expected.vectors["query_token"])
    assert group["query_token"].shards == (16, 2, 8)
    assert group["query_token"].chunks == (8, 1, 8)


def test_segments_stay_as_they_are(tmp_path, fill):
    """Compaction adds; not a byte of a segment changes."""
    fill(tmp_path, IDS)

    def state():
        return {one: one.read_bytes() for one in (tmp_path / "segments").rglob("*.*")}

    before = state()
    compact(LocalStorage(tmp_path))
    assert state() == before
    assert not list((tmp_path / ".partial").iterdir())


def test_what_is_written_later_joins_the_next_generation(tmp_path, fill, holds):
    """A reader sees generation and new segments as one; the next compaction takes both."""
    fill(tmp_path, IDS[:30])
    compact(LocalStorage(tmp_path))
    fill(tmp_path, IDS[30:], worker="later")
    store = holds(tmp_path, IDS)
    assert store.generation == "compacted/000001"
    assert len(store.segments) == 3
    assert compact(LocalStorage(tmp_path)).generation == "compacted/000002"
    assert holds(tmp_path, IDS).segments == []


def test_compacting_again_changes_nothing(tmp_path, fill, holds):
    """No new generation without new rows; none at all in an empty store."""
    fill(tmp_path, [])
    assert compact(LocalStorage(tmp_path)).generation is None
    fill(tmp_path, IDS)
    first = compact(LocalStorage(tmp_path))
    again = compact(LocalStorage(tmp_path))
    assert (again.generation, again.rows, again.segments) == (first.generation, 50, 0)
    holds(tmp_path, IDS)


def test_only_a_store_is_compacted(tmp_path):
    """A folder that is none is refused before anything is made in it."""
    with pytest.raises(NotAStore):
        compact(LocalStorage(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_row_keeps_its_segment_and_its_provenance(tmp_path, fill, open_writer):
    """Which commit a row came with, and what its worker recorded, outlive the segments."""
    fill(tmp_path, IDS[:10], worker="first")
    before = {one: open_store(tmp_path)[one].segment for one in IDS[:10]}
    compact(LocalStorage(tmp_path))
    fill(tmp_path, IDS[10:12], worker="second")
    before |= {one: open_store(tmp_path)[one].segment for one in IDS[10:12]}
    compact(LocalStorage(tmp_path))
    store = open_store(tmp_path)
    assert {one: store[one].segment for one in store} == before
    attributes = dict(zarr.open_group(tmp_path / store.generation, mode="r").attrs)
    assert attributes["provenance"] == [
        {"worker": "first", "test": True}, {"worker": "second", "test": True}
    ]  # fmt: skip
    origin = zarr.open_group(tmp_path / store.generation, mode="r")["segment"][...]
    named = [attributes["segments"][number][0] for number in origin]
    assert dict(zip(store.ids, named, strict=True)) == before


def test_of_two_rows_of_one_id_the_readers_stays(tmp_path, publish, make_rows, holds):
    """The lowest segment's row wins before and after; the other content is reported."""
    publish(tmp_path, make_rows(["x"], "second"), "b-" + "0" * 32)
    publish(tmp_path, make_rows(["x", "y", "y"], "first"), "a-" + "0" * 32)
    publish(tmp_path, make_rows(["y"], "first"), "c-" + "0" * 32)
    seen = open_store(tmp_path)["x"].answer
    done = compact(LocalStorage(tmp_path))
    assert (done.rows, done.dropped, done.contradictions) == (2, 3, ("x",))
    store = holds(tmp_path, ["x", "y"], "first")
    assert store["x"].answer == seen


def test_float32_is_kept_to_the_last_bit(tmp_path):
    """The scratch disk holds any float32, and what bfloat16 holds in half the room."""
    draw = np.random.default_rng(1)
    values = draw.standard_normal((40, 6), dtype=np.float32)
    coarse = values.copy()
    coarse.view(np.uint32)[...] &= 0xFFFF0000
    order = draw.permutation(40)
    for wanted in (values, coarse):
        with ScratchColumn(tmp_path, 40, 6) as column:
            for some in np.split(order, 8):
                column.put(some, np.ascontiguousarray(wanted[some]))
            np.testing.assert_array_equal(column.take(3, 29), wanted[3:29])
            assert column._has_lower == (wanted is values)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 17, 33])
def test_any_number_of_rows_fits_its_shards(tmp_path, fill, holds, rows):
    """Fewer than a chunk, exactly a shard, one more: each row is there."""
    fill(tmp_path, IDS[:rows])
    assert compact(LocalStorage(tmp_path)).rows == rows
    holds(tmp_path, IDS[:rows])


def test_a_layout_with_one_layer_can_be_compacted(tmp_path, open_writer, make_rows, layout):
    """A shard of a single chunk is a shard all the same."""
    one = Layout(**{**layout.__dict__, "layers": (3,)})
    writer = open_writer(tmp_path, of=one)
    writer.append(make_rows(IDS[:5], of=one))
    writer.flush()
    compact(LocalStorage(tmp_path))
    expected = make_rows(sorted(IDS[:5]), of=one)
    assert_columns(open_store(tmp_path).read(), expected)


@pytest.mark.slow
def test_killed_at_each_write_it_goes_on(tmp_path, fill, holds, fork):
    """Before and after each change: readers see every row meanwhile, and the next call ends it."""
    fill(tmp_path / "whole", IDS[:12])
    deaths = 0
    for point in range(1000):
        path = tmp_path / f"{point}"
        shutil.copytree(tmp_path / "whole", path)
        child = fork(lambda path=path, point=point: compact(DyingStorage(path, point)))
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        deaths += 1
        assert os.WTERMSIG(status) == signal.SIGKILL
        holds(path, IDS[:12])
        # A rerun that is killed too, somewhere else, does not matter.
        os.waitpid(fork(lambda path=path, point=point: compact(DyingStorage(path, point // 2))), 0)
        done = compact(LocalStorage(path))
        assert done.generation == "compacted/000001"
        assert holds(path, IDS[:12]).segments == []
        assert not list((path / ".partial").glob("*/*"))
        shutil.rmtree(path)
    assert deaths > 60


def test_what_was_written_is_not_written_again(tmp_path, fill, holds, monkeypatch):
    """A rerun takes up the shards that are there, and reads only the rows of the others."""
    fill(tmp_path, IDS)
    storage = LocalStorage(tmp_path)
    failing = LocalStorage(tmp_path)
    write = failing.publish

    def fail_late(key, value):
        if "vision_token/c.2" in key:
            raise OSError("disk full")
        return write(key, value)

    monkeypatch.setattr(failing, "publish", fail_late)
    with pytest.raises(OSError, match="disk full"):
        compact(failing)
    there = set(storage.list_keys("compacted"))
    assert any("vision_token/c.1" in key for key in there)
    written = []
    publish = storage.publish

    def count(key, value):
        written.append(key)
        return publish(key, value)

    monkeypatch.setattr(storage, "publish", count)
    done = compact(storage)
    assert done.resumed
    assert not {key for key in written if not key.endswith("zarr.json")} & there
    holds(tmp_path, IDS)


def test_two_at_once_make_one_generation(tmp_path, fill, holds, fork):
    """Both write the same keys with the same values; one publishes, both succeed."""
    fill(tmp_path, IDS)
    children = [fork(lambda: compact(LocalStorage(tmp_path))) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert [one.name for one in (tmp_path / "compacted").glob("0*")] == ["000001"]
    holds(tmp_path, IDS)


def test_workers_write_and_readers_read_meanwhile(tmp_path, fill, make_rows, holds, fork):
    """Every view is whole while generations and segments come."""
    fill(tmp_path, IDS[:5])

    def write():
        fill(tmp_path, IDS[5:], rows=1, worker="busy")

    writing = fork(write)
    views = 0
    while os.waitpid(writing, os.WNOHANG) == (0, 0):
        compact(LocalStorage(tmp_path))
        store = open_store(tmp_path)
        expected = make_rows(store.ids)
        np.testing.assert_array_equal(
            store.array("query_token")[1], expected.vectors["query_token"]
        )
        views += 1
    assert views > 2
    compact(LocalStorage(tmp_path))
    assert holds(tmp_path, IDS).segments == []


def test_a_damaged_segment_stops_it_and_is_named(tmp_path, fill, holds):
    """Nothing is published; when the segment is deleted, the plan is given up for the next one."""
    fill(tmp_path, IDS)
    segment = open_store(tmp_path).segments[3]
    lost = [one for one in IDS if open_store(tmp_path)[one].segment == segment]
    chunk = tmp_path / "segments" / segment / "query_token" / "c.0.1.0"
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-1])
    with pytest.raises(DamagedSegment, match=f"segment {segment}: array query_token.*delete"):
        compact(LocalStorage(tmp_path))
    assert open_store(tmp_path).generation is None
    shutil.rmtree(tmp_path / "segments" / segment)
    done = compact(LocalStorage(tmp_path))
    assert done.generation == "compacted/000002"
    holds(tmp_path, [one for one in IDS if one not in lost])


def test_after_a_repair_the_same_plan_goes_on(tmp_path, fill, holds):
    """A chunk that is restored from a copy is read again."""
    fill(tmp_path, IDS)
    chunk = next((tmp_path / "segments").glob("*/answer/c.0"))
    good = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(DamagedSegment, match="answer"):
        compact(LocalStorage(tmp_path))
    chunk.write_bytes(good)
    done = compact(LocalStorage(tmp_path))
    assert (done.generation, done.resumed) == ("compacted/000001", True)
    holds(tmp_path, IDS)


def test_what_another_version_began_is_given_up(tmp_path, fill, holds, monkeypatch):
    """Shards of another form are never mixed with ours: the number is given up."""
    fill(tmp_path, IDS)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generation_writer, "CHUNK_ROWS", 4)
        patch.setattr(generation_writer, "group_document", die)
        with pytest.raises(KeyboardInterrupt):
            compact(LocalStorage(tmp_path))
    assert compact(LocalStorage(tmp_path)).generation == "compacted/000002"
    holds(tmp_path, IDS)


def test_a_small_scratch_disk_is_said_before_it_is_full(tmp_path, fill, monkeypatch):
    """The sizes, the folder and the option, before anything is sorted."""
    fill(tmp_path, IDS)
    usage = namedtuple("usage", "total used free")(1, 1, 10)
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoRoom, match=r"takes 0\.0 GB in .*--scratch"):
        compact(LocalStorage(tmp_path))


def test_a_damaged_plan_is_named(tmp_path, fill):
    """A plan that is not one: an error with its path, no guess."""
    fill(tmp_path, IDS)
    plans = tmp_path / "compacted" / ".plans"
    plans.mkdir(parents=True)
    (plans / "000001.json").write_text("{}")
    with pytest.raises(DamagedSegment, match=r"\.plans/000001\.json"):
        compact(LocalStorage(tmp_path))


def test_progress_ends_at_its_total(tmp_path, fill):
    """Bytes done, never more than there are to do; all at the end."""
    fill(tmp_path, IDS)
    told = []
    compact(LocalStorage(tmp_path), progress=lambda done, total: told.append((done, total)))
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 0
    assert told == sorted(told)


def test_workers_killed_at_random_lose_nothing_that_was_committed(
    tmp_path, make_rows, open_writer, holds, fork
):
    """Every row with a receipt is in the generation, read with plain xarray."""
    receipts, luck = tmp_path / "receipts", random.Random(5)
    receipts.touch()

    def work(number):
        writer = open_writer(tmp_path / "s", worker=f"w{number}")
        with receipts.open("a") as file:
            for start in range(0, 400, 4):
                writer.append(make_rows([f"q{number}_{start + one}" for one in range(4)]))
                for row in writer.flush().receipt.rows:
                    file.write(f"{row.question_id}\n")
                file.flush()

    for number in range(12):
        enough = len(receipts.read_text().split()) + luck.randint(1, 12)
        child = fork(lambda number=number: work(number))
        while len(receipts.read_text().split()) < enough:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if number % 4 == 3:
            compact(LocalStorage(tmp_path / "s"))
    compact(LocalStorage(tmp_path / "s"))
    committed = set(receipts.read_text().split())
    store = open_store(tmp_path / "s")
    assert committed <= set(store)  # the last row of a killed worker may have no receipt
    holds(tmp_path / "s", list(store))


def test_a_listing_that_lags_hides_no_generation(tmp_path, fill, holds):
    """Object storage may list late; the next number is always asked for by name."""

    class Late(LocalStorage):
        def list_names(self, prefix):
            return [] if prefix == "compacted" else super().list_names(prefix)

    fill(tmp_path, IDS)
    compact(LocalStorage(tmp_path))
    assert open_store(tmp_path, storage=Late(tmp_path)).generation == "compacted/000001"
    assert compact(Late(tmp_path)).segments == 0
    assert generation.plan_key(1) == "compacted/.plans/000001.json"


def test_one_that_finds_its_segments_pruned_takes_the_others_generation(
    tmp_path, fill, holds, monkeypatch
):
    """Another compaction of the same plan published and pruned while this one read."""
    fill(tmp_path, IDS)
    slow = LocalStorage(tmp_path)
    read = slow.read

    def read_late(key):
        is_planned = (tmp_path / "compacted/.plans").exists()
        is_done = (tmp_path / "compacted/000001/zarr.json").exists()
        if is_planned and not is_done and key.endswith("vision_token/c.0.1.0"):
            compact(LocalStorage(tmp_path))
            prune(LocalStorage(tmp_path), grace_seconds=0)
        return read(key)

    monkeypatch.setattr(slow, "read", read_late)
    done = compact(slow)
    assert (done.generation, done.rows) == ("compacted/000001", 50)
    holds(tmp_path, IDS)


def test_a_generation_that_lost_its_metadata_is_never_mixed_with_a_new_one(
    tmp_path, fill, make_rows
):
    """Nothing goes on without it while its marker is there. Its files are not those of a new plan:
    the number is given up."""
    fill(tmp_path, IDS[:10])
    compact(LocalStorage(tmp_path))
    prune(LocalStorage(tmp_path), grace_seconds=0)
    (tmp_path / "compacted/000001/zarr.json").unlink()
    for opening in (open_store, lambda path: fill(path, IDS[10:20], worker="again")):
        with pytest.raises(GenerationMissing, match="compacted/000001 is missing"):
            opening(tmp_path)
    shutil.rmtree(tmp_path / "segments/.pruned")
    fill(tmp_path, IDS[10:20], worker="again")
    with pytest.raises(DamagedSegment, match=r"compacted/000001: its zarr\.json: is missing"):
        open_store(tmp_path)
    assert compact(LocalStorage(tmp_path)).generation == "compacted/000002"
    store = open_store(tmp_path)
    assert list(store) == sorted(IDS[10:20])
    assert_columns(store.read(), make_rows(store.ids))
