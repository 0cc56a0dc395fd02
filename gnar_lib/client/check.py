"""`gnar client --check`: tries everything that a start needs, and says what is right and what is wrong."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from gnar_lib import health
from gnar_lib.auth.login import MD5, MD5_WINDOW_S
from gnar_lib.checklist import Budget, Checklist, Verdict, tell_descriptors, try_admin, try_hooks
from gnar_lib.client.check_ports import LOGIN_S, PortCheck
from gnar_lib.client.connect import ControlConn
from gnar_lib.client.proxies import what_to_try
from gnar_lib.client.trial import Port, Trial
from gnar_lib.config import Address, ClientConfig, ProxyConfig
from gnar_lib.config.model import ProxyServer
from gnar_lib.config.transport import shown
from gnar_lib.config.values import is_loopback
from gnar_lib.errors import (
    AuthError,
    CertificateError,
    ConnError,
    DialError,
    GnarError,
    NamesUnsupportedError,
    NoTlsHereError,
    ProtocolError,
    RefusedError,
    UnsupportedError,
)
from gnar_lib.net import Conn, Crew, Sockaddr, deadline, dial, format_address, resolve
from gnar_lib.net.dialling import DialSettings
from gnar_lib.net.target import DatagramTarget, Target
from gnar_lib.terminal.text import milliseconds
from gnar_lib.transport.through import ProxyDialler

TOTAL_S = 18.0  # for everything
NAME_S = REACH_S = 5.0  # for each of these
RECONNECT_S = 1.0
PROBE_S = SERVICE_S = 3.0
CONNECTS = 5  # of which the median counts
MOST_ADDRESSES = 4  # of the server's name
SERVICES_AT_ONCE = 64
SAME_CLOCK_S = 2.0
MAX_CLOCK_S = 60.0  # by which logs of both ends can still be compared
MAX_ANSWER_BYTES = 4096
_GNAR_WITHOUT_LOGIN = "a gnar server answers, but not to the login (its log says why)"
MAX_SHOWN_CLOCK_S = 100 * 365 * 86_400.0  # no clock is so far off: one without a battery begins in 1970


class ClientCheck:
    """One check, in which what depends on something that is wrong is left out, and all else is tried."""

    def __init__(self, config: ClientConfig, source: str, checklist: Checklist) -> None:
        self._config = config
        self._source = source  # the path of the configuration file, or empty
        self._list = checklist
        self._budget = Budget(TOTAL_S)
        self._ports = PortCheck(config, checklist, self._budget)
        self._crew = Crew("check")  # greenlets that try addresses, and who answers there

    def run(self) -> None:
        """Check everything."""
        self._tell_settings()
        tell_descriptors(self._list)
        try_admin(self._list, self._config.admin, self._budget.of(PROBE_S))
        try_hooks(self._list, self._config.hooks, self._budget.of(PROBE_S))
        services = self._begin_services()
        proxy = self._config.proxy
        connect = self._reach() if proxy is None else self._reach_through(proxy)
        if connect is not None:
            self._measure_connects(connect)
            self._try_server()
        else:
            self._list.skip("server", "not reached, so token, ports and throughput are not checked")
        if not services.wait_empty(self._budget.of(SERVICE_S)):
            self._list.wrong("service", "not all local services have answered in time")
        services.kill()
        self._list.tell_rest("service")

    # ---- this machine --------------------------------------------------------------------------------------

    def _tell_settings(self) -> None:
        config, count = self._config, len(self._config.proxies)
        where = f"{self._source}, variables and flags" if self._source else "variables and flags"
        how = ", multiplexed" if config.multiplex else ""
        ports = f"{count} port{'' if count == 1 else 's'}"
        self._list.ok("settings", f"read from {where}: {ports} at {config.server}{how}")

    def _begin_services(self) -> Crew:
        """Begin to connect to each local service, many side by side; return the crew that does so."""
        waiting, crew = iter(self._config.proxies), Crew("check of services")

        def try_some() -> None:
            for proxy in waiting:
                self._try_service(proxy)

        for _ in range(SERVICES_AT_ONCE):
            crew.spawn(try_some)
        return crew

    def _try_service(self, proxy: ProxyConfig) -> None:
        where, began_s = proxy.local_service, time.monotonic()
        try:
            with deadline(self._budget.of(SERVICE_S), "connecting"):
                if proxy.proxy_type == "udp":
                    DatagramTarget(proxy.local_host, proxy.local_port).look_up()
                else:
                    Target(proxy.local_host, proxy.local_port).dial().close()
        except ConnError as exc:
            advice = what_to_try(exc, proxy.local_host) if isinstance(exc, DialError) else "is it running?"
            self._ports.tell_of(Verdict.WRONG, "service", proxy, f"{exc}; {advice}")
            return
        if proxy.proxy_type == "udp":
            self._ports.tell_of(
                Verdict.SKIP, "service", proxy, f"{where} is UDP, so nobody can tell whether it answers"
            )
        else:
            took = milliseconds(time.monotonic() - began_s)
            self._ports.tell_of(Verdict.OK, "service", proxy, f"{where} answers in {took}")

    # ---- the way to the server -----------------------------------------------------------------------------

    def _reach(self) -> Callable[[], Conn] | None:
        """Reach the server, and return what does so again; None, after a line, if that fails."""
        addresses = self._look_up()
        reached = self._connect(addresses) if addresses else None
        return None if reached is None else lambda: dial(*reached, self._budget.of(RECONNECT_S))

    def _reach_through(self, proxy: ProxyServer) -> Callable[[], Conn] | None:
        """Do through a proxy what `_reach` does without."""
        server = self._config.server
        if ProxyDialler(proxy).looks_up_here:
            if not self._look_up():
                return None
        else:
            self._list.skip("name", f"{server.host} is left to the proxy, which looks names up itself")
        began_s = time.monotonic()
        try:
            self._dial(REACH_S).close()
        except DialError as exc:
            self._list.wrong("reach", f"{exc} (--proxy off goes without one)")
            return None
        took = milliseconds(time.monotonic() - began_s)
        self._list.ok("reach", f"connected to {Address(server.host, server.port)} through {proxy} in {took}")
        return lambda: self._dial(RECONNECT_S)

    def _dial(self, seconds: float) -> Conn:
        """Return a conn to the server, through the proxy if there is one; the caller closes it."""
        server, proxy, how = self._config.server, self._config.proxy, DialSettings(self._budget.of(seconds))
        if proxy is None:
            return Target(server.host, server.port, how=how).dial()
        return ProxyDialler(proxy, how).dial(server.host, server.port)

    def _look_up(self) -> list[tuple[int, Sockaddr]]:
        """Return the addresses of the server; an empty list, after a line that says so, if there are none."""
        server = self._config.server
        try:
            with deadline(self._budget.of(NAME_S), "looking the name up"):
                found = resolve(server.host, server.port)[:MOST_ADDRESSES]
        except ConnError as exc:
            self._list.wrong("name", f"{exc}; is the name right, and does DNS work here?")
            return []
        hosts = [str(address[0]) for _, address in found]
        if hosts == [server.host]:
            self._list.ok("name", f"{server.host} is an address, which needs no look-up")
        else:
            self._list.ok("name", f"{server.host} is {', '.join(hosts)}")
        return found

    def _connect(self, addresses: list[tuple[int, Sockaddr]]) -> tuple[int, Sockaddr] | None:
        """Try each address of the server; return the first that answers, or None, after a line."""
        said: dict[int, str] = {}
        good: list[int] = []
        refused: list[bool] = []

        def try_one(index: int) -> None:
            family, address = addresses[index]
            began_s = time.monotonic()
            try:
                dial(family, address, self._budget.of(REACH_S)).close()
            except DialError as exc:
                refused.append(isinstance(exc, RefusedError))
                said[index] = str(exc)
            else:
                good.append(index)
                said[index] = f"{format_address(address)} in {milliseconds(time.monotonic() - began_s)}"

        for index in range(len(addresses)):
            self._crew.spawn(try_one, index)
        self._crew.wait_empty()
        text = "; ".join(said[index] for index in sorted(said, key=lambda index: (index not in good, index)))
        if good:
            self._list.ok("reach", f"connected to {text}")
            return addresses[min(good)]
        if any(refused):
            advice = "is the server running, and is this its control port?"
        else:
            advice = "does a firewall stand in between? The server's control port has to be open"
        self._list.wrong("reach", f"{text}; {advice}")
        return None

    def _measure_connects(self, connect: Callable[[], Conn]) -> None:
        times_s = []
        for _ in range(CONNECTS):
            began_s = time.monotonic()
            with suppress(DialError):
                connect().close()
                times_s.append(time.monotonic() - began_s)
        if len(times_s) < CONNECTS:
            self._list.warn("round trip", f"{CONNECTS - len(times_s)} of {CONNECTS} further attempts failed")
        else:
            took = milliseconds(statistics.median(times_s))
            way = "to the server" if self._config.proxy is None else "to open a tunnel to the server"
            self._list.ok("round trip", f"{took} {way} (the median of {CONNECTS})")

    # ---- the login -----------------------------------------------------------------------------------------

    def _try_server(self) -> None:
        """Log in; with whoever lets this client in, try the ports."""
        if self._try_login(self._config):
            return
        if self._config.multiplex:  # the rest can be checked without
            self._try_login(replace(self._config, multiplex=False))

    def _try_login(self, config: ClientConfig) -> bool:
        """Log in with these settings and try the ports; False if the server does not multiplex."""
        trial = Trial(config)
        ports = [trial.port(each) for each in config.proxies]
        try:
            control = self._log_in(trial, ports)
            if control is not None:
                self._tell_login(control)
                self._ports.run(trial, control, ports)
        except NamesUnsupportedError as exc:
            self._list.wrong("names", str(exc))
        except NoTlsHereError as exc:
            self._list.wrong("tls", str(exc))
        except UnsupportedError as exc:
            self._list.wrong("multiplex", str(exc))
            return False
        finally:
            trial.close()
        return True

    def _log_in(self, trial: Trial, ports: list[Port]) -> ControlConn | None:
        """Log in and ask for the ports; None, after a line, if that fails. Raises `UnsupportedError`."""
        control = None
        try:
            with deadline(self._budget.of(LOGIN_S), "the login"):
                control = ControlConn.dial(trial.config, secrets.token_hex(16), is_check=True)
                trial.begin(control, ports)
        except UnsupportedError:
            raise
        except GnarError as exc:
            self._tell_refused(exc, control)
            return None
        return control

    def _tell_login(self, control: ControlConn) -> None:
        config, list_ = self._config, self._list
        list_.ok("gnar", f"a {'Go' if control.is_go else 'gnar'} server answers")
        if not config.token:
            list_.ok("token", "none is set, and the server asks for none")
        elif control.is_go or config.auth == MD5:
            list_.ok("token", "the server takes it, by md5")
        else:
            list_.ok("token", "the server takes it, and has proven that it knows it, too")
        self._tell_encryption(control)
        if config.multiplex:
            list_.ok("multiplex", "the server takes one connection for everything")
        self._tell_clock(control)

    def _tell_encryption(self, control: ControlConn) -> None:
        """Tell what encrypts the connection, and what proves to whom."""
        what = control.encryption
        if not what and self._config.proxy is None and is_loopback(self._config.server.host):
            self._list.ok("tls", "off, and all stays on this machine")
        elif not what:
            self._list.warn("tls", "off: whoever is on the way can read and change everything")
        elif proof := control.proof:
            self._list.ok("tls", f"{what} with {shown(control.certificate)}, which {proof} proves")
        else:
            token = "leave --auth md5 out" if self._config.token else "give both ends a token"
            advice = f"{token}, or give this one --fingerprint {control.certificate}"
            self._list.warn("tls", f"{what}, but nobody knows whether it is the server's: {advice}")

    def _tell_clock(self, control: ControlConn) -> None:
        ahead_s = control.server_ahead_s
        if ahead_s is None:
            window = f"it takes md5 logins within {MD5_WINDOW_S // 60} minutes of its own"
            self._list.skip("clock", f"the server does not tell its time; {window}")
        elif abs(ahead_s) <= SAME_CLOCK_S:
            self._list.ok("clock", "as the server's")
        elif abs(ahead_s) > MAX_SHOWN_CLOCK_S:
            self._list.warn("clock", "the time that the server tells makes no sense")
        else:
            text = f"the server's is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this one"
            if abs(ahead_s) <= MAX_CLOCK_S:
                self._list.ok("clock", text)
            else:
                self._list.warn("clock", f"{text}: set both by NTP, so that their logs fit")

    def _tell_refused(self, error: GnarError, control: ControlConn | None) -> None:
        """Say why the login has failed, and who it is that answers."""
        if isinstance(error, CertificateError):
            self._list.wrong("gnar", str(error))
        elif isinstance(error, AuthError):
            self._list.ok("gnar", "a gnar server answers")
            # Without TLS, or by md5, the refusal may be for that, and its own words say so.
            is_common = self._config.uses_tls and self._config.auth != MD5
            advice = "; is GNAR_TOKEN that of the server, and is it yours?"
            self._list.wrong("token", f"{error}{advice if self._config.token and is_common else ''}")
        elif isinstance(error, ProtocolError):
            self._list.wrong("gnar", f"{error}; are address and port those of a gnar server?")
        elif control is None:
            self._list.wrong("gnar", str(error))
        else:
            self._list.wrong("gnar", f"{self._who_answers()}: {error}; {control.hint}")
        self._list.skip("ports", "not checked without a login; neither is the throughput")

    def _who_answers(self) -> str:
        """Find out what it is that has not let this client in, and has not said why."""
        found: list[str] = []

        def ask_for_health() -> None:
            health.check(self._config.server, self._budget.of(PROBE_S))
            found.append(_GNAR_WITHOUT_LOGIN)

        def ask_for_a_page() -> None:
            answer = self._health_page()
            if answer.endswith(b"\r\n\r\nok\n"):
                found.append(_GNAR_WITHOUT_LOGIN)
            elif answer.startswith(b"HTTP/"):
                found.append("this is a web server, not a gnar server")

        if self._config.proxy is None:  # of which the health check knows nothing
            self._crew.spawn(ask_for_health)
        self._crew.spawn(ask_for_a_page)
        self._crew.wait_empty()
        return found[0] if found else "no gnar server lets this client in"

    def _health_page(self) -> bytes:
        """Return what a web server at the server's address answers; raises `DialError`."""
        conn, answer = self._dial(PROBE_S), b""
        try:
            with suppress(ConnError), deadline(self._budget.of(PROBE_S), "the answer"):
                conn.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                while len(answer) < MAX_ANSWER_BYTES and (more := conn.recv(MAX_ANSWER_BYTES)):
                    answer += more
        finally:
            conn.close()
        return answer
