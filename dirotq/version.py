"""The version, also where the package is used from a checkout without being installed."""

__version__ = "0.1.0"
