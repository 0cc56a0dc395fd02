"""Many streams over one conn, as hashicorp/yamux 0.1.1 does it; knows nothing of what they carry."""

from gnar_lib.yamux.frame import VERSION
from gnar_lib.yamux.session import Session
from gnar_lib.yamux.stream import Stream

__all__ = ["VERSION", "Session", "Stream"]
