"""Tests of gnar.pyz as a file: how it is built, how it starts, and where it runs."""
