"""Names and ids that the daemon knows: for shells that complete them, and for hints when one was mistyped."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from taskforge.v1 import (
    event_service_pb2,
    namespace_service_pb2,
    queue_service_pb2,
    run_service_pb2,
    secret_service_pb2,
    token_service_pb2,
    trigger_service_pb2,
    workflow_service_pb2,
)
from taskforge.v1.event_service_pb2_grpc import EventServiceStub
from taskforge.v1.namespace_service_pb2_grpc import NamespaceServiceStub
from taskforge.v1.queue_service_pb2_grpc import QueueServiceStub
from taskforge.v1.run_service_pb2_grpc import RunServiceStub
from taskforge.v1.secret_service_pb2_grpc import SecretServiceStub
from taskforge.v1.token_service_pb2_grpc import TokenServiceStub
from taskforge.v1.trigger_service_pb2_grpc import TriggerServiceStub
from taskforge.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from taskforgectl.connection import Connection
from taskforgectl.errors import CliError
from taskforgectl.options import Settings
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_line

__all__ = ["Known", "likely", "names"]

_MOST = 200
_RUNS_MOST = 50
_LIKELY_S = 2.0
_PLAIN = re.compile(r"[A-Za-z0-9_.:/\[\]@+-]+")
"""What a shell can take as it is. Nothing that the daemon keeps is named otherwise."""


class Known(NamedTuple):
    """A name, and what is to be said of it."""

    name: str
    note: str = ""


def names(settings: Settings, kind: str, prefix: str, given: Mapping[str, Any]) -> list[Known]:
    """Answer the names of a kind that begin with a text, in the order of the daemon's lists.

    Args:
        settings: where to ask, and how long to wait.
        kind: workflow, run, step, event, trigger, queue, namespace, secret or token.
        prefix: what the names begin with.
        given: the other arguments of the command; steps are those of its run.

    Raises:
        CliError: the daemon refused or was not to be reached.
    """
    with Connection(settings) as connection:
        found = list(_KINDS[kind](connection, settings, given))
    fitting = (one for one in found if one.name.startswith(prefix) and _PLAIN.fullmatch(one.name))
    return [Known(one.name, safe_line(one.note)) for one in fitting]


def likely(settings: Settings, metadata: Mapping[str, str]) -> str:
    """Answer a hint at what was meant by a name that does not exist; empty when nothing is like it.

    Args:
        settings: where to ask.
        metadata: of the daemon's NOT_FOUND: the name by its kind.
    """
    kind = next((one for one in metadata if one in _KINDS), "")
    if not kind or kind == "step":
        return ""
    settings.give("timeout", _LIKELY_S)
    try:
        known = [one.name for one in names(settings, kind, "", {})]
    except CliError:  # not for this token, or the daemon is away by now
        return ""
    if metadata[kind] in known:  # it is there, and something of it is not
        return ""
    like = difflib.get_close_matches(metadata[kind], known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, like))}?" if like else ""


def _workflows(connection: Connection, settings: Settings, _: Mapping[str, Any]) -> Iterable[Known]:
    request = workflow_service_pb2.ListWorkflowsRequest(namespace=settings.namespace, page_size=_MOST)
    answer = connection.tell(connection.stub(WorkflowServiceStub).ListWorkflows, request)
    return (Known(one.name, one.description) for one in answer.workflows)


def _runs(connection: Connection, settings: Settings, _: Mapping[str, Any]) -> Iterable[Known]:
    request = run_service_pb2.ListRunsRequest(namespace=settings.namespace, page_size=_RUNS_MOST)
    answer = connection.tell(connection.stub(RunServiceStub).ListRuns, request)
    return (Known(one.id, f"{plain(one)['state']} {one.workflow}") for one in answer.runs)


def _steps(connection: Connection, _: Settings, given: Mapping[str, Any]) -> Iterable[Known]:
    run_id = given.get("run_id")
    if not run_id:
        return ()
    request = run_service_pb2.ListRunStepsRequest(run_id=run_id, page_size=_MOST)
    answer = connection.tell(connection.stub(RunServiceStub).ListRunSteps, request)
    return (Known(one.key, str(plain(one)["state"])) for one in answer.steps)


def _events(connection: Connection, settings: Settings, _: Mapping[str, Any]) -> Iterable[Known]:
    request = event_service_pb2.ListEventsRequest(namespace=settings.namespace, page_size=_RUNS_MOST)
    answer = connection.tell(connection.stub(EventServiceStub).ListEvents, request)
    return (Known(one.id, f"{plain(one)['outcome']} {one.type or one.path}") for one in answer.events)


def _triggers(connection: Connection, settings: Settings, _: Mapping[str, Any]) -> Iterable[Known]:
    request = trigger_service_pb2.ListTriggersRequest(namespace=settings.namespace, page_size=_MOST)
    answer = connection.tell(connection.stub(TriggerServiceStub).ListTriggers, request)
    return (Known(f"{one.workflow}/{one.trigger}", one.detail) for one in answer.triggers)


def _queues(connection: Connection, settings: Settings, _: Mapping[str, Any]) -> Iterable[Known]:
    request = queue_service_pb2.ListQueuesRequest(namespace=settings.namespace, page_size=_MOST)
    answer = connection.tell(connection.stub(QueueServiceStub).ListQueues, request)
    return (Known(one.name, "PAUSED" if one.paused else "") for one in answer.queues)


def _namespaces(connection: Connection, _: Settings, __: Mapping[str, Any]) -> Iterable[Known]:
    request = namespace_service_pb2.ListNamespacesRequest(page_size=_MOST)
    answer = connection.tell(connection.stub(NamespaceServiceStub).ListNamespaces, request)
    return (Known(one.name) for one in answer.namespaces)


def _secrets(connection: Connection, settings: Settings, _: Mapping[str, Any]) -> Iterable[Known]:
    request = secret_service_pb2.ListSecretsRequest(namespace=settings.namespace, page_size=_MOST)
    answer = connection.tell(connection.stub(SecretServiceStub).ListSecrets, request)
    return (Known(one.name) for one in answer.secrets)


def _tokens(connection: Connection, _: Settings, __: Mapping[str, Any]) -> Iterable[Known]:
    request = token_service_pb2.ListTokensRequest(page_size=_MOST)
    answer = connection.tell(connection.stub(TokenServiceStub).ListTokens, request)
    return (Known(one.id, f"{one.name} {plain(one)['role']}") for one in answer.tokens)


_KINDS: Mapping[str, Callable[[Connection, Settings, Mapping[str, Any]], Iterable[Known]]] = {
    "workflow": _workflows,
    "run": _runs,
    "step": _steps,
    "event": _events,
    "trigger": _triggers,
    "queue": _queues,
    "namespace": _namespaces,
    "secret": _secrets,
    "token": _tokens,
}
