"""Gives users of this process room for so many descriptors, whatever else the process has open."""

from __future__ import annotations

import pytest

from gnar_lib.net import descriptors


def room_for(monkeypatch: pytest.MonkeyPatch, count: int, reserve: int = 1000) -> None:
    """Let users have `count` descriptors more than now, and everything else `reserve` more."""
    limit = descriptors.taken + descriptors.promised + count + reserve
    monkeypatch.setattr(descriptors, "_others", 0)
    monkeypatch.setattr(descriptors, "_count", lambda: None)
    monkeypatch.setattr(descriptors, "_limit", lambda: limit)
    monkeypatch.setattr(descriptors, "_room", 0)
    monkeypatch.setattr(type(descriptors), "reserve", property(lambda _: reserve))
