"""The package's version, which is the service's: they are released together."""

__version__ = "0.1.0"
