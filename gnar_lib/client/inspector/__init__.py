"""The inspector's page: what passes through the client's tunnels, for whoever sits at this machine."""
