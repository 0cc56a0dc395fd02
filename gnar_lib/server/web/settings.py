"""What a client wants done with the requests for one of its proxies; knows no request."""

from __future__ import annotations

from dataclasses import dataclass

from gnar_lib.proto import ProxyReq


@dataclass(frozen=True, slots=True)
class WebSettings:
    """The settings of a proxy of HTTP, as its client has sent them."""

    host_header: str = ""
    request_headers: tuple[str, ...] = ()
    response_headers: tuple[str, ...] = ()
    basic_auth: tuple[str, ...] = ()
    redirect_https: bool = False
    error_page: str = ""

    @classmethod
    def of(cls, request: ProxyReq) -> WebSettings:
        """Return the settings in a request; raises `ProxyRefusedError`."""
        return cls(
            request.host_header,
            request.request_headers,
            request.response_headers,
            request.basic_auth,
            request.redirect_https,
            request.error_page,
        )


NO_SETTINGS = WebSettings()
