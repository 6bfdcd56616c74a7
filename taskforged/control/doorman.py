"""Failed authentications: how many, by peer and together, and when the next may be tried.

A credential cannot be guessed; this keeps those who try from filling logs and using up the processor. Only failures
are counted and refused, so nobody with a valid token waits because others fail.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from taskforged.control.audit import Audit
from taskforged.control.buckets import Bucket
from taskforged.errors import ResourceExhaustedError

__all__ = ["Doorman"]

_PEER_RATE, _PEER_BURST = 1.0, 20.0
_ALL_RATE, _ALL_BURST = 50.0, 500.0
_PEERS_MAX = 10_000


class Doorman:
    """Counts who comes with a wrong token."""

    def __init__(self, audit: Audit, now: Callable[[], float] = time.monotonic) -> None:
        self._audit = audit
        self._now = now
        self._peers: OrderedDict[str, Bucket] = OrderedDict()
        self._all = Bucket(_ALL_RATE, _ALL_BURST, now())

    def failed(self, remote: str) -> None:
        """Count a failed authentication of a peer.

        Raises:
            ResourceExhaustedError: there were too many; says when to try again.
        """
        self._audit.failed_authentication(remote)
        now = self._now()
        bucket = self._peers.get(remote)
        if bucket is None:
            bucket = self._peers[remote] = Bucket(_PEER_RATE, _PEER_BURST, now)
            if len(self._peers) > _PEERS_MAX:
                self._peers.popitem(last=False)
        self._peers.move_to_end(remote)
        wait_s = bucket.take(now) or self._all.take(now)
        if wait_s:
            raise ResourceExhaustedError(
                "too many failed authentications; wait, and use a valid token",
                reason="AUTHENTICATION_RATE_LIMITED",
                retry_after_s=wait_s,
            )
