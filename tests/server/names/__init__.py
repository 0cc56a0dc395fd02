"""Tests of the server's admin port."""
