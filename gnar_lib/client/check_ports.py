"""Checks the ports that a client asks for: what the server answers, whether users get there, and how fast."""

from __future__ import annotations

import secrets
from contextlib import suppress

from gnar_lib.checklist import Budget, Checklist, Verdict
from gnar_lib.client.check_names import NamesCheck
from gnar_lib.client.connect import ControlConn
from gnar_lib.client.trial import Port, Trial
from gnar_lib.config import ClientConfig, ProxyConfig
from gnar_lib.errors import ConnError, GnarError
from gnar_lib.net import Crew, deadline
from gnar_lib.terminal.text import milliseconds

LOGIN_S = ANSWERS_S = 5.0  # for each of these
USERS_S = 3.0
MEASURE_S = 1.0  # throughput, in each direction
MOST_REACHED = 16  # ports at which users are tried
MOST_GO_PORTS = 8  # each needs a control connection of its own

_TAKEN_BY_OWN = "a client from this address with the same token has it: yours, if it is running"


class PortCheck:
    """The part of a check that is about ports."""

    def __init__(self, config: ClientConfig, checklist: Checklist, budget: Budget) -> None:
        self._config = config
        self._list = checklist
        self._budget = budget
        self._names = NamesCheck(config, checklist, budget)
        self._crew = Crew("check of ports")  # users who try ports

    def tell_of(self, verdict: Verdict, what: str, proxy: ProxyConfig, text: str) -> None:
        """Write a line about a proxy, of which there may be many."""
        self._list.tell_one_of_many(verdict, what, f"{proxy.proxy_name}: {text}")

    def run(self, trial: Trial, control: ControlConn, ports: list[Port]) -> None:
        """Wait for the server's answers, and come as a user to the ports that are open."""
        limit = control.max_proxies
        if limit and len(ports) > limit:
            self._list.wrong(
                "ports", f"{len(ports)} to forward: this server takes {limit} of one client; forward fewer"
            )
        if control.is_go:
            self._try_go_ports(trial, ports[0])
            return
        for port in ports:
            trial.wait_answer(port, self._budget.of(ANSWERS_S))
        self._names.run(trial, ports)
        tried = [port for port in ports if port.is_open and _has_public_port(port)][:MOST_REACHED]
        for port in ports:
            if port not in tried:
                was_visited = port.is_open and port.of.has_name
                trial.give_back(port)
                if not was_visited:
                    self._tell_port(port)
        good = self._come_as_users(trial, tried)
        self._list.tell_rest("port")
        if good is None:
            good = self._try_any_port(trial)
        if good is not None:
            self._measure(trial, good)

    def _come_as_users(self, trial: Trial, ports: list[Port]) -> Port | None:
        """Come to each port; return the first of TCP that is reached, and give the others back."""
        good: list[Port] = []

        def come(port: Port) -> None:
            if self._come(trial, port) and port.of.proxy_type == "tcp":
                good.append(port)

        for port in ports:
            self._crew.spawn(come, port)
        self._crew.wait_empty()
        for port in ports:
            if port not in good[:1]:
                trial.give_back(port)
        return good[0] if good else None

    def _come(self, trial: Trial, port: Port) -> bool:
        """Come to a port that is open as a user, tell how that went, and return whether it went well."""
        try:
            took_s = trial.reach(port, self._budget.of(USERS_S))
        except GnarError as exc:
            text = f"{_number(port)} is allowed and free, but users cannot reach it from here: {exc}"
            if self._config.proxy is None:
                text += "; does a firewall at the server stand in between?"
                self.tell_of(Verdict.WRONG, "port", port.of, text)
            else:
                text += "; users elsewhere go through no proxy, so try from there"
                self.tell_of(Verdict.SKIP, "port", port.of, text)
            return False
        text = f"{_number(port)} is allowed and free, and users reach it ({milliseconds(took_s)} and back)"
        self.tell_of(Verdict.OK, "port", port.of, text)
        return True

    def _tell_port(self, port: Port) -> None:
        """Tell what the server has answered about a port at which no user was tried."""
        answer, number = port.answer, _number(port)
        if answer is None:
            text = f"the server has not answered within {ANSWERS_S:g} s"
            self.tell_of(Verdict.WRONG, "port", port.of, text)
        elif port.is_open:
            self.tell_of(Verdict.OK, "port", port.of, f"{number} is allowed and free")
        elif answer.own:
            self.tell_of(Verdict.SKIP, "port", port.of, f"{number}: {_TAKEN_BY_OWN}")
        elif answer.retry:
            self.tell_of(Verdict.WRONG, "port", port.of, f"{answer.error}; choose another, or free it")
        else:
            self.tell_of(Verdict.WRONG, "port", port.of, answer.error or _refused_by_go(number))

    def _try_any_port(self, trial: Trial) -> Port | None:
        """Ask for any port of TCP, come there, and return it; None, after a line, if that fails."""
        port = trial.port(ProxyConfig(proxy_name="throughput", local_port=1))
        trial.ask([port])
        trial.wait_answer(port, self._budget.of(ANSWERS_S))
        reason = port.answer.error if port.answer is not None else "the server has not answered"
        if port.is_open:
            try:
                trial.reach(port, self._budget.of(USERS_S))
            except GnarError as exc:
                reason = f"users cannot reach {_number(port)}, which the server has chosen, from here: {exc}"
            else:
                return port
        self._list.skip("throughput", f"not measured: {reason}")
        return None

    # ---- a Go server ---------------------------------------------------------------------------------------

    def _try_go_ports(self, trial: Trial, first: Port) -> None:
        """Try the first ports, each on a control connection of its own, as a Go server wants it."""
        others = self._config.proxies[1:]
        is_measured = self._try_go_port(trial, first, measures=True)
        for proxy in others[: MOST_GO_PORTS - 1]:
            other = Trial(trial.config)
            port = other.port(proxy)
            try:
                with deadline(self._budget.of(LOGIN_S), "the login"):
                    other.begin(ControlConn.dial(trial.config, secrets.token_hex(16), is_check=True), [port])
                is_measured |= self._try_go_port(other, port, measures=not is_measured)
            except GnarError as exc:
                self.tell_of(Verdict.WRONG, "port", proxy, str(exc))
            finally:
                other.close()
        if len(others) >= MOST_GO_PORTS:
            self._list.skip("port", "the others are not tried: a Go server wants a connection for each")
        if not is_measured:
            self._list.skip("throughput", "not measured: no port of TCP is open and reached")

    def _try_go_port(self, trial: Trial, port: Port, *, measures: bool) -> bool:
        """Try a port and give it back; return whether the throughput was measured there."""
        trial.wait_answer(port, self._budget.of(ANSWERS_S))
        if not port.is_open:
            self._tell_port(port)
            return False
        is_good = self._come(trial, port) and port.of.proxy_type == "tcp"
        if is_good and measures:
            self._measure(trial, port)
        with suppress(ConnError):
            trial.give_back(port)
        return is_good and measures

    # ---- throughput ----------------------------------------------------------------------------------------

    def _measure(self, trial: Trial, port: Port) -> None:
        """Measure how fast bytes go both ways between a user here and a service here, through the server."""
        try:
            down = trial.download(port, min(MEASURE_S, self._budget.of(MEASURE_S)))
            up = trial.upload(port, min(MEASURE_S, self._budget.of(MEASURE_S)))
        except GnarError as exc:
            self._list.wrong("throughput", f"{exc}; users will be cut off, too")
            return
        text = f"a user here gets {_rate(down)} and sends {_rate(up)}, through the server and back"
        self._list.ok("throughput", text)


def _number(port: Port) -> str:
    if port.of.has_name and not port.number:
        return f"the name {port.proxy.subdomain}" if port.proxy.subdomain else "any name"
    return f"{port.of.proxy_type} port {port.number}" if port.number else "any port"


def _has_public_port(port: Port) -> bool:
    """Tell whether users come to a port; one that a proxy with a name has by chance is on loopback."""
    return bool(port.number) and not (port.of.has_name and not port.of.remote_port)


def _refused_by_go(number: str) -> str:
    return f"the server refused {number} (a Go server does not say why; is it taken?)"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / (1 << 20):.1f} MiB/s"
