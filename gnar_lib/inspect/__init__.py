"""What passes through a tunnel, as requests and answers of HTTP: recorded on the way, without a part in it.

`Inspector.tapped` wraps a data connection. Parsers read along and cannot change, hold up or end anything:
what is no HTTP/1 is given up on in silence. Knows neither client nor page.
"""

from gnar_lib.inspect.conversation import Conversation, Origin
from gnar_lib.inspect.curl import Command, curl_of, host_of, url_of
from gnar_lib.inspect.decode import Decoded, decoded
from gnar_lib.inspect.exchange import Body, Exchange, Message, State, text_of, value_of
from gnar_lib.inspect.har import har_text
from gnar_lib.inspect.inspector import Inspector
from gnar_lib.inspect.log import ExchangeLog
from gnar_lib.inspect.masks import is_secret
from gnar_lib.inspect.store import Store

__all__ = [
    "Body",
    "Command",
    "Conversation",
    "Decoded",
    "Exchange",
    "ExchangeLog",
    "Inspector",
    "Message",
    "Origin",
    "State",
    "Store",
    "curl_of",
    "decoded",
    "har_text",
    "host_of",
    "is_secret",
    "text_of",
    "url_of",
    "value_of",
]
