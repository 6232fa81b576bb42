"""Whatever is wrong with a URL or a server: every command says it in a sentence, exit code 1."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import threading

import pytest
import redis
from typer.testing import CliRunner

from halp_producer.cli import app
from halp_producer.enqueue import Enqueuer
from halp_producer.server import connect_exact, redact
from halp_producer.server_url import UrlError, read_url
from halp_worker.cli import app as worker_app
from processes import Process

SECRET = "s3cret"
DEFAULTS = Enqueuer.__init__.__kwdefaults__


@pytest.fixture
def said():
    """`said(url, *command)`: the one sentence of a command that ends with exit code 1."""

    def run(url, *command, program=app):
        result = CliRunner().invoke(program, [*command, "--redis-url", url])
        assert result.exit_code == 1, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        text = result.stderr.strip() or result.output.strip()
        assert len(text.splitlines()) == 1, text
        assert SECRET not in text
        return text

    return run


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://h/0?foo=1", "unknown argument 'foo'"),
        ("redis://h/0?decode_responses=true", "unknown argument 'decode_responses'"),
        ("redis://h/0?retry_on_timeout=true", "unknown argument 'retry_on_timeout'"),
        ("redis://h/0?socket_timeout=abc", "socket_timeout is a number of seconds above 0"),
        ("redis://h/0?socket_timeout=-1", "socket_timeout is a number of seconds above 0"),
        ("redis://h/0?socket_connect_timeout=nan", "is a number of seconds above 0"),
        ("redis://h/0?socket_timeout=1e10", "seconds above 0, up to 1,000,000"),
        ("redis://h/0?protocol=9", "protocol is 2 or 3"),
        ("redis://h/0?health_check_interval=x", "host, port or an argument cannot be read"),
        ("redis://h/abc", "the database is a number"),
        ("redis://h/-1", "the database is a number"),
        ("redis://h/0/1", "the database is a number"),
        ("redis://h/0?db=x", "the database is a number"),
        ("redis://h:0/0", "no server has port 0"),
        ("redis://h:65536/0", "host, port or an argument cannot be read"),
        ("redis://h:-1/0", "host, port or an argument cannot be read"),
        ("redis://h/0?ssl_ca_certs=/x.pem", "ssl_ca_certs is for rediss:// alone"),
        ("rediss://h/0?ssl_ca_certs=/no/x.pem", "there is no such file"),
        ("unix://", "the path of the socket is missing"),
        ("unix:///s.sock?socket_keepalive=true", "an argument does not fit"),
        (f"redis://:pa?{SECRET}=x@h/0", "user and password must be URL-encoded"),
        (f"redis://:pa#{SECRET}@h:1/0", "no form of a server's URL"),
        ("redis://" + 70 * "a" + "/0", "the host cannot be read"),
        ("redis+sentinel://h1,h2", "expected redis+sentinel://"),
        ("redis+sentinel:///mymaster", "a host is missing"),
        ("redis+sentinel://h1,,h2/mymaster", "a host is missing"),
        ("redis+sentinel://h1:x/mymaster", "host, port or an argument cannot be read"),
        ("redis+sentinel://h1/mymaster/x", "expected redis+sentinel://"),
        ("redis+sentinel://h1/mymaster?foo=1", "unknown argument 'foo'"),
        ("redis+cluster://h1/1", "a cluster has no databases"),
        ("redis+cluster://h1?db=1", "a cluster has no databases"),
        ("unix+cluster:///s.sock", "a socket is no place"),
        ("http://h", "no form of a server's URL"),
    ],
)
def test_a_url_that_names_no_server_is_refused_with_what_is_wrong(said, url, reason):
    """Before anything is asked, and without the password."""
    text = said(url, "status")
    assert reason in text
    assert "cannot read the server's URL" in text


@pytest.mark.parametrize(
    ("program", "command"),
    [
        (app, ("status",)),
        (app, ("status", "--watch")),
        (app, ("cancel", "--all")),
        (app, ("failed", "list")),
        (app, ("failed", "show", "q1")),
        (app, ("failed", "retry", "--all")),
        (app, ("failed", "drop", "--all")),
        (worker_app, ("health",)),
    ],
)
def test_every_command_says_it_in_one_sentence(said, program, command):
    """The same sentence, whichever command was asked."""
    assert "unknown argument 'foo'" in said("redis://h/0?foo=1", *command, program=program)


def test_several_hosts_are_read_as_they_are_written():
    """Ports where they are named, user and password for the servers, the Sentinels' own apart."""
    place = read_url(
        f"rediss+sentinel://me:{SECRET}%40@[::1]:1,h2/my%20one/3?sentinel_password={SECRET}&protocol=2"
    )
    assert (place.kind, place.service, place.tls) == ("sentinel", "my one", True)
    assert place.hosts == (("::1", 1), ("h2", 26379))
    assert place.options == {
        **{"username": "me", "password": f"{SECRET}@", "db": 3, "protocol": 2},
    }
    assert place.sentinel_options == {"password": SECRET}
    assert read_url("redis+cluster://h1:7,h2").hosts == (("h1", 7), ("h2", 6379))
    with pytest.raises(UrlError):
        read_url("redis+cluster://")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+sentinel://h1:1,h2:2/svc/0", "redis+sentinel://h1:1,h2:2/svc/0"),
        (f"redis+sentinel://:{SECRET}@h1:1,h2/svc", "redis+sentinel://:***@h1:1,h2/svc"),
        (
            f"redis+sentinel://h1,h2/svc?sentinel_password={SECRET}",
            "redis+sentinel://h1,h2/svc?sentinel_password=***",
        ),
        (f"rediss+cluster://me:{SECRET}@h1:1", "rediss+cluster://me:***@h1:1"),
        (f"rediss://h1?ssl_password={SECRET}", "rediss://h1?ssl_password=***"),
    ],
)
def test_every_form_is_shown_without_its_passwords(url, shown):
    """Those of the servers, of the Sentinels and of the key."""
    assert redact(url) == shown


def test_a_socket_that_is_not_there_is_named(said, tmp_path):
    """With what the system says of it."""
    path = tmp_path / "no.sock"
    assert str(path) in said(f"unix://{path}", "status")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is a web server"),
        (b"<!DOCTYPE HTML>\r\n", "what answers there is a web server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-OpenSSH_9.2"),
        (b"-DENIED Redis is running in protected mode because\r\n", "local connections only"),
        (b"-ERR max number of clients reached\r\n", "raise its maxclients"),
        (b"-NOAUTH Authentication required.\r\n", "the server wants a password"),
        (b"-MOVED 1 10.0.0.1:7000\r\n", "redis+cluster://host:port"),
        (b"", "it may be another program's"),
    ],
)
def test_what_answers_and_is_no_server_for_us_is_told(said, answer, sentence):
    """Somebody named the port of another service, or the server takes nobody in."""

    class Other(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1)
            self.request.sendall(8 * answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        text = said(f"redis://127.0.0.1:{other.server_address[1]}/0", "status")
        other.shutdown()
    assert sentence in text


def test_a_number_of_a_database_that_the_server_lacks(server, said):
    """It says so, and not what a program would."""
    assert "no database of this number" in said(server.url.replace("/0", "/4711"), "status")


def test_a_key_of_another_type_is_named(server, client, run, said, tmp_path):
    """With what it is, and what it should be; out of a script and from a plain command."""
    key = f"halp:{{{run}}}:counts"
    client.set(key, "mine")
    text = said(server.url, "status", "--run", run)
    assert f"the key {key} is a string, expected a hash" in text
    assert "another program uses the names of this run" in text
    client.delete(key)
    client.set(f"halp:{{{run}}}:jobs", "mine")
    with connect_exact(server.url) as own, pytest.raises(redis.ResponseError) as caught:
        own.xlen(f"halp:{{{run}}}:jobs")
    assert f"halp:{{{run}}}:jobs is a string, expected a stream" in str(caught.value)


@pytest.fixture
def url_of(own):
    """`url_of(*rules)`: the URL of a user who may do this alone."""

    def make(*rules):
        with redis.Redis.from_url(own.url) as admin:
            admin.execute_command("ACL", "SETUSER", "u", "reset", "on", f">{SECRET}", *rules)
        return own.url.replace("//", f"//u:{SECRET}@")

    return make


@pytest.mark.parametrize(
    ("rules", "missing"),
    [
        (("~halp:*", "+@all", "-time"), "TIME"),
        (("~halp:*", "+@all", "-hlen"), "HLEN"),
        (("~halp:*", "+@all", "-ping"), "PING"),
        (("~halp:*", "+@all", "-evalsha"), "EVALSHA"),
        (("~halp:*", "+@all", "-xinfo"), "XINFO|CONSUMERS"),
        (("~other:*", "+@all"), "a key of EVALSHA: halp:{r}:jobs"),
    ],
)
def test_what_a_user_may_not_do_is_named(url_of, said, rules, missing):
    """The command, also one inside a script; or the keys. And where the ACL line is."""
    url = url_of(*rules)
    text = said(url, "status", "--run", "r")
    assert "this user may not do that: " in text
    assert missing in text
    assert "docs/server.md has the ACL line" in text


@pytest.mark.parametrize("command", ["HGETALL", "EVALSHA"])
def test_a_command_that_was_renamed_is_named(server, tmp_path, wait_until, said, command):
    """Out of a script and on its own."""
    own = type(server)(server.binary, tmp_path)
    (tmp_path / "halp.conf").write_text(f'rename-command {command} ""\n')
    with started(own, [str(tmp_path / "halp.conf")], wait_until):
        text = said(own.url, "status")
    assert f"does not know the command {command}" in text


def test_a_server_that_cannot_write_is_read_all_the_same(
    server, run, tmp_path, wait_until, said, monkeypatch
):
    """It answers MISCONF to PING, and to whatever writes."""
    folder, counts = tmp_path / "gone", f"halp:{{{run}}}:counts"
    folder.mkdir()
    own = type(server)(server.binary, folder)
    dataset = tmp_path / "d.jsonl"
    dataset.write_text('{"question_id": "a", "image": "a", "question": "?", "ground_truth": ""}')
    monkeypatch.setattr(Enqueuer.__init__, "__kwdefaults__", {**DEFAULTS, "patience_s": 0.0})
    with started(own, ["--save", "1000 1"], wait_until):
        with redis.Redis.from_url(own.url) as admin:
            admin.hset(counts, "enqueued", 0)
            folder.rmdir()
            admin.bgsave()
            wait_until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")
            with pytest.raises(redis.ResponseError, match="MISCONF"):
                admin.ping()
        result = CliRunner().invoke(app, ["status", "--run", run, "--redis-url", own.url])
        assert result.exit_code == 0, result.output
        result = CliRunner().invoke(
            app, ["enqueue", str(dataset), "--run", f"{run}2", "--redis-url", own.url]
        )
        assert result.exit_code == 1
        assert "cannot write to its disk" in result.stderr


@contextlib.contextmanager
def started(own, arguments, wait_until):
    """A server with options of its own, a configuration file first."""
    command = [
        *(own.binary, *arguments, "--bind", "127.0.0.1", "--port", str(own.port)),
        *("--dir", str(own.directory)),
    ]
    with Process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: listens(own.port))
            yield
        finally:
            process.kill()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
