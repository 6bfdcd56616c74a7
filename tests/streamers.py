"""A program with many watches open, of which it reads one message each, or nothing at all; made to be killed.

`python streamers.py ADDRESS TOKEN COUNT MODE`; MODE is `idle` or `deaf`. It prints `open N` and stays.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import grpc.aio
from taskforge.v1 import event_service_pb2
from taskforge.v1.event_service_pb2_grpc import EventServiceStub

PER_CONNECTION = 500
AT_ONCE = 50


async def main(address: str, token: str, count: int, mode: str) -> None:
    """Open them all and stay."""
    metadata = (("authorization", f"Bearer {token}"),)
    request = event_service_pb2.WatchEventsRequest(after_cursor="0" if mode == "deaf" else "")
    calls, channels, turn = [], [], asyncio.Semaphore(AT_ONCE)

    async def open_one(stub: EventServiceStub) -> None:
        async with turn:
            call = stub.WatchEvents(request, metadata=metadata)
            calls.append(call)
            if mode == "idle":
                await call.read()
            else:
                await call.initial_metadata()

    for begin in range(0, count, PER_CONNECTION):
        channels.append(grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]))
        stub = EventServiceStub(channels[-1])
        await asyncio.gather(*(open_one(stub) for _ in range(min(PER_CONNECTION, count - begin))))
    print(f"open {len(calls)}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
