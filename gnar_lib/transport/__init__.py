"""What gives a conn another shape, or opens it another way: TLS, proxies to go through; knows no message."""
