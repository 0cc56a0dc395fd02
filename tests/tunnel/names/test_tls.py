"""HTTPS with certificates of one's own, and TLS that is passed through to who has a certificate."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from tests.helpers.certificates import make_certificate
from tests.helpers.harness import dial, wait_until
from tests.helpers.local_web import WebSocket, curl, host_of
from tests.tunnel.names.conftest import Names


def ask(names: Names, certificate: str, label: str, path: str = "/", *arguments: object) -> str:
    """Return what curl gets by HTTPS, which trusts one certificate alone."""
    url = f"https://{host_of(label)}:{names.https}{path}"
    return curl("--cacert", names.folder / f"{certificate}.crt", *arguments, url)


def shown(names: Names, label: str) -> bytes | None:
    """Return the certificate that a user of a name is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with dial(names.https) as sock, context.wrap_socket(sock, server_hostname=host_of(label)) as tls:
        return tls.getpeercert(binary_form=True)


def test_curl_comes_by_https_and_the_service_is_told(names: Names, way: str) -> None:
    assert ask(names, "wild", f"nginx-{way}") == "a page"
    answer = ask(names, "wild", f"app-{way}", "/show", "-i").lower()
    assert '"x-forwarded-proto": "https"' in answer
    assert "\r\nstrict-transport-security: max-age=60" in answer


def test_certificate_is_chosen_by_the_name(names: Names) -> None:
    told = ("-w", "%{http_code}", "-o", os.devnull)
    assert ask(names, "special", "special", "/", *told) == "404"  # nobody has that name
    with pytest.raises(AssertionError, match="SSL certificate problem"):
        ask(names, "special", "app-plain")


def test_websocket_goes_by_https(names: Names, way: str) -> None:
    with WebSocket(names.https, f"app-{way}", names.folder / "wild.crt") as user:
        for message in ("hello", os.urandom(1 << 20)):
            assert user.ask(message) == message


def test_upload_and_download_by_https_are_whole(names: Names, tmp_path: Path) -> None:
    large = names.folder / "site" / "large"
    size = large.stat().st_size
    assert ask(names, "wild", "app-mux", "/upload", "-T", large).startswith(f"{size} ")
    ask(names, "wild", "nginx-plain", "/large", "-o", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == large.read_bytes()


@pytest.mark.waits
def test_certificate_is_renewed_while_the_server_runs(names: Names, tmp_path: Path) -> None:
    before = {label: shown(names, label) for label in ("special", "app-plain")}
    new = make_certificate(tmp_path / "special.pem", host_of("special"))
    new.replace(names.folder / "special.pem")
    new.with_suffix(".crt").replace(names.folder / "special.crt")
    wait_until(lambda: shown(names, "special") != before["special"], "the new certificate is shown")
    assert shown(names, "app-plain") == before["app-plain"]
    assert ask(names, "special", "special", "/", "-w", "%{http_code}", "-o", os.devnull) == "404"


def test_tls_is_passed_through_to_a_service_with_a_certificate_of_its_own(names: Names, way: str) -> None:
    assert ask(names, "secure", f"secure-{way}") == "a page"
    with pytest.raises(AssertionError, match="SSL certificate problem"):
        ask(names, "wild", f"secure-{way}")
