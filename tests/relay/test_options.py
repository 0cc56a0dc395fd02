"""What the options of an address do, in this process; those that need root start one of their own."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gevent
import pytest

from gnar_lib import net
from gnar_lib.errors import ConnError, DialError, ListenError, PortTakenError, UsageError
from gnar_lib.net import place
from gnar_lib.net.options import SocketOption
from gnar_lib.relay import (
    DatagramRelay,
    Relay,
    RelaySettings,
    Role,
    SocatOptions,
    UdpSettings,
    datagrams,
    parse_address,
    run_relay,
    serve,
    take_options,
)
from gnar_lib.relay.socat import NO_OPTIONS
from tests.helpers.datagrams import EchoService, udp_user
from tests.helpers.loop import turn, wait_until
from tests.helpers.onefile import needs_root
from tests.helpers.relays import TIMEOUT_S, ask, dial, read_all, relaying, serving

ROOT = Path(__file__).resolve().parent.parent.parent
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="these options are Linux'")


# ---- who may come, and how many ----------------------------------------------------------------------------


def is_turned_away(running: Relay, source: str) -> bool:
    """Tell whether a user from the address `source` is hung up on."""
    user = net.dial(socket.AF_INET, ("127.0.0.1", running.listener.port), source=source)
    gone = user.recv(1) == b""
    user.close()
    return gone


@LINUX_ONLY
@pytest.mark.parametrize("listen", ["TCP-LISTEN:0,fork", "TCP4-LISTEN:0"])
def test_a_user_outside_the_range_is_turned_away_and_others_are_served(
    listen: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as service, relaying(f"{listen},range=127.0.0.1/32", service.address) as running:
        assert is_turned_away(running, "127.0.0.2")
        assert not service.conns
        assert ask(running) == b"answer to question"
    assert "127.0.0.2" in caplog.text
    assert "is outside the range and turned away" in caplog.text


@LINUX_ONLY
def test_datagrams_from_outside_the_range_are_dropped_and_counted() -> None:
    settings = "UDP4-LISTEN:0,range=127.0.0.1/32"
    with closing(EchoService()) as service, closing(datagram_relay(settings, service.port)) as running:
        for source in ("127.0.0.2", "127.0.0.1"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
                user.bind((source, 0))
                user.sendto(source.encode(), ("127.0.0.1", running.listener.port))
                wait_until(lambda: len(service.heard) + running.meter.dropped, "it is handled")
        wait_until(lambda: service.heard, "the service has heard the user")
        assert [payload for payload, _ in service.heard] == [b"127.0.0.1"]
        assert running.meter.dropped == 1


def datagram_relay(listen: str, port: int, socat: SocatOptions = NO_OPTIONS) -> DatagramRelay:
    """Return a relay of datagrams to a port of this host."""
    target = parse_address(f"udp:127.0.0.1:{port}", Role.TARGET)
    return DatagramRelay(parse_address(listen, Role.LISTEN), target, UdpSettings(), socat)


@pytest.mark.parametrize(
    ("settings", "idle_s", "expected_s"),
    [
        (UdpSettings(), 0.0, 60.0),
        (UdpSettings(any_source=True), 5.0, 5.0),
        (UdpSettings(timeout_s=60.0), 5.0, 60.0),
    ],
)
def test_idle_time_of_socat_is_that_of_sessions_unless_our_own_flag_says_more(
    settings: UdpSettings, idle_s: float, expected_s: float
) -> None:
    listen, target = (
        parse_address("udp:127.0.0.1:0", Role.LISTEN),
        parse_address("udp:127.0.0.1:9", Role.TARGET),
    )
    with closing(DatagramRelay(listen, target, settings, SocatOptions(idle_s))) as running:
        assert running.sessions._conns.timeout_s == expected_s


@LINUX_ONLY
@pytest.mark.parametrize("listen", ["TCP-LISTEN:0", "UDP-LISTEN:0", "UNIX-LISTEN:x.sock"])
def test_option_that_the_system_refuses_is_named(
    listen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    option = SocketOption("keepcnt", socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 128)  # 127 is the most
    address = replace(parse_address(f"{listen},fork", Role.LISTEN), options=(option,))
    listen_at = serve._listen if listen[:3] != "UDP" else datagrams._bind
    with pytest.raises(ListenError, match=r"cannot listen on .*: option keepcnt: "):
        listen_at(address)


def test_option_that_the_system_refuses_is_named_where_it_dials() -> None:
    option = SocketOption("nonsense", socket.SOL_SOCKET, 0xFFFF, 1)
    with serving() as service:
        target = replace(parse_address(service.address, Role.TARGET), options=(option,))
        with pytest.raises(DialError, match="option nonsense: "):
            serve._target(target).dial()


def test_one_way_answers_no_datagram() -> None:
    socat = SocatOptions(silent=Role.LISTEN)
    with (
        closing(EchoService()) as service,
        closing(datagram_relay("udp:127.0.0.1:0", service.port, socat)) as running,
        udp_user() as user,
    ):
        user.sendto(b"question", ("127.0.0.1", running.listener.port))
        wait_until(lambda: service.heard, "the service has heard the user")
        turn()
        user.setblocking(False)
        with pytest.raises(BlockingIOError):
            user.recv(1)


def test_more_users_than_max_children_wait_until_one_has_left() -> None:
    with serving() as service, relaying("TCP-LISTEN:0,fork,max-children=2", service.address) as running:
        users = [dial(running) for _ in range(4)]
        wait_until(lambda: len(service.conns) == 2, "two are served")
        turn()
        assert len(service.conns) == len(running.users) == 2
        for number, user in enumerate(users):
            user.sendall(b"%d" % number)
            user.shutdown(socket.SHUT_WR)
            assert read_all(user) == b"answer to %d" % number
            user.close()
        wait_until(lambda: not len(running.users), "nobody is left")
        assert ask(running) == b"answer to question"


# ---- again and again ---------------------------------------------------------------------------------------


def free_port() -> int:
    """Return a port on which nobody listens."""
    with serving() as gone:
        return gone.listener.port


def test_a_user_waits_while_the_target_is_tried_again() -> None:
    port = free_port()
    with relaying("tcp:127.0.0.1:0", f"TCP:127.0.0.1:{port},forever,interval=0.1") as running:
        asking = gevent.spawn(ask, running)
        wait_until(lambda: running._refused.is_on, "the target has refused")
        with serving(listener=net.listen("127.0.0.1", port)):
            assert asking.get(timeout=TIMEOUT_S) == b"answer to question"


def test_attempts_end_when_there_were_as_many_as_said() -> None:
    attempts: list[int] = []

    class Down:
        def dial(self) -> net.SocketConn:
            attempts.append(1)
            raise DialError("down")

    with relaying("tcp:127.0.0.1:0", "TCP:127.0.0.1:1,retry=2,interval=0.1") as running:
        running._target = Down()
        with pytest.raises(ConnError):
            ask(running)
    assert len(attempts) == 3


def test_a_user_who_has_left_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HALF_CLOSED_WAIT_S", 0.0)
    with relaying("tcp:127.0.0.1:0", f"TCP:127.0.0.1:{free_port()},forever,interval=0.1") as running:
        user = dial(running)
        wait_until(lambda: len(running.users), "the user waits")
        user.close()
        wait_until(lambda: not len(running.users), "the user is forgotten")


def test_a_target_whose_name_is_unknown_at_the_start_is_looked_up_for_users_if_it_is_to_be_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    with serving() as service:
        port = service.listener.port

        def resolve(*_: object) -> list[tuple[int, net.Sockaddr]]:
            asked.append(1)
            if len(asked) < 3:
                raise DialError("cannot resolve")
            return [(socket.AF_INET, ("127.0.0.1", port))]

        monkeypatch.setattr(place, "resolve", resolve)
        with relaying("tcp:127.0.0.1:0", "TCP:late.example:80,retry=9,interval=0.1") as running:
            assert ask(running) == b"answer to question"
    assert len(asked) == 3


def test_listening_is_tried_again_while_another_has_the_port(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as service:
        other = net.listen("127.0.0.1", 0)
        gevent.spawn_later(0.05, other.close)
        listen = f"TCP-LISTEN:{other.port},bind=127.0.0.1,fork,retry=50,interval=0.1"
        with relaying(listen, service.address) as running:
            assert ask(running) == b"answer to question"
    assert caplog.text.count("is already in use; tried again every 0.1 s") == 1
    with serving() as service:
        listen = f"TCP-LISTEN:{service.listener.port},bind=127.0.0.1,fork,retry=1,interval=0.1"
        with pytest.raises(PortTakenError), relaying(listen, "tcp:1"):
            pass


def test_connect_timeout_ends_an_attempt(tmp_path: Path) -> None:
    full = net.listen_unix(f"{tmp_path}/x.sock")
    full.sock.listen(0)
    waiting = net.dial(socket.AF_UNIX, f"{tmp_path}/x.sock")
    target_text = f"UNIX-CONNECT:{tmp_path}/x.sock,connect-timeout=0.1"
    with relaying("tcp:127.0.0.1:0", target_text) as running, pytest.raises(ConnError):
        ask(running)
    waiting.close()
    full.close()


# ---- what the kernel does ----------------------------------------------------------------------------------


@LINUX_ONLY
def test_options_of_the_kernel_are_those_of_the_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "keepalive,keepidle=11,keepintvl=12,keepcnt=3,nodelay=0,tos=16,ttl=33,reuseport"
    with (
        serving() as service,
        relaying(f"TCP4-LISTEN:0,fork,{said}", f"TCP4:127.0.0.1:{service.listener.port},{said}") as running,
    ):
        sockets: list[socket.socket] = []
        may_come, dialled = running._may_come, running._target.dial

        def note_user(user: net.SocketConn) -> bool:
            sockets.append(user.sock)
            return may_come(user)

        def note_service() -> net.SocketConn:
            conn = dialled()
            assert isinstance(conn, net.SocketConn)
            sockets.append(conn.sock)
            return conn

        monkeypatch.setattr(running, "_may_come", note_user)
        monkeypatch.setattr(running._target, "dial", note_service)
        user = dial(running)
        wait_until(lambda: len(sockets) == 2, "the user is connected")
        for sock in sockets:
            for level, name, value in (
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 11),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 12),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
                (socket.IPPROTO_IP, socket.IP_TOS, 16),
                (socket.IPPROTO_IP, socket.IP_TTL, 33),
                (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
            ):
                assert sock.getsockopt(level, name) == value, name
        user.close()


@LINUX_ONLY
def test_two_relays_share_a_port_that_they_may_reuse() -> None:
    with serving() as service, relaying("TCP4-LISTEN:0,fork,reuseport", service.address) as first:
        with relaying(f"TCP4-LISTEN:{first.listener.port},fork,reuseport", service.address):
            assert ask(first) == b"answer to question"
        with pytest.raises(PortTakenError), relaying(f"tcp:0.0.0.0:{first.listener.port}", "tcp:1"):
            pass


@LINUX_ONLY
def test_an_option_that_the_kernel_refuses_is_one_error() -> None:
    with pytest.raises(ListenError, match="No such device"), relaying("TCP-LISTEN:0,if=nosuch", "tcp:1"):
        pass
    with relaying("tcp:127.0.0.1:0", "TCP:127.0.0.1:1,if=nosuch") as running, pytest.raises(ConnError):
        ask(running)


# ---- one direction, and silence ----------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [Role.LISTEN, Role.TARGET])
def test_one_way_carries_nothing_back(silent: Role) -> None:
    heard: list[bytes] = []

    def talk(conn: net.SocketConn) -> None:
        conn.sendall(b"answer")
        conn.shutdown(socket.SHUT_WR)
        heard.append(read_all(conn))

    with serving(talk) as service:
        relay = Relay(
            parse_address("tcp:127.0.0.1:0", Role.LISTEN),
            parse_address(service.address, Role.TARGET),
            lambda: None,
            SocatOptions(silent=silent),
        )
        got = ask(relay, b"question" * 50_000)
        wait_until(lambda: heard, "the service has heard the end")
        relay.close()
        wait_until(lambda: not len(relay.users), "nobody is left")
    assert (got, heard) == ((b"", [b"question" * 50_000]) if silent is Role.LISTEN else (b"answer", [b""]))


def test_users_of_a_datagram_relay_have_to_be_heard() -> None:
    with pytest.raises(UsageError, match="-U: users of a relay of datagrams have to speak first"):
        run_relay("udp:0", "udp:1", RelaySettings(0.0), socat=SocatOptions(silent=Role.TARGET))


# ---- whose file it is, and whose rights --------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("listen", ["UNIX-LISTEN", "UNIX-RECVFROM"])
def test_a_socket_file_has_the_owner_and_the_permissions_that_are_said(tmp_path: Path, listen: str) -> None:
    path = tmp_path / "x.sock"
    target_text = f"{'unix' if listen == 'UNIX-LISTEN' else 'unix-dgram'}:{tmp_path}/nobody"
    said = parse_address(f"{listen}:{path},fork,umask=027,user=12,group=13", Role.LISTEN)
    running = serve._open(
        said, parse_address(target_text, Role.TARGET), UdpSettings(), NO_OPTIONS, lambda: None
    )
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12, 13, 0o750)
    running.close()
    assert not path.exists()


def test_a_file_that_cannot_be_given_away_is_one_error_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ListenError, match=r"cannot give .* to its owner, which only root can: Operation not"):
        serve._listen(parse_address(f"unix:{tmp_path}/x.sock,user=12", Role.LISTEN))
    assert not (tmp_path / "x.sock").exists()


RUN_AND_TELL = """
import os, sys
from gnar_lib import logger
from gnar_lib.relay import RelaySettings, accounts, run_relay
logger.setup()
become, before = accounts.Account.become, set()
def note(account):
    become(account)
    before.update(sys.modules)
    print(os.getresuid(), os.getresgid(), os.getgroups(), flush=True)
accounts.Account.become = note
run_relay(sys.argv[1], sys.argv[2], RelaySettings(1.0))
print(sorted({*sys.modules} - before))
"""


def can_connect(path: Path) -> bool:
    """Tell whether somebody listens: the file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@needs_root
def test_a_relay_becomes_another_user_once_it_listens_and_needs_no_file_any_more(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with serving() as service:
        running = subprocess.Popen(
            [
                sys.executable,
                "-c",
                RUN_AND_TELL,
                f"UNIX-LISTEN:{path},fork,mode=600,su=nobody",
                service.address,
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: can_connect(path), "it listens")
        for question in (b"question", b"x" * 1_000_000):
            user = net.dial(socket.AF_UNIX, str(path))
            user.sendall(question)
            user.shutdown(socket.SHUT_WR)
            assert read_all(user) == b"answer to " + question
            user.close()
    user = net.dial(socket.AF_UNIX, str(path))  # the service has gone
    assert user.recv(1) == b""
    user.close()
    running.send_signal(signal.SIGUSR1)
    running.terminate()
    out, err = running.communicate(timeout=TIMEOUT_S)
    ids, late = out.splitlines()
    assert ids == "(65534, 65534, 65534) (65534, 65534, 65534) [65534]"
    assert late == "[]"  # a module may be in a folder that only root can read
    assert "Traceback" not in err


def test_who_cannot_become_another_user_is_told_so_and_does_not_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setgroups", refuse)
    with pytest.raises(UsageError, match="cannot become user nobody, which only root can: Operation not"):
        run_relay(f"UNIX-LISTEN:{tmp_path}/x,fork,su=nobody", "tcp:1", RelaySettings(0.0))
    assert not (tmp_path / "x").exists()


# ---- lines from tutorials, unit files and container images -------------------------------------------------


@pytest.mark.parametrize(
    "line",
    """
    TCP-LISTEN:8080,fork,reuseaddr TCP:127.0.0.1:3000
    TCP-LISTEN:9223,fork,reuseaddr,bind=0.0.0.0 TCP:127.0.0.1:9222
    TCP-LISTEN:1234,bind=127.0.0.1,reuseaddr,fork,su=nobody,range=127.0.0.0/8 UNIX-CLIENT:/tmp/foo
    -d -d -lmlocal2 TCP4-L:80,bind=10.0.0.1,su=nobody,fork,range=10.0.0.0/8,reuseaddr TCP4:a:80,bind=10.0.0.2
    TCP4-LISTEN:80,fork,su=nobody,reuseaddr TCP6:[fd00::8]:80,bind=fd00::7
    TCP-LISTEN:2122,bind=0.0.0.0,fork,su=nobody,reuseaddr,nodelay TCP:169.254.1.1:22,nodelay
    tcp-l:8332,fork,reuseaddr,su=nobody,bind=127.0.0.1 tcp:bitcoind:8332
    -t10 TCP-LISTEN:1234,bind=127.0.0.1,reuseaddr,fork UNIX-CLIENT:/var/run/aesmd/aesm.socket
    -t 100000000 TCP4-LISTEN:80,fork,reuseaddr TCP4:db:80
    -T 120 UDP6-LISTEN:53,fork,reuseaddr UDP:192.0.2.1:53
    UDP4-LISTEN:53,fork,reuseaddr UDP4:10.0.0.1:53
    UDP4-LISTEN:5683,fork,so-bindtodevice=lo,reuseaddr UDP4:10.0.0.1:30009
    -u UDP4-RECV:514,reuseaddr UDP4-SENDTO:192.0.2.1:514
    TCP-LISTEN:80,fork,reuseaddr,keepalive,keepidle=10,keepintvl=10,keepcnt=2 UNIX-CONNECT:/x
    -d -d -d TCP-LISTEN:4003,fork,forever,reuseaddr,keepalive,keepidle=10,keepintvl=10,keepcnt=2 TCP:a:4001
    TCP4-LISTEN:8188,fork,reuseaddr TCP4:127.0.0.1:8181,retry=30,interval=1,forever
    TCP4-LISTEN:22,bind=10.0.0.1,reuseaddr,fork TCP4:10.0.0.2:22,connect-timeout=10
    TCP6-LISTEN:80,bind=[fd00::1],reuseaddr,fork,max-children=1 UNIX-CONNECT:/x
    -4 TCP-LISTEN:2375,fork UNIX-CONNECT:/var/run/docker.sock
    -d TCP-LISTEN:80,reuseaddr,pf=ip4,fork TCP4-CONNECT:127.0.0.1:80
    UNIX-LISTEN:/run/x,reuseaddr,fork,user=nobody,mode=0660,unlink-early UNIX-CONNECT:/y
    UNIX-LISTEN:/run/x,fork,umask=0007 TCP:localhost:9696
    -b65536 UNIX-LISTEN:/tmp/.X11-unix/X0,fork,mode=777 TCP:10.0.0.1:6000
    -d -d -lmlocal2 UNIX-LISTEN:/run/log,fork,forever TCP4:192.168.3.55:12205,ignoreeof
    -lf /tmp/socat.log tcp-listen:5037,bind=10.0.0.1,reuseaddr,fork tcp-connect:127.0.0.1:5037
    -lf/dev/null tcp-listen:80,fork tcp:10.0.0.1:80
    TCP-LISTEN:6000,reuseaddr,fork,range=192.168.99.100:255.255.255.0 UNIX-CLIENT:/tmp/.X11-unix/X0
    -dd TCP-LISTEN:514,fork,reuseport UNIX-CONNECT:/run/log
    unix-listen:/var/run/pcscd.comm,fork tcp-connect:bcas:40773
    UDP-LISTEN:9,fork UDP-DATAGRAM:192.168.1.255:9,broadcast
    OPENSSL-LISTEN:443,reuseaddr,fork,cert=/etc/ssl/server.pem,verify=0 TCP:localhost:80
    openssl-listen:4433,reuseaddr,cert=server.pem,cafile=client.crt,fork tcp4:localhost:22
    ssl-l:1443,reuseaddr,fork,su=nobody,cert=server.pem,key=server.key,verify=0,dhparams=dh.pem TCP:db:80
    TCP4-LISTEN:5432,reuseaddr,fork OPENSSL:db.example.com:5432,cafile=server.crt,cert=client.pem
    TCP-LISTEN:8080,fork,reuseaddr SSL:example.com:443,verify=0,snihost=example.com
    UNIX-LISTEN:/run/x,fork openssl-connect:example.com:443,commonname=example.com,nosni
    """.strip().splitlines(),
)
def test_lines_that_people_paste_are_taken(line: str) -> None:
    (listen, target_text), options = take_options(line.split())
    found = parse_address(listen, Role.LISTEN, options.family)
    assert found.fork
    assert parse_address(target_text, Role.TARGET, options.family).is_datagram == found.is_datagram
