"""Tables of the metrics, of the comparisons between contestants, and of gnar's targets; measures nothing."""

from __future__ import annotations

from dataclasses import dataclass

from bench.launch import Kind


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of a table."""

    key: str
    section: str  # title of the table
    title: str  # of the column
    unit: str
    more_is_better: bool = False
    worst_counts: bool = False  # whether the report shows the worst round, not the median

    @property
    def best_first(self) -> str:
        """Which figures are better, in words."""
        return "more is better" if self.more_is_better else "less is better"


TCP = "Tunnels and relays, loopback"
UDP = "UDP echo, loopback"
EACH = "Each request, loopback"
HTTP = "HTTP by host name, loopback"
NAMED_EACH = "Each request by host name, loopback"
LONG = "A long path"
LOSSY = "A long path that loses packets"
IDLE = "Idle connections"
FLEET = "A server with thousands of clients"
PROXIES = "One client with many proxies"
CROWD = "A crowd of users at once"
START = "Start, warm"


LOSSES_PERCENT = (1, 3)  # of the packets of a long path, each way


def _of_loss(percent: int) -> tuple[Metric, ...]:
    """Return the metrics of users whose connections stay, and of others, on a path that loses packets."""
    return tuple(
        Metric(f"loss{percent}_{users}_p{part}", LOSSY, f"{percent} %: {title} p{part}", "ms")
        for users, title in (("kept", "ka 32"), ("short", "short"))
        for part in (50, 99)
    )


def _of_each(section: str, key: str, title: str) -> tuple[Metric, ...]:
    """Return the metrics of what each request takes of the programs of a contestant."""
    return (
        Metric(f"user_{key}", section, f"{title} user", "us"),
        Metric(f"system_{key}", section, f"{title} system", "us"),
        Metric(f"calls_server_{key}", section, f"{title} server", "calls"),
        Metric(f"calls_client_{key}", section, f"{title} client", "calls"),
    )


METRICS = {
    metric.key: metric
    for metric in (
        Metric("up", TCP, "bulk up", "Gbit/s", more_is_better=True),
        Metric("down", TCP, "bulk down", "Gbit/s", more_is_better=True),
        Metric("cpu_up", TCP, "CPU up", "s/GB"),
        Metric("cpu_down", TCP, "CPU down", "s/GB"),
        Metric("ka32", TCP, "ka 32", "req/s", more_is_better=True),
        Metric("ka200", TCP, "ka 200", "req/s", more_is_better=True),
        Metric("ka1", TCP, "ka 1 p50", "us"),
        Metric("short", TCP, "short", "conn/s", more_is_better=True),
        Metric("peak", TCP, "peak memory", "MiB", worst_counts=True),
        *_of_each(EACH, "ka32", "ka 32"),
        *_of_each(EACH, "short", "short"),
        Metric("udp1", UDP, "1 user", "trips/s", more_is_better=True),
        Metric("udp64", UDP, "64 users", "trips/s", more_is_better=True),
        Metric("udp_loss", UDP, "lost at a fixed rate", "%"),
        Metric("udp_wrong", UDP, "wrong answers", "", worst_counts=True),
        Metric("hka32", HTTP, "ka 32", "req/s", more_is_better=True),
        Metric("cpu_hka32", HTTP, "CPU ka 32", "us/req"),
        Metric("hka1", HTTP, "ka 1 p50", "us"),
        Metric("cpu_hka1", HTTP, "CPU ka 1", "us/req"),
        Metric("hshort", HTTP, "short", "conn/s", more_is_better=True),
        Metric("cpu_hshort", HTTP, "CPU short", "us/req"),
        Metric("hup", HTTP, "body up", "Gbit/s", more_is_better=True),
        Metric("hdown", HTTP, "body down", "Gbit/s", more_is_better=True),
        Metric("cpu_hup", HTTP, "CPU up", "s/GB"),
        Metric("cpu_hdown", HTTP, "CPU down", "s/GB"),
        Metric("hpeak", HTTP, "peak memory", "MiB", worst_counts=True),
        *_of_each(NAMED_EACH, "hka32", "ka 32"),
        *_of_each(NAMED_EACH, "hshort", "short"),
        Metric("first", LONG, "first byte", "ms"),
        Metric("together", LONG, "20 at once", "ms"),
        Metric("long_up", LONG, "bulk up", "Mbit/s", more_is_better=True),
        Metric("long_down", LONG, "bulk down", "Mbit/s", more_is_better=True),
        Metric("busy", LONG, "first byte, bulk runs", "ms"),
        Metric("full", LONG, "first byte, 50 Mbit/s full", "ms"),
        *(metric for percent in LOSSES_PERCENT for metric in _of_loss(percent)),
        Metric("rest_server", IDLE, "server at rest", "MiB"),
        Metric("rest_client", IDLE, "client at rest", "MiB"),
        Metric("idle_server", IDLE, "server, each", "KiB"),
        Metric("idle_client", IDLE, "client, each", "KiB"),
        Metric("idle_lost", IDLE, "lost", "", worst_counts=True),
        Metric("p50_empty", IDLE, "p50 empty", "us"),
        Metric("p50_idle", IDLE, "p50 beside them", "us"),
        Metric("p50_ratio", IDLE, "p50 ratio", "x"),
        Metric("fleet_rate", FLEET, "log-ins by the clock", "1/s", more_is_better=True),
        Metric("fleet_per_cpu", FLEET, "log-ins by the server's CPU time", "1/s", more_is_better=True),
        Metric("fleet_share", FLEET, "server, all idle", "% of a core"),
        Metric("fleet_each", FLEET, "server, each", "KiB"),
        Metric("fleet_lost", FLEET, "lost", "", worst_counts=True),
        Metric("proxies_one", PROXIES, "one is open", "s"),
        Metric("proxies_all", PROXIES, "all are open", "s"),
        Metric("proxies_server", PROXIES, "server CPU, each", "us"),
        Metric("proxies_client", PROXIES, "client CPU, each", "us"),
        Metric("crowd_refused", CROWD, "refused", "", worst_counts=True),
        Metric("crowd_silent", CROWD, "silent", "", worst_counts=True),
        Metric("crowd_p50", CROWD, "p50", "ms"),
        Metric("crowd_longest", CROWD, "longest wait", "ms"),
        Metric("crowd_cpu", CROWD, "CPU, each", "us"),
        Metric("start", START, "--version over python3 -c pass", "s"),
    )
}

RELAY, TUNNEL, MULTIPLEX = "gnar relay", "gnar tunnel", "gnar tunnel -m"
NAMES, NAMES_MULTIPLEX = "gnar names", "gnar names -m"
TLS, TLS_PLAIN = "gnar tunnel tls", "gnar tunnel tls plain"
RUST = ("rathole", "bore")
GO = ("frp", "chisel")
NOISE = ("rathole noise",)
HAPROXY_TLS = ("haproxy x2 tls",)
TLS_YARDSTICKS = (HAPROXY_TLS, NOISE, GO)

# The yardsticks of each kind, by table. An entry of several names stands for the better of them.
COMPARISONS: dict[str, dict[Kind, tuple[tuple[str, ...], ...]]] = {
    TCP: {
        Kind.RELAY: (("haproxy",), ("socat",), ("socat -b 262144",)),
        Kind.TUNNEL: (("haproxy x2",), RUST),
        Kind.ENCRYPTED: (*TLS_YARDSTICKS, (TUNNEL,)),
    },
    EACH: {
        Kind.RELAY: (("haproxy",),),
        Kind.TUNNEL: (("haproxy x2",), RUST),
        Kind.ENCRYPTED: (*TLS_YARDSTICKS, (TUNNEL,)),
    },
    UDP: {
        Kind.RELAY: (("direct",), ("socat",)),
        Kind.TUNNEL: (("direct",),),
        Kind.ENCRYPTED: (("direct",),),
    },
    HTTP: {Kind.NAMES: (("haproxy http x2",), ("nginx x2",), ("frp vhost", "frp vhost plain"), (TUNNEL,))},
    NAMED_EACH: {Kind.NAMES: (("haproxy http x2",), (TUNNEL,))},
    LONG: {Kind.TUNNEL: (("direct",),), Kind.ENCRYPTED: (("direct",),)},
    LOSSY: {Kind.TUNNEL: (("direct",),), Kind.ENCRYPTED: (("direct",),)},
    IDLE: {Kind.TUNNEL: (RUST,), Kind.ENCRYPTED: TLS_YARDSTICKS},
}


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a metric of one contestant."""

    contestant: str
    against: tuple[str, ...]  # the bound is on the ratio to the best of these; empty: on the figure itself
    metric: str
    bound: float  # the least figure if more is better, else the greatest

    def is_met(self, figure: float) -> bool:
        """Tell whether a ratio or figure is within the bound."""
        return figure >= self.bound if METRICS[self.metric].more_is_better else figure <= self.bound


def _targets(contestant: str, against: tuple[str, ...], **bounds: float) -> list[Target]:
    """Return a target for each bound, named by its metric."""
    return [Target(contestant, against, metric, bound) for metric, bound in bounds.items()]


TARGETS = [
    *_targets(RELAY, ("haproxy",), up=1.3, down=1.3, cpu_up=0.5, cpu_down=0.5, ka32=0.85, short=0.7),
    *_targets(RELAY, ("socat",), up=3, down=3, cpu_up=1, cpu_down=1, ka32=1, ka1=1, short=2.5),
    *_targets(RELAY, ("socat -b 262144",), cpu_up=0.7, cpu_down=0.7),
    *_targets(TUNNEL, ("haproxy x2",), up=1.3, down=1.3, cpu_up=0.47, cpu_down=0.47),
    *_targets(TUNNEL, ("haproxy x2",), ka32=0.75, ka1=1.15, short=0.8),
    *_targets(TUNNEL, RUST, up=1.2, down=1.2, ka32=0.75, ka1=1.15, short=0.9),
    *_targets(MULTIPLEX, ("haproxy x2",), up=0.6, down=0.6, ka32=0.7, ka1=1.5, short=0.75),
    *_targets(TLS, GO, up=2, down=2),
    *_targets(TLS, (*NOISE, *GO), cpu_up=1, cpu_down=1),
    *_targets(TLS, HAPROXY_TLS, up=1.1, down=1.1, cpu_up=1, cpu_down=1, ka32=1, short=2),
    *_targets(NAMES, (TUNNEL,), hka32=0.6, hup=0.9, hdown=0.9),
    *_targets(NAMES_MULTIPLEX, (MULTIPLEX,), hka32=0.6, hup=0.9, hdown=0.9),
    *(
        target
        for contestant in (RELAY, TUNNEL, MULTIPLEX)
        for target in (
            *_targets(contestant, ("direct",), udp1=0.45, udp64=0.4),
            *_targets(contestant, (), udp_wrong=0),
        )
    ),
    *_targets(TUNNEL, (), first=52, together=55, busy=53, full=60),
    *_targets(MULTIPLEX, (), first=55, together=65, busy=75, full=110),
    *_targets(TLS, (), first=52),
    *_targets(TUNNEL, ("direct",), long_up=0.95, long_down=0.95),
    *_targets(MULTIPLEX, ("direct",), long_up=0.8, long_down=0.8),
    *_targets(TUNNEL, (), loss1_kept_p50=53, loss1_kept_p99=180, loss1_short_p50=56, loss1_short_p99=180),
    *_targets(TUNNEL, (), loss3_kept_p50=60, loss3_kept_p99=350, loss3_short_p50=65, loss3_short_p99=400),
    *_targets(TUNNEL, (), rest_server=40, idle_server=6, idle_client=6, idle_lost=0, p50_ratio=2),
    *_targets(MULTIPLEX, (), rest_server=40, idle_server=8, idle_client=8, idle_lost=0, p50_ratio=2),
    *_targets(TLS, (), idle_server=12, idle_client=12, idle_lost=0, p50_ratio=2),
    *_targets(TLS_PLAIN, (), idle_server=32, idle_client=44, idle_lost=0, p50_ratio=2),
    *_targets(TUNNEL, (), fleet_rate=1500, fleet_share=2, fleet_each=20, fleet_lost=0),
    *_targets(TUNNEL, (), proxies_all=0.6, crowd_refused=0, crowd_silent=0),
    *_targets("gnar", (), start=0.15),
]
