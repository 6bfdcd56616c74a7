"""Who may call what: every method of every service, every role, and what a refused caller learns."""

import asyncio
import hashlib
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from taskforge.v1 import token_pb2
from taskforge.v1 import token_service_pb2 as tokens
from taskforge.v1 import token_service_pb2_grpc as tokens_grpc
from taskforge.v1.run_service_pb2 import StartRunRequest

from taskforged import errors
from taskforged.control.access import GRANTS, Role
from taskforged.rpc import guard, server  # noqa: F401  the latter registers every service
from taskforged.rpc.errors import CODES, to_status
from taskforged.rpc.guard import NEEDS, WHOLE

PROTOS = Path(__file__).parents[2] / "protos" / "taskforge" / "v1"


def methods():
    pool = descriptor_pool.Default()
    for file in sorted(PROTOS.glob("*_service.proto")):
        for service in pool.FindFileByName(f"taskforge/v1/{file.name}").services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method


ALL = dict(methods())


def test_every_method_declares_the_role_it_needs_and_no_other_is_named():
    declared = {name for name in NEEDS if name.startswith("/taskforge.v1.")}
    assert declared == set(ALL)


def test_the_protos_say_the_same_as_the_table():
    text = "\n".join(file.read_text() for file in PROTOS.glob("*_service.proto"))
    for name in ALL:
        need, method = NEEDS[name], name.rpartition("/")[2]
        comment = text[: text.index(f"  rpc {method}(")].rpartition("}\n")[2].rpartition(";\n")[2]
        expected = "any valid token" if need is None else f"role `{need.value}`"
        assert expected in " ".join(comment.split()).replace("// ", ""), method


class _Patient:
    """The context of a caller that sets no deadline."""

    @staticmethod
    def time_remaining():
        return None


def test_the_server_ends_what_takes_long_unless_that_is_its_nature():
    long = {"StorageService/CreateBackup", "StorageService/PruneStorage", "SystemService/Diagnose"}
    for name, method in ALL.items():
        if not method.server_streaming:
            asked_s = guard._asked_to_wait_s(name, GetMessageClass(method.input_type)())
            limit_s = guard._time_to_take(name, asked_s, _Patient())
            assert limit_s == (None if name.removeprefix("/taskforge.v1.") in long else guard.DEADLINE_S), name


def test_calls_that_may_wait_are_those_that_can_ask_for_it():
    asking = {name for name, method in ALL.items() if "wait" in method.input_type.fields_by_name}
    assert asking == guard.WAITING
    request = StartRunRequest(wait=Duration(seconds=7))
    asked_s = guard._asked_to_wait_s(next(iter(asking)), request)
    assert guard._time_to_take(next(iter(asking)), asked_s, _Patient()) == guard.DEADLINE_S + 7


def test_what_must_run_to_its_end_is_a_mutation_that_answers_once():
    for name in WHOLE:
        assert NEEDS[name] in {Role.ADMIN, Role.OPERATOR}, name
        assert not ALL[name].server_streaming, name
    kept_in_memory = ("Namespace", "Queue", "Secret", "Token", "Workflow")
    switches = {"/taskforge.v1.TriggerService/PauseTrigger", "/taskforge.v1.TriggerService/ResumeTrigger"}
    changes = {name for name in ALL if NEEDS[name] in {Role.ADMIN, Role.OPERATOR} and "/List" not in name}
    assert {name for name in changes if name.split(".")[2].startswith(kept_in_memory)} | switches == WHOLE


def test_every_error_class_has_a_code():
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.TaskforgeError)}
    assert classes - {errors.TaskforgeError} == set(CODES)
    for cls in CODES:
        status = to_status(cls("text"))
        assert status.code is CODES[cls]
        details = rpc_status.from_call(_Call(status))
        info = error_details_pb2.ErrorInfo()
        assert details.details[0].Unpack(info)
        assert (info.domain, info.reason) == ("taskforge", cls.reason)


class _Call:
    def __init__(self, status):
        self._status = status

    def code(self):
        return self._status.code

    def details(self):
        return self._status.details

    def trailing_metadata(self):
        return self._status.trailing_metadata


def test_many_violations_fit_into_the_metadata_of_an_answer():
    violations = [errors.Violation(f"steps[{i}].http.url", "unknown key " * 20, i, 1) for i in range(500)]
    status = to_status(errors.InvalidArgumentError("bad", violations=violations))
    assert sum(len(k) + len(v) for k, v in status.trailing_metadata) < 16_000
    bad = error_details_pb2.BadRequest()
    assert rpc_status.from_call(_Call(status)).details[1].Unpack(bad)
    assert "more problems" in bad.field_violations[-1].description


async def call(daemon, name, credential, *, timeout=10):
    """Call any method with an empty request; answer its code."""
    method = ALL[name]
    request = GetMessageClass(method.input_type)()
    answer = GetMessageClass(method.output_type)
    metadata = (("authorization", f"Bearer {credential}"),) if credential is not None else ()
    async with grpc.aio.insecure_channel(daemon.tcp) as channel:
        kind = channel.unary_stream if method.server_streaming else channel.unary_unary
        made = kind(name, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString)
        try:
            if method.server_streaming:
                async for _ in made(request, metadata=metadata, timeout=timeout):
                    pass
            else:
                await made(request, metadata=metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""


async def test_the_matrix_of_methods_and_roles(daemon):
    stub = daemon.stub(tokens_grpc.TokenServiceStub)
    credentials = {}
    for role in Role:
        made = await stub.CreateToken(
            tokens.CreateTokenRequest(name=role.value, role=token_pb2.Token.Role.Value(f"ROLE_{role.value.upper()}"))
        )
        credentials[role] = made.secret
    for name in ALL:
        answers = await asyncio.gather(*(call(daemon, name, credential) for credential in credentials.values()))
        for role, (code, details) in zip(credentials, answers, strict=True):
            allowed = NEEDS[name] is None or NEEDS[name] in GRANTS[role]
            assert (code is not grpc.StatusCode.PERMISSION_DENIED) == allowed, (name, role, code, details)
            assert code not in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}, (name, role, details)


async def test_without_a_valid_token_nothing_is_answered(daemon):
    good = daemon.token
    flipped = good[:-1] + ("a" if good[-1] != "a" else "b")
    told = set()
    for name in ALL:
        for bad in (None, "", "x", "tfk_", flipped, good + "x", good.upper(), "\u00e9".encode().hex(), "a" * 5000):
            code, details = await call(daemon, name, bad)
            told.add((code, details))
    assert told == {
        (grpc.StatusCode.UNAUTHENTICATED, "the token is missing, wrong, expired or revoked"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many failed authentications; wait, and use a valid token"),
    }


async def test_a_token_is_needed_on_the_unix_socket_too(daemon):
    async with grpc.aio.insecure_channel(daemon.uds) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tokens_grpc.TokenServiceStub(channel).ListTokens(tokens.ListTokensRequest())
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_revoked_token_stops_working_and_the_last_admin_cannot_be_revoked(daemon):
    stub = daemon.stub(tokens_grpc.TokenServiceStub)
    made = await stub.CreateToken(tokens.CreateTokenRequest(name="ci", role=token_pb2.Token.ROLE_VIEWER))
    info = "/taskforge.v1.SystemService/GetInfo"
    assert (await call(daemon, info, made.secret))[0] is grpc.StatusCode.OK
    await stub.RevokeToken(tokens.RevokeTokenRequest(token_id=made.token.id))
    again = await stub.RevokeToken(tokens.RevokeTokenRequest(token_id=made.token.id))
    assert again.token.HasField("revoke_time")
    assert (await call(daemon, info, made.secret))[0] is grpc.StatusCode.UNAUTHENTICATED
    home = daemon.token.split("_")[1]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RevokeToken(tokens.RevokeTokenRequest(token_id=home))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_an_expired_token_stops_working(daemon):
    stub = daemon.stub(tokens_grpc.TokenServiceStub)
    request = tokens.CreateTokenRequest(name="short", role=token_pb2.Token.ROLE_VIEWER)
    request.ttl.FromMilliseconds(1000)
    made = await stub.CreateToken(request)
    code = grpc.StatusCode.OK
    for _ in range(400):
        code, _details = await call(daemon, "/taskforge.v1.SystemService/GetInfo", made.secret)
        if code is grpc.StatusCode.UNAUTHENTICATED:
            break
        await asyncio.sleep(0.01)
    assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_the_database_holds_no_token(daemon):
    stub = daemon.stub(tokens_grpc.TokenServiceStub)
    made = await stub.CreateToken(tokens.CreateTokenRequest(name="ci", role=token_pb2.Token.ROLE_VIEWER))
    secrets = [daemon.token, made.secret]
    assert daemon.terminate() == 0
    stored = b"".join(file.read_bytes() for file in daemon.home.glob("taskforge.db*"))
    for secret in secrets:
        assert secret.encode() not in stored
        assert secret.rpartition("_")[2].encode() not in stored
        assert hashlib.sha256(secret.encode()).digest() in stored
        assert secret not in daemon.log_text()


async def test_health_needs_no_token_and_reflection_does(daemon):
    async with grpc.aio.insecure_channel(daemon.tcp) as channel:
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ServerReflectionInfo(iter([ask])):
                pass
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        async for answer in stub.ServerReflectionInfo(iter([ask]), metadata=daemon.metadata):
            names = {service.name for service in answer.list_services_response.service}
    assert {name.split("/")[1] for name in ALL} | {"grpc.health.v1.Health"} <= names


async def test_an_unknown_method_is_unimplemented(daemon):
    async with grpc.aio.insecure_channel(daemon.tcp) as channel:
        made = channel.unary_unary("/taskforge.v1.RunService/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await made(b"", metadata=daemon.metadata)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_mutation_whose_caller_goes_away_is_whole_or_not_at_all(daemon):
    """Whatever the moment at which the call is cut: memory and disk agree about which tokens are revoked."""
    stub = daemon.stub(tokens_grpc.TokenServiceStub)
    made = [
        await stub.CreateToken(tokens.CreateTokenRequest(name="ci", role=token_pb2.Token.ROLE_VIEWER))
        for _ in range(30)
    ]
    for index, one in enumerate(made):
        revoke = stub.RevokeToken(tokens.RevokeTokenRequest(token_id=one.token.id))
        await asyncio.sleep(index / 5000)
        revoke.cancel()

    async def revoked():
        stub = daemon.stub(tokens_grpc.TokenServiceStub)
        page = await stub.ListTokens(tokens.ListTokensRequest(page_size=1000))
        return {token.id for token in page.tokens if token.HasField("revoke_time")}

    await asyncio.sleep(0.3)
    in_memory = await revoked()
    daemon.restart()
    await daemon.disconnect()
    assert await revoked() == in_memory
