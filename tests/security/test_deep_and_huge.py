"""JSON that is a million levels deep, or huge, at each door: refused with place and limit, and the memory comes back."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable

import grpc.aio
import pytest
from switchboard import Answer, Board

DEEP, CLOSED = "[" * 1_000_000, "[" * 500_000 + "]" * 500_000
OBJECTS = '{"a":' * 200_000
LARGE = "[" + "1," * 1_000_000 + "1]"
VAST = '"' + "x" * 20_000_000 + '"'
SHAPES = {"deep": DEEP, "closed": CLOSED, "objects": OBJECTS, "large": LARGE, "vast": VAST, "inside": "[" * 100_000}
AGAIN = 5
"""An error that holds on to its request, and the request to its error, stays until the collector comes by."""

GROWTH_MAX = 96 << 20

HOOK = """
name: hook
on:
  in: {webhook: {path: in, verify: {scheme: none}}, if: "event.body.ok == true"}
  heard: {event: {type: order.paid}}
steps:
  - {id: a, transform: 1}
"""


async def said(call: Awaitable[object]) -> str:
    """What a gRPC call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return f"{caught.value.code().name}: {caught.value.details()}"


async def told(answer: Awaitable[Answer]) -> str:
    """What an HTTP request is answered."""
    found = await answer
    error = found.body["error"]
    return f"{found.status}: {error['code']}, {error['message']}"


async def cloud_event(board: Board, text: str) -> Answer:
    headers = {"Authorization": f"Bearer {board.daemon.token}", "Content-Type": "application/cloudevents+json"}
    body = f'{{"specversion":"1.0","id":"1","source":"/s","type":"order.paid","data":{text}}}'.encode()
    async with board.http.post(
        f"{board.daemon.http}/events/{board.namespace}", data=io.BytesIO(body), headers=headers
    ) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


DOORS: dict[str, Callable[[Board, str], Awaitable[str]]] = {
    "StartRun": lambda board, text: said(board("StartRun", workflow="hook", input_json=text)),
    "PublishEvent": lambda board, text: said(board("PublishEvent", type="order.paid", data_json=text)),
    "ApplyWorkflow": lambda board, text: said(board.apply(f"name: deep\nsteps: [{{id: a, transform: {text}}}]\n")),
    "webhook": lambda board, text: told(board.post("in", text.encode())),
    "CloudEvent": lambda board, text: told(cloud_event(board, text)),
}


TOO_DEEP = ("deep", "closed", "objects")
REFUSALS: dict[tuple[str, ...], dict[str, str]] = {
    TOO_DEEP: {
        "StartRun": "INVALID_ARGUMENT: input_json: nested deeper than 64 levels",
        "PublishEvent": "INVALID_ARGUMENT: data_json: nested deeper than 64 levels",
        "webhook": "400: invalid_body",
        "CloudEvent": "400: invalid_event, the body is not acceptable JSON: body: nested deeper than 64 levels",
    },
    ("inside",): {"ApplyWorkflow": "nested deeper than 32 levels (line 2, column 57)"},
    (*TOO_DEEP, "large"): {"ApplyWorkflow": "bytes; the limit is 262,144 (line 1, column 1)"},
    ("large",): {
        "StartRun": "RESOURCE_EXHAUSTED: input_json has 2,000,003 bytes; the limit is 1,048,576",
        "PublishEvent": "RESOURCE_EXHAUSTED: data_json has 2,000,003 bytes; the limit is 1,048,576",
    },
    ("vast",): dict.fromkeys(("StartRun", "PublishEvent", "ApplyWorkflow"), "RESOURCE_EXHAUSTED: SERVER: Received"),
    ("large", "vast"): dict.fromkeys(("webhook", "CloudEvent"), "413: too_large, the body is too large"),
}
CASES = [(door, shape, said) for shapes, doors in REFUSALS.items() for shape in shapes for door, said in doors.items()]


@pytest.mark.timeout(120)
async def test_each_door_refuses_with_place_and_limit_and_grows_by_little(board: Board) -> None:
    await board.apply(HOOK)
    assert (await board.post("in", b'{"ok": false}')).status == 202
    before = board.daemon.resident
    for door, shape, words in CASES:
        found = await DOORS[door](board, SHAPES[shape])
        assert words in found, f"{door}, {shape}: {found}"
    for _ in range(AGAIN):
        for shape in TOO_DEEP:
            await DOORS["StartRun"](board, SHAPES[shape])
            await DOORS["PublishEvent"](board, SHAPES[shape])
    assert board.daemon.resident - before < GROWTH_MAX, "what was refused is kept in memory"
    reasons = sorted(event.reason for event in await board.listed(outcomes=["REJECTED"]))
    too_deep, too_large = "body: nested deeper than 64 levels", "the body is larger than 1,048,576 bytes"
    assert reasons == [too_deep] * 3 + [too_large] * 2, "what its sender is not told, its owner is"
    assert await board.runs() == []
    taken = await board.post("in", b'{"ok": true}')
    assert await board.output(taken.body["run_ids"][0]) is None
    assert (await board.publish("order.paid", {"n": 1})).outcome == "ACCEPTED"
    print(f"{len(CASES)} refusals: {(board.daemon.resident - before) >> 20} MiB more")
