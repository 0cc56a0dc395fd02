"""Tests of the client's rooms."""
