"""Connections: finite, explained, and silent about passwords."""

from __future__ import annotations

import pytest
import redis

from halp_producer import server as server_module
from halp_producer.server import (
    ServerError,
    advice,
    connect,
    connect_exact,
    explained,
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


def test_an_exact_connection_sends_each_command_once(server):
    """It answered already, repeats nothing, and its timeouts are finite."""
    with connect_exact(server.url) as client:
        settings = client.connection_pool.connection_kwargs
        assert settings["retry"].get_retries() == 0
        assert settings["socket_timeout"] == server_module.REQUEST_TIMEOUT_S
        assert 0 < settings["socket_connect_timeout"] < 60
        assert client.ping()
    with pytest.raises(ServerError, match="connection refused"):
        connect_exact("redis://127.0.0.1:1/0")


def test_requests_are_repeated_a_few_times_with_finite_timeouts(server):
    """What goes over this connection may happen twice."""
    with connect(server.url) as client:
        settings = client.connection_pool.connection_kwargs
        assert 0 < settings["retry"].get_retries() <= 5
        assert settings["socket_timeout"] == server_module.REQUEST_TIMEOUT_S


def test_a_server_that_may_evict_jobs_is_warned_of(server, tmp_path):
    """An allkeys policy loses jobs once memory is full; others cannot, no key of a run expires."""
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
            client.config_set("maxmemory-policy", "volatile-lru")
            assert advice(client) == []
    finally:
        own.stop()


def test_a_server_without_a_log_is_warned_of(server, tmp_path):
    """A restart would forget the queue; said with what stays and what to do."""
    own = type(server)(server.binary, tmp_path)
    own.start()
    try:
        with connect(own.url) as client:
            assert advice(client) == []
            client.config_set("appendonly", "no")
            (sentence,) = advice(client)
            assert "appendonly no" in sentence
            assert "what is stored stays, enqueue again" in sentence
    finally:
        own.stop()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (redis.ResponseError("MISCONF Redis is configured to save"), "cannot write to its disk"),
        (redis.ResponseError("NOREPLICAS Not enough good replicas"), "too few replicas"),
        (redis.ResponseError("READONLY You can't write"), "read-only replica; name the primary"),
        (redis.ReadOnlyError("You can't write"), "read-only replica; name the primary"),
        (redis.BusyLoadingError("Redis is loading"), "still loading its data; try again"),
        (redis.ResponseError("LOADING Redis is loading"), "still loading its data; try again"),
        (redis.ResponseError("MASTERDOWN Link with MASTER"), "lost its primary"),
        (redis.OutOfMemoryError("command not allowed"), "out of memory and refused"),
        (redis.ResponseError(f"no {SECRET} here"), "refused: no *** here"),
        (redis.ConnectionError(f"at {SECRET}"), "(at ***)"),
        (redis.TimeoutError("Timeout reading"), "(timeout reading)"),
    ],
)
def test_what_a_server_refuses_is_one_sentence(error, said):
    """Which server, what is wrong with it, what to do; and never the password."""
    text = str(explained(error, f"redis://me:{SECRET}@h:1/0"))
    assert "redis://me:***@h:1/0" in text
    assert said in text
    assert SECRET not in text
    assert "\n" not in text


def test_a_server_that_cannot_save_is_explained(server, run, tmp_path):
    """The sentence is for the error that a real server sends, out of a script too."""
    own = type(server)(server.binary, tmp_path)
    own.start()
    try:
        with connect(own.url) as client:
            client.config_set("min-replicas-to-write", 1)
            with pytest.raises(redis.RedisError) as caught:
                client.hset(run, "a", "b")
            assert "too few replicas" in str(explained(caught.value, own.url))
            with pytest.raises(redis.RedisError) as caught:
                client.eval("return redis.call('HSET', KEYS[1], 'a', 'b')", 1, run)
            assert "too few replicas" in str(explained(caught.value, own.url))
    finally:
        own.stop()
