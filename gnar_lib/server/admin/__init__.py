"""The panel: what a person and a program see of a running server, and what they may end."""
