"""Helpers of the tests: real processes, services, users, hosts, and ways to wait."""
