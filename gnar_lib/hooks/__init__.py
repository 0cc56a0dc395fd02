"""Tells other programs of events, by HTTP or by a command, without ever being in the way."""

from gnar_lib.hooks.hooks import Hooks

__all__ = ["Hooks"]
