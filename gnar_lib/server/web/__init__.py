"""What the request of a user goes through on its way to a proxy that has a name."""
