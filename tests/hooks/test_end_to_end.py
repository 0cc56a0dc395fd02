"""Hooks of real servers and clients: who is told of what, by HTTP and by commands."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from gnar_lib.config import Secret
from gnar_lib.hooks.message import signature
from tests.helpers.client_file import proxy_table
from tests.helpers.harness import (
    LOOPBACK,
    SOON_S,
    TOKEN,
    Service,
    Tunnels,
    ask,
    echo,
    free_port,
    wait_until,
)
from tests.helpers.receiver import Posted, Receiver

SECRET = "s3cret of the hook"
SECRETS = {"GNAR_HOOK_SECRET": SECRET, "GNAR_ADMIN_PASSWORD": "s3cret of people"}
# Keeps what a command gets, in a file of its own beside the script.
SCRIPT = f"""#!{sys.executable}
import json, os, sys
found = {{"env": dict(os.environ), "stdin": json.load(sys.stdin), "args": sys.argv[1:]}}
found["files"] = [number for number in range(3, 1000) if os.path.exists(f"/proc/self/fd/{{number}}")]
found["files"] = [number for number in found["files"] if number != 3]
path = os.path.join(os.path.dirname(__file__), os.environ["GNAR_EVENT"])
with open(path + ".part", "w") as file:
    json.dump(found, file)
os.rename(path + ".part", path)
print(os.environ["GNAR_EVENT"], "was here")
"""


def table(events: list[str], **settings: object) -> str:
    """Return the table of one hook."""
    rows = {key.replace("_", "-"): json.dumps(value) for key, value in settings.items()}
    return "\n".join(
        ["[[hooks]]", f"events = {json.dumps(events)}", *(f"{key} = {rows[key]}" for key in rows), ""]
    )


def write(folder: Path, *tables: str, name: str = "server.toml") -> str:
    """Write a file with these tables, and return its path."""
    path = folder / name
    path.write_text("\n".join(tables))
    return str(path)


def write_script(folder: Path) -> str:
    """Write the script that keeps what it gets, and return its path."""
    path = folder / "keep.py"
    path.write_text(SCRIPT)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def kept_of(folder: Path, event: str) -> dict[str, Any]:
    """Return what the script has got for an event."""
    path = folder / event
    wait_until(path.exists, f"the command of {event}")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def is_signed(posted: Posted) -> bool:
    expected = signature(Secret(SECRET), posted.headers["x-gnar-timestamp"], posted.body)
    return posted.headers["x-gnar-signature"] == expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    return path


def test_client_that_goes_away_is_told_by_a_signed_post_and_by_a_command(
    plain_tunnels: Tunnels, folder: Path
) -> None:
    script = write_script(folder)
    with Service(echo) as service, Receiver() as receiver:
        config = write(
            folder,
            table(["client-*"], url=receiver.url),
            table(["client-gone"], command=f"{shlex.quote('./' + Path(script).name)} --nas 'it is'"),
        )
        port = free_port()
        env = {"GNAR_TOKEN": TOKEN, "DEBUG": "1", **SECRETS}
        server = plain_tunnels.run("server", str(port), "--bind", LOOPBACK, "-c", config, env=env)
        server.wait_log("listening on")
        client, remote = plain_tunnels.client(port, "-l", str(service.port), "-n", "nas")
        assert ask(remote) == b"ping"
        client.kill()
        gone = receiver.wait("client-gone")
        kept = kept_of(folder, "client-gone")
        server.wait_log("client-gone was here")
        assert server.stop() == 0
    assert receiver.events == ["client-came", "client-gone"]
    assert is_signed(gone)
    assert gone.path == "/hook"
    assert gone.headers["content-type"] == "application/json"
    assert gone.headers["user-agent"].startswith("gnar/")
    assert gone.headers["x-gnar-delivery"] == gone.fields["delivery"]
    assert (gone.fields["event"], gone.fields["side"]) == ("client-gone", "server")
    assert (gone.fields["proxies"], gone.fields["ports"]) == (["nas"], [remote])
    assert gone.fields["client"].startswith(f"{LOOPBACK}:")
    assert kept["stdin"] == gone.fields | {key: kept["stdin"][key] for key in ("at", "delivery")}
    assert kept["args"] == ["--nas", "it is"]
    assert kept["files"] == []
    env = {key: value for key, value in kept["env"].items() if key.startswith("GNAR_")}
    assert (env["GNAR_EVENT"], env["GNAR_EVENT_PROXIES"]) == ("client-gone", "nas")
    assert all(key == "GNAR_EVENT" or key.startswith("GNAR_EVENT_") for key in env)
    everything = server.log + server.out + json.dumps(kept)
    assert SECRET not in everything
    assert TOKEN not in everything
    assert SECRETS["GNAR_ADMIN_PASSWORD"] not in everything


def test_client_that_is_restarted_in_time_is_no_news(plain_tunnels: Tunnels, folder: Path) -> None:
    with Service(echo) as service, Receiver() as receiver:
        config = write(
            folder,
            table(["client-gone"], url=receiver.url + "/late", delay=60),
            table(["client-gone"], url=receiver.url + "/soon", delay=0.1),
        )
        server, port = plain_tunnels.server("-c", config)
        for end in (signal.SIGTERM, signal.SIGKILL):
            remote = free_port()
            args = ("-l", str(service.port), "-r", str(remote), "-n", "nas")
            client, _ = plain_tunnels.client(port, *args)
            client.signal(end)
            client.wait_exit()
            gone = receiver.wait("client-gone", 1 if end is signal.SIGTERM else 2)  # by the second hook
            assert (gone.path, gone.fields["ports"]) == ("/hook/soon", [remote])
            plain_tunnels.client(port, *args)
        server.stop()
        assert [posted.path for posted in receiver.posted] == ["/hook/soon"] * 2


def test_receiver_that_was_down_gets_all_in_order_and_delays_nobody_else(
    plain_tunnels: Tunnels, folder: Path
) -> None:
    down = free_port()
    with Service(echo) as service, Receiver() as other:
        config = write(
            folder,
            table(["proxy-*", "client-came"], url=f"http://{LOOPBACK}:{down}/"),
            table(["proxy-*", "client-came"], url=other.url),
        )
        server, port = plain_tunnels.server("-c", config)
        plain_tunnels.client(port, "-l", str(service.port))
        other.wait("proxy-opened")
        server.wait_log(r"hook \[127.0.0.1:\d+\] client-came is not delivered: .*refused; trying again in")
        with Receiver(port=down) as receiver:
            receiver.wait("proxy-opened")
            ids = [posted.headers["x-gnar-delivery"] for posted in receiver.posted]
            assert receiver.events == other.events == ["client-came", "proxy-opened"]
            assert ids[0] != ids[1]
        server.wait_log(r"hook \[127.0.0.1:\d+\] works again")


@pytest.mark.waits
def test_receiver_that_hangs_holds_up_neither_users_nor_the_end(plain_tunnels: Tunnels, folder: Path) -> None:
    stuck = threading.Event()
    with Service(echo) as service, Receiver(before=stuck.wait) as hangs, Receiver() as other:
        config = write(folder, table(["*"], url=hangs.url), table(["stopping"], url=other.url))
        server, port = plain_tunnels.server("-c", config)
        _, remote = plain_tunnels.client(port, "-l", str(service.port))
        for _ in range(20):
            assert ask(remote) == b"ping"
        assert not hangs.posted
        server.signal(signal.SIGTERM)
        assert server.wait_exit(SOON_S) == 0
        assert other.events == ["stopping"]
        server.wait_log(r"\d+ events were not delivered before the end")
        stuck.set()


def test_reload_takes_new_hooks_over_and_ends_others(plain_tunnels: Tunnels, folder: Path) -> None:
    with Receiver() as first, Receiver() as second:
        config = write(folder, table(["reloaded", "stopping"], url=first.url))
        server, _ = plain_tunnels.server("-c", config)
        write(folder, table(["reloaded", "stopping"], url=second.url))
        server.signal(signal.SIGHUP)
        second.wait("reloaded")
        write(folder, table(["reloadet"], url=first.url))
        server.signal(signal.SIGHUP)
        server.wait_log("nothing is changed: .*'reloadet': no such event; did you mean reloaded")
        server.stop()
        assert (first.events, second.events) == ([], ["reloaded", "stopping"])


def test_server_that_is_replaced_leaves_the_telling_to_the_other(
    plain_tunnels: Tunnels, folder: Path
) -> None:
    with Service(echo) as service, Receiver() as receiver:
        config = write(folder, table(["client-*", "stopping"], url=receiver.url))
        server, port = plain_tunnels.server("-c", config)
        plain_tunnels.client(port, "-l", str(service.port))
        receiver.wait("client-came")
        new, _ = plain_tunnels.server("--replace", "-c", config, port=port)
        assert server.wait_exit() == 0
        receiver.wait("client-came", 2)
        assert new.stop() == 0
        assert receiver.events == ["client-came", "client-came", "stopping"]


@pytest.mark.waits
def test_client_tells_that_it_has_lost_its_server_and_that_it_stops(
    plain_tunnels: Tunnels, folder: Path
) -> None:
    with Service(echo) as service, Receiver() as receiver:
        port = free_port()
        server, _ = plain_tunnels.server(port=port)
        hook = table(["connect*", "stopping"], url=receiver.url, delay=0.5)
        config = write(folder, proxy_table("nas", service.port, free_port()), hook, name="client.toml")
        client, _ = plain_tunnels.client(port, "-c", config)
        receiver.wait("connected")
        server.kill()
        lost = receiver.wait("connect-failed")
        client.wait_log("trying again in", count=2)
        plain_tunnels.server(port=port)
        receiver.wait("connected", 2)
        assert client.stop() == 0
    assert receiver.events == ["connected", "connect-failed", "connected", "stopping"]
    assert (lost.fields["side"], lost.fields["was_connected"]) == ("client", True)


def test_command_that_takes_too_long_is_killed_with_what_it_has_started(
    plain_tunnels: Tunnels, folder: Path
) -> None:
    script = 'sleep 100 & echo $! >"$0"; cat; wait'
    pid_file = folder / "pid"
    config = write(folder, table(["proxy-opened"], command=["sh", "-c", script, str(pid_file)], timeout=0.5))
    with Service(echo) as service:
        server, port = plain_tunnels.server("-c", config)
        plain_tunnels.client(port, "-l", str(service.port))
        server.wait_log(r"hook \[sh\] proxy-opened is not delivered: the command took longer than 0.5 s, and")
    pid = int(pid_file.read_text())

    def is_gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"

    wait_until(is_gone, "the end of what the command has started")
