"""Keeps gnar's part of Caddy's configuration there, whatever happens; decides not what that part is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent

from gnar_lib import logger
from gnar_lib.errors import ConnError
from gnar_lib.net import deadline
from gnar_lib.server.caddy.api import (
    CONFIG,
    Api,
    CaddyError,
    ChangedError,
    HungUpError,
    Json,
    NotTakenError,
)
from gnar_lib.server.caddy.plan import Made, Plan, plan, removal
from gnar_lib.server.caddy.shape import table
from gnar_lib.server.caddy.wish import Wish

LOOK_EVERY_S = 60.0  # at least; Caddy also shows when something has changed
LOOK_PAUSE_S = 1.0  # between two looks, if something changes all the time
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 15.0  # while Caddy is away
MAX_TRIES = 5  # to read and to write, while others write too
UNDONE_S = 60.0  # a change that is gone so soon was undone by somebody
MAX_UNDONE = 3  # how often in a row before gnar gives way for longer and longer
MAX_UNDONE_S = 60.0
REMOVE_S = 2.0

_log = logger.get("caddy")


class Caddy:
    """A Caddy in front of the web port at `web_address`, with its admin API at `api`.

    `removes` says that `remove` takes gnar's part away again. `made` is what the server is like that gnar
    makes if Caddy has none. Raises `ConfigError` if `api` is no address.
    """

    def __init__(  # noqa: PLR0913  (settings, all by name but the first two)
        self,
        api: str,
        srv_name: str,
        *,
        domain: str,
        allow_hosts: tuple[str, ...],
        web_address: tuple[str, int],
        removes: bool,
        made: Made | None = None,
    ) -> None:
        self.is_ready = False
        """Whether names have HTTPS, as of the last look; a Caddy that is away changes nothing."""
        self.trouble = ""
        """What is wrong, in words; empty if nothing is."""
        self._url = api
        self._api = Api(api)
        self._is_removed = False
        self._srv_name = srv_name
        self._wish = Wish.of(domain, allow_hosts, web_address)
        self._made = made or Made()
        self._removes = removes
        self._is_old = False  # whether Caddy only knows `ask`, as far as gnar knows
        self._retry_s = FIRST_RETRY_S
        self._wrote_s = 0.0  # when gnar has last changed Caddy's configuration
        self._undone = 0  # how often in a row somebody has undone that
        self._has_said = False

    def run(self) -> None:
        """See to it that Caddy is right, now and whenever that changes, until this greenlet is killed."""
        try:
            while not self._is_removed:
                wait_s = self._look()
                if wait_s:
                    gevent.sleep(wait_s)
                else:
                    self._api.wait_for_change(LOOK_EVERY_S)
                    gevent.sleep(LOOK_PAUSE_S)
        finally:
            self._api.close()

    def remove(self) -> None:
        """Take gnar's part away, if that is wanted; takes 2 s at most, and `run` does no more."""
        if not self._removes:
            return
        self._is_removed = True
        self.is_ready = False
        api = Api(self._url)  # `run` may be about to use its own
        try:
            with deadline(REMOVE_S, "removing gnar's route"):
                if change(api, removal):
                    _log.info("Caddy (%s) no longer leads users to gnar", self._url)
        except (CaddyError, ConnError) as exc:
            _log.warning("gnar's route stays in Caddy: %s", exc)
        finally:
            api.close()

    def foresee(self) -> tuple[Plan, bool]:
        """Read Caddy's configuration once; return what gnar wants it to be, and whether it is that already.

        Writes nothing. Raises `CaddyError`.
        """
        try:
            config = self._api.read()
        finally:
            self._api.close()
        planned = plan(config.value, self._srv_name, self._wish, self._made, is_old=self._is_old)
        return planned, planned.apps == table(config.value, "apps")

    def _look(self) -> float:
        """Put Caddy right if it is not; return how long to wait, 0 to wait for a change."""
        try:
            self._put_right()
        except NotTakenError as exc:
            self._say(str(exc))
            return 0.0
        except CaddyError as exc:
            self._say(str(exc))
            wait_s, self._retry_s = self._retry_s, min(2 * self._retry_s, LAST_RETRY_S)
            return wait_s
        self._retry_s = FIRST_RETRY_S
        if self._undone < MAX_UNDONE:
            return 0.0
        return float(min(2**self._undone, MAX_UNDONE_S))

    def _put_right(self) -> None:
        """Read the configuration, and write it if it is not as it should be; raises `CaddyError`."""
        trouble, is_ready = "", False

        def wanted(config: Json) -> dict[str, Any]:
            nonlocal trouble, is_ready
            planned = plan(config, self._srv_name, self._wish, self._made, is_old=self._is_old)
            trouble, is_ready = planned.trouble, planned.is_ready
            return planned.apps

        try:
            has_written = change(self._api, wanted)
        except NotTakenError as first:
            self._is_old = not self._is_old
            try:
                has_written = change(self._api, wanted)
            except NotTakenError as second:
                self._is_old = not self._is_old
                raise (first if first.reason == second.reason else _both(first, second)) from None
        self.is_ready = is_ready
        self._note_written(has_written=has_written)
        if self._undone >= MAX_UNDONE:
            trouble = (
                "somebody takes gnar's route out of Caddy's configuration again and again: does another gnar "
                "server use the same Caddy?"
            )
        self._say(trouble)

    def _note_written(self, *, has_written: bool) -> None:
        """Count how often in a row a change was undone soon."""
        now_s = time.monotonic()
        is_soon = self._wrote_s and now_s - self._wrote_s < UNDONE_S + min(2**self._undone, MAX_UNDONE_S)
        if not is_soon:
            self._undone = 0
        elif has_written:
            self._undone += 1
        if has_written:
            self._wrote_s = now_s

    def _say(self, trouble: str) -> None:
        """Log a trouble once, and that it is over."""
        if trouble == self.trouble and self._has_said:
            return
        if trouble:
            _log.warning("%s", trouble)
        else:
            state = "is right again and leads" if self._has_said else "leads"
            _log.info("Caddy (%s) %s users of %s to gnar", self._url, state, ", ".join(self._wish.hosts))
        self.trouble, self._has_said = trouble, True


def change(api: Api, wanted: Callable[[Json], dict[str, Any]]) -> bool:
    """Write the apps that `wanted` returns for a configuration, unless it has them; tell which.

    Reads again if somebody else was faster, or if Caddy has hung up because of that. Raises `CaddyError`.
    """
    error: CaddyError = CaddyError("others change Caddy's configuration all the time")
    for _ in range(MAX_TRIES):
        try:
            config = api.read()
            apps = wanted(config.value)
            if apps == table(config.value, "apps"):
                return False
            if config.value is None:
                api.write(CONFIG, {"apps": apps}, config.etag)
            else:
                api.write(f"{CONFIG}apps", apps, config.etag)
            return True
        except HungUpError as exc:
            error = exc
        except ChangedError:
            pass
    raise error


def _both(first: NotTakenError, second: NotTakenError) -> NotTakenError:
    """Return an error for a configuration that Caddy takes neither with `permission` nor with `ask`."""
    return NotTakenError(f"{first.reason}; and as another version of Caddy wants it: {second.reason}")
