"""The texts of `--help`: docopt reads command lines by them; completion and manual page are made from them.

`synopsis.py` says how a text is written. If the value of an option is one of a few words, the description of
the option begins with these words, as in `tcp|udp`.
"""

from __future__ import annotations

USAGE = """gnar: reach a service behind NAT through one small public host.

Usage:
  gnar server [<port>] [options]
  gnar client [<server-addr>] [<mapping>...] [options]
  gnar http <target> [options]
  gnar relay <listen> <target> [options]
  gnar demo [<port>]
  gnar health [<server-addr>] [options]
  gnar top [<url>] [options]
  gnar completion (bash | zsh | fish)
  gnar man
  gnar --help | --version [--verbose]

Commands:
  server      on the host with the public address: takes clients and their users
  client      beside the service: makes it reachable at the server
  http        publishes a web service under a name, and shows its requests
  relay       forwards one address to another, instead of socat
  demo        shows the tunnel working, on this machine alone
  health      tells by its exit status whether a server answers
  top         shows what a server does, in place
  completion  prints what makes a shell complete gnar's words
  man         prints the manual page

`gnar COMMAND --help` tells more. `gnar` alone, on a terminal, looks for local services and
offers to publish one.
"""

SERVER = """gnar server: take clients, and the users of what they forward.

Usage: gnar server [<port>] [options]

Options:
  -p, --port PORT            control port, where clients and users of names come (default 8910)
  -t, --token TOKEN          let in only clients that know it; better set as GNAR_TOKEN
      --token-file FILE      read the token from a file, which holds nothing else
      --auth KIND            any|hmac (default any); hmac refuses md5 logins, so Go clients
      --tls KIND             any|require (default any); require refuses clients without TLS
      --ws-path PATH         where clients come by WebSocket on the control port (default /gnar)
      --accept-proxy-protocol NETS  load balancers that tell users' addresses by it (default: none)
      --bind ADDR            listen on this address alone (default: all, IPv4 and IPv6)
      --udp-bind ADDR        send and receive UDP on this address
      --allow-ports PORTS    ports that clients may open, such as 9000-9100,9200 (default: all)
      --max-proxies COUNT    ports that one client may have (default 4096)
      --max-speed RATE       limit of every proxy, such as 10mb (per second, each direction)
      --max-users COUNT      users of all proxies at the same time (default: no limit)
      --max-users-per-address COUNT  the same, of one address (default: no limit)
      --idle-timeout SECONDS  end of a user of TCP without bytes (default: never)
      --max-memory SIZE      such as 256mb (default: half of what container or machine has)
      --heartbeat SECONDS    between two signs of life of an idle connection (default 5)
      --dead-after SECONDS   give up a peer that should answer, and is silent (default 120)
      --half-close-timeout SECONDS  end of a user half of whose connection has ended, when the
                             other half is silent (default 3600)
      --grace SECONDS        how long users may finish when the server stops (default 8)
  -a, --admin-port PORT      serve panel, API and metrics on this port of loopback (default: off)
      --admin-bind ADDR      serve them on this address; beyond loopback a password is needed
      --admin-password PASS  lets see and change everything; better set as GNAR_ADMIN_PASSWORD
      --admin-password-file FILE  read it from a file, which holds nothing else
      --admin-read-token TOKEN  lets see everything; better set as GNAR_ADMIN_READ_TOKEN
      --admin-read-token-file FILE  read it from a file, which holds nothing else
      --state-dir DIR        keep the certificate, and the panel's history, in this folder
  -D, --domain DOMAIN        clients may have names under it, such as blog.example.com
      --http-port PORT       where users of names come, too (default 80; 8080 behind Caddy), or off
      --http-bind ADDR       listen for them there (default: --bind; loopback behind Caddy)
      --https-port PORT      where they come with TLS, too (default: off; 443 with --tls-cert)
      --tls-cert FILES       certificates, such as wildcard.pem or one.pem,two.pem (default: one
                             that gnar makes for the control port, of which browsers warn)
      --tls-key FILES        their keys, unless the same files have them
      --hsts SECONDS         for which browsers are to use HTTPS alone (default: nothing is said)
      --allow-hosts NAMES    whole host names that clients may have, such as *.customer.org
      --reserved-names NAMES  labels that nobody gets under the domain (default: such as admin)
      --trust-forwarded NETS  whose X-Forwarded-For is believed, or none (default: loopback)
      --caddy-api URL        a Caddy in front that gnar sees to, such as http://127.0.0.1:2019
  -s, --caddy-srv-name NAME  which of its servers (default srv0)
      --caddy-remove         remove the route from Caddy when this server stops
      --error-page FILE      HTML for answers that the server makes by itself, such as 404
      --log-format FORMAT    json|text (default text)
      --log-level LEVEL      debug|info|warning|error (default info)
      --replace              take over from the server that runs, refusing no user
      --check                say what is right and wrong with settings and machine, and end
  -c, --config FILE          read settings from a TOML file; flags win
  -h, --help                 show this

Every setting can be a variable, too: GNAR_PORT, GNAR_ALLOW_PORTS and so on.

Examples:
  GNAR_TOKEN=s3cret gnar server
  gnar server 7000 --allow-ports 9000-9100 -c gnar.toml
  gnar server -p 443 -D example.com --tls-cert wildcard.pem
"""

# Options of the Go program's server that command lines may have, but that are not advertised, since they have
# no effect.
SERVER_UNADVERTISED = """
Options:
  -d, --domain-tunnel
  -m, --multiplex
"""

CLIENT = """gnar client: make services of this side reachable at a server.

Usage: gnar client [<server-addr>] [<mapping>...] [options]

A mapping is 3000:9000 (local port, port at the server), host:3000:9000, 3000 (the server
chooses), a range such as 3000-3010:9000-9010, or blog=3000 (a name under the server's domain).

Options:
  -s, --server-addr ADDR   the server (default localhost:8910), or wss://host/path, or ws://
  -l, --local-port PORT    port of the local service
  -r, --remote-port PORT   port at the server (default 0: the server chooses)
      --local-host HOST    where the local service is (default 127.0.0.1, or ::1)
  -n, --proxy-name NAME    name in logs and listings (default: such as tcp-3000)
  -y, --proxy-type TYPE    tcp|udp|http|https (default: http with a name and no port, else tcp)
  -d, --subdomain NAME     name under the server's domain, or a whole one; "": the server chooses
      --path PATH          take the requests of that name whose path begins so, such as /api
  -t, --token TOKEN        the server's token; better set as GNAR_TOKEN
      --token-file FILE    read the token from a file, which holds nothing else
      --auth KIND          hmac|md5 (default hmac); md5 is for a Go server
      --tls KIND           on|off (default on; off with md5); off is for a Go server
      --fingerprint HEX    take a server with this certificate alone: its SHA-256
      --proxy URL          go through it: http://user:pass@host:3128, socks5:// or socks5h://host,
                           or off (default: as HTTPS_PROXY, ALL_PROXY and NO_PROXY say)
  -m, --multiplex          use one connection to the server, and never another
      --no-multiplex       use a connection to the server for each user
      --proxy-protocol KIND  v1|v2; tell the local service users' addresses by it (default: not)
      --speed-limit RATE   limit of the proxy, such as 100kb (per second, each direction)
      --udp-timeout SECS   end of a UDP session without datagrams (default 60)
      --udp-any-source     let answers from other addresses of a UDP service through
      --max-users COUNT    users of the proxy at the same time (default: no limit)
      --max-users-per-address COUNT  the same, of one address (default: no limit)
      --idle-timeout SECS  end of a user of TCP without bytes (default: never)
      --allow-from NETS    let in users of these networks alone, such as 10.0.0.0/8
      --deny-from NETS     let in no users of these networks
      --host-header HOST   what the service sees as Host; local for its own host and port
      --request-headers LINES  set a header field ("X-A: b"), or remove one ("-X-A")
      --response-headers LINES  the same, in what the service answers
      --basic-auth USER    let in whoever knows this user:password (or user:hash)
      --redirect-https     send users without TLS to https://
      --http2              pass connections of HTTP/2, such as those of gRPC, through as they are
      --error-page FILE    HTML for answers that the server makes by itself, such as 503
      --heartbeat SECONDS  between two signs of life of an idle connection (default 5)
      --dead-after SECS    give up a peer that should answer, and is silent (default 120)
      --half-close-timeout SECS  end of a user half of whose connection has ended, when the
                           other half is silent (default 3600)
      --grace SECONDS      how long users may finish when the client stops (default 8)
      --plain              write lines to a terminal, too, in place of the live view
      --inspect ADDR       show requests and answers on a page there; on is 127.0.0.1:4040
      --inspect-bodies SIZE  how much of each body that page has (default 64kb); 0 for none
      --inspect-log FILE   append a line of JSON for each request, without secrets of headers
  -a, --admin-port PORT    serve metrics on this port of loopback (default: off)
      --admin-bind ADDR    serve them on this address; beyond loopback a password is needed
      --admin-password PASS  asked for there; better set as GNAR_ADMIN_PASSWORD
      --admin-password-file FILE  read it from a file, which holds nothing else
      --admin-read-token TOKEN  does the same; better set as GNAR_ADMIN_READ_TOKEN
      --admin-read-token-file FILE  read it from a file, which holds nothing else
      --log-format FORMAT  json|text (default text)
      --log-level LEVEL    debug|info|warning|error (default info)
      --check              say what is right and wrong with settings, server and services, end
  -c, --config FILE        read settings and [[proxys]] from a TOML file; flags win
  -h, --help               show this

Every setting can be a variable, too: GNAR_SERVER_ADDR, GNAR_LOCAL_PORT and so on.

Examples:
  gnar client -s example.com:8910 -l 3000 -r 9000
  gnar client example.com 3000:9000 db.local:5432:9001
  gnar client example.com blog=3000
"""

HTTP = """gnar http: publish a web service under a name of the server, and show its requests.

Usage: gnar http <target> [options]

The target is a port of this machine, such as 3000, or an address such as web.local:8080. Server
and token may come from a file or from variables, as for `gnar client`. Proxies, hooks and the
admin port of a file do not count, nor do variables that name a service.

Options:
  -n, --name NAME          name under the server's domain, or a whole one (default: the server
                           chooses)
  -s, --server-addr ADDR   the server (default localhost:8910), or wss://host/path, or ws://
  -t, --token TOKEN        the server's token; better set as GNAR_TOKEN
      --token-file FILE    read the token from a file, which holds nothing else
      --auth KIND          hmac|md5 (default hmac); md5 is for a Go server
      --tls KIND           on|off (default on; off with md5); off is for a Go server
      --fingerprint HEX    take a server with this certificate alone: its SHA-256
      --proxy URL          go through it: http://user:pass@host:3128, socks5:// or socks5h://host,
                           or off (default: as HTTPS_PROXY, ALL_PROXY and NO_PROXY say)
  -m, --multiplex          use one connection to the server, and never another
      --no-multiplex       use a connection to the server for each user
      --proxy-protocol KIND  v1|v2; tell the service users' addresses by it (default: not)
      --path PATH          take the requests of that name whose path begins so, such as /api
      --allow-from NETS    let in users of these networks alone, such as 10.0.0.0/8
      --deny-from NETS     let in no users of these networks
      --host-header HOST   what the service sees as Host; local for its own host and port
      --request-headers LINES  set a header field ("X-A: b"), or remove one ("-X-A")
      --response-headers LINES  the same, in what the service answers
      --basic-auth USER    let in whoever knows this user:password; or set GNAR_BASIC_AUTH
      --redirect-https     send users without TLS to https://
      --http2              pass connections of HTTP/2, such as those of gRPC, through as they are
      --error-page FILE    HTML for answers that the server makes by itself, such as 503
      --speed-limit RATE   limit of all users together, such as 100kb (per second, each direction)
      --max-users COUNT    users at the same time (default: no limit)
      --max-users-per-address COUNT  the same, of one address (default: no limit)
      --idle-timeout SECS  end of a user without bytes (default: never)
      --heartbeat SECONDS  between two signs of life of an idle connection (default 5)
      --dead-after SECS    give up a peer that should answer, and is silent (default 120)
      --half-close-timeout SECS  end of a user half of whose connection has ended, when the
                           other half is silent (default 3600)
      --grace SECONDS      how long users may finish at the end (default 8)
      --inspect ADDR       show requests and answers on a page there (default on, which is
                           127.0.0.1:4040 or the next free port); off for none
      --inspect-bodies SIZE  how much of each body that page has (default 64kb); 0 for none
      --inspect-log FILE   append a line of JSON for each request, without secrets of headers
      --plain              write lines to a terminal, too, in place of the live view
      --log-format FORMAT  json|text (default text)
      --log-level LEVEL    debug|info|warning|error (default info)
      --check              say what is right and wrong with settings, server and service, and end
  -c, --config FILE        read settings from a TOML file; flags win
  -h, --help               show this

Examples:
  gnar http 3000
  gnar http web.local:8080 --name blog
  gnar http 3000 --name blog --basic-auth mary:s3cret
"""

RELAY = """gnar relay: forward every connection, or every datagram, of one address to another.

Usage: gnar relay <listen> <target> [options]

An address is tcp:PORT, tcp:HOST:PORT or unix:PATH, with TLS tls-listen:PORT or tls:HOST:PORT, and
for datagrams udp:PORT, udp:HOST:PORT or unix-dgram:PATH; socat's spelling works, too, and means
what it means there (one connection without `fork`), with its options behind an address (range=,
su=, retry=, cert=, verify=, proxy= ...) and in front of both (-T, -t, -u, -d ...).

Options:
  --udp-timeout SECS    end of a user's UDP session without datagrams (default 60)
  --udp-any-source      let answers from other addresses of a UDP target through
  --dead-after SECONDS  give up a peer that should answer, and is silent (default 120)
  --half-close-timeout SECONDS  end of a connection half of which has ended, when the other half
                        is silent (default 3600)
  --grace SECONDS       how long connections may finish when the relay stops (default 8)
  -a, --admin-port PORT  serve metrics on this port of loopback (default: off)
  --admin-bind ADDR     serve them on this address; beyond loopback a password is needed
  --admin-password PASS  asked for there; better set as GNAR_ADMIN_PASSWORD
  --admin-password-file FILE  read it from a file, which holds nothing else
  --admin-read-token TOKEN  does the same; better set as GNAR_ADMIN_READ_TOKEN
  --admin-read-token-file FILE  read it from a file, which holds nothing else
  --log-format FORMAT   json|text (default text)
  --log-level LEVEL     debug|info|warning|error (default info)
  -h, --help            show this

Examples:
  gnar relay unix:/tmp/x.sock tcp:example.com:9299
  gnar relay TCP-LISTEN:9000,reuseaddr,fork UNIX-CONNECT:/run/x.sock
  gnar relay -T 600 TCP-LISTEN:80,fork,su=nobody,range=10.0.0.0/8 TCP:db:80,forever
  gnar relay tls-listen:443,cert=server.pem tcp:localhost:8080
  gnar relay TCP-LISTEN:5432,fork OPENSSL:db.example.com:5433,cafile=server.crt
  gnar relay tcp:2022 tcp:example.com:22,proxy=http://proxy:3128
  gnar relay udp:53 udp:192.0.2.1:53
"""

DEMO = """gnar demo: a sample page, a server and a client on this machine, to see the tunnel work.

Usage: gnar demo [<port>] [options]

Options:
  --log-format FORMAT  json|text (default text)
  --log-level LEVEL    debug|info|warning|error (default info)
  -h, --help           show this

Example:
  gnar demo
"""

HEALTH = """gnar health: tell by the exit status whether a server answers: 0 when it does, 1 when not.

Usage: gnar health [<server-addr>] [options]

Without an address: the server of this machine, found by the settings that it reads itself. A
token is not needed.

Options:
  -p, --port PORT        control port, as the server was told (default 8910)
      --bind ADDR        address that the server listens on, as it was told (default: all)
  -c, --config FILE      read these two from the server's own file
      --timeout SECONDS  how long the answer may take (default 3)
      --log-format FORMAT  json|text (default text)
      --log-level LEVEL  debug|info|warning|error (default info)
  -h, --help             show this

Both can be variables, too: GNAR_PORT and GNAR_BIND, as for the server.

Examples:
  gnar health
  gnar health example.com:8910 --timeout 10
"""

TOP = """gnar top: show the proxies, users and rates of a server in place, and its connections.

Usage: gnar top [<url>] [options]

The URL is that of the server's admin port: http://127.0.0.1:8911 unless another is given.
Keys: arrows select a proxy, Enter shows its connections, Esc goes back, s sorts, q ends it.

Options:
      --once             print everything once, as text; so it does where there is no terminal
      --token-file FILE  read the password, or the read token, from a file
      --log-format FORMAT  json|text (default text)
      --log-level LEVEL  debug|info|warning|error (default info)
  -h, --help             show this

A password is not for command lines: set GNAR_ADMIN_READ_TOKEN or GNAR_ADMIN_PASSWORD.

Examples:
  gnar top
  gnar top https://gnar.example.com --token-file read.token
"""

COMPLETION = """gnar completion: print what makes a shell complete gnar's commands and options.

Usage: gnar completion (bash | zsh | fish) [options]

It works for the names gnar and gnar.pyz, with or without a path in front.

Options:
  -h, --help  show this

Examples:
  eval "$(gnar completion bash)"  # in ~/.bashrc
  eval "$(gnar completion zsh)"   # in ~/.zshrc, behind compinit
  gnar completion fish | source   # in ~/.config/fish/config.fish
"""

MAN = """gnar man: print the manual page, gnar(1).

Usage: gnar man [options]

Options:
  -h, --help  show this

Examples:
  gnar man | man -l -
  gnar man > /usr/local/share/man/man1/gnar.1
"""
