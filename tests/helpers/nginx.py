"""A real nginx that serves the files of a folder."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.harness import LOOPBACK, WAIT_S, is_open, wait_until

_KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def nginx(folder: Path, port: int, *, tls_port: int = 0, certificate: Path | None = None) -> Iterator[None]:
    """Serve `folder`, which has to be there, at a port for the block.

    With a certificate, whose file has the key as well, also by TLS at `tls_port`.
    """
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in _KINDS)
    listens = f"listen {LOOPBACK}:{port};"
    if certificate is not None:
        listens += f"listen {LOOPBACK}:{tls_port} ssl;"
        listens += f"ssl_certificate {certificate}; ssl_certificate_key {certificate};"
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; events {{}} http {{ {paths} access_log off;"
        f"keepalive_requests 100000000; server {{ {listens} root {folder}; }} }}"
    )
    argv = ["nginx", "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"]
    process = subprocess.Popen([*map(str, argv)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_open(port), "nginx listens")
        yield
    finally:
        process.kill()
        process.wait(WAIT_S)
