"""Tests of what Prometheus asks for."""
