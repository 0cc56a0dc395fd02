"""The certificate that a server has made for itself: keeps it in a folder; knows not who accepts it."""

from __future__ import annotations

import os
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Final

from gnar_lib import logger
from gnar_lib.errors import ConfigError, StorageError
from gnar_lib.private import check_private_file, check_private_folder, make_private_folder
from gnar_lib.transport.engine import reason_of
from gnar_lib.transport.selfmade import make_certificate
from gnar_lib.transport.x509 import fingerprint_of

FILE_NAME: Final = "tls.pem"
MAX_FILE_BYTES: Final = 1 << 20  # far more than a key and any chain of certificates

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_OTHERS = 0o077
_ADVICE = "put the file back from a backup, or delete it for a new certificate"

_log = logger.get("TLS")


class Identity:
    """A certificate and its key. Whoever else had the key could stand in between as this server."""

    __slots__ = ("_place", "fingerprint", "pem")

    def __init__(self, pem: bytes, place: str = "") -> None:
        """Take a key and its certificate in PEM; `place` is the file that they are from, for errors.

        Raises `ConfigError` if they cannot be used.
        """
        self.pem = pem
        self._place = place
        try:
            self.fingerprint = fingerprint_of(pem)  # SHA-256 of the certificate, in hex
        except ValueError as exc:
            raise self._damaged(str(exc)) from exc
        self.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def __repr__(self) -> str:
        return f"<Identity {self.fingerprint}>"

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have `context` show this certificate; raises `ConfigError`."""
        try:
            with _file_of(self.pem) as path:
                context.load_cert_chain(path, password=_no_password)
        except ssl.SSLError as exc:
            raise self._damaged(reason_of(exc)) from exc
        except OSError as exc:
            raise ConfigError(
                f"{exc.filename or tempfile.gettempdir()}: {exc.strerror}; TLS reads a certificate from a"
                " file alone, for which a folder is needed: set TMPDIR"
            ) from exc

    def _damaged(self, reason: str) -> ConfigError:
        if self._place:
            return ConfigError(f"state-dir: {self._place}: damaged: {reason}; {_ADVICE}")
        # As where the system's settings of OpenSSL want longer keys.
        return ConfigError(
            f"this system does not take the certificate that gnar makes: {reason}; take one of your own"
        )


def load_or_make(state_dir: str) -> Identity:
    """Return the certificate that is kept in a folder; make it if there is none. Raises `ConfigError`.

    With an empty `state_dir`, the certificate is new, and lives as long as the process. Of processes that
    make one at the same time, all return the same, if the file system has hard links.
    """
    if not state_dir:
        return Identity(_make())
    path = os.path.join(state_dir, FILE_NAME)
    with _told(path):
        make_private_folder(state_dir)
        pem = _read(path)
        if pem is None:
            _keep(path, _make())
            pem = _read(path)
    if pem is None:
        raise ConfigError(f"state-dir: {path}: somebody deletes the file while this process begins")
    return Identity(pem, path)


def load(state_dir: str) -> Identity | None:
    """Return the certificate that is kept in a folder; None if there is none.

    Raises `ConfigError`, also for a folder that `load_or_make` would refuse.
    """
    path = os.path.join(state_dir, FILE_NAME)
    with _told(path):
        try:
            check_private_folder(state_dir)
        except FileNotFoundError:
            return None
        pem = _read(path)
    return None if pem is None else Identity(pem, path)


def _make() -> bytes:
    return make_certificate(datetime.now(timezone.utc))


def _read(path: str) -> bytes | None:
    """Return what is in the file; None if there is none."""
    try:
        check_private_file(path)
        file = os.open(path, _READ)
    except FileNotFoundError:
        return None
    with os.fdopen(file, "rb") as stream:
        if sys.platform != "win32" and (mode := os.fstat(file).st_mode) & _OTHERS:
            os.fchmod(file, 0o600)
            _log.warning(
                "%s: other users could read the key (mode %o), and no longer can", path, mode & 0o777
            )
        return stream.read(MAX_FILE_BYTES)


def _keep(path: str, pem: bytes) -> None:
    """Put `pem` into a new file, as a whole or not at all, unless another process has just done so."""
    folder = os.path.dirname(path)
    file, draft = tempfile.mkstemp(prefix=f".{FILE_NAME}-", dir=folder)  # which nobody else may read
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fsync(file)
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError:  # no hard links here
            os.replace(draft, path)
        _sync_folder(folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)


def _sync_folder(folder: str) -> None:
    """Have the names of files in a folder survive a failure of power, where that can be asked for."""
    if sys.platform != "win32":
        file = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.fsync(file)
        finally:
            os.close(file)


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Raise what is wrong with a file, or its folder, as `ConfigError`."""
    try:
        yield
    except StorageError as exc:
        raise ConfigError(f"state-dir: {exc}") from exc
    except OSError as exc:
        where = os.path.dirname(path) if exc.filename != path else path
        raise ConfigError(
            f"state-dir: {where}: {exc.strerror}; the server's certificate is kept there, so this user has to"
            " read and write there: see chown, or choose another folder"
        ) from exc
    except ValueError as exc:  # a path that no file can have
        raise ConfigError(f"state-dir: {path!a}: {exc}") from exc


@contextmanager
def _file_of(data: bytes) -> Iterator[str]:
    """Make a file that holds `data` for as long as the block runs, and return its path.

    OpenSSL is given certificates by the path of a file alone. On Linux the file is in memory.
    """
    if (file := _file_in_memory(data)) >= 0:
        try:
            yield f"/proc/self/fd/{file}"
        finally:
            os.close(file)
        return
    file, path = tempfile.mkstemp()  # which nobody else may read
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
        yield path
    finally:
        os.unlink(path)


def _file_in_memory(data: bytes) -> int:
    """Return the descriptor of a file that has no name, or -1 where there is none that OpenSSL could open."""
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        return -1
    try:
        file = os.memfd_create("certificate")
    except OSError:
        return -1
    try:
        os.write(file, data)
        if os.access(f"/proc/self/fd/{file}", os.R_OK):
            return file
    except OSError:
        pass
    os.close(file)
    return -1


def _no_password() -> str:
    return ""  # a key that a password protects is damaged to this program, and nobody is asked for one
