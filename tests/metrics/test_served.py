"""A server from gnar.pyz tells its metrics: bytes of a connection that goes on, and how long users wait."""

from __future__ import annotations

from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.harness import LOOPBACK, Service, Tunnels, dial, echo, free_port, wait_until

SIZE = 100_000


def metrics_at(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the value of each series, by its name and the values of its labels."""
    with urlopen(Request(f"http://{LOOPBACK}:{port}/metrics")) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    return {
        (sample.name, tuple(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_server_tells_what_flows_while_it_flows(plain_tunnels: Tunnels) -> None:
    admin = free_port()
    _, control = plain_tunnels.server("-a", str(admin))
    with Service(echo, free_port()) as service:
        _, port = plain_tunnels.client(control, "-l", str(service.port), "-r", "0", "-n", "blog")
        with dial(port) as user:
            for total in (SIZE, 2 * SIZE):
                user.sendall(bytes(SIZE))
                left = SIZE
                while left:
                    left -= len(user.recv(left))
                found = metrics_at(admin)
                for direction in ("up", "down"):
                    assert found["gnar_proxy_bytes_total", (direction, "blog")] == total
                    assert found["gnar_bytes_total", (direction,)] == total
            found = metrics_at(admin)
            assert found["gnar_proxies", ("tcp",)] == 1
            assert found["gnar_clients", ()] == 1
            assert found["gnar_connections_open", ()] == 1
            assert found["gnar_proxy_connections_open", ("blog",)] == 1
            assert found["gnar_exchange_seconds_count", ()] == 1
            assert 0 < found["gnar_exchange_seconds_sum", ()] < 20
        wait_until(lambda: not metrics_at(admin)["gnar_connections_open", ()], "the user has left")
    assert metrics_at(admin)["gnar_proxy_bytes_total", ("down", "blog")] == 2 * SIZE
