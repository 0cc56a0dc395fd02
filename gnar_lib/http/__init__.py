"""HTTP/1.1 for people and programs, over any conn; knows nothing of who uses it.

`Service` serves handlers on the conns of a listener. `ServerCodec` and `ClientCodec` are the layer below:
messages with bodies in pieces. Each of these names is loaded when it is first used: who only needs `heads`,
as a server does at its start, need not wait for h11.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnar_lib.http.codec import ClientCodec, RequestHead, ResponseHead, ServerCodec
    from gnar_lib.http.limits import Limits
    from gnar_lib.http.message import (
        Answer,
        EventStream,
        Fields,
        Handler,
        HTTPError,
        Request,
        Response,
        Send,
    )
    from gnar_lib.http.routes import Routes
    from gnar_lib.http.service import Guard, Service
    from gnar_lib.http.static import StaticFiles

_MODULES = {
    "codec": ("ClientCodec", "RequestHead", "ResponseHead", "ServerCodec"),
    "limits": ("Limits",),
    "message": (*("Answer", "EventStream", "Fields", "HTTPError", "Handler", "Request", "Response", "Send"),),
    "routes": ("Routes",),
    "service": ("Guard", "Service"),
    "static": ("StaticFiles",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Answer",
    "ClientCodec",
    "EventStream",
    "Fields",
    "Guard",
    "HTTPError",
    "Handler",
    "Limits",
    "Request",
    "RequestHead",
    "Response",
    "ResponseHead",
    "Routes",
    "Send",
    "ServerCodec",
    "Service",
    "StaticFiles",
]


def __getattr__(name: str) -> Any:
    """Return what the package is asked for by name (PEP 562)."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
