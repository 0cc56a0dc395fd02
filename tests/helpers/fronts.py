"""Real web servers in front of a gnar server, set up as docs/firewalls.md says: nginx, Caddy and haproxy."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

from tests.helpers.docs import DOCS
from tests.helpers.harness import LOOPBACK, WAIT_S, free_port, wait_until

NAME = "localhost"  # of the site
PATH = "/gnar"
ARE_HERE = all(shutil.which(each, path="/usr/sbin:/usr/bin") for each in ("nginx", "caddy", "haproxy"))
_KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Front:
    """A program that takes clients by HTTPS, and leads them to a server; `start` and `stop` may alternate."""

    def __init__(self, *argv: object) -> None:
        self.port = free_port()
        self._argv = [str(each) for each in argv]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program, and wait until it takes TLS."""
        # Caddy finds nothing in its PATH with which it could change what this machine trusts.
        env = {"PATH": "", "HOME": str(Path(self._argv[-1]).parent)}
        null = subprocess.DEVNULL
        program = shutil.which(self._argv[0], path="/usr/sbin:/usr/bin") or self._argv[0]
        argv = [program, *self._argv[1:]]
        self._process = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, env=env)
        wait_until(self._takes_tls, f"{program} takes TLS")

    def _takes_tls(self) -> bool:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port), WAIT_S) as sock:
            context.wrap_socket(sock, server_hostname=NAME).close()
            return True
        return False

    def stop(self) -> None:
        """Kill the program, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_S)
            self._process = None

    def url(self, path: str = PATH) -> str:
        """Return where a client comes by WebSocket."""
        return f"wss://{NAME}:{self.port}{path}"


def nginx(folder: Path, to: int, certificate: Path, more: str = "") -> Front:
    """Return nginx with the block of the page, and `more` in its server."""
    folder.mkdir()
    front = Front("nginx", "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in _KINDS)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; events {{}} http {{ {paths} access_log off;"
        f"server {{ listen {LOOPBACK}:{front.port} ssl; ssl_certificate {certificate};"
        f"ssl_certificate_key {certificate}; {nginx_location(to)} {more} }} }}"
    )
    return front


def nginx_location(to: int, path: str = PATH, more: str = "") -> str:
    """Return the block of the page for nginx, at another path of nginx, and with `more` in it."""
    leads = {"= /gnar {": f"= {path} {{ {more}", "127.0.0.1:8910": f"{LOOPBACK}:{to}{PATH}"}
    return _shown("nginx", leads if path != PATH else {"127.0.0.1:8910": f"{LOOPBACK}:{to}"})


def caddy(folder: Path, to: int) -> Front:
    """Return Caddy with the Caddyfile of the page, and a certificate of its own authority."""
    folder.mkdir()
    file = folder / "Caddyfile"
    front = Front("caddy", "run", "--adapter", "caddyfile", "--config", file)
    options = f"admin off\nskip_install_trust\nauto_https disable_redirects\nstorage file_system {folder}\n"
    site = {"gnar.example.com": f"{NAME}:{front.port}", "127.0.0.1:8910": f"{LOOPBACK}:{to}"}
    file.write_text(f"{{\n{options}}}\n" + _shown("Caddy", site))
    return front


def haproxy(folder: Path, to: int, certificate: Path) -> Front:
    """Return haproxy with the frontend and backend of the page."""
    folder.mkdir()
    file = folder / "haproxy.cfg"
    front = Front("haproxy", "-db", "-f", file)
    here = {
        ":443": f"{LOOPBACK}:{front.port}",
        "/etc/haproxy/site.pem": str(certificate),
        "127.0.0.1:8910": f"{LOOPBACK}:{to}",
    }
    times = "defaults\n timeout connect 5s\n timeout client 50s\n timeout server 50s\n"  # as Debian has them
    file.write_text(f"global\n maxconn 100\n{times}" + _shown("haproxy", here))
    return front


def _shown(program: str, replaced: dict[str, str]) -> str:
    """Return the configuration that the page shows for a program, with each of those texts replaced."""
    section = DOCS["docs/firewalls.md"].read_text().partition(f"### Behind {program}\n")[2]
    found = re.search(r"```\w+\n(.*?)```", section, re.DOTALL)
    assert found is not None
    text = found[1]
    for old, new in replaced.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text
