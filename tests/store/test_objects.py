"""A store in a bucket: a real S3 server, replies that are lost, conflicts, listings that lag."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from obstore.store import S3Store

from halp_store.bucket import Patience
from halp_store.compaction import compact
from halp_store.errors import StoreError
from halp_store.fence import fence_segment, is_fenced
from halp_store.local import LocalStorage
from halp_store.objects import ObjectStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.segment import build_segment
from halp_store.verify import verify_store
from halp_store.writer import StoreWriter

from .conftest import assert_columns
from .s3_server import Proxy, make_bucket, s3_server

pytestmark = pytest.mark.slow  # a server in a process of its own

SECRET = "a-secret-nobody-may-see"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def endpoint():
    """Of a server that all tests share."""
    with s3_server() as url:
        make_bucket(url, "bucket")
        yield url


@pytest.fixture(autouse=True)
def _environment(endpoint, monkeypatch, tmp_path):
    """The usual variables, and no profile of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture
def url():
    """Of a place that no other test has."""
    return f"s3://bucket/test-{next(_numbers)}/run.zarr"


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path, url):
    """Both kinds: they keep the same contract."""
    return LocalStorage(tmp_path / "store") if request.param == "local" else ObjectStorage(url)


@pytest.fixture
def proxy(endpoint, monkeypatch):
    with Proxy(endpoint) as one:
        monkeypatch.setenv("AWS_ENDPOINT_URL", one.endpoint)
        yield one


def test_what_was_written_is_read(storage):
    """Whole, or a range of it, from the front, from the end, and beyond."""
    storage.write("a/b/c.0", b"0123456789")
    assert storage.read("a/b/c.0") == b"0123456789"
    assert storage.read("a/b/c.1") is None
    for start, length, expected in (
        *((0, 3, b"012"), (4, 2, b"45"), (8, 9, b"89"), (-4, 4, b"6789"), (-4, 2, b"67")),
        *((-99, 3, b"012"), (10, 5, b""), (50, 5, b""), (3, 0, b"")),
    ):
        assert storage.read_range("a/b/c.0", start, length) == expected, (start, length)
    assert storage.read_range("a/b/c.1", 0, 1) is None
    assert storage.read_range("a/b/c.1", -1, 1) is None


def test_a_key_is_written_once(storage):
    """Other content under a key that exists is refused, and what is there stays."""
    storage.write("key", b"first")
    with pytest.raises(FileExistsError, match="key"):
        storage.write("key", b"second")
    assert storage.read("key") == b"first"


def test_of_many_that_publish_one_wins(storage):
    """Create-if-absent is atomic: of eight at once one is told that it was the one."""
    for number in range(8):
        values = [f"{number} {one}".encode() for one in range(8)]
        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(lambda v, n=number: storage.publish(f"k/{n}", v), values))
        assert won.count(True) == 1
        assert storage.read(f"k/{number}") == values[won.index(True)]


def test_names_and_keys_are_listed(storage):
    """Names directly below, without those with a dot; keys all the way down."""
    assert storage.list_names("segments") == []
    assert storage.is_foreign() is False
    for key in ("segments/a/x/c.0", "segments/a/zarr.json", "segments/b/c.0", "segments/.no/c"):
        storage.write(key, b"1234")
    assert sorted(storage.list_names("segments")) == ["a", "b"]
    assert sorted(storage.list_keys("segments/a")) == ["segments/a/x/c.0", "segments/a/zarr.json"]
    assert storage.is_foreign() is True
    storage.write("zarr.json", b"{}")
    assert storage.is_foreign() is False
    assert storage.size() == 18


def test_deleting_keeps_what_it_is_told_to(storage):
    """One key, or all below a prefix but some; what is gone already is no error."""
    for key in ("s/a/x/c.0", "s/a/zarr.json", "s/ab/c.0"):
        storage.write(key, b"1")
    assert storage.delete("s/a", keep={"s/a/zarr.json"}) == 1
    assert storage.list_keys("s/a") == ["s/a/zarr.json"]
    assert storage.delete("s/a/zarr.json") == 1
    assert storage.delete("s/a") == 0
    assert storage.list_keys("s") == ["s/ab/c.0"]


def test_age_is_that_of_the_newest(storage):
    """By the provider's clock; None where there is nothing."""
    assert storage.age_seconds("s") is None
    storage.write("s/a", b"1")
    assert -5 < storage.age_seconds("s") < 5
    assert -5 < storage.age_seconds("s/a") < 5


def test_a_remote_store_is_asked_many_things_at_once(url, tmp_path):
    """A request takes its time however small it is."""
    assert ObjectStorage(url).concurrency >= 4 * LocalStorage(tmp_path).concurrency


WORK = """
import pickle, sys
from halp_store.writer import StoreWriter
url, worker, path = sys.argv[1:]
with open(path, "rb") as file:
    batches = pickle.load(file)
writer = StoreWriter.open(url, batches[0].layout, worker=worker, provenance={})
for batch in batches:
    writer.append(batch)
    print(*(key.question_id for key in writer.flush().receipt.rows), flush=True)
"""


def test_workers_at_once_store_each_row_once(url, make_rows, tmp_path):
    """Three processes with the same rows in other orders: every receipt holds, no id is twice."""
    ids = [f"q{one}" for one in range(24)]
    workers = []
    for number in range(3):
        turned = ids[8 * number :] + ids[: 8 * number]
        file = tmp_path / f"rows-{number}"
        batches = [make_rows(turned[start : start + 4]) for start in range(0, 24, 4)]
        file.write_bytes(pickle.dumps(batches))
        command = [sys.executable, "-c", WORK, url, f"w{number}", file]
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    acknowledged = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert [sorted(some) for some in acknowledged] == [sorted(ids)] * 3
    store = open_store(url)
    assert_columns(store.read(), make_rows(sorted(ids)))
    assert {one.kind for one in verify_store(url).problems} <= {"duplicate"}
    compact(ObjectStorage(url))
    prune(ObjectStorage(url), grace_seconds=0)
    assert verify_store(url).ok


COMPACT = """
import sys
from halp_store import compact
from halp_store.objects import ObjectStorage
storage, left = ObjectStorage(sys.argv[1]), int(sys.argv[2])
put = storage._create
def create(key, value):
    global left
    left -= 1
    if left < 0:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return put(key, value)
storage._create = create
compact(storage)
"""


@pytest.mark.parametrize("puts", [1, 7, 25, 35])
def test_a_compaction_that_is_killed_goes_on(url, layout, make_rows, puts):
    """Wherever it was: readers see all rows meanwhile, the next one ends it."""
    writer = StoreWriter.open(url, layout, worker="w", provenance={})
    for start in range(0, 20, 10):
        writer.append(make_rows([f"q{one}" for one in range(start, start + 10)]))
        writer.flush()
    ended = subprocess.run([sys.executable, "-c", COMPACT, url, str(puts)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert_columns(open_store(url).read(), make_rows(open_store(url).ids))
    done = compact(ObjectStorage(url))
    assert (done.generation, done.rows, done.resumed) == ("compacted/000001", 20, True)
    assert_columns(open_store(url).read(), make_rows(open_store(url).ids))


def test_a_staged_segment_is_fenced_or_published_never_both(url, layout, make_rows):
    """The tombstone and the segment's zarr.json race for one key."""
    storage = ObjectStorage(url)
    StoreWriter.open(url, layout, worker="w", provenance={})
    for number in range(6):
        name = f"w-{number:032x}"
        segment = build_segment(make_rows([f"q{number}"]), name=name, provenance={}, created="")
        for key, value in segment.staged.items():
            storage.write(f"segments/{name}/{key}", value)
        with ThreadPoolExecutor(2) as threads:
            key = f"segments/{name}/zarr.json"
            published = threads.submit(storage.publish, key, segment.metadata)
            fenced = threads.submit(fence_segment, storage, name)
            assert published.result() != fenced.result()
        assert is_fenced(storage, name) == fenced.result()
        assert (f"q{number}" in open_store(url)) == published.result()


@pytest.mark.parametrize("fault", ["lose", "409", "503"])
def test_a_put_that_fails_at_any_point_leaves_one_row_and_a_right_receipt(
    proxy, url, layout, make_rows, fault
):
    """A lost reply, a conflict, an overload at each put in turn: nothing doubled, nothing lost."""
    StoreWriter.open(url, layout, worker="w", provenance={})
    for number, point in enumerate((0, 5, 20, 10**6)):
        puts = itertools.count()

        def fail(method, path, point=point, puts=puts):
            if method != "PUT":
                return None
            is_last = point == 10**6 and path.endswith("/zarr.json") and path.count("/") == 6
            return fault if next(puts) == point or is_last else None

        writer = StoreWriter.open(url, layout, worker=f"w{number}", provenance={})
        writer.append(make_rows([f"q{number}"]))
        once = iter([True])
        proxy.fault = lambda *what, fail=fail, once=once: fail(*what) and next(once, None) and fault
        assert [key.question_id for key in writer.flush().receipt.rows] == [f"q{number}"]
        proxy.fault = lambda *_: None
    store = open_store(url)
    assert list(store) == ["q0", "q1", "q2", "q3"]
    assert_columns(store.read(), make_rows(store.ids))
    assert verify_store(url).ok


def test_412_for_what_nobody_wrote_is_tried_again(proxy, url):
    """The answer is not believed: whether there is one is looked at."""
    answers = iter(["412", "412"])
    proxy.fault = lambda method, _: next(answers, None) if method == "PUT" else None
    storage = ObjectStorage(url)
    assert storage.publish("key", b"mine") is True
    assert storage.publish("key", b"other") is False
    assert storage.read("key") == b"mine"


def test_a_listing_that_lags_loses_no_row(proxy, url, layout, make_rows):
    """Another's segment is not listed yet: its row may be written again, and is shown once."""
    first = StoreWriter.open(url, layout, worker="a", provenance={})
    late = StoreWriter.open(url, layout, worker="b", provenance={})
    first.append(make_rows(["x", "y"]))
    first.flush()
    late.refresh()
    first.append(make_rows(["z"]))
    first.flush()
    proxy.fault = lambda method, path: "stale" if "list-type" in path else None
    late.append(make_rows(["z", "v"]))
    assert {key.question_id for key in late.flush().receipt.rows} == {"z", "v"}
    proxy.fault = lambda *_: None
    store = open_store(url)
    assert list(store) == ["v", "x", "y", "z"]
    assert_columns(store.read(), make_rows(store.ids))
    compact(ObjectStorage(url))
    prune(ObjectStorage(url), grace_seconds=0)
    assert verify_store(url).ok
    assert_columns(open_store(url).read(), make_rows(store.ids))


def test_a_compacted_bucket_opens_in_plain_xarray(url, layout, make_rows, endpoint):
    """As a folder does; views from before pruning find their rows in the generation."""
    writer = StoreWriter.open(url, layout, worker="w", provenance={})
    for start in range(0, 30, 10):
        writer.append(make_rows([f"q{one}" for one in range(start, start + 10)]))
        writer.flush()
    before = open_store(url)
    storage = ObjectStorage(url)
    assert compact(storage).rows == 30
    assert prune(storage, grace_seconds=0).segments == 3
    assert storage.list_names("segments") == []
    expected = make_rows(before.ids)
    assert_columns(before.read(), expected)
    store = open_store(url)
    prefix = f"{url.removeprefix('s3://bucket/')}/{store.generation}"
    bucket = S3Store(
        "bucket", prefix=prefix, endpoint=endpoint, client_options={"allow_http": True}
    )
    dataset = xarray.open_zarr(zarr.storage.ObjectStore(bucket, read_only=True), chunks=None)
    np.testing.assert_array_equal(dataset["query_token"], expected.vectors["query_token"])
    assert store["q7"].answer == "answer of q7, a"


def test_the_commands_take_a_url(url, layout, make_rows):
    """info, verify and compact, in processes of their own."""
    writer = StoreWriter.open(url, layout, worker="w", provenance={})
    writer.append(make_rows(["a"]))
    writer.flush()
    script = Path(sys.executable).with_name("halp-store")
    for command in ("info", "verify", "compact"):
        ended = subprocess.run(
            [script, command, url], capture_output=True, text=True, check=False, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        assert url in ended.stdout
        assert SECRET not in ended.stdout + ended.stderr


def test_a_dead_endpoint_is_said_in_bounded_time(monkeypatch, url):
    """Not a wait without end: an OSError with the address, and without the secret."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(OSError, match="no answer") as caught:
        ObjectStorage(url, patience=Patience(1, 1)).read("zarr.json")
    assert time.monotonic() - began < 20
    assert SECRET not in str(caught.value)


def test_missing_credentials_and_buckets_are_named(monkeypatch, url):
    """What to set, what to make."""
    with pytest.raises(OSError, match="there is no bucket nowhere"):
        open_store("s3://nowhere/run.zarr")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(PermissionError, match="AWS_PROFILE"):
        open_store(url)


def test_http_is_for_loopback(monkeypatch, url):
    """Elsewhere it has to be allowed by name."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.example.org")
    with pytest.raises(ConnectionError, match="AWS_ALLOW_HTTP"):
        open_store(url)


def test_it_is_pickled_without_credentials(url):
    """Another process finds its own."""
    storage = ObjectStorage(url)
    storage.write("key", b"1")
    pickled = pickle.dumps(storage)
    assert SECRET.encode() not in pickled
    assert pickle.loads(pickled).read("key") == b"1"  # noqa: S301 - our own, a line ago
    assert SECRET not in repr(storage) + storage.where


def test_a_forked_process_is_told_to_be_spawned(url, fork, tmp_path):
    """The client's threads stay behind in the parent: an error, not a wait without end."""
    storage = ObjectStorage(url)
    storage.write("key", b"1")

    def read():
        try:
            storage.read("key")
        except OSError as error:
            (tmp_path / "said").write_text(str(error))

    os.waitpid(fork(read), 0)
    assert "spawn" in (tmp_path / "said").read_text()


def test_a_store_is_not_found_where_there_is_none(url):
    """The same sentence as for a folder."""
    with pytest.raises(StoreError, match="not a store"):
        open_store(url)
