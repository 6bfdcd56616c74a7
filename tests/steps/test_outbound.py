"""The way out: real connections held against the egress policy, names that change their mind, redirects, secrets."""

import asyncio
import contextlib
import socket

import pytest
from aiohttp.abc import AbstractResolver
from closed_urls import CLOSED_URLS
from raw_server import Servers, answer

from taskforged.egress import Policy, parse_rule
from taskforged.errors import NotFoundError
from taskforged.steps.base import Failed, SecretValue, Succeeded, Task
from taskforged.steps.http import HttpExecutor
from taskforged.steps.outbound import Outbound

GUARD = 20


class Names(AbstractResolver):
    """A resolver whose answers are given: each name has a list of answers, the last one stays."""

    def __init__(self, **answers):
        self.answers = {name.replace("_", "."): list(found) for name, found in answers.items()}
        self.asked = []

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked.append(host)
        answers = self.answers.get(host)
        if not answers:
            raise OSError(socket.EAI_NONAME, "no such name")
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        kind = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            {"hostname": host, "host": one, "port": port, "family": kind[":" in one], "proto": 0, "flags": 0}
            for one in ([found] if isinstance(found, str) else found)
        ]

    async def close(self):
        pass


@pytest.fixture
async def serve():
    async with Servers() as servers:
        yield servers.start


@pytest.fixture
async def make():
    async with contextlib.AsyncExitStack() as stack:

        async def made(*, allow=(), deny=(), resolver=None, own_ports=(), **settings):
            policy = Policy(allow=map(parse_rule, allow), deny=map(parse_rule, deny), **settings)
            http = HttpExecutor(outbound=Outbound(policy, resolver=resolver, own_ports=lambda: own_ports))
            await http.start()
            stack.push_async_callback(http.close)
            return http

        yield made


def task(url, secrets=None, **config):
    async def lookup(name):
        if name not in (secrets or {}):
            raise NotFoundError(name)
        return secrets[name]

    return Task("run_1", "default", "wf", "call", 1, {"url": url, **config}, GUARD, "run_1/call", "cor_1", lookup)


def denied(outcome):
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.retryable) == ("egress_denied", False), outcome
    return outcome


def redirect(location, status=302):
    return answer(status, headers=[f"Location: {location}"])


@pytest.mark.parametrize("url", CLOSED_URLS)
async def test_no_spelling_leads_to_what_is_closed(make, serve, url):
    """Refused as what it is, or as no URL at all; in both cases nobody is connected to."""
    server = await serve(answer())
    http = await make(private=False)
    outcome = await http.execute(task(url.replace("{port}", str(server.port))))
    assert isinstance(outcome, Failed)
    assert outcome.code in {"egress_denied", "invalid_request"}, outcome
    assert not outcome.retryable
    assert server.connections == 0


@pytest.mark.parametrize("url", CLOSED_URLS)
async def test_no_spelling_in_a_redirect_leads_to_what_is_closed(make, serve, url):
    closed = await serve(answer())
    first = await serve(redirect(url.replace("{port}", str(closed.port)).encode().decode("latin-1")), host="127.0.0.2")
    http = await make(private=False, allow=[f"127.0.0.2:{first.port}"])
    outcome = await http.execute(task(first.url, max_redirects=1))
    if isinstance(outcome, Failed) and outcome.code == "http_status":  # a relative address, as a browser reads it too
        assert outcome.details["status"] == 404
    else:
        assert isinstance(outcome, Failed)
        assert outcome.code in {"egress_denied", "unsafe_redirect", "too_many_redirects"}, outcome
        assert outcome.is_unknown
    assert closed.connections == 0


def test_the_forms_are_many():
    assert len(CLOSED_URLS) >= 60


async def test_the_refusal_names_what_when_why_and_what_to_do(make, serve):
    server = await serve(answer())
    http = await make(private=False, resolver=Names(intra_example=["127.0.0.1"]))
    outcome = denied(await http.execute(task(f"http://intra.example:{server.port}/path?q=hidden")))
    assert outcome.message == (
        f"GET http://intra.example:{server.port}/path: no connection to intra.example (127.0.0.1), port {server.port}:"
        ' 127.0.0.1 is loopback (127.0.0.0/8), and [egress] private is false; add "127.0.0.1" or "intra.example" to'
        " [egress] allow, or set [egress] private = true"
    )
    assert outcome.details == {"host": "intra.example", "port": server.port, "address": "127.0.0.1"}
    assert not outcome.is_unknown
    http = await make(private=False, allow=["intra.example"], resolver=Names(intra_example=["127.0.0.1"]))
    assert isinstance(await http.execute(task(f"http://intra.example:{server.port}/")), Succeeded)


async def test_a_name_that_changes_its_mind_is_asked_once_for_each_connection(make, serve):
    """DNS rebinding: the answer that was checked is the one that is connected to."""
    innocent = await serve(answer(headers=["Connection: close"]), host="127.0.0.2")
    inside = await serve(answer(), port=innocent.port)
    names = Names(evil_example=["127.0.0.2", "127.0.0.1"])
    http = await make(private=False, allow=["127.0.0.2"], resolver=names)
    http._outbound._session.connector._cached_hosts._ttl = 0  # every connection asks again
    url = f"http://evil.example:{innocent.port}/"
    assert isinstance(await http.execute(task(url)), Succeeded)
    outcome = denied(await http.execute(task(url)))
    assert "(127.0.0.1)" in outcome.message
    assert names.asked == ["evil.example"] * 2
    assert (innocent.connections, inside.connections) == (1, 0)


async def test_an_answer_that_is_remembered_is_judged_at_each_connection(make, serve):
    server = await serve(answer(headers=["Connection: close"]))
    names = Names(evil_example=["127.0.0.1"])
    http = await make(private=False, resolver=names)
    for _ in range(3):
        denied(await http.execute(task(f"http://evil.example:{server.port}/")))
    assert (len(names.asked), server.connections) == (1, 0)


async def test_of_several_addresses_only_the_open_ones_are_connected_to(make, serve):
    closed = await serve(answer())
    opened = await serve(answer(), host="127.0.0.2", port=closed.port)
    names = Names(two_example=[["169.254.169.254", "127.0.0.1", "::1", "127.0.0.2"]])
    http = await make(private=False, allow=["127.0.0.2"], resolver=names)
    assert isinstance(await http.execute(task(f"http://two.example:{opened.port}/")), Succeeded)
    assert (closed.connections, opened.connections) == (0, 1)
    http = await make(private=False, resolver=names)
    denied(await http.execute(task(f"http://two.example:{opened.port}/")))


async def test_an_open_address_that_does_not_answer_is_a_network_error(make):
    names = Names(two_example=[["169.254.169.254", "127.0.0.1"]])
    http = await make(resolver=names)
    outcome = await http.execute(task("http://two.example:1/"))
    assert (outcome.code, outcome.retryable) == ("network", True)


async def test_redirects_are_judged_hop_by_hop(make, serve):
    closed = await serve(answer())
    names = Names(open_example=["127.0.0.2"], inner_example=["127.0.0.1"])
    second = await serve(redirect(f"http://inner.example:{closed.port}/"), host="127.0.0.2")
    first = await serve(redirect(f"http://open.example:{second.port}/"), host="127.0.0.2")
    http = await make(private=False, allow=["127.0.0.2"], resolver=names)
    headers = {"X-Api-Key": "k", "Authorization": "Bearer t"}
    outcome = denied(await http.execute(task(f"http://open.example:{first.port}/", max_redirects=5, headers=headers)))
    assert outcome.is_unknown  # somebody has answered
    assert f"GET http://inner.example:{closed.port}/" in outcome.message
    assert (len(first.requests), len(second.requests), closed.connections) == (1, 1, 0)
    assert {"x-api-key", "authorization"} <= first.last.headers.keys()
    assert not {"x-api-key", "authorization"} & second.last.headers.keys()


async def test_the_host_of_the_url_is_kept(make, serve):
    server = await serve(answer())
    http = await make(private=False, allow=["svc.example"], resolver=Names(svc_example=["127.0.0.1"]))
    await http.execute(task(f"http://svc.example:{server.port}/"))
    assert server.last.headers["host"] == f"svc.example:{server.port}"


async def test_a_name_of_metadata_is_not_even_looked_up(make):
    names = Names()
    http = await make(resolver=names)
    denied(await http.execute(task("http://metadata.google.internal/computeMetadata/v1/")))
    assert names.asked == []


async def test_ports_and_only_allowed(make, serve):
    server = await serve(answer())
    http = await make(ports=[80, 443])
    assert "[egress] ports" in denied(await http.execute(task(server.url))).message
    http = await make(only_allowed=True, allow=["*.example"])
    assert "only_allowed" in denied(await http.execute(task(server.url))).message
    http = await make(only_allowed=True, allow=[f"127.0.0.1:{server.port}"])
    assert isinstance(await http.execute(task(server.url)), Succeeded)


async def test_the_own_control_plane_is_closed_on_every_address_of_this_machine(make, serve):
    server = await serve(answer(), host="0.0.0.0")
    names = Names(self_example=["127.0.0.3"])
    http = await make(own_ports=[server.port], resolver=names)
    for host in ("127.0.0.1", "127.0.0.2", "localhost", "self.example", "[::ffff:127.0.0.1]"):
        if host == "localhost":
            names.answers["localhost"] = ["127.0.0.1"]
        outcome = denied(await http.execute(task(f"http://{host}:{server.port}/")))
        assert "control plane" in outcome.message
    assert server.connections == 0
    http = await make(own_ports=[server.port], allow=[f"127.0.0.1:{server.port}"])
    assert isinstance(await http.execute(task(f"http://127.0.0.1:{server.port}/")), Succeeded)


async def test_a_socket_without_a_request_is_a_bug(make):
    http = await make()
    connector = http._outbound._session.connector
    with pytest.raises(LookupError):
        connector._socket_factory((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1)))


async def test_many_at_once_are_each_judged_for_themselves(make, serve):
    """The context of a request does not leak into another one's connection."""
    server = await serve(answer())
    names = Names(good_example=["127.0.0.1"], evil_example=["127.0.0.1"])
    http = await make(private=False, allow=["good.example"], resolver=names)
    urls = [f"http://{name}.example:{server.port}/" for name in ("good", "evil")] * 20
    outcomes = await asyncio.gather(*(asyncio.create_task(http.execute(task(url))) for url in urls))
    assert [isinstance(one, Succeeded) for one in outcomes] == [True, False] * 20
    assert {request.headers["host"] for request in server.requests} == {f"good.example:{server.port}"}


# --- secrets that are for some hosts only ----------------------------------------------------------------------------

BEARER = {"Authorization": {"$concat": ["Bearer ", {"$secret": "T"}]}}
PLACES = {
    "header": {"headers": BEARER},
    "query": {"query": {"t": {"$secret": "T"}}},
    "json": {"method": "POST", "json": {"t": {"$secret": "T"}}},
    "form": {"method": "POST", "form": {"t": {"$secret": "T"}}},
    "text": {"method": "POST", "text": {"$secret": "T"}},
    "key": {"tls": {"cert": "c", "key": {"$secret": "T"}}},
}


@pytest.mark.parametrize("place", PLACES)
async def test_a_secret_goes_to_its_hosts_and_nowhere_else(make, serve, place):
    server = await serve(answer())
    http = await make()
    for hosts in (("api.example",), ("*.example",), (f"127.0.0.1:{server.port + 1}",), ("127.0.0.2", "[::1]")):
        secrets = {"T": SecretValue("tttoken", hosts)}
        outcome = await http.execute(task(server.url, secrets, **PLACES[place]))
        assert (outcome.code, outcome.retryable) == ("secret_not_allowed", False)
        assert "tttoken" not in str(outcome)
        assert f"the secret T may only be sent to {', '.join(hosts)}, not to 127.0.0.1" in outcome.message
    assert server.connections == 0
    if place != "key":
        secrets = {"T": SecretValue("tttoken", ("api.example", f"127.0.0.1:{server.port}"))}
        assert isinstance(await http.execute(task(server.url, secrets, **PLACES[place])), Succeeded)


async def test_a_redirect_does_not_carry_a_secret_to_another_host(make, serve):
    foreign = await serve(answer(), host="127.0.0.2")
    server = await serve(redirect(foreign.url, 307))
    http = await make()
    secrets = {"T": SecretValue("tttoken", ("127.0.0.1",))}
    outcome = await http.execute(task(server.url, secrets, headers=BEARER, max_redirects=3))
    assert isinstance(outcome, Succeeded)
    assert "authorization" in server.last.headers
    assert "tttoken" not in str(foreign.last.pairs) + foreign.last.target
    body = await http.execute(task(server.url, secrets, method="POST", json={"$secret": "T"}, max_redirects=3))
    assert (body.code, len(foreign.requests)) == ("unsafe_redirect", 1)


async def test_a_secret_with_hosts_goes_along_within_the_host(make, serve):
    server = await serve(lambda request: redirect("/next") if request.target == "/" else answer())
    http = await make()
    secrets = {"T": SecretValue("tttoken", ("127.0.0.1",))}
    assert isinstance(await http.execute(task(server.url, secrets, headers=BEARER, max_redirects=1)), Succeeded)
    assert server.last.headers["authorization"] == "Bearer tttoken"


@pytest.mark.parametrize("name", ["Host", "host"])
async def test_a_header_for_another_host_at_the_same_server_counts(make, serve, name):
    server = await serve(answer())
    http = await make()
    secrets = {"T": SecretValue("tttoken", ("127.0.0.1", "good.example"))}
    for host, code in (("evil.example", "secret_not_allowed"), ({"$secret": "T"}, "invalid_request")):
        outcome = await http.execute(task(server.url, secrets, headers={**BEARER, name: host}))
        assert outcome.code == code
    assert server.connections == 0
    outcome = await http.execute(task(server.url, secrets, headers={**BEARER, name: "good.example"}))
    assert isinstance(outcome, Succeeded)
    assert server.last.headers["host"] == "good.example"
    plain = await http.execute(task(server.url, headers={name: "evil.example"}))
    assert isinstance(plain, Succeeded)
