"""Peers played by hand, which say what a gnar would not."""
