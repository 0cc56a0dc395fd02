"""Makes keys of what a terminal sends for them; does no I/O."""

from __future__ import annotations

import re

UP, DOWN, LEFT, RIGHT = "up", "down", "left", "right"
PAGE_UP, PAGE_DOWN, HOME, END = "page up", "page down", "home", "end"
ENTER, ESCAPE = "enter", "escape"

_ESC, _DELETE = 0x1B, 0x7F
_MAX_SEQUENCE = 16  # bytes; a longer one is no key
# A sequence as ECMA-48, 5.4 describes it, or one of VT100's application keys.
_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[@-~])")
_UNFINISHED = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?")
_NAMES = {
    **dict.fromkeys((b"[A", b"OA"), UP),
    **dict.fromkeys((b"[B", b"OB"), DOWN),
    **dict.fromkeys((b"[C", b"OC"), RIGHT),
    **dict.fromkeys((b"[D", b"OD"), LEFT),
    **dict.fromkeys((b"[H", b"OH", b"[1~", b"[7~"), HOME),
    **dict.fromkeys((b"[F", b"OF", b"[4~", b"[8~"), END),
    b"[5~": PAGE_UP,
    b"[6~": PAGE_DOWN,
}


class Keys:
    """Takes what was typed in pieces, and gives the names of keys, or their characters."""

    def __init__(self) -> None:
        self._rest = b""  # the beginning of a sequence

    def take(self, data: bytes) -> list[str]:
        """Return the keys in `data`; the beginning of a sequence at its end waits for what follows."""
        data, self._rest = self._rest + data, b""
        found: list[str] = []
        at = 0
        while at < len(data):
            if data[at] != _ESC:
                found += _plain(data[at])
                at += 1
            elif match := _SEQUENCE.match(data, at):
                name = _NAMES.get(match[0][1:])
                found += [name] if name else []
                at = match.end()
            elif _UNFINISHED.fullmatch(data, at) and len(data) - at < _MAX_SEQUENCE:
                self._rest = data[at:]
                break
            else:
                found.append(ESCAPE)
                at += 1
        return found

    @property
    def is_waiting(self) -> bool:
        """Whether what was typed may be the beginning of a sequence, or the Escape key."""
        return bool(self._rest)

    def settle(self) -> list[str]:
        """Return the keys that have waited: nothing has followed within a moment."""
        rest, self._rest = self._rest, b""
        return [ESCAPE] if rest == bytes([_ESC]) else []


def _plain(byte: int) -> list[str]:
    if byte in b"\r\n":
        return [ENTER]
    return [chr(byte)] if byte < _DELETE else []
