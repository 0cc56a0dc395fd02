"""Tests of the tunnel as a whole, from the built gnar.pyz."""
