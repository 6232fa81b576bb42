"""Servers that speak TLS: what is right connects, what is wrong is one sentence without secrets."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import trustme

from halp_producer import server as server_module
from halp_producer.server import ServerError, connect, connect_exact
from processes import Process

SECRET = "s3cret"


@dataclass(frozen=True)
class TlsServer:
    """Its ports, the file of the authority that signed it, and that of one that did not."""

    plain: int
    tls: int
    authority: Path
    stranger: Path

    def url(self, scheme: str, port: int, *, secret: str = SECRET, ca: Path | None = None) -> str:
        trust = f"?ssl_ca_certs={ca}" if ca else ""
        return f"{scheme}://:{secret}@127.0.0.1:{port}/0{trust}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def tls(server, tmp_path, wait_until) -> Iterator[TlsServer]:
    """A server of our own with a password, a plain port and a TLS port."""
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "other", "key", "cert")}
    authority.cert_pem.write_to_path(files["ca"])
    stranger.cert_pem.write_to_path(files["other"])
    certificate.private_key_pem.write_to_path(files["key"])
    certificate.cert_chain_pems[0].write_to_path(files["cert"])
    plain, port = free_port(), free_port()
    command = [
        *(server.binary, "--bind", "127.0.0.1", "--port", str(plain), "--tls-port", str(port)),
        *("--tls-cert-file", str(files["cert"]), "--tls-key-file", str(files["key"])),
        *("--tls-ca-cert-file", str(files["ca"]), "--tls-auth-clients", "no"),
        *("--requirepass", SECRET, "--save", "", "--dir", str(tmp_path)),
    ]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait_until(lambda: process.poll() is not None or listens(port))
            if process.poll() is not None:
                said = process.stdout.read().decode(errors="replace")
                if "tls" not in said.lower():
                    pytest.fail(said)
                pytest.skip(f"{Path(server.binary).name} was built without TLS")
            yield TlsServer(plain, port, files["ca"], files["other"])
        finally:
            process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("how", [connect, connect_exact])
def test_a_trusted_server_and_the_right_password_connect(tls, how):
    """Over TLS, and commands go through."""
    with how(tls.url("rediss", tls.tls, ca=tls.authority)) as client:
        assert client.ping()
        assert client.set("a", "b")


def refused(how, url: str) -> str:
    with pytest.raises(ServerError) as caught:
        how(url)
    text = str(caught.value)
    assert SECRET not in text
    assert "\n" not in text
    assert ":***@127.0.0.1:" in text
    return text


@pytest.mark.parametrize("how", [connect, connect_exact])
def test_what_is_wrong_about_tls_is_told_apart(tls, how, monkeypatch):
    """Authority, password, and TLS spoken to the wrong port; each with what to do."""
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT_S", 1.0)
    for ca in (tls.stranger, None):
        text = refused(how, tls.url("rediss", tls.tls, ca=ca))
        assert "certificate is not trusted" in text
        assert "?ssl_ca_certs=FILE" in text
    text = refused(how, tls.url("rediss", tls.tls, secret=SECRET + "x", ca=tls.authority))
    assert "wrong user name or password" in text
    assert "rediss:// if this port speaks TLS" in refused(how, tls.url("redis", tls.tls))
    text = refused(how, tls.url("rediss", tls.plain, ca=tls.authority))
    assert "redis:// if this port does not speak TLS" in text


def test_an_answer_that_is_not_tls_is_said(monkeypatch):
    """A server that answers in plain text at once, as OpenSSL reports it."""
    error = redis.ConnectionError(
        "Error 1 connecting to h:1. [SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1000)."
    )
    text = str(server_module.explained(error, f"rediss://:{SECRET}@h:1"))
    assert text == (
        "rediss://:***@h:1: this port does not speak TLS: use redis:// or the server's TLS port"
    )
