"""Tests of the room that touches sockets."""
