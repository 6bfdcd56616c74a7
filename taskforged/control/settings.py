"""The settings in force, for people: what each is, where it comes from, what it would be by default."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from taskforged.config import SETTINGS, Config, Origin
from taskforged.jsonvalue import to_text

__all__ = ["SettingView", "settings_in_force"]

_CREDENTIALS = re.compile(r"(?<=://)[^/]+(?=@)")
"""`user:password` of an address."""


class SettingView(NamedTuple):
    """One setting. Values are JSON."""

    section: str
    key: str
    value: str
    default: str
    origin: Origin
    variable: str
    help: str


def settings_in_force(config: Config) -> list[SettingView]:
    """Answer every setting, by section and key."""
    return [
        SettingView(
            one.section,
            one.key,
            _shown(config(one.section, one.key), one.default),
            _shown(one.parse(one.default), one.default),
            config.origins.get((one.section, one.key), Origin.DEFAULT),
            one.variable,
            one.help,
        )
        for one in sorted(SETTINGS, key=lambda one: (one.section, one.key))
    ]


def _shown(value: Any, default: Any) -> str:
    return to_text(_masked(default if value is None else value))  # None is how `auto` is kept


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return _CREDENTIALS.sub("***", value)
    if isinstance(value, (list, tuple)):
        return [_masked(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _masked(one) for key, one in value.items()}
    return value if isinstance(value, (bool, int, float)) or value is None else str(value)
