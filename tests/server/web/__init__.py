"""Tests of what a user's request goes through at the server."""
