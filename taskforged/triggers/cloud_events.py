"""CloudEvents 1.0 over HTTP: what others publish comes in, what happened here goes out.

`POST /events/<namespace>` takes one event (structured or binary mode) or a batch; `GET /events/<namespace>/<id>`
answers one, `GET /events/<namespace>` a batch of the newest. Both need a token, as the gRPC API does.
Specification: https://github.com/cloudevents/spec, version 1.0.2, the JSON event format and the HTTP protocol binding.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from taskforged.control.access import GRANTS, Access, Principal, Role
from taskforged.control.audit import Audit
from taskforged.control.checks import INPUT_MAX
from taskforged.control.delivery import Delivery, Receipt
from taskforged.control.doorman import Doorman
from taskforged.control.events import Events
from taskforged.control.namespaces import RequestLimits
from taskforged.control.publishing import EventBus, Publication
from taskforged.correlation import trace_from
from taskforged.engine.events import rfc3339
from taskforged.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from taskforged.jsonvalue import load_stored, parse_json, to_text
from taskforged.payload import CloudEvent, cloud_event_json, decode, parse_cloud_events
from taskforged.store.events import EventFilter, EventRow
from taskforged.triggers.routes import LIST_EVENTS, PUBLISH, ROUTES, SHOW_EVENT

__all__ = ["EventGateway"]

ONE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_BATCH_MAX = 100
_TOO_LARGE = "TOO_LARGE"


class EventGateway:
    """Takes and gives CloudEvents."""

    def __init__(
        self,
        *,
        access: Access,
        bus: EventBus,
        events: Events,
        requests: RequestLimits,
        audit: Audit,
        doorman: Doorman,
    ) -> None:
        self._access = access
        self._audit = audit
        self._doorman = doorman
        self._bus = bus
        self._events = events
        self._requests = requests

    async def publish(self, delivery: Delivery) -> Receipt:
        """Publish the events of a request; `delivery.path` is empty. All are checked before the first is stored.

        Raises:
            ResourceExhaustedError: too many requests.
        """
        try:
            principal = self._authenticate(delivery)
            entry = self._audit.begin(principal, delivery.remote, "POST /events")
            return await self._audit.over(entry, self._publish(principal, delivery))
        except (UnauthenticatedError, PermissionDeniedError, NotFoundError) as error:
            return _denied(error)
        except InvalidArgumentError as error:
            is_large = error.reason == _TOO_LARGE
            return _refused(413 if is_large else 400, "too_large" if is_large else "invalid_event", error.message)

    async def _publish(self, principal: Principal, delivery: Delivery) -> Receipt:
        namespace_no = self._enter(principal, delivery, ROUTES[PUBLISH])
        try:
            content_type = delivery.headers.get("content-type", "")
            found = parse_cloud_events(content_type, delivery.headers, delivery.body, _parse)
            wanted = [_publication(one, index, len(found), delivery.headers) for index, one in enumerate(found)]
        except ResourceExhaustedError as error:  # too large as JSON: it would not fit later either
            raise InvalidArgumentError(error.message, reason=_TOO_LARGE) from None
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None
        rows = [await self._bus.publish_foreign(principal, namespace_no, one) for one in wanted]
        return Receipt(202, {"event_ids": [row.id for row in rows]})

    async def show(self, delivery: Delivery) -> Receipt:
        """Answer an event, or the newest ones as a batch: `type` and `limit` in the query select."""
        try:
            principal = self._authenticate(delivery)
            namespace_no = self._enter(principal, delivery, ROUTES[SHOW_EVENT if delivery.path else LIST_EVENTS])
            if delivery.path:
                row = await self._events.row(principal, delivery.path)
                if row.namespace_no != namespace_no:
                    return _refused(404, "not_found", f"there is no event {delivery.path!r}")
                return Receipt(200, cloud_event_json(self._produced(row)), {"Content-Type": ONE})
            limit = delivery.query.get("limit", "50")
            if not limit.isascii() or not limit.isdigit() or len(limit) > 3 or not 1 <= int(limit) <= _BATCH_MAX:
                return _refused(400, "invalid_argument", f"limit must be from 1 to {_BATCH_MAX}")
            wanted = EventFilter(namespace_no, type=delivery.query.get("type", ""), sources=("internal", "engine"))
            views = await self._events.page(wanted, int(limit))
            whole = [await self._events.row(principal, view.row.id) for view in views]
            batch = [cloud_event_json(self._produced(row)) for row in whole]
            return Receipt(200, batch, {"Content-Type": BATCH})
        except (UnauthenticatedError, PermissionDeniedError, NotFoundError) as error:
            return _denied(error)

    def _authenticate(self, delivery: Delivery) -> Principal:
        scheme, _, credential = delivery.headers.get("authorization", "").partition(" ")
        try:
            return self._access.authenticate(credential.strip() if scheme.lower() == "bearer" else "")
        except UnauthenticatedError:
            self._doorman.failed(delivery.remote)
            raise

    def _enter(self, principal: Principal, delivery: Delivery, need: Role | None) -> int:
        if need not in GRANTS[principal.role]:
            raise PermissionDeniedError(f"this needs the role {need}")
        namespace_no = self._access.enter(principal, delivery.namespace)
        self._requests.take(namespace_no)
        return namespace_no

    def _produced(self, row: EventRow) -> CloudEvent:
        """Answer an event as a CloudEvent; its id is ours, which is unique for the source."""
        headers: Mapping[str, str] = load_stored(row.headers)
        content_type = headers.get("content-type", row.content_type)
        data, is_json = _data(content_type, row.body)
        namespace = self._access.namespace_name(row.namespace_no)
        return CloudEvent(
            id=row.id,
            source=row.origin or f"/taskforge/{namespace}",
            type=row.type or f"taskforge.{row.source}",
            subject=row.subject,
            time=rfc3339(row.created_at),
            data=data,
            datacontenttype="application/json" if is_json else _binary_type(content_type),
            dataschema="",
            extensions={"taskforgesource": row.source, "taskforgeoutcome": row.outcome},
        )


def _data(content_type: str, body: bytes) -> tuple[Any, bool]:
    """Answer a body as JSON, or else in base64, and which of both it is."""
    try:
        data, encoding = decode(content_type, body, load_stored)
    except ValueError:  # refused for that
        data, encoding = None, "base64"
    is_json = encoding in {"json", "empty"}
    return (data if is_json else base64.b64encode(body).decode()), is_json


def _binary_type(content_type: str) -> str:
    """Answer the type of what is given in base64; to readers a JSON type would say that it is JSON."""
    media = content_type.partition(";")[0].strip().lower()
    is_plain = "/" in media and not media.endswith(("/json", "+json"))
    return content_type if is_plain else "application/octet-stream"


def _parse(raw: bytes) -> Any:
    return parse_json(raw, where="body", size_max=INPUT_MAX)


def _publication(event: CloudEvent, index: int, count: int, headers: Mapping[str, str]) -> Publication:
    where = f"[{index}]." if count > 1 else ""
    data = None if event.data is None else to_text(event.data)
    own = {name: str(event.extensions[name]) for name in _DISTRIBUTED if name in event.extensions}
    return Publication(
        event.type,
        data or "",
        subject=event.subject,
        origin=event.source,
        foreign_id=event.id,
        where=where,
        trace=trace_from({**headers, **own}),
    )


_DISTRIBUTED = ("traceparent", "tracestate")
"""Attributes of the extension "distributed tracing"; what is said of an event itself counts more than its carrier."""


def _refused(status: int, code: str, message: str) -> Receipt:
    return Receipt(status, {"error": {"code": code, "message": message}})


def _denied(error: UnauthenticatedError | PermissionDeniedError | NotFoundError) -> Receipt:
    match error:
        case UnauthenticatedError():
            answer = _refused(401, "unauthenticated", error.message)
            return Receipt(answer.status, answer.body, {"WWW-Authenticate": "Bearer"})
        case PermissionDeniedError():
            return _refused(403, "permission_denied", error.message)
        case _:
            return _refused(404, "not_found", error.message)
