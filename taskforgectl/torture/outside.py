"""The outside world: the service whose effects are counted, and who sends webhooks. Only here is HTTP spoken."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp import web

from taskforgectl.torture.ledger import Ledger
from taskforgectl.torture.plan import Plan
from taskforgectl.torture.workflows import HOOK_SECRET

__all__ = ["EffectServer", "Sender"]

_STALL_S = 30.0
"""Longer than any step's timeout: the caller gives up."""

_SLOW_S = 0.6
_FLAKY_TIMES = 3
"""So often a flaky service fails before it is mended: the first run dies, its retry does not."""

_FLAKY_MAX = 50_000
_SHOWN = 500


class EffectServer:
    """Records every call and answers by path; where it likes to, it fails. Use as an asynchronous context manager.

    `/work/…` and `/once/…` do something, `/gate/LIMIT` does something that only so many may be at, `/flaky/N` fails at
    first, `/dead` always, `/tick` belongs to a due time. `?ms=` is how long it takes.

    Args:
        plan: says what goes wrong.
        path: of the file that takes the calls, one JSON object per line, in the order of their ends.
        now: the driver's time.
        boot: the number of the daemon's present life.
    """

    def __init__(self, plan: Plan, path: Path, now: Callable[[], float], boot: Callable[[], int]) -> None:
        self._plan = plan
        self._file = path.open("w", buffering=1 << 16)
        self._now = now
        self._boot = boot
        self._turns: Counter[tuple[str, str]] = Counter()
        self._flaky: OrderedDict[str, int] = OrderedDict()
        self._runner: web.AppRunner | None = None
        self.calls = 0
        self.moods: Counter[str] = Counter()
        self.url = ""
        self.kind = False
        """From now on nothing goes wrong any more."""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        # A caller that goes away ends its call: only so the server knows how many are at it.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._file.close()

    def flush(self) -> None:
        """Hand over to the operating system what was written."""
        self._file.flush()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        began, boot = self._now(), self._boot()
        self.calls += 1
        key = request.headers.get("Idempotency-Key", "")
        family, _, name = request.path.lstrip("/").partition("/")
        mood = self._mood(family, name)
        self.moods[mood] += 1
        call = {"key": key, "family": family, "name": name, "boot": boot, "began": round(began, 5), "mood": mood}
        status = 0
        try:
            await asyncio.sleep(float(request.query.get("ms", "0")) / 1000)
            status = await self._answer(request, family, mood)
            if family == "tick":
                call["due"] = (await request.json()).get("due")
            if mood == "reset" and request.transport is not None:
                request.transport.abort()
            return web.json_response({"ok": status == 200}, status=status or 500)
        finally:
            # Before the answer is on its way: who gets it may send the next one at once.
            line = {**call, "ended": round(self._now(), 5), "status": status}
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def _mood(self, family: str, name: str) -> str:
        if family == "dead":
            return "500"
        if self.kind or family == "flaky":
            return "ok"
        self._turns[family, name] += 1
        return self._plan.mood(family, name, self._turns[family, name])

    async def _answer(self, request: web.Request, family: str, mood: str) -> int:
        if mood == "stall":
            await asyncio.sleep(_STALL_S)
        elif mood == "slow":
            await asyncio.sleep(_SLOW_S)
        elif mood == "500":
            return 503
        if family == "flaky":
            times = self._flaky.pop(request.path, 0)
            self._flaky[request.path] = times + 1
            if len(self._flaky) > _FLAKY_MAX:
                self._flaky.popitem(last=False)
            return 200 if times >= _FLAKY_TIMES or self.kind else 503
        return 0 if mood == "reset" else 200


class Sender:
    """Sends signed webhooks, each until it has a 2xx. Use as an asynchronous context manager.

    Args:
        ledger: learns what was acknowledged.
        base: where the daemon listens just now; empty while nobody knows.
    """

    def __init__(self, ledger: Ledger, base: Callable[[], str]) -> None:
        self._ledger = ledger
        self._base = base
        self._session: aiohttp.ClientSession | None = None
        self.repeats = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10), trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def deliver(self, n: int) -> str:
        """Send delivery `d-N` until it is acknowledged; answers its event, nothing when it was refused for good."""
        body = json.dumps({"n": n}).encode()
        signature = hmac.new(HOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()
        headers = {"Content-Type": "application/json", "X-Signature": signature, "X-Delivery": f"d-{n}"}
        self._ledger.write("sending", delivery=f"d-{n}")
        while True:
            answer = await self._post(body, headers)
            if answer is not None and answer[0] in {200, 202}:
                told = json.loads(answer[1])
                self._ledger.write("delivered", delivery=f"d-{n}", event=told["event_id"], runs=told["run_ids"])
                return str(told["event_id"])
            if answer is not None and answer[0] not in {429, 503, 507}:
                text = answer[1][:_SHOWN].decode(errors="replace")
                self._ledger.violation("deliveries", f"d-{n} was refused with {answer[0]}: {text}")
                return ""
            self.repeats += 1
            await asyncio.sleep(0.05)

    async def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes] | None:
        assert self._session is not None
        base = self._base()
        if not base:
            return None
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            url = f"{base}/hooks/default/things"
            async with self._session.post(url, data=body, headers=headers) as response:
                return response.status, await response.read()
        return None
