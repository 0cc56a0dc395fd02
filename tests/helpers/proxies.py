"""Real proxies to dial through, on ports of loopback: tinyproxy and squid for HTTP, microsocks for SOCKS."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.harness import LOOPBACK, WAIT_S, free_port, is_open, wait_until


@contextmanager
def _running(port: int, *argv: object) -> Iterator[int]:
    process = subprocess.Popen([*map(str, argv)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_open(port) or process.poll() is not None, f"{argv[0]} listens")
        assert process.poll() is None, f"{argv[0]} has ended"
        yield port
    finally:
        process.kill()
        process.wait(WAIT_S)


@contextmanager
def tinyproxy(folder: Path, open_ports: list[int], login: str = "") -> Iterator[int]:
    """Run a tinyproxy that lets those ports through; yields its port. `login`: "user password".

    It writes each request into `folder/tinyproxy.log`.
    """
    port = free_port()
    lines = [f"Port {port}", f"Listen {LOOPBACK}", "MaxClients 50", "Timeout 60", "LogLevel Connect"]
    lines += [f"ConnectPort {each}" for each in open_ports]
    lines += [f'LogFile "{folder}/tinyproxy.log"']
    lines += [f"BasicAuth {login}"] if login else []
    file = folder / "tinyproxy.conf"
    file.write_text("\n".join(lines) + "\n")
    with _running(port, "tinyproxy", "-d", "-c", file):
        yield port


@contextmanager
def squid(folder: Path, open_port: int) -> Iterator[int]:
    """Run a squid that lets one port through, as Debian's lets 443 through; yields its own port."""
    port = free_port()
    if os.geteuid() == 0:  # squid goes on as another user
        os.chown(folder, pwd.getpwnam("proxy").pw_uid, -1)
    file = folder / "squid.conf"
    file.write_text(
        f"http_port {LOOPBACK}:{port}\npid_filename none\naccess_log none\ncache deny all\ncache_mem 1 MB\n"
        f"netdb_filename none\npinger_enable off\nlogfile_rotate 0\ncache_log stdio:{folder}/cache.log\n"
        f"acl open port {open_port}\nhttp_access deny CONNECT !open\nhttp_access allow localhost\n"
    )
    with _running(port, "squid", "-N", "-f", file):
        yield port


@contextmanager
def microsocks(login: str = "") -> Iterator[int]:
    """Run a microsocks, yields its port. `login`: "user password"."""
    port = free_port()
    user, _, password = login.partition(" ")
    options = ["-u", user, "-P", password] if login else []
    with _running(port, "microsocks", "-i", LOOPBACK, "-p", port, *options):
        yield port
