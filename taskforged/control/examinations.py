"""What is checked: one function for each, and the table of them.

A function that needs a running daemon looks at `subject.live`, and answers nothing where that is None.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib.metadata
import importlib.resources
import os
import platform
import resource
import time
import zoneinfo
from collections.abc import Mapping, Sequence
from functools import lru_cache

from taskforged.ages import parse_age
from taskforged.config import load_config
from taskforged.control.diagnosis import Check, Finding, Severity, Subject, error, ok, warning
from taskforged.errors import CorruptStoreError, FailedPreconditionError, InvalidArgumentError
from taskforged.keyring import find_keys, key_id
from taskforged.language import compile_definition
from taskforged.language.definition import WebhookTrigger
from taskforged.store.backup import list_backups
from taskforged.store.store import SQLITE_VERSION
from taskforged.tls import EXPIRES_SOON, find_certificates

__all__ = ["CHECKS", "is_sqlite_mended", "tzdata_version"]

_MINUTE_US = 60_000_000
_DAY_US = 1440 * _MINUTE_US
_MIB = 1 << 20

_FEW = 5
"""Names in a message; more are counted."""

_SQLITE_MENDED = (3, 51, 3)


# --- what the daemon is made of --------------------------------------------------------------------------------------


async def _config(subject: Subject) -> Sequence[Finding]:
    """The file as it is now, beside what a running daemon has read."""
    config, file = subject.config, subject.config.config_file
    try:
        now = load_config(config.home, config.given_file)
    except InvalidArgumentError as problem:
        remedy = f"mend {file}; the daemon would not start again as it is"
        return [Finding(Severity.ERROR, one.message, remedy) for one in problem.violations] or error(
            problem.message, remedy
        )
    changed = sorted(f"[{s}] {k}" for (s, k), value in config.values.items() if now.values.get((s, k)) != value)
    if subject.live and changed:
        return warning(f"{file} has changed since the daemon started: {few(changed)}", "`taskforgectl restart`")
    return ok(f"{file} is valid" if file.exists() else "every setting has its default or a variable")


async def _certificate(subject: Subject) -> Sequence[Finding]:
    """The files as they are now; a running daemon keeps what it has read until they can be used."""
    try:
        found = await asyncio.to_thread(find_certificates, subject.config)
    except FailedPreconditionError as problem:
        goes_on = "; the daemon goes on with what it has read, and would not start again" if subject.live else ""
        return error(problem.message, f"put a certificate and its key in place{goes_on}")
    if found is None:
        return ok("no [tls] cert is set: TCP is plain, and for this machine alone")
    expires = found.current().expires
    text = f"{found.cert} is valid until {expires:%Y-%m-%d}"
    if expires - dt.datetime.now(dt.UTC) <= EXPIRES_SOON:
        return warning(text, "put a new certificate and key in place; no restart is needed")
    return ok(text)


async def _master_key(subject: Subject) -> Sequence[Finding]:
    if not subject.sees_key:
        return ok("the service gets the master key from elsewhere; only a running daemon can tell whether it fits")
    remedy = "restore it from your backup of it; if it is lost for good, see `taskforged --help`, --forget-secrets"
    try:
        keys = find_keys(subject.config.master_key)
    except (CorruptStoreError, OSError) as problem:
        return error(f"the master key cannot be read: {problem}", remedy)
    given = [key_id(one) for one in (keys.key, keys.other) if one is not None]
    if not given:
        return error(f"{keys.place} is missing: stored secrets cannot be read at the next start", remedy)
    known = await subject.inspection.rows("master_key")
    if known and known[0][0] not in given:
        return error(f"{keys.place} does not hold the master key with which the secrets are encrypted", remedy)
    return ok(f"the master key is that of {keys.place}")


def is_sqlite_mended(version: str) -> bool:
    """Whether a version of SQLite is free of the WAL-reset bug."""
    return tuple(int(part) for part in version.split(".")) >= _SQLITE_MENDED


async def _sqlite(_: Subject) -> Sequence[Finding]:
    if is_sqlite_mended(SQLITE_VERSION):
        return ok(f"SQLite {SQLITE_VERSION}")
    return warning(
        f"SQLite {SQLITE_VERSION} has the WAL-reset bug, which can damage a database when two connections write or"
        " checkpoint at once; Taskforge writes and checkpoints on one connection only, which keeps it away",
        "nothing is needed; 3.51.3 mends it, so take it when your system offers it, and let no other program write",
    )


async def _versions(subject: Subject) -> Sequence[Finding]:
    text = f"Python {platform.python_version()}"
    return ok(f"taskforged {subject.live.info.version}, {text}" if subject.live else text)


@lru_cache(maxsize=1)
def tzdata_version() -> str:
    """Answer where time zones come from: the system's data goes before the package's."""
    try:
        package = importlib.metadata.version("tzdata")
    except importlib.metadata.PackageNotFoundError:
        package = ""
    for folder in zoneinfo.TZPATH:
        if os.path.exists(os.path.join(folder, "UTC")):  # noqa: PTH110, PTH118  zoneinfo has its paths as text
            return f"{_system_tzdata(folder) or 'of unknown version'} in {folder}"
    return f"{package} of the package tzdata" if package else ""


def _system_tzdata(folder: str) -> str:
    for name, lead in (("tzdata.zi", "# version "), ("+VERSION", "")):
        try:
            with open(os.path.join(folder, name)) as file:  # noqa: PTH118, PTH123
                first = file.readline().strip()
        except OSError:
            continue
        if first.startswith(lead):
            return first.removeprefix(lead)
    return ""


async def _time_zones(subject: Subject) -> Sequence[Finding]:
    version = tzdata_version()
    if not version:
        return error("there is no time zone data", "install it: `pip install tzdata`, or your system's package tzdata")
    missing = [name for name in ("UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo") if not _is_zone(name)]
    if missing:
        return error(f"time zones are missing: {', '.join(missing)}", "install your system's package tzdata again")
    year = dt.datetime.fromtimestamp(subject.now / 1e6, dt.UTC).year
    if version[:4].isdigit() and int(version[:4]) < year - 1:
        return warning(f"time zone data {version} is old", "bring your system's package tzdata up to date, and restart")
    return ok(f"time zone data {version}")


def _is_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo.no_cache(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return False
    return True


# --- the machine -----------------------------------------------------------------------------------------------------


async def _clock(subject: Subject) -> Sequence[Finding]:
    remedy = "set the clock, and keep it right with a time service such as systemd-timesyncd or chrony"
    wall = time.time_ns() // 1000
    newest = (await subject.inspection.rows("newest_times"))[0][0] or 0
    if newest - wall > _MINUTE_US:
        return error(
            f"the clock shows {_utc(wall)}, and the newest record is of {_utc(newest)}: it was set back, or was wrong"
            " before. Due times wait for up to an hour until it has caught up",
            remedy,
        )
    if subject.live and subject.live.clock.now() - wall > _MINUTE_US:
        ahead_s = (subject.live.clock.now() - wall) // 1_000_000
        return warning(f"the clock was set back by {ahead_s:,} s while the daemon was running", remedy)
    return ok(f"the clock shows {_utc(wall)}")


async def _disk(subject: Subject) -> Sequence[Finding]:
    found = os.statvfs(subject.config.home)
    free, whole = found.f_bavail * found.f_frsize // _MIB, found.f_blocks * found.f_frsize // _MIB
    kept = subject.config("limits", "disk_free_mib")
    text = f"{free:,} MiB of {whole:,} MiB are free, [limits] disk_free_mib keeps {kept:,}"
    remedy = "free some space, or have runs pruned"
    if found.f_flag & os.ST_RDONLY:
        return error(f"{subject.config.home} is on a file system that is mounted read-only", "mount it for writing")
    if kept and free < kept:
        return error(f"new work is refused: {text}", remedy)
    if found.f_files and found.f_favail * 100 < found.f_files:
        return warning(f"only {found.f_favail:,} inodes are free", "delete files on this file system")
    return warning(text, remedy) if free < max(2 * kept, 256) else ok(text)


async def _descriptors(subject: Subject) -> Sequence[Finding]:
    if subject.live is None:
        return ()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = subject.config("http", "connections_max") + 2 * subject.config("executor", "pool_size") + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        remedy = f"set LimitNOFILE={wanted} in the unit, or `ulimit -n {wanted}` before `taskforgectl up`"
        return warning(f"the daemon may open {soft:,} files, and its settings allow for {wanted:,}", remedy)
    return ok(f"the daemon may open {soft:,} files")


# --- the database ----------------------------------------------------------------------------------------------------


async def _schema(subject: Subject) -> Sequence[Finding]:
    schema, newest, is_ours = await subject.inspection.schema()
    if not is_ours:
        return error(f"{subject.config.database} is a database of another program", "move it away")
    if schema > newest:
        return error(
            f"the database has schema {schema}, newer than this program's {newest}", "install a newer taskforged"
        )
    later = f"; the next start brings it to {newest}" if schema < newest else ""
    return ok(f"schema {schema}{later}")


async def _database(subject: Subject) -> Sequence[Finding]:
    faults, unread = await subject.inspection.integrity(subject.database_s)
    if faults:
        return [Finding(Severity.ERROR, one, "stop the daemon and restore a backup") for one in faults]
    if unread:
        return warning(
            f"no fault was found in {subject.database_s:g} s, and {few(list(unread))} were not read to their end",
            "look longer: `taskforgectl doctor --full`",
        )
    return ok("no fault in pages, indexes, constraints and references")


async def _size(subject: Subject) -> Sequence[Finding]:
    """What the file holds beside its budget, and whether anything ever leaves it."""
    pages = await subject.inspection.pages()
    used, free = pages.used_bytes // _MIB, pages.free_pages * pages.page_size // _MIB
    most = subject.config("store", "max_mib")
    text = f"the database holds {used:,} MiB, and {free:,} MiB in it are free"
    if most and used >= most:
        remedy = "shorten [retention], run `taskforgectl prune`, or raise [store] max_mib"
        return error(f"new work is refused: {text}, [store] max_mib allows {most:,}", remedy)
    if most and used * 10 >= most * 9:
        return warning(f"{text}, [store] max_mib allows {most:,}", "shorten [retention], or raise [store] max_mib")
    if not pages.can_shrink and free > _LARGE_MIB // 4:
        return warning(f"{text} and do not go back to the disk", "`taskforgectl down`, `taskforgectl prune --compact`")
    keeps = not parse_age(subject.config("retention", "runs")) and not subject.config("retention", "runs_per_workflow")
    if keeps and not subject.config("retention", "runs_total") and used > _LARGE_MIB:
        return warning(f"{text}, and [retention] keeps all runs for ever", "set [retention] runs, for example 365d")
    return ok(text)


_LARGE_MIB = 1024


async def _backups(subject: Subject) -> Sequence[Finding]:
    folder, every_s = subject.config.backups, parse_age(subject.config("backup", "every"))
    status = subject.live.backups.status if subject.live is not None else None
    if status is not None and status.failed_at:
        return error(f"the backup of {_utc(status.failed_at)} failed: {status.failure}", f"look at {folder}")
    try:
        found = list_backups(folder)
    except OSError as problem:
        return error(f"{folder} cannot be read: {problem.strerror}", "mend it, or name another in [backup] folder")
    if not found:
        text, [(since,)] = f"there is no backup in {folder}", await subject.inspection.rows("first_boot")
        if since is None or subject.now - since < _BACKUP_AGE_S * 1_000_000:
            return ok(f"{text} yet")
        return warning(text, 'set [backup] every, for example "24h", or run `taskforgectl backup create`')
    text = f"the newest backup is of {_utc(found[0].at)}"
    limit_s = 2 * every_s if every_s else _BACKUP_AGE_S
    if subject.now - found[0].at > limit_s * 1_000_000:
        return warning(text, "the log says why none was made" if every_s else "run `taskforgectl backup create`")
    return ok(f"{text}, {len(found):,} in {folder}")


_BACKUP_AGE_S = 7 * 86_400


async def _boots(subject: Subject) -> Sequence[Finding]:
    present = subject.live.info.boot_epoch if subject.live else None
    rows = await subject.inspection.rows("recent_boots", subject.now - _DAY_US)
    died = [started for epoch, started, stopped in rows if stopped is None and epoch != present]
    if not died:
        return ok("every start of the last 24 hours ended in order, or still runs")
    return warning(
        f"starts of the last 24 hours that ended without a stop: {len(died):,} of {len(rows):,}, the last one of"
        f" {_utc(died[0])}. The daemon was killed, or the machine went down",
        "look at the end of the log: `taskforgectl logs`; nothing that was accepted is lost",
    )


# --- what people have configured -------------------------------------------------------------------------------------


async def _webhooks(subject: Subject) -> Sequence[Finding]:
    rows = await subject.inspection.rows("webhook_sources", 1000)
    anybody: list[str] = []
    for namespace, workflow, source in rows:
        anybody += _open_doors(namespace, workflow, source)
        await asyncio.sleep(0)  # a compilation takes milliseconds, and there may be many
    if not anybody:
        return ok("every webhook proves its sender")
    return warning(
        f"webhooks accept anybody (scheme: none): {few(anybody)}",
        "prove the sender with another `verify:`, for example {scheme: token, secret: NAME}",
    )


def _open_doors(namespace: str, workflow: str, source: str) -> list[str]:
    try:
        sources = compile_definition(source).sources()
    except InvalidArgumentError:  # of a profile that this program does not know: not what is asked here
        return []
    webhooks = (one for one in sources.values() if isinstance(one, WebhookTrigger))
    return [f"{namespace}/{workflow}/{one.id}" for one in webhooks if one.verify.scheme == "none"]


async def _tokens(subject: Subject) -> Sequence[Finding]:
    now = subject.now
    rows = await subject.inspection.rows("live_tokens")
    soon = [name for _, name, _, expires, _ in rows if expires and now <= expires < now + 14 * _DAY_US]
    over = [f"{name} ({token_id})" for token_id, name, _, expires, _ in rows if expires and expires < now]
    idle = [name for _, name, created, _, used in rows if used is None and created < now - 30 * _DAY_US]
    found: list[Finding] = []
    if soon:
        found += warning(f"tokens expire within 14 days: {few(soon)}", "make new ones: `taskforgectl token create`")
    if over:
        found += warning(f"tokens have expired: {few(over)}", "`taskforgectl token revoke ID` ends this warning")
    if idle:
        remedy = "revoke what nobody needs: `taskforgectl token list`"
        found += warning(f"tokens were not used in the 30 days and more since they were made: {few(idle)}", remedy)
    return found or ok(f"tokens in use: {len(rows):,}")


async def _triggers(subject: Subject) -> Sequence[Finding]:
    rows = await subject.inspection.rows("overdue_triggers", subject.now - _MINUTE_US, 1000)
    if not rows:
        return ok("no schedule is overdue")
    names = few([f"{namespace}/{workflow}/{key}" for namespace, workflow, key, _ in rows])
    if subject.live is None:
        return ok(f"due times passed while no daemon was running; its next start settles them: {names}")
    return error(
        f"schedules are overdue since {_utc(rows[0][3])}: {names}",
        "`taskforgectl schedule explain WORKFLOW` tells why; the log may tell more",
    )


async def _stuck_runs(subject: Subject) -> Sequence[Finding]:
    if subject.live is None:
        return ok("only a running daemon knows whether a run is stuck")
    stuck, overdue = subject.live.stuck.found.values(), subject.live.stuck.overdue
    late = ", ".join(f"{count:,} {kind}s" for kind, count in overdue.items() if count)
    found: list[Finding] = []
    if stuck:
        names = few([f"{one.run_id} ({one.diagnosis})" for one in stuck])
        remedy = "restore a backup, if rows were lost; `taskforgectl run verify RUN` tells whether the history is whole"
        found += error(f"runs that nothing will move: {names}", remedy)
    if late:
        found += error(f"overdue by more than a minute: {late}", "look at the log; a restart finds everything again")
    return found or ok("no run is stuck")


CHECKS: Mapping[str, Check] = {
    "config": _config,
    "versions": _versions,
    "certificate": _certificate,
    "master key": _master_key,
    "sqlite": _sqlite,
    "time zones": _time_zones,
    "disk": _disk,
    "files": _descriptors,
    "schema": _schema,
    "clock": _clock,
    "database": _database,
    "size": _size,
    "backups": _backups,
    "boots": _boots,
    "webhooks": _webhooks,
    "tokens": _tokens,
    "triggers": _triggers,
    "runs": _stuck_runs,
}
"""The checks by name, in the order in which they are shown."""


def few(names: Sequence[str]) -> str:
    """Answer the first of many names."""
    more = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {more:,} more" if more > 0 else "")


def _utc(at: int) -> str:
    return dt.datetime.fromtimestamp(at / 1e6, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
