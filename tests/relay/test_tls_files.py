"""What a relay by TLS refuses to start with, and the files that it reads before it gives up its rights."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from gevent.hub import get_hub

from gnar_lib import net
from gnar_lib.errors import UsageError
from gnar_lib.relay import RelaySettings, run_relay
from gnar_lib.transport.tls import TlsConn
from tests.helpers.onefile import needs_root
from tests.helpers.relays import TIMEOUT_S, read_all, serving
from tests.helpers.tls_relays import (
    LISTEN,
    LOOPBACK,
    answering,
    at,
    server_context,
    user_context,
)

ROOT = Path(__file__).resolve().parent.parent.parent


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
