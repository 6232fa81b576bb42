"""Views: chosen rows that stay what they are, whatever happens to the store meanwhile."""

import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from halp_store import batches
from halp_store.compaction import compact
from halp_store.errors import DamagedSegment, GoneSegment, UnknownQuestion
from halp_store.index import SegmentIndex
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.record import Record
from halp_store.root import read_root

IDS = sorted(f"q{number}" for number in range(20))


@pytest.fixture
def path(tmp_path, open_writer, make_rows):
    """Twenty rows in four segments; neighbours by id are in different ones."""
    writer = open_writer(tmp_path / "s")
    for start in range(4):
        writer.append(make_rows(IDS[start::4]))
        writer.flush()
    return tmp_path / "s"


@pytest.fixture
def check(make_rows):
    """Every column of a view is that of these ids, and so are its records."""

    def check_one(view, ids, content="a"):
        assert list(view) == list(view.ids) == list(ids)
        columns = view.read()
        if not ids:
            assert {len(column) for column in columns.values()} == {0}
            assert columns["image_grid_thw"].shape == (0, 3)
            assert list(view.records()) == []
            return
        expected = make_rows(ids, content)
        for name, values in expected.text.items():
            assert columns[name].tolist() == list(values)
        for name, values in expected.numbers.items():
            np.testing.assert_array_equal(columns[name], values)
        for one, record in zip(ids, view.records(), strict=True):
            assert (record.question_id, record.content_hash) == (one, f"{content}-{one}")

    return check_one


def pickled(view):
    return pickle.loads(pickle.dumps(view))  # noqa: S301 - our own bytes


def drop_segments(path):
    """What pruning leaves of those that a generation covers."""
    for segment in (path / "segments").iterdir():
        (segment / "zarr.json").unlink()
        shutil.rmtree(segment)


@pytest.mark.parametrize(
    "key",
    [
        slice(3, 9),
        slice(None, None, -1),
        slice(5, 5),
        ["q7", "q2", "q10"],
        ("q7",),
        ["q3", "q3", "q1", "q3"],
        [],
        np.array(["q4", "q1"]),
        np.array(["q4", "q1"], dtype=object),
    ],
    ids=repr,
)
@pytest.mark.parametrize("compacted", [False, True])
def test_a_view_has_the_rows_asked_for_in_that_order(path, check, key, compacted):
    """By slice or by ids: any order, repeated, none; of segments and of a generation."""
    if compacted:
        compact(LocalStorage(path))
    chosen = IDS[key] if isinstance(key, slice) else [str(one) for one in key]
    view = open_store(path)[key]
    check(view, chosen)
    assert all(type(one) is str for one in view)
    check(view[::-1], chosen[::-1])


def test_a_row_is_counted_from_either_end(path):
    """As in a list: negative numbers from the end, numpy's too, and IndexError beyond."""
    store = open_store(path)
    for row in (0, 19, -1, -20, np.int64(3)):
        assert store[row].question_id == IDS[row]
    for row in (20, -21):
        with pytest.raises(IndexError, match=f"row {row} of 20"):
            store[row]
    with pytest.raises(IndexError, match="row 0 of 0"):
        store[:0][0]


def test_a_key_that_is_no_question_id_is_refused(path):
    """A mask or row numbers are a TypeError, an id that the view leaves out is unknown to it."""
    store = open_store(path)
    for key in ([0, 1], np.ones(20, bool), [None]):
        with pytest.raises(TypeError, match="question ids expected, got"):
            store[key]
    with pytest.raises(UnknownQuestion, match=r"'q5' among 2 rows"):
        store[["q1", "q2"]]["q5"]
    assert "q5" not in store[["q1", "q2"]]


def test_a_view_stays_as_it_is_when_the_store_is_refreshed(path, open_writer, make_rows, check):
    """New rows, a lower segment with another content, a generation: none shows in it."""
    store = open_store(path)
    first, second = store[:10], store[["q1", "q2"]]
    disk = LocalStorage(path)
    publish_one(disk, make_rows(["q1", "new"], "b"), "a-" + "0" * 32)
    store.refresh()
    assert "new" in store
    assert store["q1"].content_hash == "b-q1"
    assert store.contradictions == ("q1",)
    for view, ids in ((first, IDS[:10]), (second, ["q1", "q2"])):
        check(view, ids)
        assert view["q1"].content_hash == "a-q1"
    compact(disk)
    store.refresh()
    check(first, IDS[:10])
    assert store["q1"].content_hash == "b-q1"


def publish_one(disk, features, name):
    from halp_store.segment import build_segment

    stamp = read_root(disk).stamp
    segment = build_segment(features, name=name, stamp=stamp, provenance={}, created="2026-01-01")
    for key, value in segment.staged.items():
        disk.write(f"segments/{name}/{key}", value)
    assert disk.publish(f"segments/{name}/zarr.json", segment.metadata)


def test_a_view_finds_its_rows_where_compaction_has_moved_them(path, check):
    """Opened before: whole, part, pickled, and rows by id, of segments that are gone."""
    views = [open_store(path), open_store(path)[::3]]
    views += [pickled(view) for view in views]
    expected = {view["q0"].segment for view in views}
    compact(LocalStorage(path))
    drop_segments(path)
    for view, step in zip(views, (1, 3, 1, 3), strict=True):
        assert view["q0"].segment in expected
        check(view, IDS[::step])


def test_the_second_generation_replaces_the_first(path, open_writer, make_rows, check):
    """A view of a generation that was pruned reads the next one."""
    compact(LocalStorage(path))
    view = open_store(path)[2:7]
    check(view, IDS[2:7])
    writer = open_writer(path)
    writer.append(make_rows(["p", "z"]))
    writer.flush()
    compact(LocalStorage(path))
    shutil.rmtree(path / "compacted" / "000001")
    check(view, IDS[2:7])


def test_rows_that_are_nowhere_are_damage(path):
    """A segment that went away without a generation in its place."""
    store = open_store(path)
    drop_segments(path)
    with pytest.raises(GoneSegment, match="is missing, although it was published"):
        store.read(["answer"])
    with pytest.raises(DamagedSegment):
        store["q1"]


def test_a_pickled_view_reads_the_same(path, check):
    """In another process too: with what was committed since left out."""
    for view in (open_store(path), open_store(path)[["q9", "q1"]]):
        again = pickled(view)
        check(again, view.ids)
        assert type(again) is type(view)
        assert again.layout == view.layout


def test_a_forked_process_may_read(path, fork, check):
    """Even if a thread of its parent was about to open something: locks are not inherited."""
    view = open_store(path)[["q9", "q1"]]
    with view._groups._opening, view._groups._refreshing:
        child = fork(lambda: check(view, ("q9", "q1")))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_one_row_is_found_without_a_look_at_the_others(path, monkeypatch):
    """What the store learned when it was opened is enough."""
    store = open_store(path)
    monkeypatch.setattr(SegmentIndex, "find", lambda *_: pytest.fail("looked up"))
    assert store["q3"].question_id == "q3"
    assert store[["q3"]].text("question_id") == ("q3",)


def test_threads_may_share_a_view(path, check):
    """Each reads the right values, and the metadata of a segment is read once for all."""

    class Counting(LocalStorage):
        def __init__(self, root):
            super().__init__(root)
            self.opened = []

        def read(self, key):
            if key.startswith("segments/") and key.count("/") == 2:
                self.opened.append(key)
            return super().read(key)

    disk = Counting(path)
    store = open_store(path, storage=disk)
    disk.opened.clear()
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(check, store, IDS) for _ in range(16)]:
            done.result()
    assert sorted(disk.opened) == sorted(f"segments/{one}/zarr.json" for one in store.segments)


@pytest.mark.parametrize("compacted", [False, True])
def test_records_are_what_indexing_gives(path, monkeypatch, compacted):
    """In order of the view, field by field, over several windows."""
    if compacted:
        compact(LocalStorage(path))
    monkeypatch.setattr(batches, "WINDOW_BYTES", 20_000)
    view = open_store(path)[::-2]
    records = view.records()
    for one in view:
        record, expected = next(records), view[one]
        for field in Record.__dataclass_fields__:
            got, wanted = getattr(record, field), getattr(expected, field)
            if field == "arrays":
                assert got.keys() == wanted.keys()
                for name, values in wanted.items():
                    np.testing.assert_array_equal(got[name], values)
                    assert got[name].base is None
            else:
                np.testing.assert_equal(got, wanted, field)
    assert next(records, None) is None


def test_a_table_has_all_but_vectors(path, make_rows):
    """Index question_id; the grid in three columns; metadata as JSON; no hash of the queue's."""
    expected = make_rows(IDS)
    table = open_store(path).to_dataframe()
    assert table.index.name == "question_id"
    assert table.index.tolist() == IDS
    grid = {f"grid_{one}": expected.integers["image_grid_thw"][:, n] for n, one in enumerate("thw")}
    wanted = {**expected.text, **expected.integers, **expected.scores, **grid}
    for name in ("question_id", "content_hash", "image_grid_thw"):
        del wanted[name]
    assert set(table.columns) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(table[name].tolist(), list(values))
    assert table.loc["q3", "metadata"] == '{"difficulty": 3}'
    assert table["grid_h"].dtype == np.int64


def test_a_table_takes_only_what_is_asked_for(path):
    """In that order; a column of vectors is refused with the way to it."""
    view = open_store(path)[["q9", "q1"]]
    table = view.to_dataframe(["content_hash", "prompt_tokens"])
    assert table.columns.tolist() == ["content_hash", "prompt_tokens"]
    assert table.index.tolist() == ["q9", "q1"]
    assert view.to_dataframe(["question_id"]).shape == (2, 0)
    assert view[:0].to_dataframe().shape[0] == 0
    with pytest.raises(ValueError, match=r"vision_only holds vectors.* array\(\) or to_xarray\(\)"):
        view.to_dataframe(["answer", "vision_only"])
    with pytest.raises(ValueError, match="no stored column 'nope'"):
        view.to_dataframe(["nope"])


@pytest.mark.parametrize(
    ("library", "use", "install"),
    [
        ("pandas", lambda view: view.to_dataframe(), r"pip install 'halp-stream\[store\]'"),
        ("xarray", lambda view: view.to_xarray(), r"pip install 'halp-stream\[store\]'"),
        ("torch.utils.data", lambda view: view.as_torch_dataset(["answer"]), "pip install torch"),
    ],
)
def test_a_library_that_is_missing_is_named(path, monkeypatch, library, use, install):
    """One sentence with the command that installs it."""
    from halp_store.training import _dataset_type

    _dataset_type.cache_clear()
    monkeypatch.setitem(sys.modules, library.partition(".")[0], None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=install):
        use(open_store(path))


def test_reading_loads_no_library_that_it_does_not_need(path):
    """Columns, records and batches come without torch, xarray, pandas and dask."""
    code = (
        "import sys; from halp_store.view import View; from halp_store.reader import open_store; "
        "view = open_store(sys.argv[1]); view.read(); list(view.records()); "
        "list(view.iter_batches(shuffle_seed=1)); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, str(path)]
    loaded = set(subprocess.check_output(command, text=True).split())
    assert not loaded & {"torch", "xarray", "pandas", "dask"}
