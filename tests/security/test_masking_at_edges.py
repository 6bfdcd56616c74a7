"""Secrets at the edges of what is cut off, and in the forms that URLs give them."""

import pytest
from raw_server import Servers, answer

from taskforged.errors import NotFoundError
from taskforged.steps.base import Failed, SecretValue, Task
from taskforged.steps.http import HttpExecutor

SECRET = "s3cr3t-" + "Q7x" * 12


@pytest.fixture
async def serve():
    async with Servers() as servers:
        yield servers.start


@pytest.fixture
async def http():
    executor = HttpExecutor()
    await executor.start()
    yield executor
    await executor.close()


async def fail(http, url, secret, **config):
    async def vault(name):
        if name != "KEY":
            raise NotFoundError(name)
        return SecretValue(secret)

    task = Task("run_1", "default", "wf", "call", 1, {"url": url, **config}, 20, "run_1/call", "cor_1", vault)
    outcome = await http.execute(task)
    assert isinstance(outcome, Failed)
    return f"{outcome.message} {outcome.details}"


@pytest.mark.parametrize("before", range(160, 204, 4))
async def test_a_long_path_is_not_cut_within_a_secret(http, serve, before):
    server = await serve(answer(500))
    path = {"$concat": [f"{server.url}/{'p' * before}/", {"$secret": "KEY"}, "/send"]}
    assert SECRET[:6] not in await fail(http, path, SECRET)


@pytest.mark.parametrize("before", range(160, 204, 4))
async def test_nor_is_the_path_of_a_redirect(http, serve, before):
    echo = answer(302, headers=[f"Location: /{'p' * before}/{SECRET}"])
    server = await serve(lambda request: echo if request.target == "/" else answer(500))
    said = await fail(http, server.url, SECRET, headers={"X-Key": {"$secret": "KEY"}})
    assert SECRET[:6] not in said


@pytest.mark.parametrize(
    "secret",
    ["pa$$ word+1@x", "(planted) word!", "planted?query", "planted#part", "planted/../word", "Ünïcödé", "a|b^c`d"],
)
async def test_a_secret_in_a_url_is_not_told_in_any_form(http, serve, secret):
    server = await serve(answer(500))
    said = await fail(http, {"$concat": [f"{server.url}/before/", {"$secret": "KEY"}]}, secret)
    assert f"GET {server.url}/before/*** answered 500" in said


async def test_a_secret_in_the_name_of_a_host_is_not_told(http):
    said = await fail(http, {"$concat": ["http://", {"$secret": "KEY"}, ".invalid:1/"]}, "PlantedAccount")
    assert "planted" not in said.lower()


async def test_an_echo_that_is_longer_than_what_is_read_leaves_no_piece(http, serve):
    """So many echoes that, masked, the end of what was read would be seen, with a piece of the last one in it."""
    for shift in range(0, len(SECRET), 6):
        server = await serve(answer(500, body=b"." * shift + SECRET.encode() * 3000))
        said = await fail(http, server.url, SECRET, headers={"X-Key": {"$secret": "KEY"}})
        assert SECRET[:5] not in said
