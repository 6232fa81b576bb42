"""Batches: bounded memory, each stored chunk decoded once, the next window read ahead."""

import contextlib
import dataclasses
import gc
import pickle
import threading
from collections import Counter

import numpy as np
import pytest

from halp_store import batches
from halp_store.compaction import compact
from halp_store.errors import DamagedSegment
from halp_store.generation import CHUNK_ROWS
from halp_store.local import LocalStorage
from halp_store.reader import open_store
from halp_store.writer import StoreWriter

IDS = sorted(f"q{number:04}" for number in range(700))
SEGMENT_ROWS = 50


class Counting(LocalStorage):
    """Counts the reads of each chunk: of a key, or of a part of a shard."""

    def __init__(self, root):
        super().__init__(root)
        self.reads = Counter()

    def read(self, key):
        if "/c." in key:
            self.reads[key] += 1
        return super().read(key)

    def read_range(self, key, start, length):
        if start >= 0:
            self.reads[key, start] += 1
        return super().read_range(key, start, length)


def write(path, layout, make_rows, ids):
    """In segments of which each has ids from everywhere."""
    writer = StoreWriter.open(path, layout, worker="worker", provenance={})
    step = -(-len(ids) // SEGMENT_ROWS)
    for start in range(step):
        writer.append(make_rows(ids[start::step], of=layout))
        writer.flush()


@pytest.fixture(scope="module")
def small(layout):
    """One token position: fewer files."""
    return dataclasses.replace(layout, positions=("query_token",))


@pytest.fixture(scope="module")
def stores(tmp_path_factory, small, make_rows):
    """The same rows in fourteen segments, and in a generation of six chunks a layer."""
    root = tmp_path_factory.mktemp("stores")
    for name in ("segments", "generation"):
        write(root / name, small, make_rows, IDS)
    compact(LocalStorage(root / "generation"))
    return root


@pytest.fixture(params=["segments", "generation"])
def path(request, stores):
    return stores / request.param


@pytest.fixture
def small_windows(monkeypatch):
    """About 170 rows of one layer, so that a store has several windows."""
    monkeypatch.setattr(batches, "WINDOW_BYTES", 50_000)


def joined(found):
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


@pytest.mark.parametrize("batch_rows", [1, 64, 699, 700, 10_000])
@pytest.mark.parametrize("seed", [None, 3])
def test_batches_are_all_rows_once(path, make_rows, small, small_windows, batch_rows, seed):
    """Full ones, then the rest; in order of ids without a seed; each row with its own values."""
    columns = ["query_token", "answer", "image_grid_thw"]
    view = open_store(path)
    found = list(view.iter_batches(columns, batch_rows=batch_rows, shuffle_seed=seed, layers=[3]))
    sizes = [len(one["question_id"]) for one in found]
    assert sizes[:-1] == [batch_rows] * (len(sizes) - 1)
    assert sum(sizes) == len(IDS)
    assert list(found[0]) == ["question_id", *columns]
    whole = joined(found)
    ids = whole["question_id"].tolist()
    assert sorted(ids) == IDS
    assert (ids == IDS) == (seed is None)
    expected = make_rows(ids, of=small)
    np.testing.assert_array_equal(whole["query_token"], expected.vectors["query_token"][:, 1:])
    np.testing.assert_array_equal(whole["image_grid_thw"], expected.integers["image_grid_thw"])
    assert whole["answer"].tolist() == list(expected.text["answer"])


def test_all_columns_come_without_a_choice(path):
    """As with `read`."""
    view = open_store(path)[::7]
    whole, expected = joined(list(view.iter_batches(batch_rows=9))), view.read()
    assert set(whole) == set(expected)
    for name, values in expected.items():
        assert whole[name].dtype == values.dtype
        np.testing.assert_array_equal(whole[name], values)


def test_a_seed_is_an_order(path, small_windows):
    """The same again after opening the store again; another with another seed."""

    def order(seed):
        found = open_store(path).iter_batches(["query_token"], shuffle_seed=seed)
        return [one for batch in found for one in batch["question_id"]]

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize("columns", [["query_token"], ["query_token", "answer", "prompt_tokens"]])
def test_with_a_seed_each_chunk_is_read_once(path, small_windows, columns):
    """Of vectors, texts and integers, in segments and in a generation, over many windows."""
    disk = Counting(path)
    store = open_store(path, storage=disk)
    disk.reads.clear()
    assert len(list(store.iter_batches(columns, batch_rows=30, shuffle_seed=5))) == 24
    assert set(disk.reads.values()) == {1}
    vectors = 2 * (-(-len(store) // CHUNK_ROWS) if store.generation else 14)
    assert sum("query_token" in str(key) for key in disk.reads) == vectors


def test_with_a_seed_windows_mix_what_is_stored_apart(stores, small_windows):
    """A window has rows of several segments, mixed."""
    store = open_store(stores / "segments")
    batch = next(store.iter_batches(["query_token"], batch_rows=64, shuffle_seed=1))
    segments = [store[one].segment for one in batch["question_id"].tolist()]
    assert len(set(segments)) > 1
    assert len(set(segments[:10])) > 1


def test_without_a_seed_a_chunk_is_not_read_for_each_batch(stores, small_windows):
    """But for each window: twice where a window ends within it."""
    disk = Counting(stores / "generation")
    store = open_store(stores / "generation", storage=disk)
    disk.reads.clear()
    list(store.iter_batches(["query_token", "answer"], batch_rows=4))
    assert max(disk.reads.values()) <= 3
    assert disk.reads["compacted/000001/answer/c.0"] == 1


def test_a_batch_is_its_own(path):
    """A caller may change and keep it: it holds no window."""
    for batch in open_store(path).iter_batches(["query_token"], batch_rows=256):
        for column in batch.values():
            assert column.base is None
            assert column.flags.writeable


def test_two_windows_are_in_memory_and_no_more(stores, monkeypatch, small_windows):
    """The one in use and the next, which is read while the caller works."""
    reads = []
    read = batches._window_rows
    monkeypatch.setattr(batches, "_window_rows", lambda *arguments: min(100, read(*arguments)))
    view = open_store(stores / "generation")._now()
    original = type(view)._read

    def counting(self, names, rows, layers):
        reads.append(len(rows))
        return original(self, names, rows, layers)

    monkeypatch.setattr(type(view), "_read", counting)
    found = view.iter_batches(["query_token"], batch_rows=50)
    for batch in range(14):
        next(found)
        assert len(reads) <= batch // 2 + 2
    assert reads == [100] * 7
    assert next(found, None) is None


@pytest.mark.parametrize("seed", [None, 1])
def test_damage_comes_out_where_it_is(tmp_path, small, make_rows, small_windows, seed):
    """The batches of the windows before it come first."""
    write(tmp_path, small, make_rows, IDS)
    compact(LocalStorage(tmp_path))
    view = open_store(tmp_path)
    whole = [one["question_id"] for one in view.iter_batches(["query_token"], shuffle_seed=seed)]
    shard = tmp_path / "compacted" / "000001" / "query_token" / "c.0.0.0"
    data = bytearray(shard.read_bytes())
    last = int(np.frombuffer(data[-4 - 16 * 12 : -4], "<u8").reshape(6, 2, 2)[5, 1, 0])
    data[last + 20] ^= 1
    shard.write_bytes(data)
    found = open_store(tmp_path).iter_batches(["query_token"], shuffle_seed=seed)
    seen = []
    with pytest.raises(DamagedSegment, match=r"query_token.*cannot be decoded"):
        seen.extend(one["question_id"] for one in found)
    assert [one.tolist() for one in seen] == [one.tolist() for one in whole[: len(seen)]]
    if seed is None:
        assert len(seen) == 2


def test_the_thread_ends_when_the_iterator_is_closed(path, small_windows):
    """Early, by `close` or because nobody has it any more, and at the end."""

    def readers():
        return [one for one in threading.enumerate() if one.name.startswith("halp-store-ahead")]

    view = open_store(path)
    with contextlib.closing(view.iter_batches(batch_rows=10)) as found:
        next(found)
        assert readers()
    assert not readers()
    found = view.iter_batches(batch_rows=10)
    next(found)
    del found
    gc.collect()
    assert not readers()
    list(view.records())
    assert not readers()


def test_batches_of_a_store_stay_what_they_are(tmp_path, small, make_rows):
    """A refresh while they come adds no row; nor does it to records."""
    write(tmp_path, small, make_rows, IDS[10:60])
    store = open_store(tmp_path)
    found = store.iter_batches(["answer"], batch_rows=20)
    first, records = next(found), store.records()
    write(tmp_path, small, make_rows, IDS[:10])
    store.refresh()
    assert store.ids == tuple(IDS[:60])
    assert joined([first, *found])["question_id"].tolist() == IDS[10:60]
    assert [record.question_id for record in records] == IDS[10:60]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"columns": ["nope"]}, "no stored column 'nope'"),
        ({"layers": [1]}, "layer 1 is not stored"),
        ({"batch_rows": 0}, "batch_rows: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_at_once(path, wrong, message):
    """By the call, before the first batch is asked for."""
    with pytest.raises(ValueError, match=message):
        open_store(path).iter_batches(**wrong)


def test_no_rows_are_no_batches(path):
    """Of an empty view, in either order."""
    view = open_store(path)[:0]
    assert list(view.iter_batches()) == list(view.iter_batches(shuffle_seed=1)) == []


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_torch_dataset_has_tensors_and_strings(path, make_rows, small, in_memory):
    """By row and by batch, from either end; as views of one array where it is in memory."""
    torch = pytest.importorskip("torch")
    view = open_store(path)[100:120]
    columns = ["query_token", "prompt_tokens", "image_grid_thw", "question_id"]
    dataset = view.as_torch_dataset(columns, layers=[3], in_memory=in_memory)
    assert isinstance(dataset, torch.utils.data.Dataset)
    expected = make_rows(IDS[100:120], of=small)
    assert len(dataset) == 20
    for row, sample in [(0, dataset[0]), (19, dataset[-1]), (7, dataset.__getitems__([3, 7])[1])]:
        assert list(sample) == columns
        assert sample["question_id"] == IDS[100 + row]
        np.testing.assert_array_equal(
            sample["query_token"], expected.vectors["query_token"][row, 1:]
        )
        assert sample["query_token"].dtype == torch.float32
        assert sample["prompt_tokens"].dtype == torch.int64
        assert sample["prompt_tokens"] == expected.integers["prompt_tokens"][row]
    assert len(list(dataset)) == 20
    with pytest.raises(IndexError, match="row 20 of 20"):
        dataset[20]
    assert dataset.__getitems__([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # from Python 3.12 on
def test_a_torch_loader_reads_it_in_processes(path, make_rows, small, in_memory, start):
    """Two workers, forked or started anew."""
    data = pytest.importorskip("torch.utils.data")
    dataset = open_store(path)[:40].as_torch_dataset(
        ["query_token", "question_id"], in_memory=in_memory
    )
    loader = data.DataLoader(dataset, 16, num_workers=2, multiprocessing_context=start)
    found = list(loader)
    ids = [one for batch in found for one in batch["question_id"]]
    assert ids == IDS[:40]
    values = np.concatenate([batch["query_token"].numpy() for batch in found])
    np.testing.assert_array_equal(values, make_rows(ids, of=small).vectors["query_token"])


@pytest.mark.slow
def test_a_torch_dataset_is_read_once_or_by_batch(path):
    """In memory: not again. On demand: the rows of a batch together, nothing before."""
    pytest.importorskip("torch")
    disk = Counting(path)
    store = open_store(path, storage=disk)
    disk.reads.clear()
    dataset = store.as_torch_dataset(["answer"], in_memory=False)
    assert not disk.reads
    dataset.__getitems__(range(0, 700, 100))
    assert set(disk.reads.values()) == {1}
    dataset = store.as_torch_dataset(["answer"])
    disk.reads.clear()
    assert dataset[5] == {"answer": f"answer of {IDS[5]}, a"}
    assert not disk.reads
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own bytes
    assert again[5] == dataset[5]
