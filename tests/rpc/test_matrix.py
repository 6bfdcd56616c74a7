"""Who may call what: every method of the descriptors and every route, with every kind of token, on a real daemon."""

import asyncio

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from switchboard import METHODS
from taskforge.v1 import token_pb2

from taskforged.control.access import GRANTS, Role
from taskforged.rpc.guard import NEEDS
from taskforged.telemetry import probes
from taskforged.triggers import routes

ALL = [name for name in NEEDS if name.startswith("/taskforge.v1.")]
ROUTES = routes.ROUTES | {routes.Route("GET", path): need for path, need in probes.ROUTES.items()}
DENIED = grpc.StatusCode.PERMISSION_DENIED
STRANGER = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}


def field(message, name):
    return message.DESCRIPTOR.fields_by_name.get(name)


async def call(board, name, bearer, /, **fields):
    """Call a method with what is given of these fields; answer its code."""
    _, message = METHODS[name.rpartition("/")[2]]
    method = message.DESCRIPTOR.file.pool.FindMethodByName(name[1:].replace("/", "."))
    request = message(**{key: value for key, value in fields.items() if field(message, key)})
    kind = board.channel.unary_stream if method.server_streaming else board.channel.unary_unary
    made = kind(
        name,
        request_serializer=message.SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )(request, metadata=(("authorization", f"Bearer {bearer}"),), timeout=5)
    try:
        if method.server_streaming:
            await made.read()
            made.cancel()
        else:
            await made
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_every_method_with_every_role(own):
    other = await own.fresh()
    for role in Role:
        free = (await own.token(role.name, None)).secret
        confined = (await other.token(role.name)).secret
        for name in ALL:
            need = NEEDS[name]
            may = need is None or need in GRANTS[role]
            code = await call(own, name, free, namespace="missing-namespace")
            assert (code is not DENIED) == may, (name, role, code)
            assert code not in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAUTHENTICATED}
            _, message = METHODS[name.rpartition("/")[2]]
            if field(message, "namespace"):  # another namespace's name, near misses, and one that does not exist
                for near in ("default", f"{other.namespace}0", other.namespace[:-1], other.namespace.upper()):
                    assert await call(own, name, confined, namespace=near) in {
                        DENIED,
                        grpc.StatusCode.INVALID_ARGUMENT,
                    }, (name, role, near)
            elif not may:
                assert await call(own, name, confined) is DENIED, (name, role)


async def test_every_method_without_a_live_token(own):
    revoked = await own.token("ADMIN", None)
    await own("RevokeToken", token_id=revoked.token.id)
    expired = await own("CreateToken", name="e", role=token_pb2.Token.ROLE_ADMIN, ttl={"seconds": 1})
    await asyncio.sleep(1.1)
    good = own.daemon.token
    bad = [
        "",
        "tfk_",
        good[:-1],
        good + "x",
        good.upper(),
        revoked.secret,
        expired.secret,
        "tfk_" + "a" * 12 + "_" + "A" * 43,
    ]
    for name in ALL:
        for bearer in bad:
            assert await call(own, name, bearer) in STRANGER, (name, bearer)
        assert await call(own, name, good) not in STRANGER, name


async def test_what_belongs_to_another_namespace_is_not_there(own):
    """By id, with every role: what another namespace has is NOT_FOUND, to read and to change."""
    other = await own.fresh()
    await own.apply("name: nap\nsteps:\n  - id: a\n    sleep: 1h\n")
    run = (await own("StartRun", workflow="nap")).run
    event = await own.publish("mine", {})
    ids = {"run_id": run.id, "event_id": event.id, "step": "a", "signal": "s", "outcome": 3}
    stranger = (await other.token("ADMIN")).secret
    for name in ALL:
        _, message = METHODS[name.rpartition("/")[2]]
        if field(message, "run_id") or field(message, "event_id"):
            code = await call(own, name, stranger, **ids)
            assert code is grpc.StatusCode.NOT_FOUND, (name, code)
    assert not (await own.run(run.id)).HasField("end_time")


async def test_a_reader_starts_nothing(own):
    """GHSA-h3jj-5f3v-3685: what repeats or resumes a run needs more than reading it."""
    await own.apply("name: hello\nsteps:\n  - id: a\n    transform: {x: '${{ 1 }}'}\n")
    run = (await own("StartRun", workflow="hello")).run
    viewer = (await own.token("VIEWER")).secret
    for name in ALL:
        if not name.rpartition("/")[2].startswith(("Watch", "SetNamespace")):
            await call(own, name, viewer, run_id=run.id, workflow="hello", run_ids=[run.id], name="hello")
    assert [one.id for one in await own.runs()] == [run.id]


async def test_every_route_with_every_role(own):
    secrets = {role: (await own.token(role.name, None)).secret for role in Role}
    other = await own.fresh()
    elsewhere = (await other.token("ADMIN")).secret
    for route, need in ROUTES.items():
        path = route.path.replace("{namespace}", "default").replace("{path}", "x").replace("{id}", "evt_x")
        url = own.daemon.http + path

        async def status(bearer, route=route, url=url):
            headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
            async with own.http.request(route.method, url, headers=headers, data=b"") as answer:
                return answer.status

        if need is None:
            assert await status("") not in {401, 403}, route
            continue
        for role, secret in secrets.items():
            assert (await status(secret) != 403) == (need in GRANTS[role]), (route, role)
        assert await status(elsewhere) == 403, route
        for bearer in ("", "x", own.daemon.token[:-1]):
            assert await status(bearer) in {401, 429}, route


@pytest.mark.parametrize(
    "path", ["/events/default/configs", "/x", "/events", "/hooks/default", "/healthz/", "/admin/configs"]
)
async def test_what_is_no_route_is_not_open_by_its_ending(own, path):
    """CVE-2026-53576: what a path ends in opens nothing."""
    for method in ("GET", "POST", "PUT", "DELETE"):
        async with own.http.request(method, own.daemon.http + path, data=b"") as answer:
            assert answer.status in {401, 404, 405, 429}, (method, path)


async def test_an_unknown_method_is_unimplemented_and_tells_nothing(own):
    for name in (
        "/taskforge.v1.RunService/Nothing",
        "/taskforge.v1.Nothing/GetInfo",
        "/grpc.health.v1.Health/Check/GetRun",
    ):
        call_ = own.channel.unary_unary(name)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_(b"", metadata=(("authorization", f"Bearer {own.daemon.token}"),))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
