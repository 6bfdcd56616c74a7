"""`taskforgectl config`: settings."""

from __future__ import annotations

from taskforgectl.lazy import LazyNoun

__all__ = ["command"]

command = LazyNoun(
    "config",
    verbs={
        "list": ("show", "Show every setting, its value in force and where that comes from."),
        "get": ("show", "Print the value of one setting: text as it is, anything else as JSON."),
        "path": ("show", "Print the path of the configuration file, which need not exist."),
        "check": ("show", "Check the configuration file and the variables, as the next start would read them."),
    },
    help="Show the settings in force, and check the configuration file.",
)
