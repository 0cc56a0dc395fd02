"""The error classes of gnar, in one tree: one class for each kind of failure that gnar expects."""

from __future__ import annotations


class GnarError(Exception):
    """Base of the errors that gnar raises; the text is one line that says what went wrong and what helps."""


class UsageError(GnarError):
    """The command line or the configuration is wrong; the process exits 2."""


class ConfigError(UsageError):
    """A value in a configuration file, a variable or a flag is wrong."""


class ConnError(GnarError):
    """A connection failed, or an address could not be dialled or listened on."""


class ConnClosed(ConnError):
    """The peer or this process has closed the connection, where more was to be read or written."""


class NetworkError(ConnClosed):
    """The network between both ends has failed: there is no way to the peer, or no answer in time."""


class WriteError(ConnClosed):
    """A connection takes no more bytes; what its other end has sent before can still be read."""


class ForeignProtocolError(ConnError):
    """What answers speaks another protocol than the one that was asked for; `protocol` is its name."""

    def __init__(self, text: str, protocol: str) -> None:
        super().__init__(text)
        self.protocol = protocol


class DialError(ConnError):
    """A connection could not be opened. A class below says whose fault that is, where it is known."""


class RefusedError(DialError):
    """The peer's: its host has answered, and nobody listens at the address."""


class UnreachableError(DialError):
    """The network's: there is no way to the address, nobody has answered in time, or DNS is away."""


class ExhaustedError(DialError):
    """This machine's: no local port, no descriptor or no memory is left for another connection."""


class ProxyLoginError(DialError):
    """The proxy in between wants a user and a password, or does not take those that it was given."""


class OtherServerError(DialError):
    """What has answered a further connection is not the server that has let this client in."""


class ListenError(ConnError):
    """An address cannot be listened on."""


class PortTakenError(ListenError):
    """Another socket already holds the address."""


class DeadlineError(ConnError):
    """The deadline of an operation has passed."""


class ProtocolError(GnarError):
    """The peer broke the protocol; whoever catches the error closes the connection."""


class MessageTooLongError(GnarError):
    """A message that this process wants to send does not fit into one frame."""


class AuthError(GnarError):
    """A login was refused, or the peer did not prove that it knows the token."""


class AuthMethodError(AuthError):
    """The peer proves the token in a way that is not taken here."""


class CertificateError(AuthError):
    """The certificate of the server is not the one that was expected: somebody may stand in between."""


class ClockError(AuthError):
    """The clocks of both ends are too far apart."""


class TooManyLoginsError(AuthError):
    """There have been too many logins from one network."""


class UnsupportedError(GnarError):
    """The peer lacks a feature that was asked for, so that asking again is useless."""


class NamesUnsupportedError(UnsupportedError):
    """The server knows neither names nor rules for users' addresses, which a proxy needs."""


class NoTlsHereError(UnsupportedError):
    """This Python has no TLS, which the settings want."""


class DismissedError(GnarError):
    """The server has ended this client for good: whoever runs the server wants it gone."""


class ProxyRefusedError(GnarError):
    """The server refuses a proxy for good: asking for the same proxy again is useless."""


class NameTakenError(GnarError):
    """Somebody has the name that is asked for, and may give it up; `owner` says who, as far as is known."""

    def __init__(self, text: str, owner: object = None) -> None:
        super().__init__(text)
        self.owner = owner


class MuxError(ConnError):
    """A multiplexed session has ended or can open no further stream; the text is the reason."""


class StorageError(GnarError):
    """What this process keeps in a file cannot be read or written."""


class DamagedError(StorageError):
    """The file has to be made anew."""


class DiscoveryError(GnarError):
    """This machine does not tell which of its ports are open."""
