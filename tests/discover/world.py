"""A machine with known services: a network namespace of its own, in which a program is run.

Started as `unshare --user --map-root-user --net python world.py FOLDER [SERVER] -- PROGRAM...`. The web
service works in FOLDER/blog, and keeps each request line in FOLDER/requests. SERVER are the words that start
a server, which is waited for.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gnar_lib.config.model import DEFAULT_PORT
from tests.helpers.harness import LOOPBACK, is_open, wait_until

WEB, SSH, SILENT, DEBUGGER = 3000, 2200, 4000, 9229
IS_SILENT = "WORLD_HAS_A_SILENT_SERVICE"  # a variable: there is one, and it takes time to find that out
TITLE = "My \x1b[31mblog"  # of a page that would like to have colours
GREETING = b"SSH-2.0-world\r\n"


def serve(folder: Path, web: ThreadingHTTPServer, ssh: socket.socket) -> None:
    """Answer for good; ^C at the terminal is for others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (folder / "blog").mkdir()
    os.chdir(folder / "blog")
    Path("index.html").write_text(f"<title>{TITLE}</title>")
    threading.Thread(target=web.serve_forever).start()
    conns = []
    while True:
        conns.append(ssh.accept()[0])
        conns[-1].sendall(GREETING)


def main() -> None:
    """Start the services, then become the program."""
    at = sys.argv.index("--")
    folder, server, program = Path(sys.argv[1]), sys.argv[2:at], sys.argv[at + 1 :]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    requests = (folder / "requests").open("a", buffering=1)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, _format: str, *args: Any) -> None:
            requests.write(f"{args[0]}\n")

    web = ThreadingHTTPServer((LOOPBACK, WEB), Handler)
    ports = [SSH, DEBUGGER, *([SILENT] if IS_SILENT in os.environ else [])]
    ssh, *_others = (socket.create_server((LOOPBACK, port)) for port in ports)
    if os.fork() == 0:
        serve(folder, web, ssh)
    if server:
        with (folder / "server.log").open("wb") as log:
            subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: is_open(DEFAULT_PORT), "the server listens")
    os.execvp(program[0], program)  # noqa: S606  (closes all listeners here, which the child has, too)


if __name__ == "__main__":
    main()
