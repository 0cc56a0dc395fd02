"""Drawing on a terminal: what a screen looks like, and how it gets there and is left again."""
