"""Certificates that tests make for themselves, by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(path: Path, *names: str) -> Path:
    """Make a certificate that no authority has signed, for these hosts, with its key in the same file.

    Returns the path of the file.
    """
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    alternative = ",".join(f"{'IP' if name[0].isdigit() else 'DNS'}:{name}" for name in names)
    subject = ["-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={alternative}"]
    openssl(*options.split(), *subject, "-keyout", path, "-out", path.with_suffix(".crt"))
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def openssl(*arguments: object) -> str:
    """Run openssl, which has to end well, and return what it says."""
    run = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=20, check=True
    )
    return run.stdout
