"""Names of well-known services, and what nobody means to publish, by program and by port; asks nobody."""

from __future__ import annotations

import re

from gnar_lib.discover.listening import Listening

# Services that do not speak HTTP, by their programs. These are not asked anything: some of them log whatever
# they do not understand as an attack.
_BY_PROGRAM = {
    "dropbear": "SSH",
    "mariadbd": "MariaDB",
    "memcached": "Memcached",
    "mongod": "MongoDB",
    "mosquitto": "MQTT",
    "mysqld": "MySQL",
    "postgres": "PostgreSQL",
    "redis-server": "Redis",
    "sshd": "SSH",
    "valkey-server": "Valkey",
    "vsftpd": "FTP",
}
# The same by their ports, where nobody knows the program.
_BY_PORT = {
    21: "FTP",
    22: "SSH",
    25: "SMTP",
    143: "IMAP",
    993: "IMAP",
    1433: "SQL Server",
    1521: "Oracle",
    1883: "MQTT",
    3306: "MySQL",
    3389: "Remote Desktop",
    5432: "PostgreSQL",
    5672: "AMQP",
    5900: "VNC",
    6379: "Redis",
    9092: "Kafka",
    9418: "Git",
    11211: "Memcached",
    25565: "Minecraft",
    27017: "MongoDB",
}
# Parts of the system and of the desktop, and what gives whoever reaches it the whole machine.
_HIDDEN_BY_PROGRAM = {
    "adb": "Android debugging",
    "avahi-daemon": "network names",
    "containerd": "containers",
    "controlcenter": "AirPlay",
    "controlce": "AirPlay",  # as lsof cuts it
    "cupsd": "printing",
    "dockerd": "Docker",
    "dropbox": "Dropbox",
    "gpg-agent": "keys",
    "kdeconnectd": "KDE Connect",
    "lsass.exe": "Windows",
    "rapportd": "macOS",
    "rpcbind": "RPC",
    "services.exe": "Windows",
    "spoolsv.exe": "printing",
    "spotify": "Spotify",
    "svchost.exe": "Windows",
    "system": "Windows",
    "systemd-resolved": "DNS",
    "wininit.exe": "Windows",
}
_HIDDEN_BY_PORT = {
    53: "DNS",
    111: "RPC",
    135: "Windows",
    139: "shared folders",
    445: "shared folders",
    631: "printing",
    2375: "Docker",
    2376: "Docker",
    2379: "etcd",
    2380: "etcd",
    5037: "Android debugging",
    6443: "Kubernetes",
    9222: "a debugger of a browser",
    9229: "a debugger of Node.js",
    10250: "Kubernetes",
    **dict.fromkeys(range(6000, 6010), "X11"),
}
_BROWSERS = re.compile(r"(google.?chrome|chrom(e|ium)|firefox|msedge|safari|brave|opera)\b.*", re.IGNORECASE)
_EDITORS = re.compile(
    r"(code|code-[a-z]+|cursor|idea|pycharm|goland|webstorm|rider)(64)?(\.exe)?", re.IGNORECASE
)


def service_of(listening: Listening) -> str:
    """Return the name of a service that does not speak HTTP; empty if it has to be asked."""
    program = listening.process.program
    return _BY_PROGRAM.get(program.removesuffix(".exe"), "") if program else _BY_PORT.get(listening.port, "")


def why_hidden(listening: Listening) -> str:
    """Return what a port is that nobody means to publish; empty if somebody may."""
    program = listening.process.program
    if listening.process.is_gnar:
        return "gnar"
    if _BROWSERS.fullmatch(program):
        return "a browser"
    if _EDITORS.fullmatch(program):
        return "an editor"
    return _HIDDEN_BY_PROGRAM.get(program.lower(), "") or _HIDDEN_BY_PORT.get(listening.port, "")
