"""Runs a program on a kernel that refuses some system calls, as gVisor and old kernels do (Linux).

    python tests/helpers/seccomp.py EPERM splice fcntl:F_SETPIPE_SZ -- gnar relay tcp:1234 tcp:host:5678

The kernel refuses a system call of that name with that error. With a value behind the name it refuses only
calls that have the value (of an option, or of a request) as their argument.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # what a filter returns; the error number is in the low 16 bits

# Of a classic BPF program (linux/filter.h): load a word of `struct seccomp_data`, compare it, return.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_AT, _ARGUMENTS_AT = 0, 16  # offsets in `struct seccomp_data`; an argument has 8 bytes, low ones first


class Call(NamedTuple):
    """A system call: its numbers by processor, and which argument is the value that a refusal may name."""

    x86_64: int
    aarch64: int
    value: int = 0


CALLS = {
    "splice": Call(275, 76),
    "pipe2": Call(293, 59),
    "eventfd2": Call(290, 19),
    "flock": Call(73, 32),
    "fcntl": Call(72, 25, value=1),
    "ioctl": Call(16, 29, value=1),
    "setsockopt": Call(54, 208, value=2),
    "getsockopt": Call(55, 209, value=2),
}


def main(arguments: list[str]) -> None:
    """Become a program for which the kernel refuses what the arguments say."""
    at = arguments.index("--")
    refuse(getattr(errno, arguments[0]), arguments[1:at])
    os.execvp(arguments[at + 1], arguments[at + 1 :])  # noqa: S606  (no shell is needed)


def command(error: str, *refused: str) -> list[str]:
    """Return the beginning of a command line that runs the rest of it without these system calls."""
    return [sys.executable, str(Path(__file__).resolve()), error, *refused, "--"]


def refuse(error: int, refused: Sequence[str]) -> None:
    """Have the kernel refuse system calls of this process with an error, until it ends. Raises `OSError`."""
    program = b"".join(_refuse_one(error, *each.partition(":")[::2]) for each in refused)
    program += _instruction(_RETURN, _ALLOW)
    held = ctypes.create_string_buffer(program)
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    for option, *values in (
        (_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero),  # without it only root may set a filter
        (_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.c_char_p(head)),
    ):
        if libc.prctl(option, *values, zero, zero):
            raise OSError(ctypes.get_errno(), "no filter for system calls can be set")


def _refuse_one(error: int, name: str, value: str) -> bytes:
    """Return the part of the program that refuses one system call, and otherwise goes on behind it."""
    call = CALLS[name]
    refusal = _instruction(_RETURN, _ERRNO | error)
    if value:
        refusal = _unless_equal(_ARGUMENTS_AT + 8 * call.value, _number(value), refusal)
    return _unless_equal(_NUMBER_AT, getattr(call, platform.machine()), refusal)


def _unless_equal(offset: int, value: int, skipped: bytes) -> bytes:
    load = _instruction(_LOAD, offset)
    return load + _instruction(_JUMP_IF_EQUAL, value, or_skip=len(skipped) // 8) + skipped


def _instruction(code: int, value: int, or_skip: int = 0) -> bytes:
    return struct.pack("=HBBI", code, 0, or_skip, value)


def _number(name: str) -> int:
    """Return the value of a constant."""
    for module in (socket, fcntl, termios):
        if hasattr(module, name):
            return int(getattr(module, name))
    return int(name)


if __name__ == "__main__":
    main(sys.argv[1:])
