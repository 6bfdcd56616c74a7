"""The composition root: the one place that names concrete classes and says which gets which."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from taskforged.ages import parse_age
from taskforged.clock import Clock
from taskforged.config import Config, is_loopback
from taskforged.control.access import Access
from taskforged.control.audit import Audit
from taskforged.control.backups import Backups
from taskforged.control.dead_letters import DeadLetters
from taskforged.control.diagnosis import Live
from taskforged.control.doctor import Doctor
from taskforged.control.doorman import Doorman
from taskforged.control.event_watch import EventWatches
from taskforged.control.events import Events
from taskforged.control.explainer import Explainer
from taskforged.control.health import Health
from taskforged.control.inbox import WebhookInbox
from taskforged.control.ledger import Ledger
from taskforged.control.logs import RunLogs
from taskforged.control.namespaces import Namespaces, RequestLimits
from taskforged.control.pressure import Pressure
from taskforged.control.publishing import EventBus
from taskforged.control.queues import Queues
from taskforged.control.reactor import Reactor
from taskforged.control.repeats import Repeats
from taskforged.control.replays import Replays
from taskforged.control.retention import Pruner, keep_from
from taskforged.control.runs import Runs
from taskforged.control.schedules import Scheduler
from taskforged.control.secrets import Secrets
from taskforged.control.starting import Starter
from taskforged.control.steering import Steering
from taskforged.control.storage import Storage
from taskforged.control.stuck import StuckDetector
from taskforged.control.system import Info, System
from taskforged.control.trigger_book import TriggerBook
from taskforged.control.triggers import Triggers
from taskforged.control.verifying import Verifier
from taskforged.control.views import RunViews
from taskforged.control.workflows import Workflows
from taskforged.egress import Policy, Rule, parse_rule
from taskforged.errors import FailedPreconditionError
from taskforged.host.feed import Feed
from taskforged.host.limits import Limits
from taskforged.host.logbook import LogBook
from taskforged.host.loop import Loop
from taskforged.host.pulse import Pulse
from taskforged.host.runner import Runner
from taskforged.host.timers import Timers
from taskforged.keyring import KeySource
from taskforged.meters import DoorMeters
from taskforged.rpc.server import Controls, RpcServer
from taskforged.steps.base import StepExecutor
from taskforged.steps.http import HttpExecutor
from taskforged.steps.outbound import Outbound
from taskforged.steps.shell import ShellExecutor
from taskforged.store.store import Store
from taskforged.telemetry.metrics import Metrics, Sources
from taskforged.telemetry.probes import ProbePages
from taskforged.tls import Certificates, find_certificates
from taskforged.triggers.cloud_events import EventGateway
from taskforged.triggers.cron import CronScan
from taskforged.triggers.internal import EventConsumer
from taskforged.triggers.webhook import Limits as HttpLimits
from taskforged.triggers.webhook import WebhookListener

__all__ = ["Parts", "build"]

_PER_PEER = 64
"""Open webhook connections of one address, where a network can reach us."""


@dataclass(slots=True)
class Parts:
    """What there is to start and to stop."""

    access: Access
    namespaces: Namespaces
    queues: Queues
    workflows: Workflows
    runner: Runner
    timers: Timers
    feed: Feed
    certificates: Certificates | None
    rpc: RpcServer
    http: WebhookListener
    scheduler: Scheduler
    cron: CronScan
    consumer: EventConsumer
    executors: Sequence[StepExecutor]
    book: LogBook
    secrets: Secrets
    audit: Audit
    pulse: Pulse
    storage: Storage
    stuck: StuckDetector
    traces: Loop | None


@dataclass(slots=True)
class _Base:
    """What nearly everything needs."""

    config: Config
    clock: Clock
    store: Store
    info: Info
    feed: Feed
    access: Access
    secrets: Secrets
    audit: Audit
    doorman: Doorman
    triggers: TriggerBook
    workflows: Workflows
    limits: Limits
    pressure: Pressure
    pulse: Pulse
    health: Health
    meters: DoorMeters
    storage: Storage


@dataclass(slots=True)
class _Host:
    """What runs runs, and whose they are."""

    runner: Runner
    book: LogBook
    executors: Sequence[StepExecutor]
    namespaces: Namespaces
    queues: Queues
    starter: Starter
    views: RunViews
    stuck: StuckDetector


@dataclass(slots=True)
class _Reactions:
    """What starts runs by itself."""

    reactor: Reactor
    scheduler: Scheduler
    bus: EventBus
    cron: CronScan
    consumer: EventConsumer
    triggers: Triggers


def build(config: Config, clock: Clock, store: Store, info: Info, keys: KeySource) -> Parts:
    """Make everything on an open store; nothing is started."""
    base = _build_base(config, clock, store, info, keys)
    host = _build_host(base)
    reactions = _build_reactions(base, host)
    controls = _build_controls(base, host, reactions)
    certificates = find_certificates(config)
    return Parts(
        access=base.access,
        namespaces=host.namespaces,
        queues=host.queues,
        workflows=base.workflows,
        runner=host.runner,
        timers=Timers(store=store, clock=clock, runner=host.runner),
        feed=base.feed,
        certificates=certificates,
        rpc=RpcServer(controls, certificates=certificates, connections_max=config("grpc", "connections_max")),
        http=_build_http(base, host, reactions, controls, certificates),
        scheduler=reactions.scheduler,
        cron=reactions.cron,
        consumer=reactions.consumer,
        executors=host.executors,
        book=host.book,
        secrets=base.secrets,
        audit=base.audit,
        pulse=base.pulse,
        storage=base.storage,
        stuck=host.stuck,
        traces=_build_traces(base),
    )


def _build_traces(base: _Base) -> Loop | None:
    """Answer what exports traces, when there is somewhere to; its libraries are an extra, and cost memory."""
    endpoint = base.config("otel", "endpoint")
    if not endpoint:
        return None
    try:
        module = importlib.import_module("taskforged.telemetry.otlp")
    except ImportError as error:
        raise FailedPreconditionError(
            f"[otel] endpoint is set, but {error.name} is missing: `pip install '.[otel]'` in the source, or unset it",
            reason="EXTRA_MISSING",
        ) from None
    made: Loop = module.TraceExport(
        store=base.store,
        clock=base.clock,
        meters=base.meters,
        endpoint=endpoint,
        service_name=base.config("otel", "service_name"),
    )
    return made


def _build_base(config: Config, clock: Clock, store: Store, info: Info, keys: KeySource) -> _Base:
    access = Access(store, clock, streams_max=config("grpc", "streams_per_token"))
    triggers = TriggerBook(store, clock)
    pulse = Pulse(lambda: store.journal.stats.commit_began, stall_s=config("log", "stall"))
    audit = Audit(store, clock, keep_days=config("audit", "keep_days"), keep_rows=config("audit", "keep_rows"))
    feed = Feed()
    pressure = Pressure(config.home, free_mib=config("limits", "disk_free_mib"), max_mib=config("store", "max_mib"))
    return _Base(
        *(config, clock, store, info, feed, access),
        secrets=Secrets(store, clock, keys),
        audit=audit,
        doorman=Doorman(audit),
        triggers=triggers,
        workflows=Workflows(store, clock, triggers, access.namespace_name),
        limits=Limits(pending_runs=config("limits", "pending_runs")),
        pressure=pressure,
        pulse=pulse,
        health=Health(info=info, journal=store.journal, pulse=pulse, pressure=pressure),
        meters=DoorMeters(),
        storage=_build_storage(config, clock, store, feed, pressure),
    )


def _build_storage(config: Config, clock: Clock, store: Store, feed: Feed, pressure: Pressure) -> Storage:
    return Storage(
        store=store,
        clock=clock,
        pressure=pressure,
        pruner=Pruner(store=store, clock=clock, feed=feed, keep=keep_from(config)),
        backups=Backups(
            store=store,
            folder=config.backups,
            every_s=parse_age(config("backup", "every")),
            keep=config("backup", "keep"),
            spare=pressure.disk_free_bytes,
        ),
    )


def _build_host(base: _Base) -> _Host:
    config, clock, store, workflows = base.config, base.clock, base.store, base.workflows
    book = LogBook(store, clock, base.feed)
    executors: Sequence[StepExecutor] = (
        HttpExecutor(outbound=_build_outbound(config, base.info)),
        ShellExecutor(scratch=config.home / "shell", allow=config("shell", "allow"), unsafe=config("shell", "unsafe")),
    )
    runner = Runner(
        store=store,
        clock=clock,
        feed=base.feed,
        models=workflows,
        executors={executor.name: executor for executor in executors},
        secret=base.secrets.secret,
        logs=book,
        limits=base.limits,
        pool_size=config("executor", "pool_size"),
        names=config("metrics", "names"),
    )
    namespaces = Namespaces(
        store=store,
        clock=clock,
        access=base.access,
        limits=base.limits,
        requests=RequestLimits(),
        running_steps=lambda no: len(runner.dispatcher.held_by(no)),
        running_runs=runner.admission.running,
        pending_runs=runner.admission.pending,
    )
    queues = _build_queues(base, runner)
    workflows.queue_exists = queues.exists
    starter = Starter(
        store=store,
        clock=clock,
        access=base.access,
        workflows=workflows,
        runner=runner,
        items_max=config("limits", "fan_out_items"),
        queue_exists=queues.exists,
    )
    views = RunViews(store=store, access=base.access, workflows=workflows, feed=base.feed)
    stuck = StuckDetector(store=store, clock=clock, runner=runner, pause_s=config("limits", "stuck_scan"))
    return _Host(runner, book, executors, namespaces, queues, starter, views, stuck)


def _build_outbound(config: Config, info: Info) -> Outbound:
    def rules(key: str) -> list[Rule]:
        return list(map(parse_rule, config("egress", key)))

    policy = Policy(
        allow=rules("allow"),
        deny=rules("deny"),
        private=config("egress", "private"),
        only_allowed=config("egress", "only_allowed"),
        ports=config("egress", "ports"),
    )
    return Outbound(
        policy,
        proxy=config("egress", "proxy"),
        no_proxy=rules("no_proxy"),
        ca_file=str(config.home / config("egress", "ca_file")) if config("egress", "ca_file") else "",
        own_ports=lambda: [int(port) for port in (a.rpartition(":")[2] for a in info.grpc) if port.isdigit()],
    )


def _build_queues(base: _Base, runner: Runner) -> Queues:
    dispatcher = runner.dispatcher
    return Queues(
        store=base.store,
        clock=base.clock,
        limits=base.limits,
        waiting=lambda no, name: sum(dispatcher.waiting(one) for one in dispatcher.lanes() if one[:2] == (no, name)),
        running=lambda no, name: len(dispatcher.held_by(no, name)),
    )


def _build_reactions(base: _Base, host: _Host) -> _Reactions:
    store, clock, book = base.store, base.clock, base.triggers
    reactor = Reactor(
        store=store,
        access=base.access,
        namespaces=host.namespaces,
        workflows=base.workflows,
        starter=host.starter,
        listens=book.listens,
        pressure=base.pressure,
        depth_max=base.config("limits", "causal_depth"),
    )
    bus = EventBus(store=store, clock=clock, triggers=book, reactor=reactor, pressure=base.pressure)
    scheduler = Scheduler(store=store, clock=clock, access=base.access, triggers=book, reactor=reactor)
    cron = CronScan(scheduler)
    host.runner.listens = book.listens
    host.runner.on_published = scheduler.on_published = reactor.on_published = bus.wake
    book.on_schedule = cron.wake
    triggers = Triggers(
        store=store,
        clock=clock,
        access=base.access,
        workflows=base.workflows,
        book=book,
        reactor=reactor,
        on_published=bus.wake,
    )
    return _Reactions(reactor, scheduler, bus, cron, EventConsumer(bus), triggers)


def _build_controls(base: _Base, host: _Host, reactions: _Reactions) -> Controls:
    store, clock, access, workflows, runner = base.store, base.clock, base.access, base.workflows, host.runner
    views, starter = host.views, host.starter
    repeats = Repeats(
        store=store,
        clock=clock,
        access=access,
        workflows=workflows,
        starter=starter,
        views=views,
        pressure=base.pressure,
    )
    events = Events(store, workflows)
    views.gone = events.gone = base.storage.pruner.hint
    return Controls(
        storage=base.storage,
        access=access,
        workflows=workflows,
        views=views,
        runs=Runs(
            store=store,
            clock=clock,
            access=access,
            workflows=workflows,
            runner=runner,
            starter=starter,
            views=views,
            feed=base.feed,
            pressure=base.pressure,
        ),
        steering=Steering(store=store, workflows=workflows, runner=runner, views=views),
        repeats=repeats,
        verifier=Verifier(store=store, workflows=workflows, views=views),
        events=events,
        event_watches=EventWatches(store, base.feed, events),
        bus=reactions.bus,
        replays=Replays(
            store=store,
            clock=clock,
            workflows=workflows,
            book=base.triggers,
            reactor=reactions.reactor,
            events=events,
            body_max=base.config("http", "body_max"),
        ),
        triggers=reactions.triggers,
        ledger=Ledger(store=store, clock=clock, triggers=reactions.triggers, reactor=reactions.reactor),
        secrets=base.secrets,
        audit=base.audit,
        doorman=base.doorman,
        system=System(
            store=store, runner=runner, feed=base.feed, lateness=reactions.scheduler.lateness, info=base.info
        ),
        namespaces=host.namespaces,
        queues=host.queues,
        dead_letters=DeadLetters(store=store, clock=clock, retry=repeats.retry),
        logs=RunLogs(store, base.feed, host.book),
        explainer=Explainer(
            store=store,
            clock=clock,
            access=access,
            workflows=workflows,
            runner=runner,
            limits=base.limits,
            views=views,
        ),
        doctor=Doctor(
            base.config,
            Live(info=base.info, clock=clock, runner=runner, stuck=host.stuck, backups=base.storage.backups),
            base.store.must_end,
        ),
        stuck=host.stuck,
        meters=base.meters,
    )


def _build_probes(base: _Base, host: _Host, reactions: _Reactions) -> ProbePages:
    sources = Sources(
        store=base.store,
        runner=host.runner,
        feed=base.feed,
        pulse=base.pulse,
        lateness=reactions.scheduler.lateness,
        doors=base.meters,
        access=base.access,
        info=base.info,
        health=base.health,
        stuck=host.stuck,
        storage=base.storage,
    )
    metrics = Metrics(sources, names=base.config("metrics", "names"))
    return ProbePages(
        health=base.health,
        metrics=metrics,
        access=base.access,
        doorman=base.doorman,
        is_open=base.config("metrics", "open"),
    )


def _build_http(
    base: _Base, host: _Host, reactions: _Reactions, controls: Controls, certificates: Certificates | None
) -> WebhookListener:
    config = base.config
    inbox = WebhookInbox(
        store=base.store,
        clock=base.clock,
        access=base.access,
        triggers=base.triggers,
        reactor=reactions.reactor,
        runner=host.runner,
        secret=base.secrets.value,
        requests=host.namespaces.requests,
        pressure=base.pressure,
        meters=base.meters,
        body_max=config("http", "body_max"),
    )
    gateway = EventGateway(
        access=base.access,
        bus=reactions.bus,
        events=controls.events,
        requests=host.namespaces.requests,
        audit=base.audit,
        doorman=base.doorman,
    )
    limits = HttpLimits(
        body_bytes_max=config("http", "body_max"),
        connections_max=config("http", "connections_max"),
        connections_per_peer_max=_connections_per_peer(config),
    )
    host_name, _, port = config("http", "listen").rpartition(":")
    return WebhookListener(
        inbox,
        host=host_name.strip("[]"),
        port=int(port),
        limits=limits,
        gateway=gateway,
        tls=certificates.http_context() if certificates is not None and config.https else None,
        probes=_build_probes(base, host, reactions),
        requests=base.meters.http,
    )


def _connections_per_peer(config: Config) -> int | None:
    if chosen := config("http", "connections_per_peer"):
        return int(chosen)
    # On loopback and behind a proxy all senders have one address.
    return None if is_loopback(config("http", "listen")) or config("http", "behind_proxy") else _PER_PEER
