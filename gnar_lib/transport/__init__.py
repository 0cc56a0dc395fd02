"""What carries a conn's bytes in another shape or by another way: TLS, proxies to go through; knows no message."""
