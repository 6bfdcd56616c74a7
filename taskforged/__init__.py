"""Taskforge: a self-hosted, deterministic and inspectable workflow engine. This package is the daemon."""

__version__ = "0.1.0"
