"""Somebody in between real clients and a real server: every attack fails, says so, and harms nobody else.

What is forged in a login, and how TLS is weakened, is in `tests/auth/test_in_between.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from gnar_lib.proto import Welcome, to_frame
from tests.helpers.bystander import uninvolved_user
from tests.helpers.certificates import make_certificate
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    WAIT_S,
    Gnar,
    Service,
    Tunnels,
    ask,
    dial,
    echo,
    exchange_both_ways,
    free_port,
    wait_until,
)
from tests.peers.mitm import (
    Between,
    Cutter,
    Met,
    Treatment,
    cross,
    encrypted,
    ending_tls,
    on_data,
    pass_on,
    plain,
    saying,
)

PLAIN = "--no-multiplex"
MIB = 1 << 20


@dataclass
class Place:
    """A server with a client and a user of its own, who have nothing to do with the attacks."""

    tunnels: Tunnels
    service: Service
    server: Gnar
    server_port: int
    bystander: Gnar
    user_port: int
    own: Path  # the certificate of somebody in between

    @contextmanager
    def attack(self, treatment: Treatment = pass_on) -> Iterator[Attack]:
        """Have somebody stand in front of the server for the block, unfelt by the uninvolved user."""
        with (
            uninvolved_user(self.user_port, self.server, self.bystander),
            Between(self.server_port, treatment) as met,
            contextlib.ExitStack() as clients,
        ):
            yield Attack(self, met, clients, len(self.server.log))


@dataclass
class Attack:
    """An attack on clients that come to the server by way of `met`."""

    place: Place
    met: Between
    _clients: contextlib.ExitStack
    _log_from: int

    def client(self, *flags: str, service: Service | None = None) -> Gnar:
        """Start a client, which ends with the attack."""
        local = str((service or self.place.service).port)
        args = ("client", "-s", f"{LOOPBACK}:{self.met.port}", "-l", local, "-r", "0", *flags)
        client = self.place.tunnels.run(*args, env={"GNAR_TOKEN": TOKEN})
        self._clients.callback(client.kill)
        return client

    @property
    def server_log(self) -> str:
        """What the server has logged since the attack began."""
        return self.place.server.log[self._log_from :]


def port_of(client: Gnar) -> int:
    """Return the port at which the proxy of a client is open."""
    return int(client.wait_log(r"open at \S+:(\d+)")[1])


@pytest.fixture(scope="module")
def place(gnar_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("between")
    own = make_certificate(folder / "own.pem", "localhost")
    with Tunnels(gnar_pyz, folder / "run", ()) as tunnels, Service(echo) as service:
        server, server_port = tunnels.server()
        bystander, user_port = tunnels.client(server_port, "-l", str(service.port), "-r", "0")
        yield Place(tunnels, service, server, server_port, bystander, user_port, own)


# ---- the login ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("onward", "forges", "at_client", "at_server"),
    [
        (encrypted, "", "somebody stands in between: the server shows ", "somebody stands in between: "),
        (plain, "both", "the server could not prove that it knows the token", "wrong token"),
    ],
    ids=["own certificate", "forged, and stripped"],
)
def test_client_that_meets_somebody_in_between_at_its_first_start_ends(
    place: Place, onward: Callable[[Met], socket.socket], forges: str, at_client: str, at_server: str
) -> None:
    with place.attack(ending_tls(place.own, onward, forges)) as attack:
        client = attack.client()
        assert client.wait_exit() == 1
        (line,) = client.log.splitlines()
        assert at_client in line
        wait_until(lambda: "refused" in attack.server_log, "the server refuses the login")
        (line,) = attack.server_log.splitlines()
        assert f"refused {LOOPBACK}:" in line
        assert at_server in line


@pytest.mark.waits
def test_client_that_is_answered_in_plain_never_goes_on_in_plain(place: Place) -> None:
    with place.attack(saying(to_frame(Welcome(session="0" * 32, nonce="0" * 64)))) as attack:
        client = attack.client()
        client.wait_log(r"no gnar server at .*: this is an answer without TLS; trying again in", count=2)
        assert len(client.log.splitlines()) == 2
        assert all(met.up.startswith(b"\x16") and b"nonce" not in met.up for met in attack.met.met)
        attack.met.treatment = pass_on
        assert ask(port_of(client)) == b"ping"


@pytest.mark.waits
def test_client_that_was_let_in_before_comes_back_ever_less_often_until_nobody_is_in_between(
    place: Place,
) -> None:
    with place.attack() as attack:
        client = attack.client()
        port = port_of(client)
        attack.met.treatment = ending_tls(place.own)
        before = len(attack.met.met)
        attack.met.cut()
        client.wait_log("somebody stands in between: .*; trying again in", count=2)
        # Each try is one, and once there is another one to look at the certificate.
        assert len(attack.met.met) - before <= 3
        tries = re.findall(r"trying again in (\d+\.\d)", client.log)
        assert [*map(float, tries)] == sorted(map(float, tries))
        wait_until(lambda: attack.server_log.count("refused") == 2, "the server has refused both")
        assert attack.server_log.count("somebody stands in between") == 2
        attack.met.treatment = pass_on
        client.wait_log("open at", count=2)
        assert ask(port) == b"ping"


# ---- data connections --------------------------------------------------------------------------------------


@pytest.mark.waits
def test_data_connections_that_are_swapped_carry_no_byte_and_are_tried_ever_less_often(place: Place) -> None:
    heard = bytearray()

    def serve(conn: socket.socket) -> None:
        heard.extend(conn.recv(100))
        conn.sendall(b"pong")

    with place.attack(on_data(ending_tls(place.own))) as attack, Service(serve) as service:
        client = attack.client(PLAIN, service=service)
        port = port_of(client)
        wait_until(lambda: len(attack.met.met) > 3, "a try behind the first failures")  # two at once
        with dial(port) as user:  # for whose like 20 more are wanted from now on
            user.sendall(b"hello")
            client.wait_log("data connection cannot be opened: .*somebody stands in between.*; trying again")
            wait_until(lambda: attack.met.met[-1].met_s > attack.met.met[0].met_s + 1.0, "another try")
            tries_s = [met.met_s for met in attack.met.met[1:]]
            # One behind each pause: of 0.5 s, less a fifth at most, and then of twice as much each time.
            assert len(tries_s) <= 3 + math.log2(1 + (tries_s[-1] - tries_s[0]) / 0.4)
            assert not any(met.up for met in attack.met.met[1:])
            assert heard == b""
            assert client.log.count("cannot be opened") == 1
            attack.met.treatment = pass_on
        wait_until(lambda: client.status()["waiting"] > 0, "a data connection waits for a user")
        assert ask(port) == b"pong"


def test_bulk_goes_on_over_the_session_when_its_own_connection_is_swapped(place: Place) -> None:
    data = bytes(range(256)) * 16_384  # 4 MiB
    with place.attack(on_data(ending_tls(place.own))) as attack:
        port = port_of(attack.client())
        assert exchange_both_ways(port, data) == hashlib.sha256(data).hexdigest()
        wait_until(lambda: len(attack.met.met) > 1, "a connection of its own was tried")
        assert not any(met.up for met in attack.met.met[1:])


def test_data_connections_of_two_clients_that_are_crossed_bring_nobody_what_is_not_theirs(
    place: Place,
) -> None:
    heard: dict[str, bytearray] = {"one": bytearray(), "other": bytearray()}

    def serve(name: str, conn: socket.socket) -> None:
        conn.sendall(name.encode())
        while data := conn.recv(100):
            heard[name].extend(data)

    with (
        place.attack() as attack,
        Between(place.server_port) as second,
        Service(partial(serve, "one")) as one,
        Service(partial(serve, "other")) as other,
    ):
        ports = [port_of(attack.client(PLAIN, service=one))]
        attack.met, first = second, attack.met
        ports.append(port_of(attack.client(PLAIN, service=other)))
        wait_until(lambda: place.server.status()["waiting"] >= 4, "two data connections wait for each")
        with dial(ports[0]) as user, dial(ports[1]) as stranger:
            assert user.recv(100) == b"one"
            assert stranger.recv(100) == b"other"
            pairs = [*zip(first.met[1:], second.met[1:], strict=False)]
            # A user makes the server want twenty more, of which some may still be on the way.
            wait_until(lambda: all(each.ways for pair in pairs for each in pair), "all carry bytes")
            for ours, theirs in pairs:
                cross(ours, theirs)
            user.sendall(b"for one alone")
            with pytest.raises(ConnectionResetError):
                user.recv(100)
            first.cut()  # which has nothing to tell who has noticed nothing
            second.cut()
            with pytest.raises(ConnectionResetError):
                stranger.recv(100)
    assert heard == {"one": b"", "other": b""}


def test_recorded_connections_that_are_sent_again_open_nothing(place: Place) -> None:
    with place.attack() as attack:
        port = port_of(attack.client(PLAIN))
        assert ask(port) == b"ping"
        before = place.server.status()
        for met in [*attack.met.met]:
            with (
                dial(place.server_port) as replay,
                contextlib.suppress(ConnectionResetError, BrokenPipeError),
            ):
                replay.sendall(met.up)
                while replay.recv(65536):
                    pass
        after = place.server.status()
        assert [after[key] for key in ("clients", "proxies", "users_total")] == [
            before[key] for key in ("clients", "proxies", "users_total")
        ]
        assert ask(port) == b"ping"


# ---- cut off -----------------------------------------------------------------------------------------------


class Ends:
    """A service that notes how each of its connections has ended."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self.ends: queue.Queue[str] = queue.Queue()

    def __call__(self, conn: socket.socket) -> None:
        try:
            self._serve(conn)
        except (ConnectionResetError, BrokenPipeError):
            self.ends.put("reset")
        else:
            self.ends.put("end")


def flood(conn: socket.socket) -> None:
    """Send for as long as somebody takes it."""
    assert conn.recv(1)
    while True:
        conn.sendall(bytes(65536))


def read_to_end(user: socket.socket) -> str:
    """Tell how the stream ends."""
    try:
        while user.recv(MIB):
            pass
    except ConnectionResetError:
        return "reset"
    return "end"


CUTS = pytest.mark.parametrize("within", [True, False], ids=["within a record", "between records"])


class Cuts:
    """Cuts off each connection behind the one with the number `first`, with the next record once armed."""

    def __init__(self, *, within: bool, first: int) -> None:
        self.armed = threading.Event()
        self._within = within
        self._first = first

    def __call__(self, met: Met) -> None:
        if met.number < self._first:
            pass_on(met)
        else:
            up, down = (Cutter(self.armed, within=self._within) for _ in range(2))
            met.carry(met.near, met.dial(), up, down)


@CUTS
def test_session_that_is_cut_off_resets_user_and_service(place: Place, *, within: bool) -> None:
    ends, cuts = Ends(echo), Cuts(within=within, first=0)
    with place.attack(cuts) as attack, Service(ends) as service:
        with dial(port_of(attack.client(service=service))) as user:
            user.sendall(b"ping")
            assert user.recv(100) == b"ping"
            cuts.armed.set()
            user.sendall(b"more")
            assert read_to_end(user) == "reset"
        assert ends.ends.get(timeout=WAIT_S) == "reset"


@CUTS
@pytest.mark.parametrize("flags", [(PLAIN,), ()], ids=["plain", "beside"])
def test_download_that_is_cut_off_is_not_taken_for_the_whole(
    place: Place, flags: tuple[str, ...], *, within: bool
) -> None:
    """Also when the user has ended the other direction, as curl and HTTP/1.0 may."""
    ends, cuts = Ends(flood), Cuts(within=within, first=1)
    with place.attack(cuts) as attack, Service(ends) as service:
        with dial(port_of(attack.client(*flags, service=service))) as user:
            user.sendall(b"x")
            user.shutdown(socket.SHUT_WR)
            while not any(len(met.up) > MIB for met in attack.met.met[1:]):
                assert user.recv(MIB)
            cuts.armed.set()
            assert read_to_end(user) == "reset"
        assert ends.ends.get(timeout=WAIT_S) == "reset"


def test_download_that_is_cut_off_without_tls_passes_for_the_whole(place: Place) -> None:
    """So that the tests above can fail."""
    with place.attack() as attack, Service(flood) as service:
        user = dial(port_of(attack.client(PLAIN, "--tls", "off", service=service)))
        with user:
            user.sendall(b"x")
            user.shutdown(socket.SHUT_WR)
            assert user.recv(1)
            attack.met.cut()
            assert read_to_end(user) == "end"


def test_upload_that_is_cut_off_is_not_taken_for_the_whole_by_the_service(place: Place) -> None:
    heard = threading.Event()

    def take(conn: socket.socket) -> None:
        while conn.recv(MIB):
            heard.set()

    ends, cuts = Ends(take), Cuts(within=False, first=1)
    with (
        place.attack(cuts) as attack,
        Service(ends) as service,
        dial(port_of(attack.client(PLAIN, service=service))) as user,
    ):
        user.sendall(b"the first half")
        assert heard.wait(WAIT_S)
        cuts.armed.set()
        with contextlib.suppress(OSError):
            user.sendall(b"the second half")
            user.shutdown(socket.SHUT_WR)
        assert ends.ends.get(timeout=WAIT_S) == "reset"


# ---- who proves the server ---------------------------------------------------------------------------------


@pytest.mark.waits
def test_clients_whose_server_comes_back_with_another_certificate(gnar_pyz: Path, tmp_path: Path) -> None:
    """The token proves it, and a fingerprint takes the one certificate alone."""
    state = ("--state-dir", str(tmp_path / "state"))
    port = free_port()
    with Tunnels(gnar_pyz, tmp_path / "run", ()) as tunnels, Service(echo) as service:
        server, _ = tunnels.server(*state, port=port)
        fingerprint = server.wait_log("SHA-256 ([0-9a-f]{64})")[1]
        local = ("-l", str(service.port), "-r")
        proven, one = tunnels.client(port, *local, str(free_port()))
        pinned, other = tunnels.client(port, *local, str(free_port()), "--fingerprint", fingerprint)
        server.kill()
        server, _ = tunnels.server(port=port)
        proven.wait_log("open at", count=2)
        assert ask(one) == b"ping"
        pinned.wait_log("the server has shown certificate .* not that of --fingerprint: .*; trying again in")
        server.kill()
        tunnels.server(*state, port=port)
        for client, at in ((proven, one), (pinned, other)):
            client.wait_log("open at", count=3 if client is proven else 2)
            assert ask(at) == b"ping"
            assert client.log.count("somebody") == (client is pinned)


def test_client_that_nothing_proves_the_server_to_says_so_once(gnar_pyz: Path, tmp_path: Path) -> None:
    good = make_certificate(tmp_path / "good.pem", LOOPBACK)
    unproven = "nothing proves the server"
    with Tunnels(gnar_pyz, tmp_path / "run", ()) as tunnels, Service(echo) as service:
        server, port = tunnels.server("--tls-cert", str(good), token="")
        pin = ("--fingerprint", server.wait_log("SHA-256 ([0-9a-f]{64})")[1])
        with Between(port) as met, Between(port, ending_tls(good, plain)) as in_front:
            args = ("client", "-l", str(service.port), "-r", "0", "-s")
            trusts = {"SSL_CERT_FILE": str(good), "GNAR_TOKEN": ""}
            known = [
                tunnels.run(*args, f"{LOOPBACK}:{port}", env=trusts),
                tunnels.run(*args, f"{LOOPBACK}:{in_front.port}", env=trusts),
                tunnels.run(*args, f"{LOOPBACK}:{port}", *pin, env={"GNAR_TOKEN": ""}),
            ]
            client = tunnels.run(*args, f"{LOOPBACK}:{met.port}", env={"GNAR_TOKEN": ""})
            client.wait_log(unproven)
            met.cut()
            client.wait_log("open at", count=2)
            assert ask(port_of(client)) == b"ping"
            assert client.log.count(unproven) == 1
            for each in known:
                with dial(port_of(each)) as user:
                    user.sendall(b"ping")
                    assert user.recv(100) == b"ping"
                assert unproven not in each.log
