"""A relay by TLS, to users and to a target; socat is the peer where a program of somebody else matters."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from gevent.hub import get_hub

from gnar_lib import net
from gnar_lib.errors import ConnClosed, ConnError, UsageError
from gnar_lib.relay import Relay, RelaySettings, run_relay, secure
from gnar_lib.transport.tls import TlsConn
from gnar_lib.transport.x509 import fingerprint_of
from tests.helpers.certificates import make_certificate, openssl
from tests.helpers.loop import turn, wait_until
from tests.helpers.onefile import needs_root
from tests.helpers.relays import TIMEOUT_S, Service, ask, dial, read_all, relaying, serving

ROOT = Path(__file__).resolve().parent.parent.parent
LOOPBACK = "127.0.0.1"
LISTEN = f"tls-listen:{LOOPBACK}:0"
needs_socat = pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make certificates, and return their folder. No test may change a file there."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificate(folder / "server.pem", "localhost")
    make_certificate(folder / "other.pem", "other.example")
    make_certificate(folder / "user.pem", "some.user")
    openssl("pkey", "-in", folder / "server.pem", "-out", folder / "server.key")
    return folder


def server_context(made: Path, name: str = "server.pem") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made / name)
    return context


def user_context(cert: Path | None = None) -> ssl.SSLContext:
    """Return settings of a user who takes any server, and shows a certificate if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if cert is not None:
        context.load_cert_chain(cert)
    return context


@contextmanager
def by_tls(running: Relay, context: ssl.SSLContext | None = None) -> Iterator[TlsConn]:
    """Connect as a user by TLS for the block."""
    conn = dial(running)
    try:
        tls = TlsConn.connect(conn, context or user_context(), "localhost")
    except BaseException:
        conn.close()
        raise
    with closing(tls):
        yield tls


def ask_by_tls(running: Relay, context: ssl.SSLContext | None = None, question: bytes = b"question") -> bytes:
    """Send a question, end this direction, and return the answer."""
    with by_tls(running, context) as user:
        user.sendall(question)
        user.shutdown(socket.SHUT_WR)
        return read_all(user)


def answering(context: ssl.SSLContext, seen: list[TlsConn] | None = None) -> Callable[[net.SocketConn], None]:
    """Return a service that shakes hands, reads to the end, and then answers."""

    def handle(conn: net.SocketConn) -> None:
        with closing(TlsConn.accept(conn, context)) as tls:
            if seen is not None:
                seen.append(tls)
            tls.sendall(b"answer to " + read_all(tls))

    return handle


def at(service: Service, form: str) -> str:
    """Return the address of a service, put into the form of an address of a target."""
    return form.format(port=service.listener.port)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings, without ports that change."""
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


# ---- users by TLS ------------------------------------------------------------------------------------------


def test_users_by_tls_reach_a_service_without_and_both_directions_end_by_themselves(made: Path) -> None:
    for listen in (f"tls-listen:0,cert={made}/server.crt,key={made}/server.key", "tls-listen:0"):
        with serving() as service, relaying(listen, service.address) as running:
            assert ask_by_tls(running) == b"answer to question"
            assert ask_by_tls(running, question=b"x" * 1_000_000) == b"answer to " + b"x" * 1_000_000


def test_certificate_that_a_relay_makes_is_logged_and_can_be_pinned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gnar")
    with serving() as service, relaying(LISTEN, service.address) as running:
        (line,) = [each for each in caplog.messages if "SHA-256" in each]
        fingerprint = line.partition("SHA-256 ")[2][:64]
        with by_tls(running) as user:
            assert user.certificate == fingerprint
        colons = ":".join(fingerprint[place : place + 2] for place in range(0, 64, 2)).upper()
        for pin in (fingerprint, colons):
            target = f"tls:localhost:{running.listener.port},fingerprint={pin}"
            with relaying(f"tcp:{LOOPBACK}:0", target) as in_front:
                assert ask(in_front) == b"answer to question"


def test_target_is_not_dialled_before_the_handshake_and_one_who_is_slow_holds_nobody_up() -> None:
    with serving() as service, relaying(LISTEN, service.address) as running:
        silent, slow = dial(running), dial(running)
        slow.sendall(b"\x16\x03\x01")
        wait_until(lambda: len(running.users) == 2, "both are waited for")
        turn()
        assert not service.conns
        assert ask_by_tls(running) == b"answer to question"
        assert len(service.conns) == 1
        silent.close()
        slow.close()


def test_handshake_has_a_deadline(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(secure, "HANDSHAKE_S", 0.05)
    with serving() as service, relaying(LISTEN, service.address) as running:
        for sent in (b"", b"\x16\x03\x01"):
            with closing(dial(running)) as user, suppress(ConnClosed):
                user.sendall(sent)
                assert user.recv(1) == b""
        assert not service.conns
    (line,) = warnings(caplog)
    assert line.endswith(": the TLS handshake took longer than 0.05 s; the user is turned away")


def test_user_who_says_nothing_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as service, relaying(LISTEN, service.address) as running:
        dial(running).close()
        wait_until(lambda: not len(running.users), "the user is forgotten")
        assert not service.conns
    assert warnings(caplog) == []


def test_users_who_speak_no_tls_are_told_and_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as service, relaying(LISTEN, service.address) as running:
        for _ in range(3):
            with closing(dial(running)) as user:
                user.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert user.recv(12) == b"HTTP/1.1 400"
        assert not service.conns
    (line,) = warnings(caplog)
    assert line.endswith(": this is no TLS; the user is turned away")


@pytest.mark.parametrize(
    ("options", "cert", "said"),
    [
        ("cafile={made}/user.crt", "user.pem", ""),
        ("cafile={made}/user.crt", None, "TLS: peer did not return a certificate"),
        ("cafile={made}/user.crt", "other.pem", "TLS: certificate verify failed: self-signed certificate"),
        ("cafile={made}/user.crt,commonname=some.user", "user.pem", ""),
        (
            "cafile={made}/user.crt,commonname=x",
            "user.pem",
            "the certificate is for some.user, not for x",
        ),
        ("cafile={made}/user.crt,commonname=x,verify=0", None, ""),
        ("verify", "user.pem", "TLS: certificate verify failed: self-signed certificate"),
        ("cn=some.user", None, "TLS: peer did not return a certificate"),
    ],
)
def test_certificates_of_users(
    made: Path, caplog: pytest.LogCaptureFixture, *, options: str, cert: str | None, said: str
) -> None:
    context = user_context(None if cert is None else made / cert)
    listen = f"{LISTEN},{options.format(made=made)}"
    with serving() as service, relaying(listen, service.address) as running:
        if said:
            with pytest.raises(ConnError):
                ask_by_tls(running, context)
            wait_until(lambda: not len(running.users), "the user is forgotten")
            assert not service.conns
            (line,) = warnings(caplog)
            assert line.endswith(f": {said}; the user is turned away")
        else:
            assert ask_by_tls(running, context) == b"answer to question"


def test_openssl_listen_asks_for_a_certificate_unless_told_otherwise(made: Path) -> None:
    listen = f"OPENSSL-LISTEN:0,cert={made}/server.pem,fork"
    with serving() as service:
        with relaying(listen, service.address) as running, pytest.raises(ConnError):
            ask_by_tls(running)
        with relaying(f"{listen},verify=0", service.address) as running:
            assert ask_by_tls(running) == b"answer to question"


def test_user_of_a_relay_without_fork_is_the_only_one(made: Path) -> None:
    listen = f"SSL-L:0,cert={made}/server.pem,verify=0,bind={LOOPBACK}"
    with serving() as service:
        with relaying(listen, service.address) as running:
            assert ask_by_tls(running) == b"answer to question"
            assert running.error is None
            assert running.listener.sock.fileno() < 0
        with relaying(f"{listen},min-version=TLS1.3", service.address) as running:
            old = user_context()
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(ConnError):
                ask_by_tls(running, old)
            wait_until(lambda: running.error, "the relay has failed")
            assert "TLS: unsupported protocol" in str(running.error)


def test_newest_version_can_be_limited() -> None:
    with serving() as service, relaying(f"{LISTEN},max-version=TLS1.2", service.address) as running:
        new = user_context()
        new.minimum_version = ssl.TLSVersion.TLSv1_3
        with pytest.raises(ConnError, match="TLS: tlsv1 alert protocol version"):
            ask_by_tls(running, new)
        assert ask_by_tls(running) == b"answer to question"


def test_new_certificate_is_used_while_the_relay_runs(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure, "READ_CERTIFICATES_EVERY_S", 0.02)
    path = tmp_path / "cert.pem"
    shutil.copy(made / "server.pem", path)

    def is_shown(name: str) -> bool:
        with by_tls(running) as user:
            return user.certificate == fingerprint_of((made / name).read_bytes())

    with serving() as service, relaying(f"{LISTEN},cert={path}", service.address) as running:
        assert is_shown("server.pem")
        shutil.copy(made / "other.pem", tmp_path / "new")
        (tmp_path / "new").rename(path)
        wait_until(lambda: is_shown("other.pem"), "the new certificate is used")


# ---- a target by TLS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "cert", "said"),
    [
        ("tls:localhost:{port},cafile={made}/server.crt", "server.pem", ""),
        ("tls:localhost:{port}", "server.pem", "TLS: certificate verify failed: self-signed certificate"),
        ("OPENSSL:localhost:{port}", "server.pem", "TLS: certificate verify failed: self-signed certificate"),
        ("tls:localhost:{port},verify=0", "server.pem", ""),
        ("SSL:localhost:{port},verify=0,commonname=x", "server.pem", ""),
        (
            "tls:localhost:{port},cafile={made}/other.crt",
            "other.pem",
            "TLS: certificate verify failed: Hostname mismatch, certificate is not valid for 'localhost'.",
        ),
        (
            "OPENSSL-CONNECT:localhost:{port},cafile={made}/other.crt",
            "other.pem",
            "the certificate is for other.example, not for localhost",
        ),
        ("tls:localhost:{port},cafile={made}/other.crt,commonname=other.example", "other.pem", ""),
        (
            "tls:localhost:{port},cafile={made}/other.crt,cn=x,snihost=localhost",
            "other.pem",
            "the certificate is for other.example, not for x",
        ),
        ("tls:localhost:{port},cafile={made}/other.crt,commonname=", "other.pem", ""),
        ("tls:localhost:{port},fingerprint={pin}", "server.pem", ""),
        (
            "tls:localhost:{port},fingerprint={pin}",
            "other.pem",
            "the certificate has the SHA-256 {other}, not that of fingerprint=",
        ),
        (
            "tls:localhost:{port},fingerprint={pin},verify",
            "server.pem",
            "TLS: certificate verify failed: self-signed certificate",
        ),
    ],
)
def test_certificates_of_a_target(
    made: Path, caplog: pytest.LogCaptureFixture, *, target: str, cert: str, said: str
) -> None:
    pins = {
        "pin": fingerprint_of((made / "server.crt").read_bytes()),
        "other": fingerprint_of((made / "other.crt").read_bytes()),
    }
    heard: list[TlsConn] = []
    with serving(answering(server_context(made, cert), heard)) as service:
        address = target.format(port=service.listener.port, made=made, **pins)
        with relaying(f"tcp:{LOOPBACK}:0", address) as running:
            if said:
                with pytest.raises(ConnError):
                    ask(running)
                (line,) = warnings(caplog)
                expected = f"{LOOPBACK}:{service.listener.port}: {said.format(**pins)}; users are turned away"
                assert line == expected
            else:
                assert ask(running) == b"answer to question"
                assert ask(running, b"x" * 1_000_000) == b"answer to " + b"x" * 1_000_000


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("", "localhost"),
        ("nosni", ""),
        ("snihost=a.example", "a.example"),
        ("commonname=b.example", "b.example"),
        ("commonname=b.example,openssl-snihost=a.example", "a.example"),
        ("commonname=", "localhost"),
    ],
)
def test_name_that_a_target_is_asked_for(made: Path, options: str, name: str) -> None:
    seen: list[TlsConn] = []
    with serving(answering(server_context(made), seen)) as service:
        target = at(service, f"OPENSSL:localhost:{{port}},verify=0,{options}".rstrip(","))
        with relaying(f"tcp:{LOOPBACK}:0", target) as running:
            assert ask(running) == b"answer to question"
    assert [each.server_name for each in seen] == [name]


def test_target_gets_a_certificate_of_this_end(made: Path) -> None:
    context = server_context(made)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(made / "user.crt")
    seen: list[TlsConn] = []
    with serving(answering(context, seen)) as service:
        target = at(service, f"tls:localhost:{{port}},verify=0,cert={made}/user.pem")
        with relaying(f"tcp:{LOOPBACK}:0", target) as running:
            assert ask(running) == b"answer to question"
        (tls,) = seen
        assert tls.peer_certificate == ssl.PEM_cert_to_DER_cert((made / "user.crt").read_text())


def test_target_that_misses_a_certificate_behind_the_handshake_is_one_line(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = server_context(made)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(made / "user.crt")
    with serving(answering(context)) as service:
        target = at(service, "tls:localhost:{port},verify=0")
        with relaying(f"tcp:{LOOPBACK}:0", target) as running:
            for _ in range(2):
                with pytest.raises(ConnError):
                    ask(running)
    (line,) = warnings(caplog)
    assert line == f"{LOOPBACK}:{service_port(target)}: TLS: tlsv13 alert certificate required"


def test_target_that_is_tried_again_is_tried_again_when_the_handshake_fails(made: Path) -> None:
    contexts = [server_context(made, "other.pem"), server_context(made)]

    def handle(conn: net.SocketConn) -> None:
        answering(contexts.pop(0))(conn)

    with serving(handle) as service:
        target = at(service, f"OPENSSL:localhost:{{port}},cafile={made}/server.crt,retry=1,interval=0.1")
        with relaying(f"tcp:{LOOPBACK}:0", target) as running:
            assert ask(running) == b"answer to question"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "the other end has gone in the handshake of TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "TLS: this is SSH"),
    ],
)
def test_target_that_speaks_no_tls_is_one_line(
    caplog: pytest.LogCaptureFixture, answer: bytes, said: str
) -> None:
    def handle(conn: net.SocketConn) -> None:
        conn.recv(2000)
        conn.sendall(answer)

    with serving(handle) as service:
        target = at(service, "tls:localhost:{port},verify=0")
        with relaying(f"tcp:{LOOPBACK}:0", target) as running:
            for _ in range(3):
                with pytest.raises(ConnError):
                    ask(running)
    (line,) = warnings(caplog)
    assert line == f"{LOOPBACK}:{service_port(target)}: {said}; users are turned away"


def service_port(target: str) -> int:
    return int(target.partition(",")[0].rpartition(":")[2])


def test_target_that_never_answers_the_handshake_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(secure, "HANDSHAKE_S", 0.05)
    with serving(lambda conn: conn.sendall(read_all(conn))) as service:
        target = at(service, "tls:localhost:{port}")
        with relaying(f"tcp:{LOOPBACK}:0", target) as running, pytest.raises(ConnError):
            ask(running)
    (line,) = warnings(caplog)
    assert line.endswith(": the TLS handshake took longer than 0.05 s; users are turned away")


# ---- what is cut off ---------------------------------------------------------------------------------------


def test_user_who_is_cut_off_is_no_end_for_the_service() -> None:
    errors: list[ConnError] = []

    def handle(conn: net.SocketConn) -> None:
        with pytest.raises(ConnError) as caught:
            read_all(conn)
        errors.append(caught.value)

    with serving(handle) as service, relaying(LISTEN, service.address) as running:
        conn = dial(running)
        user = TlsConn.connect(conn, user_context(), "localhost")
        user.sendall(b"a part")
        conn.shutdown(socket.SHUT_WR)  # of TCP, but not of TLS
        wait_until(lambda: errors, "the service has noticed")
        with pytest.raises(ConnError):
            user.recv(1)
        user.close()


def test_target_that_is_cut_off_is_no_end_for_the_user(made: Path) -> None:
    def handle(conn: net.SocketConn) -> None:
        tls = TlsConn.accept(conn, server_context(made))
        tls.sendall(b"a part")
        conn.shutdown(socket.SHUT_WR)
        tls.recv(1)

    with serving(handle) as service:
        target = at(service, "tls:localhost:{port},verify=0")
        with (
            relaying(f"tcp:{LOOPBACK}:0", target) as running,
            closing(dial(running)) as user,
            pytest.raises(ConnError),
        ):
            read_all(user)


# ---- files and rights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "target", "said"),
    [
        (f"{LISTEN},cert=/none.pem", "tcp:1", "/none.pem: cannot read it: No such file or directory"),
        (f"{LISTEN},cert={{made}}/server.crt", "tcp:1", "in PEM form; name the key's file with key="),
        (f"{LISTEN},cafile=/none.pem", "tcp:1", "/none.pem: cannot read it: No such file or directory"),
        (f"{LISTEN},cafile={{made}}/server.key", "tcp:1", "/server.key: there is no certificate in PEM form"),
        ("tcp:0", "tls:1,capath=/none", "/none: cannot read it: No such file or directory"),
        ("tcp:0", "tls:1,cert=/none.pem", "/none.pem: cannot read it: No such file or directory"),
        ("tcp:0", "tls:1,cert={made}/user.crt,key={made}/server.key", "server.key: the key does not fit the"),
    ],
)
def test_file_that_cannot_be_used_is_one_line_and_nothing_listens(
    made: Path, listen: str, target: str, said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        run_relay(listen.format(made=made), target.format(made=made), RelaySettings(0.0))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", ["tcp:localhost:{0}", "tls:{0}", "OPENSSL:127.0.0.1:{0}"])
def test_relay_to_itself_is_refused_with_tls_as_well(target: str) -> None:
    with pytest.raises(UsageError, match="would be a relay to itself"):
        run_relay("tls-listen:47123", target.format(47123), RelaySettings(0.0))


def test_python_without_tls_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gnar_lib.relay.secure", None)
    for listen, target in ((LISTEN, "tcp:1"), ("tcp:0", "tls:1")):
        with pytest.raises(UsageError, match="this Python has no TLS"):
            run_relay(listen, target, RelaySettings(0.0))


RUN_AND_TELL = """
import sys
from gnar_lib.relay import RelaySettings, accounts, run_relay, serve
become, before = accounts.Account.become, set()
def note(account):
    become(account)
    before.update(sys.modules)
accounts.Account.become = note
port = serve._listening_on
serve._listening_on = lambda address, listener: print(listener.port, flush=True) or port(address, listener)
run_relay(sys.argv[1], sys.argv[2], RelaySettings(1.0))
print(sorted({*sys.modules} - before))
"""


@needs_root
def test_rights_are_given_up_once_the_key_was_read(made: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    shutil.copy(made / "server.pem", key)
    key.chmod(0o600)
    listen = f"OPENSSL-LISTEN:0,bind={LOOPBACK},cert={key},verify=0,fork,su=nobody"
    context = server_context(made)
    with serving(answering(context)) as service:
        target = at(service, f"OPENSSL:localhost:{{port}},cafile={made}/server.crt")
        running = subprocess.Popen(
            [sys.executable, "-c", RUN_AND_TELL, listen, target],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stdout is not None
        port = int(get_hub().threadpool.apply(running.stdout.readline))
        conn = net.dial(socket.AF_INET, (LOOPBACK, port))
        with closing(TlsConn.connect(conn, user_context(), "localhost")) as user:
            user.sendall(b"question")
            user.shutdown(socket.SHUT_WR)
            assert read_all(user) == b"answer to question"
        running.send_signal(signal.SIGTERM)
        out, err = get_hub().threadpool.apply(running.communicate, kwds={"timeout": TIMEOUT_S})
    assert out == "[]\n"  # a module may be in a folder that only root can read
    assert "Traceback" not in err


# ---- socat -------------------------------------------------------------------------------------------------


def run_socat(*line: str, said: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run socat with some text as its standard input, while the loop goes on."""
    return get_hub().threadpool.apply(
        subprocess.run,
        (["socat", "-t10", "-d", *line],),
        {"input": said, "capture_output": True, "timeout": TIMEOUT_S},
    )


@needs_socat
@pytest.mark.parametrize("version", ["TLS1.2", "TLS1.3"])
def test_socat_comes_to_a_relay(made: Path, version: str) -> None:
    listen = f"OPENSSL-LISTEN:0,bind={LOOPBACK},cert={made}/server.pem,cafile={made}/user.crt,fork"
    with serving() as service, relaying(listen, service.address) as running:
        address = f"OPENSSL:localhost:{running.listener.port},cafile={made}/server.crt,cert={made}/user.pem"
        run = run_socat("-", f"{address},openssl-max-proto-version={version}", said=b"question" * 10_000)
        assert run.stdout == b"answer to " + b"question" * 10_000, run.stderr
        assert run.returncode == 0


@needs_socat
def test_socat_sends_on_after_the_service_has_ended() -> None:
    heard: list[bytes] = []

    def speak_first(conn: net.SocketConn) -> None:
        conn.sendall(b"hello")
        conn.shutdown(socket.SHUT_WR)
        heard.append(read_all(conn))

    with serving(speak_first) as service, relaying(LISTEN, service.address) as running:
        client = subprocess.Popen(
            ["socat", "-t10", "-", f"OPENSSL:localhost:{running.listener.port},verify=0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client.stdout is not None
        assert get_hub().threadpool.apply(client.stdout.read, (5,)) == b"hello"
        get_hub().threadpool.apply(client.communicate, (b"later",), {"timeout": TIMEOUT_S})
        wait_until(lambda: heard, "the service has heard the end")
    assert heard == [b"later"]


@needs_socat
def test_relay_comes_to_socat(made: Path) -> None:
    with serving() as gone:
        port = gone.listener.port
    cert = f"cert={made}/server.pem,cafile={made}/user.crt"
    listening = subprocess.Popen(
        ["socat", f"OPENSSL-LISTEN:{port},bind={LOOPBACK},reuseaddr,fork,{cert}", "SYSTEM:sort"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        ends = f"cafile={made}/server.crt,cert={made}/user.pem,forever,interval=0.1"
        for target in (f"OPENSSL:localhost:{port},{ends}", f"tls:localhost:{port},{ends}"):
            with relaying(f"tcp:{LOOPBACK}:0", target) as running:
                lines = [b"%06d\n" % number for number in range(10_000)]
                assert ask(running, b"".join(reversed(lines))) == b"".join(lines)  # sorted behind the end
    finally:
        os.killpg(listening.pid, signal.SIGTERM)  # with a process for each user
        listening.wait(TIMEOUT_S)


@needs_socat
def test_socat_and_a_relay_refuse_the_same(made: Path) -> None:
    """A name that is not the server's, and a server that nobody has vouched for."""
    with serving() as service, relaying(f"{LISTEN},cert={made}/other.pem", service.address) as running:
        for options in (f"cafile={made}/other.crt", f"cafile={made}/server.crt", "commonname=other.example"):
            address = f"OPENSSL:localhost:{running.listener.port},{options}"
            assert run_socat("-", address, said=b"").returncode == 1
            with relaying(f"tcp:{LOOPBACK}:0", address) as second, pytest.raises(ConnError):
                ask(second)
        good = f"OPENSSL:localhost:{running.listener.port},cafile={made}/other.crt,cn=other.example"
        assert run_socat("-", good, said=b"question").stdout == b"answer to question"
        with relaying(f"tcp:{LOOPBACK}:0", good) as second:
            assert ask(second) == b"answer to question"
