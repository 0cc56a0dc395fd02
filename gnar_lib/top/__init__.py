"""`gnar top`: watches a server through its admin port. Loads no gevent: the standard library's HTTP does."""
