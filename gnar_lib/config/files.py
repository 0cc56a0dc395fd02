"""Reads the files that hold settings and tokens, and says what to do about a file that is no plain text."""

from __future__ import annotations

import codecs
from pathlib import Path

from gnar_lib.config import values
from gnar_lib.config.model import Secret
from gnar_lib.errors import ConfigError

MAX_BYTES = 1 << 20  # of one file: far more than anybody writes
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: str) -> str:
    """Return the text of a file in UTF-8, without the mark that Windows' editors put in front of it.

    Raises `ConfigError`.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as exc:
        reason = (exc.strerror if isinstance(exc, OSError) else None) or exc
        raise ConfigError(f"{path}: cannot read it: {reason}") from exc
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: longer than {MAX_BYTES >> 20} MiB; is it another file?")
    if _is_utf_16(data):
        raise ConfigError(f"{path}: this is UTF-16, not UTF-8; save it as UTF-8")
    if b"\0" in data:
        raise ConfigError(f"{path}: not a text, since there is a zero byte; is it another file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8; save it as UTF-8") from exc


def _is_utf_16(data: bytes) -> bool:
    """Tell whether a text has the mark of UTF-16, or a zero for every second byte, as Latin text there."""
    fewer, more = sorted((data[::2].count(0), data[1::2].count(0)))
    return data.startswith(_UTF_16) or (not fewer and more > len(data) // 4)


def read_secret(path: str) -> Secret:
    """Return the token that a file holds alone, on one line; the text of the token is in no error.

    Raises `ConfigError`, also for an empty file.
    """
    text = read_text(path).strip()
    if len(text.splitlines()) != 1:
        raise ConfigError(f"{path}: {'several lines' if text else 'empty'}; expected one line, the token")
    try:
        return values.secret(text)
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from None
