"""`ObjectStorage`: a store in a bucket of S3, Google Cloud Storage or Azure, or of a server that
speaks S3.

Rests on what all three promise: of several puts of one new key with create-if-absent one wins, a
put that was confirmed is durable, and what was put is read and listed from then on. What becomes
of a store where listings lag is in docs/object-storage.md.

A reply may be lost after its request took effect. So an error of a put says nothing of what is
there: that is looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError

from halp_store.address import BucketAddress
from halp_store.bucket import (
    Patience,
    explained,
    is_beyond_end,
    is_final,
    lacks_bucket,
    missing_bucket,
    open_bucket,
)
from halp_store.errors import StoreError, StoreGone
from halp_store.storage import METADATA

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

# A request takes tens of milliseconds however small it is, so many of them are under way.
_CONCURRENCY: Final = 32
# Longer to send than an answer may take on a line of 2 Mbit/s.
_LARGE_BYTES: Final = 4_000_000
# As many as one request of S3 deletes, and as one of its answers lists.
_PAGE: Final = 1000
# Between tries of a put that was neither done nor refused for good.
_FIRST_PAUSE_SECONDS: Final = 0.1
_LAST_PAUSE_SECONDS: Final = 2.0

_ERRORS: Final = (BaseError, OSError, ValueError)

# The client's threads do not survive a fork, and a child that used it would wait for ever.
_process_of_client: int | None = None


class ObjectStorage:
    """A prefix of a bucket. Nothing is asked of it by construction.

    May be pickled: credentials stay behind, and the other process finds its own.
    """

    def __init__(self, url: str, *, patience: Patience | None = None) -> None:
        """url: `s3://bucket/path`, `gs://bucket/path` or `az://container/path`.
        Raises BadAddress."""
        self._address = BucketAddress.parse(url)
        self._patience = patience or Patience()
        self._clients: dict[bool, ObjectStore] = {}
        self._was_there = False

    def __reduce__(self) -> tuple[object, ...]:
        return _open, (str(self._address), self._patience, self._was_there)

    @property
    def where(self) -> str:
        return str(self._address)

    @property
    def concurrency(self) -> int:
        return _CONCURRENCY

    def create_root(self) -> None:
        """Nothing: a prefix is there with its first key. Nobody but the user makes a bucket."""

    def list_names(self, prefix: str) -> list[str]:
        client = self._client()
        try:
            found = obstore.list_with_delimiter(client, prefix or None)
        except _ERRORS as error:
            raise self._failure(error, f"list {prefix!r}") from None
        paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        names = [path.removeprefix(f"{prefix}/") for path in paths]
        # The object of a folder that a console made has the folder's own path.
        return [name for name in names if name not in {"", prefix} and not name.startswith(".")]

    def read(self, key: str) -> bytes | None:
        client = self._client()
        try:
            value = obstore.get(client, key).bytes().to_bytes()
        except _ERRORS as error:
            if self._is_absent(error):
                return None
            raise self._failure(error, f"read {key}") from None
        self._was_there = True
        return value

    def read_range(self, key: str, start: int, length: int) -> bytes | None:
        # Azure has no ranges that count from the end.
        if start < 0 and self._address.scheme != "az" and length > 0:
            found = self._read_end(key, -start, length)
            if found != b"":
                return found
        if start < 0 or length <= 0:
            size = self._size_of(key)
            if size is None:
                return None
            start = max(0, size + start) if start < 0 else start
            length = min(length, size - start)
            if length <= 0:
                return b""
        client = self._client()
        try:
            return obstore.get_range(client, key, start=start, length=length).to_bytes()
        except _ERRORS as error:
            if self._is_absent(error):
                return None
            if is_beyond_end(error):
                return b""
            raise self._failure(error, f"read {key}") from None

    def write(self, key: str, value: bytes) -> None:
        """As `Storage.write`, but the same bytes under `key` are no error: after a lost reply
        nobody can tell whose they are."""
        if not self._create(key, value) and self.read(key) != value:
            raise FileExistsError(f"{self.where}: {key} exists, with other content")

    def fill(self, key: str, value: bytes) -> None:
        client = self._client()
        try:
            obstore.put(client, key, value)
        except _ERRORS as error:
            raise self._failure(error, f"fill {key}") from None

    def sync(self, prefixes: Iterable[str]) -> None:
        """Nothing: a put that was confirmed is durable."""

    def publish(self, key: str, value: bytes) -> bool:
        """As `Storage.publish`, but after a lost reply it may be False for the one who won: who
        has to know reads it back."""
        return self._create(key, value)

    def is_foreign(self) -> bool:
        names = self.list_names("")
        return bool(names) and METADATA not in names

    def size(self) -> int:
        return sum(one["size"] for one in self._objects(""))

    def list_keys(self, prefix: str) -> list[str]:
        return [one["path"] for one in self._objects(prefix)]

    def links(self, prefix: str = "") -> list[str]:
        """None: a bucket has keys only."""
        return []

    def half_written(self) -> list[str]:
        """None: a put makes a key as a whole."""
        return []

    def age_seconds(self, prefix: str) -> float | None:
        """As `Storage.age_seconds`; off by as much as this clock and the provider's differ."""
        times = [one["last_modified"] for one in self._objects(prefix)]
        itself = self._head(prefix) if prefix else None
        times += [itself["last_modified"]] if itself else []
        return (datetime.now(UTC) - max(times)).total_seconds() if times else None

    def delete(self, prefix: str, keep: Collection[str] = ()) -> int:
        keys = [prefix] if prefix and self._head(prefix) else []
        keys = [key for key in [*keys, *self.list_keys(prefix)] if key not in keep]
        for start in range(0, len(keys), _PAGE):
            self._delete(keys[start : start + _PAGE])
        return len(keys)

    def _client(self, *, large: bool = False) -> ObjectStore:
        global _process_of_client
        if _process_of_client not in {None, os.getpid()}:
            raise OSError(
                f"{self.where}: this process was forked from one that had used a store in a "
                "bucket, and cannot use one: start processes with spawn or forkserver "
                "(DataLoader: multiprocessing_context='forkserver')"
            )
        _process_of_client = os.getpid()
        if large not in self._clients:
            self._clients[large] = open_bucket(self._address, self._patience, large=large)
        return self._clients[large]

    def _create(self, key: str, value: bytes) -> bool:
        """Whether this call is known to have made `key`; if not, there is one."""
        client = self._client(large=len(value) > _LARGE_BYTES)
        until = time.monotonic() + self._patience.repeat_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                obstore.put(client, key, value, mode="create")
            except AlreadyExistsError as error:
                # 412; also the 409 of two puts at once, after which there may be none.
                failure: Exception = error
            except GenericError as error:
                if is_final(error):
                    raise self._failure(error, f"create {key}") from None
                failure = error
            except _ERRORS as error:
                raise self._failure(error, f"create {key}") from None
            else:
                self._was_there = True
                return True
            if self._head(key):
                return False
            if time.monotonic() + pause > until:
                raise self._failure(failure, f"create {key}") from None
            time.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)

    def _read_end(self, key: str, count: int, length: int) -> bytes | None:
        """The first `length` of the last `count` bytes. Empty if that has to be asked otherwise."""
        client = self._client()
        try:
            found = obstore.get(client, key, options={"range": {"suffix": count}})
            return found.bytes().to_bytes()[:length]
        except _ERRORS as error:
            if self._is_absent(error):
                return None
            if is_beyond_end(error):
                return b""
            raise self._failure(error, f"read {key}") from None

    def _head(self, key: str) -> ObjectMeta | None:
        client = self._client()
        try:
            return obstore.head(client, key)
        except _ERRORS as error:
            if self._is_absent(error):
                return None
            raise self._failure(error, f"look at {key}") from None

    def _size_of(self, key: str) -> int | None:
        found = self._head(key)
        return found["size"] if found else None

    def _objects(self, prefix: str) -> Iterator[ObjectMeta]:
        client = self._client()
        try:
            for page in obstore.list(client, prefix or None, chunk_size=_PAGE):
                # Not the object of a folder that a console made.
                yield from (one for one in page if one["path"] not in {"", prefix})
        except _ERRORS as error:
            raise self._failure(error, f"list {prefix!r}") from None

    def _delete(self, keys: list[str]) -> None:
        client = self._client()
        try:
            obstore.delete(client, keys)
        except FileNotFoundError:
            # Another one deletes too, at a provider that calls this an error, here or later.
            if len(keys) > 1:
                for key in keys:
                    self._delete([key])
        except _ERRORS as error:
            raise self._failure(error, f"delete {keys[0]}") from None

    def _failure(self, error: Exception, doing: str) -> StoreError:
        if self._was_there and lacks_bucket(error):
            return StoreGone(self.where, missing_bucket(self._address))
        return explained(error, self._address, doing)

    @staticmethod
    def _is_absent(error: Exception) -> bool:
        return isinstance(error, FileNotFoundError) and not lacks_bucket(error)


def _open(url: str, patience: Patience, was_there: bool) -> ObjectStorage:
    storage = ObjectStorage(url, patience=patience)
    storage._was_there = was_there
    return storage
