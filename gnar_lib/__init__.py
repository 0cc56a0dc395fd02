"""gnar: reach a service behind NAT through one small public host."""

__version__ = "0.1.0"
