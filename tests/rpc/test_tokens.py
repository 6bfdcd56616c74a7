"""Tokens over their life: rotation, expiry, revocation, also of what is under way with them."""

import asyncio
import contextlib
import sqlite3

import grpc
import pytest
from switchboard import METHODS
from taskforge.v1 import run_service_pb2 as runs
from taskforge.v1 import token_pb2

NAP = "name: nap\nsteps:\n  - id: a\n    sleep: 1h\n"


async def works(board, secret):
    try:
        await board("GetInfo", bearer=secret)
    except grpc.aio.AioRpcError as error:
        assert error.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        return False
    return True


async def watching(board, secret, run_id):
    """Answer a stream that has told what there is and waits for more."""
    stub, _ = METHODS["WatchRun"]
    stream = stub(board.channel).WatchRun(
        runs.WatchRunRequest(run_id=run_id), metadata=(("authorization", f"Bearer {secret}"),)
    )
    assert (await stream.read()).events
    return stream


async def ended(stream):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while True:
            await asyncio.wait_for(stream.read(), 20)
    return caught.value.code()


async def test_a_rotated_token_is_the_same_one_with_another_secret(own):
    made = await own.token("OPERATOR")
    await own.apply(NAP)
    done = await own("RotateToken", token_id=made.token.id)
    assert done.secret != made.secret
    assert (done.token.id, done.token.name, done.token.role) == (made.token.id, made.token.name, made.token.role)
    assert done.token.namespace == made.token.namespace
    assert done.token.HasField("rotate_time")
    assert not done.token.HasField("previous_until")
    assert (await works(own, made.secret), await works(own, done.secret)) == (False, True)
    own.daemon.restart()
    assert (await works(own, made.secret), await works(own, done.secret)) == (False, True)
    path = own.daemon.home / "taskforge.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        dump = "\n".join(database.iterdump())
    assert done.secret.rpartition("_")[2] not in dump
    assert made.secret.rpartition("_")[2] not in dump


async def test_both_secrets_work_during_the_grace(own):
    made = await own.token("VIEWER")
    done = await own("RotateToken", token_id=made.token.id, grace={"seconds": 3600})
    assert (await works(own, made.secret), await works(own, done.secret)) == (True, True)
    own.daemon.restart()
    assert (await works(own, made.secret), await works(own, done.secret)) == (True, True)
    again = await own("RotateToken", token_id=made.token.id)
    assert [await works(own, one) for one in (made.secret, done.secret, again.secret)] == [False, False, True]


async def test_a_repeated_rotation_replaces_the_secret_that_was_lost_and_keeps_the_grace(own):
    made = await own.token("VIEWER")
    wanted = {"token_id": made.token.id, "grace": {"seconds": 3600}, "request_id": "r-1"}
    lost = await own("RotateToken", **wanted)
    done = await own("RotateToken", **wanted)
    assert done.token.previous_until == lost.token.previous_until
    assert [await works(own, one) for one in (made.secret, lost.secret, done.secret)] == [True, False, True]


async def test_what_cannot_be_rotated(own):
    made = await own.token("VIEWER")
    await own.refused("INVALID_ARGUMENT", "RotateToken", token_id=made.token.id, grace={"seconds": 31 * 86_400})
    await own.refused("INVALID_ARGUMENT", "RotateToken", token_id=made.token.id, ttl={"seconds": 0})
    await own("RevokeToken", token_id=made.token.id)
    await own.refused("FAILED_PRECONDITION", "RotateToken", token_id=made.token.id)
    await own.refused("NOT_FOUND", "RotateToken", token_id="nobody")
    other = await own.fresh()
    confined = (await other.token("ADMIN")).secret
    mine = await own.token("VIEWER")
    everywhere = await own.token("VIEWER", None)
    for token_id in (mine.token.id, everywhere.token.id, own.daemon.token.split("_")[1]):
        for method in ("RotateToken", "RevokeToken"):
            await own.refused("NOT_FOUND", method, bearer=confined, token_id=token_id)


async def test_no_token_mints_a_wider_one(own):
    other = await own.fresh()
    confined = (await other.token("ADMIN")).secret
    viewer = token_pb2.Token.ROLE_VIEWER
    made = await own("CreateToken", bearer=confined, name="x", role=viewer)
    assert made.token.namespace == other.namespace
    await own.refused("PERMISSION_DENIED", "CreateToken", bearer=confined, name="x", role=viewer, namespace="default")
    for role in ("OPERATOR", "TRIGGER", "VIEWER", "WORKER"):
        secret = (await own.token(role)).secret
        await own.refused("PERMISSION_DENIED", "CreateToken", bearer=secret, name="x", role=viewer, namespace="default")


async def test_streams_that_wait_end_with_their_token(own):
    """Nothing happens in the runs that are watched: only the token's end can end these streams."""
    await own.apply(NAP)
    run = (await own("StartRun", workflow="nap")).run
    revoked, rotated, graced, expiring = [await own.token("VIEWER") for _ in range(3)] + [
        await own("CreateToken", name="short", role=token_pb2.Token.ROLE_VIEWER, ttl={"seconds": 3})
    ]
    streams = [await watching(own, one.secret, run.id) for one in (revoked, rotated, graced, expiring)]
    bystander = await watching(own, own.daemon.token, run.id)
    await own("RevokeToken", token_id=revoked.token.id)
    await own("RotateToken", token_id=rotated.token.id)
    await own("RotateToken", token_id=graced.token.id, grace={"seconds": 1})
    assert [await ended(stream) for stream in streams] == [grpc.StatusCode.UNAUTHENTICATED] * 4
    await own("CancelRun", run_id=run.id)
    assert (await asyncio.wait_for(bystander.read(), 20)).events
    bystander.cancel()


async def test_only_live_tokens_are_listed_when_asked(own):
    kept, gone = await own.token("VIEWER"), await own.token("VIEWER")
    await own("RevokeToken", token_id=gone.token.id)
    everything = {one.id for one in (await own("ListTokens")).tokens}
    live = {one.id for one in (await own("ListTokens", live_only=True)).tokens}
    assert everything - live == {gone.token.id}
    assert kept.token.id in live
