"""The accounts of this system: whom a socket file belongs to, and who a relay becomes once it listens."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from gnar_lib.errors import UsageError

if sys.platform != "win32":  # Windows has accounts of another kind
    import grp
    import pwd


@dataclass(frozen=True, slots=True)
class Account:
    """An account with its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]  # all of them, as after a login

    def become(self) -> None:
        """Give the rights of this process up for those of the account, for good. Raises `UsageError`."""
        if sys.platform != "win32" and (os.geteuid(), os.getegid()) != (self.uid, self.gid):
            try:
                os.setgroups(self.groups)
                os.setgid(self.gid)
                os.setuid(self.uid)
            except OSError as exc:
                reason = f"cannot become user {self.name}, which only root can: {exc.strerror}"
                raise UsageError(reason) from exc


def find_account(text: str) -> Account:
    """Return the account with a name or a number; raises `UsageError`."""
    if sys.platform != "win32":
        try:
            found = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
        except (KeyError, OverflowError, ValueError):
            raise UsageError("is no user of this system") from None
        groups = os.getgrouplist(found.pw_name, found.pw_gid)
        return Account(found.pw_name, found.pw_uid, found.pw_gid, tuple(groups))
    raise UsageError("is not supported on Windows")


def find_owner(text: str) -> int:
    """Return the number of an owner, who has to exist unless given as a number; raises `UsageError`."""
    return _number(text) if text.isdecimal() else find_account(text).uid


def find_group(text: str) -> int:
    """Return the number of a group, which has to exist unless given as a number; raises `UsageError`."""
    if text.isdecimal():
        return _number(text)
    if sys.platform != "win32":
        try:
            return grp.getgrnam(text).gr_gid
        except (KeyError, ValueError):
            raise UsageError("is no group of this system") from None
    raise UsageError("is not supported on Windows")


def _number(text: str) -> int:
    number = int(text[:20])  # Python refuses to read thousands of digits
    if number >= 2**32 - 1:  # the largest number is -1, "as it is"
        raise UsageError("is too large a number")
    return number
