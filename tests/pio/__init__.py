"""Tests of the limits and counts."""
