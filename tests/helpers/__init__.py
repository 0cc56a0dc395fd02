"""Real processes, services and hosts that the tests use."""
