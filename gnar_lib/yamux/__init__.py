"""Many streams over one conn, as hashicorp/yamux 0.1.1 does it; knows nothing of what the streams carry."""
