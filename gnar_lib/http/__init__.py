"""HTTP/1.1 for people and programs, over any conn; knows nothing of who uses it.

`Service` serves handlers on the conns of a listener. `ServerCodec` and `ClientCodec` are the layer below:
messages with bodies in pieces.
"""

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
