"""Taskforge's public contract; `taskforge.v1` holds the generated messages and stubs."""
