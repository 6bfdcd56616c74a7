"""The step `http`: one request to the outside, with everything that can go wrong turned into an outcome.

Redirects are followed here and not by aiohttp: its client keeps headers such as `X-Api-Key` when it is sent to another
origin, and it would follow to any scheme. Whatever comes back is masked, see `steps.secrets`.

Within one attempt a request is sent once. The exception is aiohttp's own: when a reused connection turns out to be
closed, an idempotent method (GET, PUT, DELETE, …) is sent again on a new one. Idle connections are therefore dropped
after a few seconds, before most servers do, so that a POST rarely meets a closed one.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from email.utils import parsedate_to_datetime
from typing import NoReturn

import aiohttp

from taskforged.engine.model import Json
from taskforged.errors import InvalidArgumentError, NotFoundError
from taskforged.steps.base import Failed, Outcome, SecretValue, Succeeded, Task
from taskforged.steps.failure import FailedError, fail
from taskforged.steps.http_answer import FAILURE_READ_MAX, clean, excerpt, parse_body, read_body, read_headers
from taskforged.steps.http_failure import raise_network
from taskforged.steps.http_request import Request, Rules, build_request, read_rules, redirected, targets_of
from taskforged.steps.outbound import Denied, Hop, Outbound
from taskforged.steps.secrets import mask_outcome, resolve_references

__all__ = ["HttpExecutor"]


class HttpExecutor:
    """Sends HTTP requests.

    Failure codes: `timeout`, `network`, `proxy`, `tls`, `http_status`, `invalid_request`, `invalid_json`,
    `response_too_large`, `too_many_redirects`, `unsafe_redirect`, `secret_missing`, `secret_not_allowed`,
    `egress_denied`.

    Args:
        outbound: makes the connections; None: directly, within a policy without rules.
        timeout_s: for a task that has none of its own, in seconds.
        response_bytes_max: default and upper bound of a task's `max_response_bytes`, after decompression.
        retry_after_max_s: longer pauses are cut to this, in seconds.
        now: the time as a POSIX timestamp, to understand dates in `Retry-After`.
    """

    name = "http"

    def __init__(
        self,
        *,
        outbound: Outbound | None = None,
        timeout_s: float = 30.0,
        response_bytes_max: int = 1 << 20,
        retry_after_max_s: float = 3600.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._outbound = outbound or Outbound()
        self._timeout_s = timeout_s
        self._response_bytes_max = response_bytes_max
        self._retry_after_max_s = retry_after_max_s
        self._now = now

    async def start(self) -> None:
        """Open the pool. Idempotent."""
        await self._outbound.start()

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._outbound.close()

    async def execute(self, task: Task) -> Outcome:
        """Send the request that `task.config` describes, and judge the answer.

        Cancellation closes the connection, so that the other side can notice.
        """
        used: set[str] = set()
        timeout_s = self._timeout_s if task.timeout_s is None else task.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return mask_outcome(await self._attempt(task, used), used)
        except TimeoutError:
            return Failed("timeout", f"no complete answer within {timeout_s:g} s", retryable=True, is_unknown=True)
        except FailedError as error:
            return mask_outcome(error.outcome, used)

    async def _attempt(self, task: Task, used: set[str]) -> Outcome:
        config = task.config
        if not isinstance(config, dict):
            fail("invalid_request", "the configuration must be an object")
        used.update(self._outbound.secrets)
        resolved = await _resolve(config, task, used)
        request = build_request(config, resolved, task)
        return await self._exchange(request, read_rules(resolved, self._response_bytes_max), used)

    async def _exchange(self, request: Request, rules: Rules, used: set[str]) -> Outcome:
        redirects = 0
        while True:
            hop = self._way(request, is_redirected=redirects > 0)
            try:
                async with await self._send(hop, request) as response:
                    following = _following(request, response) if rules.redirects_max > 0 else None
                    if following is None:
                        return await self._judge(request, response, rules, used)
                    if redirects == rules.redirects_max:
                        _fail_redirects(rules.redirects_max)
                    request, redirects = following, redirects + 1
            except (aiohttp.ClientError, OSError) as error:
                if hop.refusal is not None:
                    _raise_denied(hop.refusal, request, is_redirected=redirects > 0)
                raise_network(error, request.place, is_redirected=redirects > 0)

    def _way(self, request: Request, *, is_redirected: bool) -> Hop:
        hop = self._outbound.hop(request.url)
        if isinstance(hop, Denied):
            _raise_denied(hop, request, is_redirected=is_redirected)
        if hop.via_proxy and request.tls is not None and self._outbound.has_tls_proxy:
            # One context serves both, and the proxy must neither see the certificate nor be trusted by the step's word.
            fail("invalid_request", "a request with `tls` cannot go through a proxy that speaks TLS itself")
        return hop

    async def _send(self, hop: Hop, request: Request) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        body = request.body
        data = io.BytesIO(body) if body is not None and len(body) > 1 << 20 else body  # aiohttp warns of big bytes
        is_bare = body is None and request.method not in {"GET", "HEAD"}
        try:
            return await self._outbound.send(hop, request, data, skip=("Content-Type",) if is_bare else None)
        except InvalidArgumentError as error:
            fail("invalid_request", error.message)

    async def _judge(self, request: Request, response: aiohttp.ClientResponse, rules: Rules, used: set[str]) -> Outcome:
        head = {"status": response.status, "headers": read_headers(response)}
        if not rules.accepts(response.status):
            return await self._rejected(request, response, rules, head, used)
        raw, is_complete = await read_body(response, rules.bytes_max)
        if not is_complete:
            message = f"the answer has more than {rules.bytes_max:,} bytes"
            fail("response_too_large", message, details=head, is_unknown=True)
        try:
            return Succeeded({**head, "body": parse_body(response, raw, rules.bytes_max)})
        except InvalidArgumentError as error:
            details = {**head, "body": excerpt(response, raw, used)}
            fail("invalid_json", error.message, details=details, is_unknown=True)

    async def _rejected(
        self,
        request: Request,
        response: aiohttp.ClientResponse,
        rules: Rules,
        head: dict[str, Json],
        used: set[str],
    ) -> Failed:
        raw, is_complete = await read_body(response, FAILURE_READ_MAX)
        status = response.status
        retryable = status in {408, 425, 429} or status >= 500
        is_unfollowed = rules.redirects_max == 0 and "Location" in response.headers and 300 <= status < 400
        advice = "; redirects are not followed unless max_redirects says how many" if is_unfollowed else ""
        return Failed(
            "http_status",
            f"{request.place} answered {status}{advice}",
            retryable=retryable,
            retry_after_s=self._retry_after_s(response.headers.get("Retry-After", "")) if retryable else None,
            details={**head, "body": excerpt(response, raw, used, is_complete=is_complete)},
            is_unknown=status in {502, 504},  # a gateway speaks of itself, not of the server behind it
        )

    def _retry_after_s(self, text: str) -> float | None:
        text = text.strip()
        if text.isascii() and text.isdigit():
            seconds = float(text[:20])
        else:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - self._now()
            except (ValueError, OverflowError):
                return None
        return min(max(seconds, 0.0), self._retry_after_max_s)


async def _resolve(config: Mapping[str, Json], task: Task, used: set[str]) -> dict[str, Json]:
    def admit(name: str, secret: SecretValue) -> None:
        # Where a redirect leaves this origin, whatever holds a secret stays behind, see `http_request`.
        for host, port in targets_of(config) if secret.hosts else ():
            if not secret.may_go_to(host, port):
                allowed = ", ".join(secret.hosts)
                message = f"the secret {name} may only be sent to {allowed}, not to {host}, port {port}"
                fail("secret_not_allowed", message, details={"secret": name, "host": host, "port": port})

    try:
        resolved, values = await resolve_references(config, task.secret, admit=admit)
    except NotFoundError as error:
        fail("secret_missing", error.message, details=dict(error.metadata))
    except InvalidArgumentError as error:
        fail("invalid_request", error.message)
    used.update(values)
    return dict(resolved)


def _following(request: Request, response: aiohttp.ClientResponse) -> Request | None:
    location = response.headers.get("Location")
    return None if location is None else redirected(request, response.status, clean(location))


def _fail_redirects(redirects_max: int) -> NoReturn:
    fail("too_many_redirects", f"more than {redirects_max} redirects", is_unknown=True)


def _raise_denied(denied: Denied, request: Request, *, is_redirected: bool) -> NoReturn:
    details: Json = {
        "host": denied.host,
        "port": denied.port,
        "address": None if denied.address is None else str(denied.address),
    }
    message = f"{request.place}: {denied}"
    fail("egress_denied", message, details=details, is_unknown=is_redirected)
