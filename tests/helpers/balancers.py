"""Real programs that speak the PROXY protocol: nginx and haproxy, as services and as load balancers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.harness import LOOPBACK, WAIT_S, is_open, wait_until

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")  # libnginx-mod-stream of Debian
BALANCER = "127.0.0.2"  # from where the load balancers come
_KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def nginx(folder: Path, service: int, balancer: int, to: int) -> Iterator[Path]:
    """Run nginx for the block: a service behind a header, and a load balancer in front of the port `to`.

    The service answers, and logs to the file that is yielded, who has come to where, by the header.
    """
    folder.mkdir()
    log = folder / "access.log"
    who = "$remote_addr $remote_port $proxy_protocol_server_addr $proxy_protocol_server_port"
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in _KINDS)
    (folder / "nginx.conf").write_text(
        f"load_module {STREAM_MODULE}; daemon off; master_process off; pid {folder}/pid; events {{}}"
        f"http {{ {paths} log_format who '{who}'; access_log {log} who; server {{"
        f"listen {LOOPBACK}:{service} proxy_protocol; set_real_ip_from {LOOPBACK};"
        f"real_ip_header proxy_protocol; location / {{ return 200 '{who} $http_x_forwarded_for'; }} }} }}"
        f"stream {{ server {{ listen {LOOPBACK}:{balancer}; proxy_pass {LOOPBACK}:{to};"
        f"proxy_protocol on; proxy_bind {BALANCER}; }} }}"
    )
    argv = ["nginx", "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"]
    with _running(argv, [service, balancer]):
        yield log


@contextmanager
def haproxy(folder: Path, service: int, balancers: dict[int, tuple[int, str]]) -> Iterator[None]:
    """Run haproxy for the block: a service behind a header, and load balancers.

    The service answers who has come to where, and by which name. `balancers` are the ports of load balancers
    with the ports to which they lead, and how they send the header.
    """
    folder.mkdir()
    who = "%[src]:%[src_port] %[dst]:%[dst_port] %[fc_pp_authority]"
    listens = "".join(
        f"listen to-{to}-from-{port}\n mode tcp\n bind {LOOPBACK}:{port}\n"
        f" server gnar {LOOPBACK}:{to} source {BALANCER} {options}\n"
        for port, (to, options) in balancers.items()
    )
    (folder / "haproxy.cfg").write_text(
        "global\n maxconn 100\ndefaults\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n"
        f"frontend service\n mode http\n bind {LOOPBACK}:{service} accept-proxy\n"
        f' http-request return status 200 content-type text/plain lf-string "{who}"\n{listens}'
    )
    with _running(["haproxy", "-db", "-f", folder / "haproxy.cfg"], [service, *balancers]):
        yield


@contextmanager
def _running(argv: Sequence[object], ports: list[int]) -> Iterator[None]:
    process = subprocess.Popen([*map(str, argv)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: all(is_open(port) for port in ports), f"{argv[0]} listens")
        yield
    finally:
        process.kill()
        process.wait(WAIT_S)
