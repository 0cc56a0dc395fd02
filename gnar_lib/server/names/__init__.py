"""The names by which users reach proxies: which are possible, and who has them."""
