"""gnar measured beside other relays and tunnels; knows their command lines, nothing of gnar's insides."""
