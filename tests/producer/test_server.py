"""Connections: finite, explained, and silent about passwords."""

from __future__ import annotations

import pytest
import redis

from halp_producer import server as server_module
from halp_producer.server import (
    BLOCK_MARGIN_S,
    ServerError,
    advice,
    connect,
    connect_blocking,
    redact,
)

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        (f"redis://:{SECRET}@h:1/0", "redis://:***@h:1/0"),
        (f"rediss://me:{SECRET}@h", "rediss://me:***@h"),
        (f"redis://me:{SECRET}/with@signs@h:1", "redis://me:***@h:1"),
        (f"redis://h:1/0?password={SECRET}&db=1", "redis://h:1/0?password=***&db=1"),
        (f"unix://:{SECRET}@/tmp/s.sock?db=0", "unix://:***@/tmp/s.sock?db=0"),
        (f":{SECRET}@h:1", None),
        (f"me:{SECRET}@h", None),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    """Also where the URL is not a proper one."""
    assert SECRET not in redact(url)
    assert shown is None or redact(url) == shown


def test_a_server_that_is_not_there_is_one_sentence():
    """Where, why, and what to do."""
    with pytest.raises(ServerError) as caught:
        connect(f"redis://:{SECRET}@127.0.0.1:1/0")
    assert str(caught.value) == (
        "no server at redis://:***@127.0.0.1:1/0 (connection refused): "
        "start one or pass --redis-url"
    )


@pytest.mark.parametrize(
    "url", ["", "h:1", "http://h", f"redis://:{SECRET}/x@h:p/0", f"redis://:{SECRET}x"]
)
def test_a_url_that_cannot_be_read_is_an_error_without_its_password(url):
    """Python's own message would quote a part of the password as the port."""
    with pytest.raises(ServerError, match="cannot read the server's URL") as caught:
        connect(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_wrong_password_and_a_missing_one_are_told_apart(server, tmp_path):
    """Both name the server, neither the password; nothing is tried twice."""
    own = type(server)(server.binary, tmp_path)
    own.start()
    try:
        with redis.Redis.from_url(own.url) as client:
            client.config_set("requirepass", SECRET)
        with pytest.raises(ServerError, match="the server wants a password"):
            connect(own.url)
        with pytest.raises(ServerError, match="wrong user name or password") as caught:
            connect(own.url.replace("//", f"//:{SECRET}x@"))
        assert SECRET not in str(caught.value)
        with connect(own.url.replace("//", f"//:{SECRET}@")) as client:
            assert client.ping()
    finally:
        own.stop()


@pytest.mark.parametrize(
    ("info", "refused"),
    [
        ({"redis_version": "6.2.14"}, True),
        ({"redis_version": "7.0.4"}, True),
        ({"redis_version": "7.0.5"}, False),
        ({"redis_version": "8.2.3"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.9"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.0"}, False),
        ({}, False),
    ],
)
def test_a_server_that_is_too_old_is_refused(server, monkeypatch, info, refused):
    """Redis 7.0.5 and Valkey 8.0.0 are the floors; the error says which version was found."""
    monkeypatch.setattr(redis.Redis, "info", lambda _self, _section: info)
    if not refused:
        connect(server.url).close()
        return
    with pytest.raises(ServerError, match=r"expected Redis 7\.0\.5 or Valkey 8\.0\.0"):
        connect(server.url)


def test_a_blocking_connection_never_repeats_and_never_waits_for_ever(server):
    """A repeated read would hand out jobs that nobody works on."""
    with connect_blocking(server.url, block_ms=2000) as client:
        settings = client.connection_pool.connection_kwargs
        assert settings["retry"].get_retries() == 0
        assert settings["socket_timeout"] == 2 + BLOCK_MARGIN_S
        assert 0 < settings["socket_connect_timeout"] < 60
        assert client.ping()


def test_requests_are_repeated_a_few_times_with_finite_timeouts(server):
    """What goes over this connection may happen twice."""
    with connect(server.url) as client:
        settings = client.connection_pool.connection_kwargs
        assert 0 < settings["retry"].get_retries() <= 5
        assert settings["socket_timeout"] == server_module.REQUEST_TIMEOUT_S


def test_a_server_that_may_evict_jobs_is_warned_of(server, tmp_path):
    """Any policy but noeviction loses jobs once memory is full; without a limit it cannot."""
    own = type(server)(server.binary, tmp_path)
    own.start()
    try:
        with connect(own.url) as client:
            assert advice(client) == []
            client.config_set("maxmemory-policy", "allkeys-lru")
            assert advice(client) == []
            client.config_set("maxmemory", 1 << 30)
            (sentence,) = advice(client)
            assert "allkeys-lru" in sentence
            assert "set it to noeviction" in sentence
    finally:
        own.stop()
