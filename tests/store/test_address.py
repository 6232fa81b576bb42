"""Where a store is: paths stay paths, URLs are checked, secrets in them are not repeated."""

import sys
from pathlib import Path

import pytest

from halp_store.address import BadAddress, RemoteExtraMissing, storage_at
from halp_store.local import LocalStorage


@pytest.mark.parametrize("path", ["run1.zarr", "/data/run1.zarr", "a:b", "s3", Path("run1.zarr")])
def test_a_path_is_a_folder(path):
    """Whatever characters it has."""
    storage = storage_at(path)
    assert isinstance(storage, LocalStorage)
    assert storage.where == str(path)


@pytest.mark.parametrize("url", ["s3://bucket/a/run.zarr", "gs://bucket/run.zarr", "az://box/run"])
def test_a_url_is_a_bucket(url):
    """Three schemes, as they are written; a slash at the end does not matter."""
    assert storage_at(url).where == url
    assert storage_at(f"{url}/").where == url


@pytest.mark.parametrize(
    "url",
    [
        *("http://host/run.zarr", "file:///run.zarr", "gcs://bucket/x", "s3://", "s3:///x"),
        *("s3://bucket/../x", "s3://bucket/a\nb"),
    ],
)
def test_what_is_no_place_for_a_store_is_refused(url):
    """With what would work."""
    with pytest.raises(BadAddress, match=r"s3://|expected"):
        storage_at(url)


@pytest.mark.parametrize(
    "url",
    [
        *("s3://key:hidden@bucket/run", "s3://bucket/run?secret=hidden", "s3://bucket:hidden/run"),
        "s3://bucket/run#hidden",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_shown(url):
    """They come from the environment or a profile."""
    with pytest.raises(BadAddress, match="environment") as caught:
        storage_at(url)
    assert "hidden" not in str(caught.value)


def test_a_secret_behind_one_slash_is_not_shown():
    """Half a URL is refused as such, and what follows may be meant to be hidden."""
    with pytest.raises(BadAddress, match="two slashes") as caught:
        storage_at("s3:/key:hidden@bucket/run")
    assert "hidden" not in str(caught.value)


def test_a_url_that_became_a_path_is_noticed():
    """pathlib drops a slash."""
    with pytest.raises(BadAddress, match="give it as text"):
        storage_at(Path("s3://bucket/run.zarr"))


def test_a_missing_extra_is_named(monkeypatch):
    """One sentence with the command that installs it."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    for name in ("halp_store.objects", "halp_store.bucket"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(RemoteExtraMissing, match=r"pip install 'halp-stream\[remote\]'"):
        storage_at("s3://bucket/run.zarr")
