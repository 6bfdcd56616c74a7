"""What `taskforgectl doctor` and `taskforgectl config` ask of a running daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from taskforged.config import Config
from taskforged.control.access import Principal
from taskforged.control.checks import invalid
from taskforged.control.diagnosis import Finding, Live, Subject, examine
from taskforged.control.examinations import CHECKS
from taskforged.control.settings import SettingView, settings_in_force
from taskforged.errors import PermissionDeniedError
from taskforged.store.inspection import Inspection

__all__ = ["DATABASE_S", "Doctor"]

DATABASE_S = 10.0
"""How long the database is read when nobody says otherwise."""

_DATABASE_S_MAX = 600.0


class Doctor:
    """Examines the daemon that it is part of."""

    def __init__(self, config: Config, live: Live, must_end: Callable[[float, float], bool]) -> None:
        """Create a doctor; `must_end` is the store's, see `Inspection`."""
        self._must_end = must_end
        self._config = config
        self._live = live
        self._turn = asyncio.Lock()

    async def diagnose(self, caller: Principal, *, database_s: float | None = None) -> list[Finding]:
        """Answer what all checks find. One diagnosis at a time: it reads much.

        Args:
            caller: must keep all namespaces.
            database_s: how long the database may be read; None: `DATABASE_S`.
        """
        _check_unconfined(caller)
        limit_s = DATABASE_S if database_s is None else database_s
        if not 1 <= limit_s <= _DATABASE_S_MAX:
            raise invalid("database_limit", f"must be from 1 to {_DATABASE_S_MAX:g} seconds")
        async with self._turn, Inspection(self._config.database, self._must_end) as inspection:
            now = self._live.clock.now()
            return await examine(Subject(self._config, inspection, now, limit_s, self._live), CHECKS)

    def settings(self, caller: Principal) -> tuple[str, Sequence[SettingView]]:
        """Answer the configuration file and every setting in force."""
        _check_unconfined(caller)
        return str(self._config.config_file), settings_in_force(self._config)


def _check_unconfined(caller: Principal) -> None:
    if caller.namespace_no is not None:
        raise PermissionDeniedError("a token that is confined to a namespace may not look at the whole daemon")
