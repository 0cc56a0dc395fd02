"""Starts and ends the inspector of a client: what records, and the page if there is to be one."""

from __future__ import annotations

from collections.abc import Callable

from gnar_lib import logger
from gnar_lib.client.inspector.api import API
from gnar_lib.client.inspector.port import Port
from gnar_lib.client.inspector.replay import Replayer
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.config import Address, ClientConfig
from gnar_lib.http import Routes
from gnar_lib.inspect import ExchangeLog, Inspector

_log = logger.get("inspect")


class ClientInspector:
    """Records what passes through the proxies of a client, and shows it, until `close`."""

    def __init__(self, config: ClientConfig, find: Callable[[str], ClientProxy | None]) -> None:
        """Raises `ListenError` and `StorageError`."""
        self.url = ""  # of the page; empty if there is none
        log = ExchangeLog(config.inspect_log) if config.inspect_log else None
        body_bytes = config.inspect_bodies if config.inspect is not None else 0
        self.inspector = Inspector(body_bytes, log)
        self._replayer = Replayer(self.inspector, find)
        self._port: Port | None = None
        if config.inspect is not None:
            self._open_page(config.inspect)

    def _open_page(self, where: Address) -> None:
        routes = Routes()
        API(self.inspector, self._replayer).add_to(routes)
        self._port = Port(routes)
        self.url = self._port.start(where)
        _log.info("the requests that pass are shown at %s", self.url)

    def close(self) -> None:
        """End everything."""
        if self._port is not None:
            self._port.close()
        self._replayer.crew.kill()
        self.inspector.close()
