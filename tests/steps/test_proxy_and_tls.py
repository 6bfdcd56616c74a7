"""Proxies, certificate authorities and client certificates of the step `http`, with real TLS and a real proxy."""

import asyncio
import base64
import contextlib
import datetime as dt
import socket
import ssl
import threading

import pytest
import trustme
from raw_server import PROXY_PASSWORD, Servers, answer

from taskforged.egress import Policy, parse_rule
from taskforged.errors import FailedPreconditionError, NotFoundError
from taskforged.steps.base import Failed, SecretValue, Succeeded, Task
from taskforged.steps.http import HttpExecutor
from taskforged.steps.outbound import Outbound
from taskforged.steps.tls_contexts import _KEPT_MAX, Tls

GUARD = 20
PROXY_AUTH = base64.b64encode(f"alice:{PROXY_PASSWORD}".encode()).decode()


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture(scope="module")
def other_ca():
    return trustme.CA()


def pem(blob):
    return blob.bytes().decode()


def serving(ca, *names, client_ca=None, **how):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(*names, **how).configure_cert(context)
    if client_ca is not None:
        client_ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
async def serve():
    async with Servers() as servers:
        yield servers.start


@pytest.fixture
async def make(tmp_path, ca):
    (tmp_path / "ca.pem").write_text(pem(ca.cert_pem))
    async with contextlib.AsyncExitStack() as stack:

        async def made(*, trusts=False, proxy="", no_proxy=(), **settings):
            settings = {k: list(map(parse_rule, v)) if k in {"allow", "deny"} else v for k, v in settings.items()}
            outbound = Outbound(
                Policy(**settings),
                proxy=proxy,
                no_proxy=list(map(parse_rule, no_proxy)),
                ca_file=str(tmp_path / "ca.pem") if trusts else "",
            )
            http = HttpExecutor(outbound=outbound)
            await http.start()
            stack.push_async_callback(http.close)
            return http

        yield made


def task(url, secrets=None, **config):
    async def lookup(name):
        if name not in (secrets or {}):
            raise NotFoundError(name)
        return SecretValue(secrets[name])

    return Task("run_1", "default", "wf", "call", 1, {"url": url, **config}, GUARD, "run_1/call", "cor_1", lookup)


def failed(outcome, code, *, retryable=False):
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.retryable) == (code, retryable), outcome
    return outcome.message


# --- TLS -------------------------------------------------------------------------------------------------------------


async def test_an_unknown_authority_is_refused_and_the_message_says_how_to_trust_it(make, serve, ca):
    server = await serve(answer(), tls=serving(ca, "127.0.0.1"))
    message = failed(await (await make()).execute(task(server.url)), "tls")
    assert "unable to get local issuer certificate" in message
    assert "tls.ca" in message
    assert "[egress] ca_file" in message


async def test_the_operators_authority_is_trusted(make, serve, ca):
    server = await serve(answer(), tls=serving(ca, "127.0.0.1"))
    assert isinstance(await (await make(trusts=True)).execute(task(server.url)), Succeeded)


async def test_a_steps_authority_is_the_only_one_that_is_trusted(make, serve, ca, other_ca):
    server = await serve(answer(), tls=serving(ca, "127.0.0.1"))
    other = await serve(answer(), tls=serving(other_ca, "127.0.0.1"))
    plain, trusting = await make(), await make(trusts=True)
    mine = {"ca": pem(ca.cert_pem)}
    for http in (plain, trusting):
        assert isinstance(await http.execute(task(server.url, tls=mine)), Succeeded)
        failed(await http.execute(task(other.url, tls=mine)), "tls")
    failed(await trusting.execute(task(server.url, tls={"ca": pem(other_ca.cert_pem)})), "tls")
    assert isinstance(await trusting.execute(task(server.url)), Succeeded)


async def test_a_connection_of_one_tls_is_not_reused_by_another(make, serve, ca):
    """The pool keeps them apart: what one step trusts, or shows, is not another one's."""
    server = await serve(answer(), tls=serving(ca, "127.0.0.1"))
    http = await make()
    assert isinstance(await http.execute(task(server.url, tls={"ca": pem(ca.cert_pem)})), Succeeded)
    failed(await http.execute(task(server.url)), "tls")
    assert isinstance(await http.execute(task(server.url, tls={"ca": pem(ca.cert_pem)})), Succeeded)
    assert len(server.requests) == 2


async def test_the_servers_own_certificate_may_stand_for_its_authority(make, serve, ca):
    leaf = ca.issue_cert("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    leaf.configure_cert(context)
    server = await serve(answer(), tls=context)
    pinned = pem(leaf.cert_chain_pems[0])
    assert isinstance(await (await make()).execute(task(server.url, tls={"ca": pinned})), Succeeded)


async def test_an_expired_certificate(make, serve, ca):
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    server = await serve(answer(), tls=serving(ca, "127.0.0.1", not_after=past))
    assert "expired" in failed(await (await make(trusts=True)).execute(task(server.url)), "tls")


async def test_a_certificate_for_another_host(make, serve, ca):
    server = await serve(answer(), tls=serving(ca, "other.example"))
    message = failed(await (await make(trusts=True)).execute(task(server.url)), "tls")
    assert "127.0.0.1" in message
    assert "mismatch" in message


@pytest.fixture
def blocking():
    """Servers of a kind that says why it ends a handshake, which asyncio's do not."""
    opened = []

    def start(context):
        listening = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=answer_each, args=(listening, context))
        thread.start()
        opened.append((listening, thread))
        return f"https://127.0.0.1:{listening.getsockname()[1]}/"

    yield start
    for listening, thread in opened:
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        listening.close()


def answer_each(listening, context):
    while True:
        try:
            accepted, _ = listening.accept()
        except OSError:
            return
        with accepted:
            wrapped = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
            with wrapped, contextlib.suppress(OSError):
                try:
                    wrapped.do_handshake()
                    wrapped.recv(65536)
                    wrapped.sendall(answer(headers=["Connection: close"]))
                except ssl.SSLError:
                    socket.socket.recv(wrapped, 65536)  # else the reset would overtake the alert


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate_is_demanded_and_shown(make, blocking, ca, other_ca, newest):
    context = serving(ca, "127.0.0.1", client_ca=ca)
    context.maximum_version = newest
    url = blocking(context)
    http = await make(trusts=True)
    mine = ca.issue_cert("client@example.com")
    secrets = {"KEY": pem(mine.private_key_pem), "CERT": "".join(map(pem, mine.cert_chain_pems))}
    shown = {"cert": {"$secret": "CERT"}, "key": {"$secret": "KEY"}}
    assert isinstance(await http.execute(task(url, secrets, tls=shown)), Succeeded)
    outcome = await http.execute(task(url))
    assert "the server ended TLS" in failed(outcome, "tls")
    assert "tls.cert and tls.key" in outcome.message
    assert not outcome.is_unknown
    foreign = other_ca.issue_cert("client@example.com")
    secrets = {"KEY": pem(foreign.private_key_pem), "CERT": pem(foreign.cert_chain_pems[0])}
    assert "unknown ca" in failed(await http.execute(task(url, secrets, tls=shown)), "tls")


async def test_a_redirect_to_another_origin_leaves_tls_behind(make, serve, ca):
    seen = []

    async def look(reader, writer):
        seen.append(writer.get_extra_info("peercert"))
        writer.write(answer())
        await writer.drain()

    asking = serving(ca, "127.0.0.1", client_ca=ca)
    asking.verify_mode = ssl.CERT_OPTIONAL
    foreign = await serve(lambda _: look, tls=asking)
    first = await serve(
        lambda _: answer(302, headers=[f"Location: {foreign.url}/"]), tls=serving(ca, "127.0.0.1", client_ca=ca)
    )
    mine = ca.issue_cert("client@example.com")
    tls = {"cert": pem(mine.cert_chain_pems[0]), "key": pem(mine.private_key_pem)}
    http = await make(trusts=True)
    assert isinstance(await http.execute(task(first.url, tls=tls, max_redirects=1)), Succeeded)
    assert seen == [None]
    assert isinstance(await http.execute(task(foreign.url, tls=tls)), Succeeded)
    assert seen[1]["subjectAltName"] == (("email", "client@example.com"),)


async def test_pem_that_is_none(make, serve, ca, other_ca):
    server = await serve(answer(), tls=serving(ca, "127.0.0.1"))
    http = await make()
    mine, other = ca.issue_cert("a@example.com"), ca.issue_cert("b@example.com")
    cert, key = pem(mine.cert_chain_pems[0]), pem(mine.private_key_pem)
    for tls, part in (
        ({"ca": "no certificate"}, "tls.ca holds no certificate"),
        ({"ca": "kein Zertifikat, ä"}, "tls.ca holds no certificate"),
        ({"cert": "x", "key": "y"}, "are no certificate and unencrypted key"),
        ({"cert": cert, "key": "y"}, "are no certificate and unencrypted key"),
        ({"cert": cert, "key": pem(other.private_key_pem)}, "do not belong together"),
        ({"cert": cert}, "only together"),
        ({"ca": "x" * 200_000}, "131,072"),
        ({"verify": "no"}, "tls has ca, cert and key"),
        ("x", "tls must be an object"),
    ):
        message = failed(await http.execute(task(server.url, tls=tls)), "invalid_request")
        assert part in message
        assert key not in message
    assert server.requests == []


async def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(make, serve, ca):
    from cryptography.hazmat.primitives import serialization

    mine = ca.issue_cert("a@example.com")
    key = serialization.load_pem_private_key(mine.private_key_pem.bytes(), None)
    sealed = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    ).decode()
    tls = {"cert": pem(mine.cert_chain_pems[0]), "key": sealed}
    assert "unencrypted" in failed(
        await (await make()).execute(task("https://127.0.0.1:1/", tls=tls)), "invalid_request"
    )


async def test_the_key_of_a_client_is_masked(make, serve, ca):
    mine = ca.issue_cert("client@example.com")
    key = pem(mine.private_key_pem)
    line = key.splitlines()[1]
    server = await serve(answer(body=line.encode(), kind="text/plain"), tls=serving(ca, "127.0.0.1"))
    tls = {"ca": pem(ca.cert_pem), "cert": pem(mine.cert_chain_pems[0]), "key": {"$secret": "KEY"}}
    outcome = await (await make()).execute(task(server.url, {"KEY": key}, tls=tls))
    assert outcome.output["body"] == "***"


async def test_contexts_are_kept_within_bounds_and_made_once(make, ca):
    contexts = (await make())._outbound._contexts
    mine = [Tls(ca=f"{n}\n{pem(ca.cert_pem)}") for n in range(_KEPT_MAX + 5)]
    first = await asyncio.gather(*(contexts.of(mine[0]) for _ in range(10)))
    assert len(set(map(id, first))) == 1
    for one in mine:
        await contexts.of(one)
    assert len(contexts._kept) == _KEPT_MAX
    assert mine[0].digest not in contexts._kept


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_file_of_authorities_that_cannot_be_used_is_an_error_at_the_start(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FailedPreconditionError, match=r"\[egress\] ca_file"):
        await Outbound(ca_file=str(path)).start()


# --- proxies ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def proxying():
    async with Servers() as servers:
        yield servers.start_proxy


async def test_requests_go_through_the_proxy_which_looks_the_name_up(make, serve, proxying):
    server = await serve(answer(headers=["Connection: close"]))
    proxy = await proxying(hosts={"far.example": "127.0.0.1"})
    http = await make(proxy=proxy.url)
    assert isinstance(await http.execute(task(f"http://far.example:{server.port}/x?y=1")), Succeeded)
    assert proxy.asked == [f"GET http://far.example:{server.port}/x?y=1"]
    assert server.last.headers["host"] == f"far.example:{server.port}"


@pytest.mark.parametrize("proxy_tls", [False, True])
async def test_tls_goes_through_a_tunnel(make, serve, proxying, ca, proxy_tls):
    server = await serve(answer(headers=["Connection: close"]), tls=serving(ca, "far.example"))
    proxy = await proxying(
        hosts={"far.example": "127.0.0.1"}, auth=PROXY_AUTH, tls=serving(ca, "127.0.0.1") if proxy_tls else None
    )
    http = await make(proxy=proxy.with_user, trusts=True)
    secret = {"T": "tttoken"}
    headers = {"Authorization": {"$secret": "T"}}
    outcome = await http.execute(task(f"https://far.example:{server.port}/", secret, headers=headers))
    assert isinstance(outcome, Succeeded), outcome
    assert proxy.asked == [f"CONNECT far.example:{server.port}"]
    assert "tttoken" not in "".join(proxy.heads)
    assert "proxy-authorization" not in server.last.headers
    assert server.last.headers["authorization"] == "tttoken"


async def test_the_proxys_password_is_sent_to_it_and_seen_nowhere(make, serve, proxying):
    proxy = await proxying(auth=PROXY_AUTH)
    echo = f"{PROXY_PASSWORD} {PROXY_AUTH}".encode()
    server = await serve(answer(body=echo, kind="text/plain", headers=["Connection: close"]))
    http = await make(proxy=proxy.with_user)
    outcome = await http.execute(task(server.url))
    assert outcome.output["body"] == "*** ***"
    refused = await (await make(proxy=proxy.url)).execute(task(server.url))
    assert failed(refused, "http_status").endswith("answered 407")


async def test_a_proxy_that_is_not_there_or_refuses(make, proxying):
    gone = await make(proxy="http://127.0.0.1:1")
    message = failed(await gone.execute(task("http://far.example/")), "proxy", retryable=True)
    assert "no connection to the proxy" in message
    for status, retryable in ((403, False), (407, False), (502, True)):
        proxy = await proxying(refusal=f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
        outcome = await (await make(proxy=proxy.url)).execute(task("https://far.example/"))
        assert f"it answered {status}" in failed(outcome, "proxy", retryable=retryable)
        assert not outcome.is_unknown


async def test_what_needs_no_proxy(make, serve, proxying):
    server = await serve(answer())
    proxy = await proxying(hosts={"far.example": "127.0.0.1"})
    for rule in ("127.0.0.0/8", f"127.0.0.1:{server.port}", "*"):
        http = await make(proxy=proxy.url, no_proxy=[rule])
        assert isinstance(await http.execute(task(server.url)), Succeeded)
    assert proxy.asked == []
    http = await make(proxy=proxy.url, no_proxy=["localhost", "127.0.0.2", "127.0.0.1:1"])
    assert isinstance(await http.execute(task(server.url)), Succeeded)
    assert len(proxy.asked) == 1


async def test_the_policy_holds_before_the_proxy_hears_of_it(make, serve, proxying):
    server = await serve(answer())
    proxy = await proxying()
    http = await make(proxy=proxy.url, private=False, deny=["*.evil.example"])
    for host in ("127.0.0.1", "[::ffff:7f00:1]", "127.1", "localhost", "169.254.169.254", "x.evil.example", "metadata"):
        failed(await http.execute(task(f"http://{host}:{server.port}/")), "egress_denied")
        failed(await http.execute(task(f"https://{host}:{server.port}/")), "egress_denied")
    http = await make(proxy=proxy.url, only_allowed=True, allow=["*.example"])
    failed(await http.execute(task("http://far.test/")), "egress_denied")
    assert (proxy.asked, server.connections) == ([], 0)


async def test_a_redirect_behind_a_proxy_is_judged(make, serve, proxying):
    closed = await serve(answer())
    server = await serve(answer(302, headers=[f"Location: {closed.url}/", "Connection: close"]))
    proxy = await proxying(hosts={"far.example": "127.0.0.1"})
    http = await make(proxy=proxy.url, private=False)
    failed(await http.execute(task(f"http://far.example:{server.port}/", max_redirects=2)), "egress_denied")
    assert (len(proxy.asked), closed.connections) == (1, 0)


async def test_tls_of_a_step_is_not_shared_with_a_proxy(make, serve, proxying, ca):
    proxy = await proxying(tls=serving(ca, "127.0.0.1"))
    http = await make(proxy=proxy.url, trusts=True)
    outcome = await http.execute(task("https://far.example/", tls={"ca": pem(ca.cert_pem)}))
    assert "proxy" in failed(outcome, "invalid_request")
    assert proxy.asked == []


async def test_proxies_of_the_environment_do_not_count(make, serve, proxying, monkeypatch):
    server = await serve(answer())
    proxy = await proxying()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert isinstance(await (await make()).execute(task(server.url)), Succeeded)
    assert proxy.asked == []
