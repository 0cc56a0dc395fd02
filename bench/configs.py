"""The configurations of haproxy and nginx, as services and as contestants; starts nothing."""

from __future__ import annotations

import resource
from pathlib import Path

from bench.launch import NAME

MAX_CONNECTIONS = 20_000  # haproxy's limit, if haproxy may open enough files for them
FILES_SPARE = 200  # files that haproxy opens besides its connections
NGINX_CONNECTIONS = 30_000
IDLE_CONNECTIONS = 64  # that a reverse proxy keeps open to the one behind it

TCP_MODE = "mode tcp"
# haproxy's default opens a connection to the service for each new user; `always` lets users share them.
HTTP_MODE = f"""mode http
  option forwardfor
  http-reuse always
  timeout http-keep-alive 1h
  http-request deny deny_status 404 unless {{ hdr(host) -i {NAME} }}"""


def haproxy_config(listen: str, target: str, mode: str = TCP_MODE) -> str:
    """Return the configuration of a haproxy with one thread that forwards to one target.

    `listen` and `target` are addresses with a port, and whatever else haproxy should know of the two.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = min(MAX_CONNECTIONS, (files - FILES_SPARE) // 2)
    return f"""
global
  nbthread 1
  maxconn {connections}
defaults
  maxconn {connections}
  timeout connect 10s
  timeout client 1h
  timeout server 1h
listen bench
  {mode}
  bind {listen} backlog 1024
  server service {target}
"""


def nginx_command(folder: Path, servers: str) -> list[object]:
    """Write the configuration of an nginx with these servers into a folder; return its command line.

    The nginx has one worker and no log, and never closes idle connections.
    """
    config = folder / "nginx.conf"
    config.write_text(_nginx_config(folder, servers))
    return ["nginx", "-e", folder / "error.log", "-p", folder, "-c", config]


def _nginx_config(folder: Path, servers: str) -> str:
    temporary = "\n".join(
        f"  {kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Without a master process, nginx has one worker and runs as the user who may read the folder.
    return f"""
daemon off;
master_process off;
pid {folder}/pid;
events {{ worker_connections {NGINX_CONNECTIONS}; }}
http {{
{temporary}
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  client_header_timeout 1h;
  send_timeout 1h;
{servers}
}}
"""


def nginx_proxy(bind: str, port: int, target_ip: str, target: int) -> str:
    """Return the servers of an nginx that forwards one host name and answers 404 to others.

    Connections to the target stay open, and bodies pass through without files.
    """
    return f"""
  upstream target {{
    server {target_ip}:{target};
    keepalive {IDLE_CONNECTIONS};
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
  }}
  server {{ listen {bind}:{port} default_server backlog=4096; return 404; }}
  server {{
    listen {bind}:{port};
    server_name {NAME};
    client_max_body_size 0;
    client_body_buffer_size 256k;
    location / {{
      proxy_pass http://target;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_request_buffering off;
      proxy_buffers 8 64k;
      proxy_max_temp_file_size 0;
    }}
  }}
"""
