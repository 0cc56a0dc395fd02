"""Tests of how gnar has Caddy lead users to it."""
