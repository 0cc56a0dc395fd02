"""What carries a conn's bytes in another shape: TLS with its certificates; knows no message and no HTTP."""
