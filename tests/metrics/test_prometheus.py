"""A real Prometheus asks gnar over HTTP: it takes all metrics, sees bytes move, and fills the dashboard."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import quote

import gevent
import pytest

from gnar_lib.errors import ConnError
from gnar_lib.events import Side
from gnar_lib.http import Request, Response, Routes, Service
from gnar_lib.metrics import Metrics
from gnar_lib.net import Crew, dial, listen
from gnar_lib.proxy.joiner import Joiner
from tests.helpers.conns import LOOPBACK, V4, tcp_pair
from tests.helpers.harness import free_port
from tests.helpers.loop import wait_until
from tests.metrics.dashboard import expressions
from tests.metrics.sides import USER, Told, running

TIMEOUT_S = 30.0
EVERY = "100ms"
OF_CLIENTS = ("gnar_client_connected", "gnar_service_failures_total")

pytestmark = pytest.mark.skipif(which("prometheus") is None, reason="prometheus is not installed")


class Prometheus:
    """A Prometheus that asks one port again and again."""

    def __init__(self, target: int, folder: Path) -> None:
        self._port = free_port()
        config = folder / "prometheus.yml"
        config.write_text(
            f"global: {{scrape_interval: {EVERY}, scrape_timeout: {EVERY}}}\n"
            f"scrape_configs: [{{job_name: gnar, static_configs: [{{targets: ['{LOOPBACK}:{target}']}}]}}]\n"
        )
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={LOOPBACK}:{self._port}",
            "--log.level=error",
        ]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        wait_until(lambda: self._process.poll() is not None, "prometheus ends")

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Return the value of each series, by the values of its labels, without those of the target."""
        found = {}
        for each in self._get(f"/api/v1/query?query={quote(expression)}")["result"]:
            labels = sorted(each["metric"].keys() - {"__name__", "instance", "job"})
            found[tuple(each["metric"][name] for name in labels)] = float(each["value"][1])
        return found

    def _get(self, path: str) -> Any:
        answer = b""
        with suppress(ConnError):  # it has yet to listen
            conn = dial(V4, (LOOPBACK, self._port))
            try:
                conn.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                while more := conn.recv(65536):
                    answer += more
            finally:
                conn.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head:
            return {"result": []}
        answered = json.loads(body)
        assert answered["status"] == "success", answered
        return answered["data"]


@contextmanager
def asked(metrics: Metrics, folder: Path) -> Iterator[Prometheus]:
    """Serve metrics over HTTP, and have a Prometheus ask for them."""

    def answer(request: Request) -> Response:
        content_type, body = metrics.render(request.headers.get("accept", ""))
        return Response(200, body, content_type)

    routes, crew = Routes(), Crew("http")
    routes.add("GET", "/metrics", answer)
    service, listener = Service(routes), listen(LOOPBACK, 0)
    listener.serve(crew, service.serve)
    prometheus = Prometheus(listener.port, folder)
    try:
        yield prometheus
    finally:
        prometheus.close()
        listener.close()
        service.close()
        crew.kill()
        assert crew.wait_empty(TIMEOUT_S)


@pytest.mark.waits  # a Prometheus takes 5 s until it asks for the first time
def test_prometheus_sees_bytes_move_while_they_flow_and_fills_the_dashboard(tmp_path: Path) -> None:
    told = Told(Side.SERVER)
    told.open("dns", "udp").begin_session()
    joiner = Joiner(Side.SERVER, "blog", told.open("blog"))
    (user, accepted), (near, service) = tcp_pair(), tcp_pair()
    with (
        gevent.Timeout(TIMEOUT_S),
        running(Side.SERVER, told) as metrics,
        asked(metrics, tmp_path) as prometheus,
    ):
        gevent.spawn(joiner.join, accepted, USER, lambda: near)
        for megabytes in (1, 2, 3):
            sending = gevent.spawn(service.sendall, bytes(1_000_000))
            received = 0
            while received < 1_000_000:
                received += len(user.recv(1 << 20))
            sending.join()
            expected = {("down", "blog"): megabytes * 1e6}
            wait_until(
                lambda: expected.items() <= prometheus.query("gnar_proxy_bytes_total").items(),  # noqa: B023
                "Prometheus sees the bytes of a connection that goes on",
            )
        assert prometheus.query("up") == {(): 1}
        assert prometheus.query("gnar_connections_open") == {(): 1}
        assert prometheus.query("gnar_exchange_seconds_count") == {(): 1}
        for expression in expressions("5s"):
            if not any(name in expression for name in OF_CLIENTS):
                wait_until(lambda: prometheus.query(expression), expression)  # noqa: B023
        user.close()
        service.close()
        wait_until(lambda: prometheus.query("gnar_connections_open") == {(): 0}, "the user has left")
