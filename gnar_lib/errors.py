"""The one error tree: every failure that gnar expects, each with a text that a person can act on."""

from __future__ import annotations


class GnarError(Exception):
    """Base of every error that gnar raises on purpose; its text is one line."""


class UsageError(GnarError):
    """The command line or the configuration is wrong; the process exits 2."""


class ConfigError(UsageError):
    """A configuration file, variable or flag holds something that gnar does not accept."""


class ConnError(GnarError):
    """A connection failed: refused, reset, closed under us or unreachable."""


class ConnClosed(ConnError):
    """The peer ended the connection where more was expected, or our side closed it meanwhile."""


class DialError(ConnError):
    """A connection could not be opened."""


class ListenError(ConnError):
    """An address cannot be listened on."""


class PortTakenError(ListenError):
    """Another socket already holds the address."""


class DeadlineError(ConnError):
    """Something took longer than it may."""


class ProtocolError(GnarError):
    """The peer sent what the protocol does not allow; the connection is closed."""


class MessageTooLongError(GnarError):
    """A message of ours does not fit into one frame."""


class AuthError(GnarError):
    """A login was refused, or the peer failed to prove that it knows the token."""


class UnsupportedError(GnarError):
    """The peer cannot do what it was asked for, now or later."""


class ProxyRefusedError(GnarError):
    """The server will never open this proxy as it was asked for."""


class MuxError(ConnError):
    """A multiplexed session ended, with the reason."""
