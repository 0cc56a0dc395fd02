"""The end beside the service; does not know the server's rooms."""
