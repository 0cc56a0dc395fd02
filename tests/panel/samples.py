"""What a stand-in shows: a server as one might run it, and crowds."""

from __future__ import annotations

import time

from tests.panel.standin import Item, World

K, M = 1000, 1_000_000


def household() -> World:
    """Return a server with a few clients, as at home; all addresses are those that documentation may use."""
    world = World()
    home = world.client("192.0.2.17:51820", age_s=302_000)
    office = world.client("192.0.2.88:40112", age_s=28_000)
    pi = world.client("198.51.100.23:33710", "gnar-py/0.8.2", age_s=5_200, multiplexed=False)
    gone: Item = {"state": "gone", "gone_at": world.started_at + 295_000}
    laptop = world.client("203.0.113.9:60233", age_s=90_000, reason="connection reset", **gone)
    web = "https://{}.gnar.example".format
    blog = world.proxy(home, "blog", 9000, 2.4 * M, 92 * K, users_total=48_211, link=web("blog"))
    nas = world.proxy(home, "nas", 9001, 11.2 * M, 610 * K, users=4, users_total=1_309)
    nas |= {"limit_down": 20 * M, "limit_up": 5 * M}
    world.proxy(home, "ssh", 2222, 2.1 * K, 900, users=2, users_total=87)
    udp: Item = {"kind": "udp", "dropped": 127}
    world.proxy(home, "wireguard", 51820, 840 * K, 1.9 * M, users=3, users_total=41, **udp)
    world.proxy(office, "git", 9418, 310 * K, 36 * K, users=5, users_total=2_740)
    world.proxy(office, "staging", 9080, users_total=66, link=web("staging"), state="waiting")
    world.proxy(pi, "camera", 8554, 1.6 * M, 14 * K, users=1, users_total=12, limit_down=2 * M)
    world.proxy(pi, "mqtt", 1883, 5.2 * K, 7.9 * K, users=14, users_total=530)
    world.proxy(laptop, "demo", 3000, users_total=9, reason="the client left", **gone)
    visitors(world, blog)
    happenings(world)
    return world


def visitors(world: World, proxy: Item) -> None:
    """Add some users to a proxy: a few are young and fast, others old and idle."""
    for number in range(23):
        rate, age_s = 2.4 * M / (number + 1) ** 1.3, 17 * number**2 + 3
        count = int(rate * (20 + number * 9))
        user = world.connection(proxy, f"198.51.100.{number * 7 + 1}:{40_000 + number * 577}")
        user |= {"since": time.time() - age_s, "rate_down": rate, "rate_up": rate / 26}
        user |= {"bytes_down": count, "bytes_up": count // 26, "idle_s": 0 if number % 5 else number * 11.0}


def happenings(world: World) -> None:
    """Add the last events of the household."""
    office, pi, laptop = "192.0.2.88:40112", "198.51.100.23:33710", "203.0.113.9:60233"
    world.happened("client-came", 28_000, client=office, version="gnar-py/0.9.0", multiplexed=True)
    world.happened("proxy-opened", 27_999, name="git", kind="tcp", port=9418, peer=office)
    world.happened("client-gone", 7_100, client=laptop, reason="connection reset")
    world.happened("login-refused", 6_200, peer="203.0.113.77:51004", reason="wrong token", cause="token")
    world.happened("client-came", 5_200, client=pi, version="gnar-py/0.8.2", multiplexed=False)
    world.happened("proxy-opened", 5_199, name="camera", kind="tcp", port=8554, peer=pi)
    world.happened("datagrams-dropped", 1_900, proxy="wireguard", count=127)
    refused = "port 22 is not allowed"
    world.happened("proxy-refused", 340, name="admin", kind="tcp", peer=office, reason=refused)


def crowd(proxies: int = 0, connections: int = 0) -> World:
    """Return a server with many proxies of many clients; the first proxy has many connections."""
    world = World()
    addresses = [f"192.0.2.{number % 250}:{10_000 + number}" for number in range(max(1, proxies // 10))]
    clients = [world.client(address) for address in addresses]
    for number in range(max(1, proxies)):
        client = clients[number % len(clients)]
        world.proxy(client, f"service-{number:04}", 10_000 + number, down=K if number < 50 else 0)
    for number in range(connections):
        user = f"198.51.100.{number % 250}:{1024 + number}"
        world.connection(world.proxies["p1"], user, rate_down=number, since=time.time() - number)
    return world
