"""Feeds every parser of gnar with broken input: `python -m tests.fuzz --help`."""
