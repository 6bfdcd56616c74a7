"""Every setting, with its default, its bounds and where it comes from: flags, environment, config.toml, defaults.

A setting `[section] key` is also the variable `TASKFORGE_SECTION_KEY`. An unknown key or a bad value is an error that
names the place: a typo must not silently mean the default.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from taskforged.ages import parse_age
from taskforged.egress import parse_rule
from taskforged.errors import InvalidArgumentError, Violation

__all__ = ["SETTINGS", "Config", "Origin", "Setting", "is_loopback", "load_config"]


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        number = int(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise ValueError(f"must be a whole number from {low:,} to {high:,}")
        return number

    return parse


def _seconds(low: float, high: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        number = float(value)
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}")
        return number

    return parse


def _age(least: str = "0") -> Callable[[Any], str]:
    """Read an age, which stays the text that it is; `forever` and `0` are the longest."""

    def parse(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int)) or (isinstance(value, int) and value):
            raise ValueError("must be an age such as 30d, 12h or forever, in quotes")
        if 0 < parse_age(str(value)) < parse_age(least):
            raise ValueError(f"must be at least {least}, or forever")
        return str(value)

    return parse


def _folder(value: Any) -> str:
    if not isinstance(value, str) or (value and not value.startswith("/")):
        raise ValueError("must be the absolute path of a folder")
    return value


def _choice(*names: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return str(value)

    return parse


def _listen(value: Any) -> str:
    host, colon, port = str(value).rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:7420; port 0 picks a free one")
    return str(value)


def is_loopback(listen: str) -> bool:
    """Answer whether HOST:PORT can be reached from this machine only."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value not in {"true", "false"}:
        raise ValueError("must be true or false")
    return bool(value == "true")


def _switch_or_auto(value: Any) -> bool | None:
    return None if value == "auto" else _switch(value)


def _file(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("must be the path of a file; a relative one begins at the home")
    return value


def _programs(value: Any) -> tuple[str, ...]:
    paths = [path for path in value.split(":") if path] if isinstance(value, str) else value
    if not isinstance(paths, (list, tuple)) or not all(isinstance(p, str) and p.startswith("/") for p in paths):
        raise ValueError('must be a list of absolute paths such as ["/usr/bin/git"]; in the variable with : between')
    return tuple(paths)


def _items(value: Any) -> list[Any]:
    found = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)):
        raise TypeError("must be a list; in the variable with commas between")
    return [item for item in found if item != ""]


def _rules(value: Any) -> tuple[str, ...]:
    rules = tuple(map(str, _items(value)))
    for rule in rules:
        parse_rule(rule)
    return rules


def _ports(value: Any) -> tuple[int, ...]:
    try:
        return tuple(map(_integer(1, 65_535), _items(value)))
    except ValueError:
        raise ValueError("must be numbers of ports such as [80, 443]") from None


def _proxy(value: Any) -> str:
    try:
        parts = urlsplit(str(value))
        is_url = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
        is_bare = not parts.path.strip("/") and not parts.query and parts.netloc.count("@") <= 1
    except ValueError:  # whose text would show a part of the password
        is_url = is_bare = False
    if value and not (is_url and is_bare):
        raise ValueError(
            "must be a URL such as http://user:password@proxy.example:3128, http or https, without a path;"
            " in the password @ is %40 and / is %2F"
        )
    return str(value)


class Origin(StrEnum):
    """Where a value comes from."""

    DEFAULT = "default"
    FILE = "file"
    VARIABLE = "variable"


def _endpoint(value: Any) -> str:
    if value and not (isinstance(value, str) and value.startswith(("http://", "https://"))):
        raise ValueError('must be an http or https URL such as "http://127.0.0.1:4318"')
    return str(value)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: where it stands, what it defaults to, how it is checked, what it is, whether it holds a secret."""

    section: str
    key: str
    default: Any
    parse: Callable[[Any], Any]
    help: str
    is_secret: bool = False

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"TASKFORGE_{self.section}_{self.key}".upper()


SETTINGS: tuple[Setting, ...] = (
    Setting("grpc", "listen", "127.0.0.1:7420", _listen, "address of the control plane"),
    Setting("grpc", "connections_max", 1024, _integer(1, 100_000), "open connections of clients"),
    Setting("grpc", "streams_per_token", 2000, _integer(1, 100_000), "open watches and waiting calls of one token"),
    Setting("http", "listen", "127.0.0.1:7421", _listen, "address of webhooks and health checks"),
    Setting("http", "body_max", 1 << 20, _integer(1024, 64 << 20), "bytes of a webhook's body"),
    Setting("http", "connections_max", 1024, _integer(1, 100_000), "open connections of webhook senders"),
    Setting(
        "http",
        "connections_per_peer",
        0,
        _integer(0, 100_000),
        "the same for one address; 0: 64 beyond loopback, else no limit",
    ),
    Setting("http", "behind_proxy", False, _switch, "true: a reverse proxy ends TLS, so plain HTTP beyond loopback"),
    Setting("tls", "cert", "", _file, "certificate chain in PEM, the daemon's own first; relative to the home"),
    Setting("tls", "key", "", _file, "its private key in PEM, mode 0600"),
    Setting("tls", "client_ca", "", _file, "gRPC clients over TCP must have a certificate of this CA"),
    Setting("tls", "http", "auto", _switch_or_auto, "webhooks over TLS; auto: beyond loopback, not behind a proxy"),
    Setting("executor", "pool_size", 64, _integer(1, 10_000), "steps at work at once"),
    Setting("executor", "grace", 8.0, _seconds(0, 3600), "seconds that running steps have to finish at shutdown"),
    Setting(
        "store",
        "synchronous",
        "FULL",
        _choice("FULL", "NORMAL"),
        "NORMAL is faster and loses the newest commits at a power cut",
    ),
    Setting(
        "limits",
        "memory_mib",
        4096,
        _integer(1536, 1 << 20),
        "address space in MiB: an expression that would need more fails, instead of the machine",
    ),
    Setting(
        "store", "max_mib", 0, _integer(0, 1 << 30), "MiB of the database beyond which new work waits; 0: no limit"
    ),
    Setting(
        "retention", "runs", "90d", _age("1m"), "age of ended runs that are deleted, unless their workflow says it"
    ),
    Setting(
        "retention", "runs_per_workflow", 0, _integer(0, 1 << 40), "newest ended runs kept of each workflow; 0: all"
    ),
    Setting("retention", "runs_total", 0, _integer(0, 1 << 40), "newest ended runs kept of all workflows; 0: all"),
    Setting("retention", "events", "30d", _age("1m"), "age of events that are deleted once their runs are"),
    Setting("retention", "rejected", "7d", _age("1m"), "age of deliveries without effect that are deleted"),
    Setting("retention", "dedupe", "14d", _age("10d"), "how long repeated deliveries are recognised; at least 10d"),
    Setting("retention", "slots", "90d", _age("1m"), "age of settled due times that are deleted from the ledger"),
    Setting("retention", "logs", "30d", _age("1m"), "age of what steps print that is deleted"),
    Setting("backup", "folder", "", _folder, "where backups go; empty: `backups` in the home"),
    Setting("backup", "every", "0", _age("1m"), "how often a backup is made; 0: only when asked for"),
    Setting("backup", "keep", 7, _integer(1, 10_000), "newest backups that stay when a scheduled one is made"),
    Setting("backup", "before_upgrade", True, _switch, "false: migrate the database without a backup of it"),
    Setting("shell", "allow", [], _programs, "absolute paths of the programs that shell steps may execute"),
    Setting("shell", "unsafe", False, _switch, "true: shell steps may execute anything"),
    Setting("egress", "allow", [], _rules, "what http steps may connect to although it is closed"),
    Setting("egress", "deny", [], _rules, "what http steps may not connect to; wins over allow"),
    Setting("egress", "private", True, _switch, "false: no loopback and no private networks but what allow names"),
    Setting("egress", "only_allowed", False, _switch, "true: nothing but what allow names"),
    Setting("egress", "ports", [], _ports, "the only ports that http steps may connect to; empty: all"),
    Setting("egress", "proxy", "", _proxy, "URL of the proxy of http steps; empty: none", is_secret=True),
    Setting(
        "egress",
        "no_proxy",
        ["localhost", "*.localhost", "127.0.0.0/8", "::1"],
        _rules,
        "what http steps connect to without the proxy",
    ),
    Setting("egress", "ca_file", "", _file, "path of certificate authorities that are trusted besides the system's"),
    Setting("limits", "fan_out_items", 10_000, _integer(1, 1_000_000), "items of one for_each"),
    Setting("limits", "pending_runs", 100_000, _integer(1, 10_000_000), "runs that wait for a slot, of all namespaces"),
    Setting("limits", "causal_depth", 16, _integer(1, 1000), "runs in a chain of events and runs before it is a loop"),
    Setting("limits", "disk_free_mib", 64, _integer(0, 1 << 30), "space that new work leaves free; 0: none"),
    Setting("audit", "keep_days", 400, _integer(1, 36_500), "days for which the audit is kept"),
    Setting(
        "audit", "keep_rows", 1_000_000, _integer(1000, 1_000_000_000), "newest records of the audit that are kept"
    ),
    Setting("log", "level", "info", _choice("debug", "info", "warning", "error"), "least severity that is logged"),
    Setting("log", "format", "auto", _choice("auto", "json", "pretty"), "auto: pretty on a terminal, else JSON lines"),
    Setting("log", "file_mib", 16, _integer(0, 1 << 20), "size of taskforged.log before a new one begins; 0: any"),
    Setting("log", "files", 4, _integer(0, 1000), "full ones that are kept"),
    Setting("metrics", "open", False, _switch, "true: scrapers on this machine read /metrics without a token"),
    Setting("metrics", "names", 100, _integer(1, 10_000), "namespaces with a workflow or queue that metrics name"),
    Setting("otel", "endpoint", "", _endpoint, "OTLP/HTTP collector that takes traces; empty: none"),
    Setting("otel", "service_name", "taskforge", str, "what traces call this daemon"),
    Setting("limits", "stuck_scan", 60.0, _seconds(0, 86_400), "seconds between two looks for stuck runs; 0: never"),
    Setting("log", "stall", 2.0, _seconds(0, 3600), "log where the event loop stands when it is blocked for longer"),
)


@dataclass(frozen=True, slots=True)
class Config:
    """The settings in force, and the paths below the home."""

    home: Path
    values: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    origins: Mapping[tuple[str, str], Origin] = field(default_factory=dict)
    given_file: Path | None = None

    def __call__(self, section: str, key: str) -> Any:
        """Answer a setting."""
        return self.values[section, key]

    def file(self, section: str, key: str) -> Path | None:
        """Answer the absolute path that a setting names, None where it names none."""
        value = self(section, key)
        return self.home / Path(value).expanduser() if value else None

    @property
    def https(self) -> bool:
        """Whether webhooks come over TLS."""
        wanted: bool | None = self("tls", "http")
        if wanted is None:
            behind_proxy: bool = self("http", "behind_proxy")
            return bool(self("tls", "cert")) and not behind_proxy and not is_loopback(self("http", "listen"))
        return wanted

    @property
    def config_file(self) -> Path:
        """The configuration file, which need not exist."""
        return self.given_file or self.home / "config.toml"

    @property
    def database(self) -> Path:
        """The one database file."""
        return self.home / "taskforge.db"

    @property
    def backups(self) -> Path:
        """The folder of the backups."""
        return Path(self("backup", "folder") or self.home / "backups")

    @property
    def socket(self) -> Path:
        """The control plane's unix socket."""
        return self.home / "taskforged.sock"

    @property
    def lock(self) -> Path:
        """The file whose lock says that a daemon runs."""
        return self.home / "taskforged.lock"

    @property
    def run_file(self) -> Path:
        """Where the running daemon says how to reach it."""
        return self.home / "taskforged.json"

    @property
    def log(self) -> Path:
        """Where a daemon in the background writes."""
        return self.home / "taskforged.log"

    @property
    def token(self) -> Path:
        """The administrator's token."""
        return self.home / "token"

    @property
    def master_key(self) -> Path:
        """The key that secrets are encrypted with."""
        return self.home / "master.key"


def load_config(home: Path | None, file: Path | None, environment: Mapping[str, str] = os.environ) -> Config:
    """Answer the settings in force.

    Args:
        home: from `--home`; else `TASKFORGE_HOME`, else `~/.taskforge`.
        file: from `--config`; else `config.toml` in the home, which need not exist.
        environment: the variables to read.

    Raises:
        InvalidArgumentError: settings are unknown or their values bad; there is a violation for each, with its place.
    """
    if home is None:
        home = Path(environment.get("TASKFORGE_HOME") or Path.home() / ".taskforge")
    config = Config(home.expanduser().absolute(), given_file=file)
    stored, problems = _read(config.config_file, required=file is not None)
    given = {(one.section, one.key): _find(one, stored, environment) for one in SETTINGS}
    values = {}
    for setting in SETTINGS:
        value, place, _ = given[setting.section, setting.key]
        try:
            values[setting.section, setting.key] = setting.parse(value)
        except (TypeError, ValueError) as error:
            shown = "" if setting.is_secret else f" = {value!r}"
            problems.append(Violation(place, f"{place}{shown}: {error}"))
    if problems:
        raise InvalidArgumentError("\n".join(one.message for one in problems), violations=problems)
    config = replace(config, values=values, origins={where: one.origin for where, one in given.items()})
    _check_reach(config, lambda *where: f"{given[where].place} = {given[where].value!r}")
    return config


def _check_reach(config: Config, place: Callable[[str, str], str]) -> None:
    """Refuse what would carry tokens and secrets over a network in clear text, and halves of a TLS configuration."""
    cert, key = config("tls", "cert"), config("tls", "key")
    if bool(cert) != bool(key):
        given, missing = ("cert", "key") if cert else ("key", "cert")
        raise InvalidArgumentError(f"{place('tls', given)}: [tls] {missing} is missing; TLS needs both")
    for name in ("client_ca", "http"):
        if config("tls", name) and not cert:
            raise InvalidArgumentError(f"{place('tls', name)}: needs [tls] cert and key")
    beyond = "would carry tokens over the network in clear text"
    mend = "set [tls] cert and key (`taskforgectl init --tls` makes them)"
    if not cert and not is_loopback(config("grpc", "listen")):
        tunnel = "or listen on loopback and come through SSH"
        raise InvalidArgumentError(f"{place('grpc', 'listen')} {beyond}: {mend}, {tunnel}")
    if not config.https and not is_loopback(config("http", "listen")) and not config("http", "behind_proxy"):
        if config("tls", "http") is False:
            mend = "leave [tls] http to auto"
        proxy = "or listen on loopback behind a reverse proxy; where that is another machine, set [http] behind_proxy"
        raise InvalidArgumentError(f"{place('http', 'listen')} {beyond}: {mend}, {proxy}")


class _Given(NamedTuple):
    """The value of a setting, before it is checked, and where it stands."""

    value: Any
    place: str
    origin: Origin


_Stored = Mapping[tuple[str, str], tuple[Any, str]]


def _read(path: Path, *, required: bool) -> tuple[_Stored, list[Violation]]:
    """Answer what the file sets, and what is wrong with it."""
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if required:
            raise InvalidArgumentError(f"there is no config file {path}") from None
        return {}, []
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from None
    found, problems = {}, []
    for section, table in document.items():
        if not isinstance(table, dict):
            problems.append(Violation(str(path), f"{path}: {section} must be a table, [{section}]"))
            continue
        for key, value in table.items():
            unknown = _unknown(path, section, key)
            if unknown is None:
                found[section, key] = (value, f"{path}: [{section}] {key}")
            else:
                problems.append(unknown)
    return found, problems


def _unknown(path: Path, section: str, key: str) -> Violation | None:
    """Answer what to say about a setting that does not exist."""
    names = {f"[{s.section}] {s.key}": s for s in SETTINGS}
    name = f"[{section}] {key}"
    if name in names:
        return None
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(names)}"
    return Violation(f"{path}: {name}", f"{path}: unknown setting {name}{hint}")


def _find(setting: Setting, stored: _Stored, environment: Mapping[str, str]) -> _Given:
    if setting.variable in environment:
        return _Given(environment[setting.variable], setting.variable, Origin.VARIABLE)
    where = (setting.section, setting.key)
    if where in stored:
        return _Given(*stored[where], Origin.FILE)
    return _Given(setting.default, "default", Origin.DEFAULT)
