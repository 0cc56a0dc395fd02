"""Writes a log line for each event: the first listener of `events`; decides nothing else.

`start` has to be called after `logger.setup`, and again when the level has changed: events whose lines are
below the level are not even made.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from gnar_lib import events, logger
from gnar_lib.events import Side
from gnar_lib.net.address import format_address

_control = logger.get("control")
_server = logger.get("server")
_client = logger.get("client")
_data = logger.get("data connection")
_net = logger.get("net")
_of_side = {side: logger.get(side.value) for side in Side}


class _Bursts:
    """The warnings that many users can cause, each of which is logged once in a while only."""

    def __init__(self) -> None:
        self.descriptors = logger.Burst()
        self.users = logger.Burst()  # whom the server has turned away, of all proxies
        self.data_conns = logger.Burst()
        self.services: defaultdict[str, logger.Burst] = defaultdict(logger.Burst)  # by the proxy's name


_bursts = _Bursts()


def start() -> None:
    """Log events from now on, those of the present level; more than once does no harm."""
    for event_type, (level, tell) in _TOLD.items():
        events.unsubscribe(event_type, tell)
        if _server.isEnabledFor(level):
            events.subscribe(event_type, tell)


def _log_of(kind: str, name: str) -> logger.Logger:
    return logger.get(f"{kind.upper()} [{name}]")


# ---- clients and the server --------------------------------------------------------------------------------


def _login_refused(event: events.LoginRefused) -> None:
    _server.warning("refused %s: %s", format_address(event.peer), event.reason)


def _login_given_up(event: events.LoginGivenUp) -> None:
    _server.debug("no login by %s: %s", format_address(event.peer), event.reason)


def _client_came(event: events.ClientCame) -> None:
    how = ", multiplexed" if event.multiplexed else ""
    _server.info("client %s (%s%s)", format_address(event.client), event.version, how)


def _client_returned(event: events.ClientReturned) -> None:
    _server.info("client %s is back as %s", format_address(event.before), format_address(event.client))


def _client_gone(event: events.ClientGone) -> None:
    client = format_address(event.client)
    if event.broke_protocol:
        _control.warning("client %s broke the protocol: %s", client, event.reason)
    else:
        _control.info("client %s has gone: %s", client, event.reason)


def _connected(event: events.Connected) -> None:
    _client.info("connected to %s%s", format_address(event.server), " (a Go server)" if event.is_go else "")


def _connect_failed(event: events.ConnectFailed) -> None:
    if event.is_refused:
        _client.error("%s; trying again in %.1f s", event.reason, event.retry_s)
        return
    lost = "lost the server: " if event.was_connected else ""
    _client.warning("%s%s; trying again in %.1f s", lost, event.reason, event.retry_s)


def _data_conns_fail(event: events.DataConnsFail) -> None:
    _bursts.data_conns.warning(
        _data, "cannot be opened: %s; trying again in %.1f s", event.reason, event.retry_s
    )


def _data_conns_work(_event: events.DataConnsWork) -> None:
    _bursts.data_conns.end(_data)


# ---- proxies -----------------------------------------------------------------------------------------------


def _proxy_opened(event: events.ProxyOpened) -> None:
    log = _log_of(event.kind, event.name)
    if event.side is Side.SERVER:
        what = event.where or f"port {event.port}"
        log.info("%s is open for %s", what, format_address(event.peer))
    else:
        log.info("open at %s", event.where)


def _proxy_refused(event: events.ProxyRefused) -> None:
    log = _log_of(event.kind, event.name)
    if event.side is Side.SERVER:
        log.warning("refused to %s: %s", format_address(event.peer), event.reason)
    elif event.retry_s is not None:
        log.warning("%s; trying again in %.1f s", event.reason, event.retry_s)
    else:
        log.error("the server refused: %s", event.reason)


def _proxy_closed(event: events.ProxyClosed) -> None:
    log = _log_of(event.kind, event.name)
    if event.reason is events.CloseReason.ENDED:
        log.warning("%s is closed: %s", event.where or f"port {event.port}", event.reason.value)
    elif event.side is Side.SERVER and event.reason is events.CloseReason.CANCELLED:
        log.info("cancelled by %s", format_address(event.peer))


# ---- users -------------------------------------------------------------------------------------------------


_UserEvent = events.UserCame | events.UserConnected | events.UserAnswered | events.UserLeft


def _of_user(event: _UserEvent) -> logger.Logger:
    return _of_side[Side.RELAY] if event.side is Side.RELAY else _log_of("tcp", event.proxy)


def _user_came(event: events.UserCame) -> None:
    _of_user(event).debug("user %s has come", format_address(event.user))


def _user_connected(event: events.UserConnected) -> None:
    log = _of_user(event)
    log.debug("user %s is connected after %.3f s", format_address(event.user), event.after_s)


def _user_answered(event: events.UserAnswered) -> None:
    log = _of_user(event)
    log.debug("user %s is answered after %.3f s", format_address(event.user), event.after_s)


def _user_left(event: events.UserLeft) -> None:
    _of_user(event).debug(
        "user %s has left after %.3f s, with %d bytes up and %d down%s",
        format_address(event.user),
        event.lasted_s,
        event.up,
        event.down,
        f": {event.reason}" if event.reason else "",
    )


def _user_refused(event: events.UserRefused) -> None:
    log = _log_of(event.kind, event.proxy)
    _bursts.users.warning(log, "turned %s away: %s", format_address(event.user), event.reason)


def _udp_user_came(event: events.UdpUserCame) -> None:
    _log_of("udp", event.proxy).debug("user %s has come", format_address(event.user))


def _datagrams_dropped(event: events.DatagramsDropped) -> None:
    _log_of("udp", event.proxy).debug("%d datagrams were dropped", event.count)


def _service_unreachable(event: events.ServiceUnreachable) -> None:
    log = _log_of(event.kind, event.proxy)
    if not event.again and _bursts.services[event.proxy].is_on:
        # A reload has given the name to another proxy, which has failed for nobody yet.
        del _bursts.services[event.proxy]
    _bursts.services[event.proxy].warning(log, "the local service does not answer: %s", event.reason)


def _service_reached(event: events.ServiceReached) -> None:
    _bursts.services[event.proxy].end(_log_of(event.kind, event.proxy))


# ---- the process -------------------------------------------------------------------------------------------


def _descriptors_short(event: events.DescriptorsShort) -> None:
    _bursts.descriptors.warning(_net, "%s: %s", event.effect, event.reason)


def _reloaded(event: events.Reloaded) -> None:
    log = _of_side[event.side]
    for key in event.unchanged:
        log.warning("%s stays as it is until the next start", key)
    for key in event.at_login:
        log.info("%s changes at the next login", key)
    log.info("configuration reloaded%s", f": {event.new} new" if event.side is Side.CLIENT else "")


def _stopping(event: events.Stopping) -> None:
    _of_side[event.side].info("stopping")


_Told = dict[Any, tuple[int, Callable[[Any], None]]]

_TOLD: _Told = {
    events.LoginRefused: (logging.WARNING, _login_refused),
    events.LoginGivenUp: (logging.DEBUG, _login_given_up),
    events.ClientCame: (logging.INFO, _client_came),
    events.ClientReturned: (logging.INFO, _client_returned),
    events.ClientGone: (logging.INFO, _client_gone),
    events.Connected: (logging.INFO, _connected),
    events.ConnectFailed: (logging.WARNING, _connect_failed),
    events.DataConnsFail: (logging.WARNING, _data_conns_fail),
    events.DataConnsWork: (logging.INFO, _data_conns_work),
    events.ProxyOpened: (logging.INFO, _proxy_opened),
    events.ProxyRefused: (logging.WARNING, _proxy_refused),
    events.ProxyClosed: (logging.INFO, _proxy_closed),
    events.UserCame: (logging.DEBUG, _user_came),
    events.UserConnected: (logging.DEBUG, _user_connected),
    events.UserAnswered: (logging.DEBUG, _user_answered),
    events.UserLeft: (logging.DEBUG, _user_left),
    events.UserRefused: (logging.WARNING, _user_refused),
    events.UdpUserCame: (logging.DEBUG, _udp_user_came),
    events.DatagramsDropped: (logging.DEBUG, _datagrams_dropped),
    events.ServiceUnreachable: (logging.WARNING, _service_unreachable),
    events.ServiceReached: (logging.INFO, _service_reached),
    events.DescriptorsShort: (logging.WARNING, _descriptors_short),
    events.Reloaded: (logging.INFO, _reloaded),
    events.Stopping: (logging.INFO, _stopping),
}
