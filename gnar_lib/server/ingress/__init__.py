"""Who comes in to the server: clients at the control port, users at proxied ports of TCP and UDP."""
