"""Tests of the multiplexing."""
