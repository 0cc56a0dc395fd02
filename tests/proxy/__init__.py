"""Tests of the moving of bytes."""
