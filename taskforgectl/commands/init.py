"""`taskforgectl init`: make a home."""

from __future__ import annotations

import base64
import json
import os
import secrets
import string
from pathlib import Path
from typing import Any

import click

from taskforgectl import encryption
from taskforgectl.errors import EXIT_USAGE, CliError
from taskforgectl.home import Home, local_home
from taskforgectl.options import Settings, Verb
from taskforgectl.render.output import echo
from taskforgectl.render.services import tell_setup
from taskforgectl.service.setup import set_up

__all__ = ["command"]

_TOKEN_ID = string.ascii_lowercase + "234567"
_TOKEN_SECRET = string.ascii_letters + string.digits

_CONFIG = """\
# Taskforge's settings. A line that is commented out shows the default.
# Each setting is also a variable, TASKFORGE_SECTION_KEY, which wins over this file.

[grpc]
# Address of the control plane. Beyond loopback it needs [tls]; port 0 picks a free one.
# listen = "127.0.0.1:7420"
# Open connections of clients.
# connections_max = 1024
# Open watches and waiting calls of one token.
# streams_per_token = 2000

[http]
# Address of webhooks and health checks. Beyond loopback it needs [tls] or behind_proxy; port 0 picks a free one.
# listen = "127.0.0.1:7421"
# Bytes of a webhook's body.
# body_max = 1048576
# Open connections of webhook senders.
# connections_max = 1024
# The same for one address; 0: 64 beyond loopback, no limit on loopback and behind a proxy.
# connections_per_peer = 0
# true: a reverse proxy on another machine ends TLS, so plain HTTP beyond loopback is wanted.
# behind_proxy = false

[tls]
# Certificate chain in PEM, the daemon's own first, and its private key. A relative path begins at the home.
# `taskforgectl init --tls` makes both. gRPC over TCP then speaks TLS, also on loopback.
# cert = ""
# key = ""
# gRPC clients over TCP must have a certificate of this CA.
# client_ca = ""
# true or false: webhooks over TLS or plain. "auto": TLS beyond loopback.
# http = "auto"

[executor]
# Steps at work at once.
# pool_size = 64
# Seconds that running steps have to finish at shutdown.
# grace = 8.0

[store]
# FULL or NORMAL. NORMAL is faster and loses the newest commits at a power cut.
# synchronous = "FULL"
# MiB of the database beyond which new work is refused until there is room again; 0: no limit.
# max_mib = 0

[retention]
# How long things are kept: 30d, 12h, 2w, 1y or forever. What somebody still needs stays in any case.
# Ended runs, unless their workflow has a `retention:` of its own.
# runs = "90d"
# Newest ended runs that are kept of each workflow, and of all together; 0: all.
# runs_per_workflow = 0
# runs_total = 0
# Events without runs, and deliveries without effect.
# events = "30d"
# rejected = "7d"
# How long repeated deliveries are recognised. At least 10d: senders try again for up to three days.
# dedupe = "14d"
# Settled due times in the ledger of schedules.
# slots = "90d"
# What steps print.
# logs = "30d"

[backup]
# Where backups go; empty: the folder `backups` in the home. Another disk is better.
# folder = ""
# How often a backup is made, for example "24h"; 0: only when asked for.
# every = "0"
# Newest backups that stay when a scheduled one is made.
# keep = 7
# false: migrate the database without a backup of it.
# before_upgrade = true

[limits]
# Address space in MiB: an expression that would need more fails, instead of the machine.
# memory_mib = 4096
# Items of one for_each.
# fan_out_items = 10000
# Runs that wait for a slot, of all namespaces.
# pending_runs = 100000
# Runs in a chain of events and runs before it is taken for a loop.
# causal_depth = 16
# Disk space in MiB that new work leaves free; 0: none.
# disk_free_mib = 64
# Seconds between two looks for runs that nothing will ever move; 0: never.
# stuck_scan = 60.0

[shell]
# Absolute paths of the programs that shell steps may execute, for example ["/usr/bin/git"].
# Whoever may apply workflows then executes them as this user, with any arguments. TASKFORGE_SHELL_ALLOW has : between.
# allow = []
# true: shell steps may execute anything.
# unsafe = false

[metrics]
# true: scrapers on this machine read /metrics without a token. Requests through a reverse proxy still need one.
# open = false
# Namespaces with a workflow or queue that metrics name; those beyond it count as one, `other`.
# names = 100

[egress]
# What http steps may connect to. A rule is an address, a range such as "10.0.0.0/8", a host name or "*.example.com",
# each with ":port" or ":from-to" behind it where it matters. The order of the rules: docs/egress.md.
# Open although it would be closed.
# allow = []
# Closed; wins over allow.
# deny = []
# false: no loopback and no private networks but what allow names.
# private = true
# true: nothing but what allow names.
# only_allowed = false
# The only open ports, for example [80, 443]; empty: all.
# ports = []
# A proxy, for example "http://user:password@proxy.example:3128"; empty: none. The variable http_proxy does not count.
# proxy = ""
# What is connected to without the proxy.
# no_proxy = ["localhost", "*.localhost", "127.0.0.0/8", "::1"]
# Certificate authorities that are trusted besides the system's: the path of a file in PEM.
# ca_file = ""

[audit]
# Days for which the audit is kept.
# keep_days = 400
# Newest records of the audit that are kept.
# keep_rows = 1000000

[otel]
# OTLP/HTTP collector that takes traces, for example "http://127.0.0.1:4318"; empty: none. Needs `taskforge[otel]`.
# endpoint = ""
# What traces call this daemon.
# service_name = "taskforge"

[log]
# Least severity that is logged: debug, info, warning, error.
# level = "info"
# auto, json or pretty. auto: pretty on a terminal, else JSON lines.
# format = "auto"
# Size in MiB of taskforged.log before a new one begins; 0: any. Under systemd the journal keeps the log instead.
# file_mib = 16
# Full ones that are kept, as taskforged.log.1 and so on.
# files = 4
# Seconds for which the event loop may be blocked before the log says where in the code it stands; 0: for ever.
# stall = 2.0
"""


@click.command("init", cls=Verb)
@click.option("--tls", "with_tls", is_flag=True, help="Also make a certificate that clients elsewhere can pin.")
@click.option("--systemd", "with_systemd", is_flag=True, help="Also install a service of this user, and start it.")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Name or address they come by; repeatable.")
@click.pass_obj
def command(settings: Settings, *, with_tls: bool, with_systemd: bool, hosts: tuple[str, ...]) -> None:
    """Make a home: folder, configuration, key, token. What is there already is left alone.

    With --systemd two units are installed for the user's own service manager, brought up to date unless they were
    changed, and started where the manager answers; else it is said what to type.
    """
    home = local_home(settings, "init")
    if hosts and not with_tls:
        raise CliError("--host is for --tls", code=EXIT_USAGE)
    made = [home.path] if _make_folder(home.path) else []
    kept = [] if made else [home.path]
    tls = encryption.prepare(home, hosts) if with_tls else None
    for path, content in _files(home, tls.complete(_CONFIG) if tls else _CONFIG):
        (made if _write_new(path, content) else kept).append(path)
    if tls:
        (made if tls.pair.made else kept).extend((tls.pair.cert, tls.pair.key))
    service = set_up(home) if with_systemd else None
    if settings.output == "table":
        _report(home, made, kept)
        if tls:
            tls.tell(config_made=home.config in made)
        if service:
            tell_setup(service)
        else:
            echo(f"\nNext: {settings.command_line('up')}")
    elif settings.output == "name":
        echo(str(home.path))
    else:
        report: dict[str, Any] = {"home": str(home.path)}
        report |= {"made": [str(path) for path in made], "left_alone": [str(path) for path in kept]}
        report |= (tls.report() if tls else {}) | (service.report() if service else {})
        click.echo(json.dumps(report, indent=2))  # JSON is YAML as well
    if service and service.fault:
        raise service.fault


def _files(home: Home, config: str) -> list[tuple[Path, str]]:
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    return [(home.config, config), (home.master_key, key + "\n"), (home.token_file, _new_token() + "\n")]


def _new_token() -> str:
    token_id = "".join(secrets.choice(_TOKEN_ID) for _ in range(12))
    secret = "".join(secrets.choice(_TOKEN_SECRET) for _ in range(43))  # 43 * log2(62) = 256 bits
    return f"tfk_{token_id}_{secret}"


def _make_folder(path: Path) -> bool:
    """Make the folder; answers False when it is there.

    Raises:
        CliError: it cannot be made, or others can read it. A daemon would refuse it as well.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise CliError(f"{path} is there and is not a folder", hint="name another one with --home") from None
        if path.stat().st_mode & 0o077:
            raise CliError(f"{path} is open to other users", hint=f"close it with `chmod 700 {path}`") from None
        return False
    except OSError as error:
        raise CliError(f"cannot make {path}: {error.strerror}") from None
    path.chmod(0o700)  # whatever the umask
    return True


def _write_new(path: Path, content: str) -> bool:
    """Write a file that only its owner can read; answers False when there is one, which stays as it is."""
    if path.exists():
        return False
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.link(temporary, path)  # fails where a rename would replace what somebody else made meanwhile
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _report(home: Home, made: list[Path], kept: list[Path]) -> None:
    for path in made:
        echo(f"made        {path}")
    for path in kept:
        echo(f"left alone  {path}")
    if home.master_key in made:
        echo(f"\nBack up {home.master_key}: without it stored secrets are lost.")
