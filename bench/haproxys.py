"""Starts two haproxys in a row, the yardstick for a tunnel; knows no loads."""

from __future__ import annotations

from bench.configs import TCP_MODE, haproxy_config
from bench.launch import Launch
from bench.procs import LOOPBACK, free_port

# Makes what gnar's server makes as well: a key on P-256, and a certificate that the key itself has signed.
OPENSSL = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def start_two_haproxys(launch: Launch, mode: str = TCP_MODE, *, tls: bool = False) -> None:
    """Start one haproxy behind the other, and have TLS between them if so told; raises BenchError."""
    middle = free_port()
    listen, target = f"{launch.far.bind}:{middle}", f"{launch.far.ip}:{middle}"
    if tls:
        pem = launch.new_folder("tls") / "both.pem"
        certificate = pem.with_suffix(".crt")
        LOOPBACK.run([*OPENSSL, "-subj", "/CN=bench", "-keyout", pem, "-out", certificate])
        pem.write_text(pem.read_text() + certificate.read_text())
        listen, target = f"{listen} ssl crt {pem}", f"{target} ssl verify none"
    first = haproxy_config(f"{launch.near.bind}:{launch.port}", target, mode)
    second = haproxy_config(listen, f"127.0.0.1:{launch.target}", mode)
    launch.client("haproxy", "-db", "-f", launch.file("haproxy.cfg", second)).wait_listening(middle)
    launch.server("haproxy", "-db", "-f", launch.file("haproxy.cfg", first))
