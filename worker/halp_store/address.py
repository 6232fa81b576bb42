"""Where a store is: a path of this machine, or the URL of a bucket.

`s3://`, `gs://` and `az://` need the extra `remote`; credentials come from the usual environment
and profile, never from the address.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final, Literal

from halp_store.errors import StoreError
from halp_store.local import LocalStorage
from halp_store.storage import Storage

Scheme = Literal["s3", "gs", "az"]

_SCHEMES: Final[dict[str, Scheme]] = {"s3": "s3", "gs": "gs", "az": "az"}
_WORKING: Final = "s3://, gs:// and az:// work, and paths of this machine"

_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
# What pathlib makes of a URL.
_MANGLED: Final = re.compile(rf"({'|'.join(_SCHEMES)}):/(?!/)", re.IGNORECASE)
# Of all three providers, and of servers that speak their protocols.
_BUCKET: Final = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*")


class BadAddress(StoreError, ValueError):  # noqa: N818 - as in `errors`
    """An address that names no place for a store. Credentials in it are not repeated."""


class RemoteExtraMissing(StoreError):  # noqa: N818
    """The address is a URL, and what speaks to buckets is not installed."""


@dataclass(frozen=True)
class BucketAddress:
    """scheme: who the provider is. prefix: the store's root in the bucket, without slashes around
    it; empty for the whole bucket."""

    scheme: Scheme
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @classmethod
    def parse(cls, url: str) -> BucketAddress:
        """Raises BadAddress. Nothing is decoded: `%20` in a key is three characters."""
        found = _URL.fullmatch(url)
        if not found:
            # What is there instead may be a secret: `s3:/key:secret@bucket`.
            raise BadAddress(f"expected two slashes after the scheme: {_WORKING}")
        scheme = _SCHEMES.get(found["scheme"].lower())
        if scheme is None:
            raise BadAddress(f"{found['scheme']}:// is no place for a store: {_WORKING}")
        bucket, _, path = found["rest"].partition("/")
        prefix = path.strip("/")
        # From here on what is wrong may be a secret, so it is not shown.
        if re.search(r"[@:?#]", bucket) or "?" in path or "#" in path:
            raise BadAddress(
                f"{scheme}://...: expected {scheme}://bucket/path, got an address with a user, a "
                "password, a port or a query in it (not shown here): credentials come from the "
                "environment or a profile, the endpoint from AWS_ENDPOINT_URL"
            )
        if not _BUCKET.fullmatch(bucket):
            raise BadAddress(f"expected {scheme}://bucket/path, got no bucket's name there")
        segments = prefix.split("/") if prefix else []
        if {"", ".", ".."}.intersection(segments) or not prefix.isprintable():
            raise BadAddress(
                f"{scheme}://{bucket}/...: expected names between single slashes, got an empty "
                "one, a dot, or one that cannot be printed"
            )
        return cls(scheme, bucket, prefix)


def is_url(address: str | os.PathLike[str]) -> bool:
    """Whether it is meant for a bucket, rightly spelled or not."""
    text = os.fspath(address)
    return bool(_URL.match(text) or _MANGLED.match(text))


def storage_at(address: str | os.PathLike[str]) -> Storage:
    """A directory for a path, a bucket for a URL; nothing is made or looked at.

    Raises BadAddress, or RemoteExtraMissing.
    """
    text = os.fspath(address)
    if _MANGLED.match(text) and not isinstance(address, str):
        raise BadAddress("a URL became a path, which drops a slash: give it as text")
    if not is_url(text):
        return LocalStorage(address)
    where = BucketAddress.parse(text)
    try:
        from halp_store.objects import ObjectStorage
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "obstore":
            raise
        raise RemoteExtraMissing(
            f"{where}: a store in a bucket needs obstore: pip install 'halp-stream[remote]'"
        ) from error
    return ObjectStorage(str(where))
