"""The contestants that route HTTP by host name, and how each is started; knows no loads."""

from __future__ import annotations

from bench.configs import HTTP_MODE, nginx_command, nginx_proxy
from bench.frp import FRP_PROGRAMS, start_frp
from bench.haproxys import start_two_haproxys
from bench.launch import DOMAIN, LABEL, Command, Contestant, Kind, Launch, Starter, in_the_clear
from bench.procs import free_port


def gnar_names(gnar: Command, *, multiplex: bool = False) -> Starter:
    """Return how to start `gnar server` with a domain, and `gnar client` with a name under the domain."""

    def start(launch: Launch) -> None:
        control = free_port()
        web = ["--domain", DOMAIN, "--http-port", launch.port]
        server = launch.server(*gnar, "server", "-p", control, "--bind", launch.near.bind, *web)
        server.wait_listening(control)
        flags = [*(["-m"] if multiplex else []), *in_the_clear(gnar)]
        mapping = f"{LABEL}={launch.target}"
        launch.client(*gnar, "client", "-s", f"{launch.near.ip}:{control}", mapping, *flags)

    return start


def start_haproxy_http_x2(launch: Launch) -> None:
    """Start two haproxys in a row that forward requests, a yardstick for names."""
    start_two_haproxys(launch, HTTP_MODE)


def start_nginx_x2(launch: Launch) -> None:
    """Start two nginxs in a row that forward requests, a yardstick for names."""
    middle = free_port()
    first = nginx_proxy(launch.near.bind, launch.port, launch.far.ip, middle)
    second = nginx_proxy(launch.far.bind, middle, "127.0.0.1", launch.target)
    launch.client(*nginx_command(launch.new_folder("nginx"), second)).wait_listening(middle)
    launch.server(*nginx_command(launch.new_folder("nginx"), first))


def frp_vhost(*, plain: bool) -> Starter:
    """Return how to start frp with a name under a domain; `plain` is frp's fastest way."""

    def start(launch: Launch) -> None:
        web = f'vhostHTTPPort = {launch.port}\nsubDomainHost = "{DOMAIN}"\n'
        start_frp(launch, f'type = "http"\nsubdomain = "{LABEL}"\n', web, plain=plain)

    return start


def by_host_name(gnar: Command) -> list[Contestant]:
    """Return the contestants of this module in the order of the tables."""

    def made(name: str, start: Starter, programs: Command, *, optional: bool = False) -> Contestant:
        return Contestant(name, Kind.NAMES, start, programs, ("http",), optional=optional)

    return [
        made("haproxy http x2", start_haproxy_http_x2, ("haproxy",)),
        made("nginx x2", start_nginx_x2, ("nginx",)),
        made("gnar names", gnar_names(gnar), gnar[:1]),
        made("gnar names -m", gnar_names(gnar, multiplex=True), gnar[:1]),
        made("frp vhost", frp_vhost(plain=False), FRP_PROGRAMS, optional=True),
        made("frp vhost plain", frp_vhost(plain=True), FRP_PROGRAMS, optional=True),
    ]
