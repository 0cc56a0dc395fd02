"""The public end: accepts clients and users; does not know the client's rooms."""
