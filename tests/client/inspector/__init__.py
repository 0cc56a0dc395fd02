"""Tests of the inspector's page and of what it does."""
