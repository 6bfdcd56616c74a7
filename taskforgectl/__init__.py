"""Taskforge's command line: a client of the daemon's public contract, and nothing more."""

__version__ = "0.1.0"
