"""Moving user bytes between two conns; knows neither server nor client."""
