"""Tests of the admin port, which every process may have."""
