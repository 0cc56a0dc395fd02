"""Tests of the ways to install and run gnar."""
