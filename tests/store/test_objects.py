"""A store in a bucket: a real S3 server, replies that are lost, conflicts, listings that lag."""

import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
import xarray
import zarr
from obstore.store import S3Store

from halp_store import objects
from halp_store.address import BucketAddress
from halp_store.bucket import Patience, open_bucket
from halp_store.compaction import compact
from halp_store.copying import copy_store
from halp_store.delete import delete_rows
from halp_store.errors import StoreError, StoreGone, StoreUnavailable
from halp_store.fence import fence_segment, is_fenced
from halp_store.local import LocalStorage
from halp_store.objects import ObjectStorage
from halp_store.pruning import prune
from halp_store.reader import open_store
from halp_store.root import read_root
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
    storage = LocalStorage(tmp_path / "store") if request.param == "local" else ObjectStorage(url)
    storage.create_root()
    return storage


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


@pytest.mark.parametrize("name", ["write", "publish"])
def test_a_large_value_is_written_once_too(storage, name):
    """What a client would send in parts, without a condition, goes as one put with it."""
    values = [bytes([one]) * 6_000_000 for one in range(2)]
    put = getattr(storage, name)
    assert put("key", values[0]) is (True if name == "publish" else None)
    if name == "publish":
        assert put("key", values[1]) is False
    else:
        with pytest.raises(FileExistsError):
            put("key", values[1])
    assert storage.read("key") == values[0]


def test_of_many_that_publish_one_wins(storage):
    """Create-if-absent is atomic: of eight at once one is told that it was the one. (The server of
    these tests is made atomic by us: see `s3_server`.)"""
    for number in range(4):
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


def test_more_keys_than_one_request_deletes_are_deleted(url, monkeypatch):
    """Page after page, and the count is that of all."""
    monkeypatch.setattr(objects, "_PAGE", 5)
    storage = ObjectStorage(url)
    for number in range(23):
        storage.write(f"s/{number}", b"1")
    assert len(storage.list_keys("s")) == len(storage.list_names("s")) == 23
    assert storage.delete("s", keep={"s/7"}) == 22
    assert storage.list_keys("s") == ["s/7"]


def test_a_folder_that_a_console_made_is_no_store_and_no_name(url, endpoint):
    """Consoles put an empty object whose key ends with a slash."""
    client = boto3.client("s3", endpoint_url=endpoint)
    prefix = url.removeprefix("s3://bucket/")
    for key in (f"{prefix}/", f"{prefix}/segments/"):
        client.put_object(Bucket="bucket", Key=key, Body=b"")
        assert ObjectStorage(url).list_names("segments") == []
        assert ObjectStorage(url).list_keys("segments") == []
        assert ObjectStorage(url).is_foreign() == key.endswith("/segments/")
    client.close()


def test_the_characters_of_an_address_are_those_of_the_key(url, endpoint):
    """Nothing is encoded or decoded on the way: other tools find the same keys."""
    names = ["a%20b", "é x", "a+b", "~[b]", "a*b^{"]
    for name in names:
        storage = ObjectStorage(f"{url}/{name}")
        storage.write("segments/x/c.0", b"1")
        assert storage.list_keys("") == ["segments/x/c.0"]
    client = boto3.client("s3", endpoint_url=endpoint)
    prefix = url.removeprefix("s3://bucket/")
    found = client.list_objects_v2(Bucket="bucket", Prefix=f"{prefix}/")["Contents"]
    client.close()
    assert {one["Key"] for one in found} == {f"{prefix}/{name}/segments/x/c.0" for name in names}


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
    ids = [f"q{one}" for one in range(12)]
    workers = []
    for number in range(3):
        turned = ids[4 * number :] + ids[: 4 * number]
        file = tmp_path / f"rows-{number}"
        batches = [make_rows(turned[start : start + 4]) for start in range(0, 12, 4)]
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


@pytest.mark.parametrize("puts", [1, 35])
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
    for number in range(4):
        name = f"w-{number:032x}"
        segment = build_segment(
            make_rows([f"q{number}"]),
            name=name,
            stamp=read_root(storage).stamp,
            provenance={},
            created="",
        )
        for key, value in segment.staged.items():
            storage.write(f"segments/{name}/{key}", value)
        with ThreadPoolExecutor(2) as threads:
            key = f"segments/{name}/zarr.json"
            published = threads.submit(storage.publish, key, segment.metadata)
            fenced = threads.submit(fence_segment, storage, name)
            assert published.result() != fenced.result()
        assert is_fenced(storage, name) == fenced.result()
        assert (f"q{number}" in open_store(url)) == published.result()


@pytest.mark.parametrize("fault", ["lose", "409", "412", "503"])
def test_every_put_may_fail_once(proxy, url, layout, make_rows, fault):
    """Each key's first, from the root's to the one that publishes: the receipt is right, and
    nothing is doubled or missing."""
    failed = set()

    def fail(method, path):
        if method != "PUT" or path in failed:
            return None
        failed.add(path)
        return fault

    proxy.fault = fail
    writer = StoreWriter.open(url, layout, worker="w", provenance={})
    writer.append(make_rows(["a", "b"]))
    flush = writer.flush()
    proxy.fault = lambda *_: None
    root = f"/{url.removeprefix('s3://')}"
    assert {f"{root}/zarr.json", f"{root}/segments/{flush.segment}/zarr.json"} < failed
    assert len(failed) == len(ObjectStorage(url).list_keys(""))
    assert {key.question_id for key in flush.receipt.rows} == {"a", "b"}
    assert ObjectStorage(url).list_names("segments") == [flush.segment]
    assert_columns(open_store(url).read(), make_rows(["a", "b"]))
    assert verify_store(url).ok


def test_an_overload_is_waited_for(proxy, url, layout, make_rows):
    """Forty times 503, for whatever is asked, in the middle of a flush."""
    writer = StoreWriter.open(url, layout, worker="w", provenance={})
    writer.append(make_rows(["a"]))
    refused = []

    def overloaded(method, path):
        if (refused or method == "PUT") and len(refused) < 40:
            refused.append(path)
            return "503"
        return None

    proxy.fault = overloaded
    assert [key.question_id for key in writer.flush().receipt.rows] == ["a"]
    assert len(refused) == 40
    proxy.fault = lambda *_: None
    assert verify_store(url).ok


def test_an_overload_that_does_not_end_leaves_the_rows_buffered(proxy, url, layout, make_rows):
    """An OSError in bounded time; when the server is back, the same rows are flushed."""
    storage = ObjectStorage(url, patience=Patience(0.3, 1))
    writer = StoreWriter.open(url, layout, worker="w", provenance={}, storage=storage)
    writer.append(make_rows(["a"]))
    proxy.fault = lambda method, _: "503" if method == "PUT" else None
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="503 SlowDown: later"):
        writer.flush()
    assert time.monotonic() - began < 20
    assert writer.rows_buffered == 1
    proxy.fault = lambda *_: None
    assert [key.question_id for key in writer.flush().receipt.rows] == ["a"]
    assert list(open_store(url)) == ["a"]


def test_a_put_that_is_refused_for_good_is_not_tried_again(proxy, url):
    """What the server will always refuse is said at once, not after the patience has ended."""
    proxy.fault = lambda method, _: "400" if method == "PUT" else None
    began = time.monotonic()
    with pytest.raises(OSError, match="400 InvalidRequest"):
        ObjectStorage(url, patience=Patience(60, 60)).write("key", b"1")
    assert time.monotonic() - began < 20
    assert sum(method == "PUT" for method, _ in proxy.seen) == 1


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


def test_a_fence_that_a_lagging_listing_misled_loses_no_row(proxy, url, layout, make_rows):
    """What it did not see can still be published: the row is there twice, and is shown once."""
    late = StoreWriter.open(url, layout, worker="b", provenance={})
    storage, name = ObjectStorage(url), f"a-{0:032x}"
    stamp = read_root(storage).stamp
    segment = build_segment(make_rows(["x"]), name=name, stamp=stamp, provenance={}, created="")
    for key, value in segment.staged.items():
        storage.write(f"segments/{name}/{key}", value)
    proxy.fault = lambda method, path: "stale" if "list-type" in path else None
    assert late.fence(["a"]) == 0
    late.append(make_rows(["x"]))
    assert [key.question_id for key in late.flush().receipt.rows] == ["x"]
    assert storage.publish(f"segments/{name}/zarr.json", segment.metadata)
    proxy.fault = lambda *_: None
    assert {one.kind for one in verify_store(url).problems} == {"duplicate"}
    assert_columns(open_store(url).read(), make_rows(["x"]))
    done = compact(storage)
    assert (done.rows, done.segments, done.dropped) == (1, 2, 1)
    assert_columns(open_store(url).read(), make_rows(["x"]))


def test_a_reader_shows_later_what_is_listed_later(proxy, url, layout, make_rows):
    """At the refresh after the listing has it; until then it shows what it had."""
    writer = StoreWriter.open(url, layout, worker="w", provenance={})
    store = open_store(url)
    writer.append(make_rows(["x"]))
    writer.flush()
    proxy.fault = lambda method, path: "stale" if "list-type" in path else None
    store.refresh()
    assert list(store) == []
    proxy.fault = lambda *_: None
    store.refresh()
    assert_columns(store.read(), make_rows(["x"]))


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


ASKED = {
    "read": lambda storage: storage.read("key"),
    "read_range": lambda storage: storage.read_range("key", -2, 2),
    "write": lambda storage: storage.write("key", b"1"),
    "list_names": lambda storage: storage.list_names(""),
    "list_keys": lambda storage: storage.list_keys(""),
    "delete": lambda storage: storage.delete("key"),
}
"""All that a storage may be asked over the network, but what rests on these."""


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_dead_endpoint_is_said_in_bounded_time(monkeypatch, url, ask):
    """Not a wait without end: an OSError with the address, and without the secret."""
    with socket.socket() as taken:  # a port where nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"no answer .*and up\?") as caught:
            ask(ObjectStorage(url, patience=Patience(0.2, 1)))
    assert time.monotonic() - began < 20
    assert url in str(caught.value)
    assert SECRET not in repr(caught.value)


@pytest.mark.parametrize("name", ["read", "write", "list_keys"])
def test_an_endpoint_that_says_nothing_is_said_in_bounded_time(monkeypatch, url, name):
    """It takes the connection and never answers: StoreUnavailable."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="no answer in time") as caught:
            ASKED[name](ObjectStorage(url, patience=Patience(0.2, 0.5)))
    assert time.monotonic() - began < 20
    assert SECRET not in repr(caught.value)


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_refusal_says_what_to_check_and_no_secret(proxy, url, ask):
    """Code and message of the answer, and which variables to look at."""
    proxy.fault = lambda *_: "403"
    with pytest.raises(StoreUnavailable, match=r"403.*AWS_ACCESS_KEY_ID") as caught:
        ask(ObjectStorage(url))
    assert SECRET not in repr(caught.value) + repr(caught.value.__cause__)
    assert "Signature" not in str(caught.value)


@pytest.mark.parametrize("url", ["gs://bucket/run.zarr", "az://box/run.zarr"])
def test_clients_of_the_other_providers_are_made(url, monkeypatch):
    """From the environment alone; what they do is not tested here."""
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
    client = open_bucket(BucketAddress.parse(url), Patience())
    assert str(client.prefix) == "run.zarr"


def test_missing_credentials_and_buckets_are_named(monkeypatch, url):
    """What to set, what to make."""
    with pytest.raises(OSError, match="there is no bucket nowhere"):
        open_store("s3://nowhere/run.zarr")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(PermissionError, match="AWS_PROFILE"):
        open_store(url)


def test_a_bucket_that_goes_away_is_a_store_that_is_gone(monkeypatch, url):
    """Once something was read or written in it; also in a copy in another process."""
    storage = ObjectStorage(url)
    storage.write("key", b"1")
    monkeypatch.setattr(objects, "lacks_bucket", lambda error: True)
    for client in (storage, pickle.loads(pickle.dumps(storage))):  # noqa: S301 - our own
        with pytest.raises(StoreGone, match="there is no bucket bucket"):
            client.read("nothing")
    with pytest.raises(StoreUnavailable, match="make it first"):
        ObjectStorage("s3://nowhere/run.zarr").read("key")


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


def test_rows_of_a_bucket_can_be_deleted_and_stored_again(url, open_writer, make_rows):
    """At once for an open reader; their objects go with a prune."""
    bucket, writer = ObjectStorage(url), open_writer(url)
    writer.append(make_rows(["a", "b"]))
    writer.flush()
    store = open_store(url)
    assert delete_rows(bucket, ["a"]).deleted == ("a",)
    store.refresh()
    assert list(store) == ["b"]
    assert compact(bucket).deleted == 1
    prune(bucket, grace_seconds=0)
    writer.append(make_rows(["a"], "other"))
    assert writer.flush().receipt
    store.refresh()
    assert_columns(store[["a"]].read(), make_rows(["a"], "other"))
    assert verify_store(url).ok


def test_a_store_is_copied_to_a_bucket_and_back(url, tmp_path, fill, holds):
    """And brought up to date there."""
    fill(tmp_path / "s", ["a", "b", "c"], rows=2)
    compact(LocalStorage(tmp_path / "s"))
    fill(tmp_path / "s", ["d"])
    assert copy_store(LocalStorage(tmp_path / "s"), ObjectStorage(url)).rows == 4
    fill(tmp_path / "s", ["e"])
    delete_rows(LocalStorage(tmp_path / "s"), ["d"])
    assert copy_store(LocalStorage(tmp_path / "s"), ObjectStorage(url)).groups == 1
    copy_store(ObjectStorage(url), LocalStorage(tmp_path / "back"))
    holds(tmp_path / "back", ["a", "b", "c", "e"])
    assert verify_store(tmp_path / "back").problems == ()
