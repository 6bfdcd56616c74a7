"""The step `http` against real servers on loopback: honest ones, lying ones and those that just stop."""

import asyncio
import base64
import datetime as dt
import gzip
import json
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from raw_server import Servers, answer

from taskforged.errors import NotFoundError
from taskforged.steps.base import Failed, SecretValue, Succeeded, Task
from taskforged.steps.http import HttpExecutor

SHORT = 0.2
GUARD = 20
VAULT = {"TOKEN": "s3cr3t/value+1", "PIN": "12345678"}
TOKEN = {"$secret": "TOKEN"}
NOW = 1_700_000_000.0


@pytest.fixture
async def serve():
    async with Servers() as servers:
        yield servers.start


@pytest.fixture
async def http():
    executor = HttpExecutor(response_bytes_max=100_000, now=lambda: NOW)
    await executor.start()
    await executor.start()
    yield executor
    await executor.close()
    await executor.close()


async def vault(name):
    if name not in VAULT:
        raise NotFoundError(name)
    return SecretValue(VAULT[name])


def task(url, timeout_s=GUARD, **config):
    return Task("run_1", "default", "wf", "call", 1, {"url": url, **config}, timeout_s, "run_1/call", "cor_1", vault)


async def call(http, server, path="/", **config):
    return await http.execute(task(server.url + path, **config))


# What is sent


async def test_a_plain_get(http, serve):
    server = await serve(
        answer(body=b'{"ok": [1, 2.5, null]}', headers=["X-A: 1", "x-a: 2", "Set-Cookie: a=1", "Set-Cookie: b=2"])
    )
    outcome = await call(http, server, "/path?x=%2F+1")
    assert outcome.output["status"] == 200
    assert outcome.output["body"] == {"ok": [1, 2.5, None]}
    assert outcome.output["headers"]["x-a"] == "1, 2"
    assert outcome.output["headers"]["set-cookie"] == "a=1\nb=2"
    sent = server.last
    assert (sent.method, sent.target, sent.body) == ("GET", "/path?x=%2F+1", b"")
    assert sent.headers["idempotency-key"] == "run_1/call"
    assert sent.headers["x-correlation-id"] == "cor_1"
    assert sent.headers["user-agent"].startswith("taskforge/")
    assert "content-type" not in sent.headers


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "purge"])
async def test_without_a_body_there_is_no_type(http, serve, method):
    server = await serve(answer())
    await call(http, server, method=method)
    assert server.last.method == method.upper()
    assert "content-type" not in server.last.headers


async def test_cookies_are_not_kept_and_connections_are(http, serve):
    server = await serve(answer(headers=["Set-Cookie: a=1"]))
    for _ in range(3):
        await call(http, server)
    assert server.connections == 1
    assert "cookie" not in server.last.headers


@pytest.mark.parametrize(
    ("config", "body", "kind"),
    [
        ({"json": {"b": 1, "a": "ü"}}, '{"a":"ü","b":1}'.encode(), "application/json"),
        ({"json": None}, b"null", "application/json"),
        ({"form": {"a": "1 2", "b": [True, 3], "c": None}}, b"a=1+2&b=true&b=3", "application/x-www-form-urlencoded"),
        ({"text": "hü"}, "hü".encode(), "text/plain; charset=utf-8"),
        ({"text": "a,b", "headers": {"content-type": "text/csv"}}, b"a,b", "text/csv"),
        ({"json": {"x": "y" * 2_000_000}}, b'{"x":"' + b"y" * 2_000_000 + b'"}', "application/json"),
    ],
)
async def test_bodies(http, serve, config, body, kind):
    server = await serve(answer())
    assert isinstance(await call(http, server, method="post", **config), Succeeded)
    assert (server.last.method, server.last.body, server.last.headers["content-type"]) == ("POST", body, kind)


async def test_query_and_headers(http, serve):
    server = await serve(answer())
    await call(
        http,
        server,
        "/p?a=1#frag",
        query={"b": "x y&ü", "c": [1, True], "d": None},
        headers={"X-N": 5, "Idempotency-Key": "mine", "X-None": None, "User-Agent": "me"},
    )
    assert server.last.target == "/p?a=1&b=x+y%26%C3%BC&c=1&c=true"
    names = [name.lower() for name, _ in server.last.pairs]
    assert len(names) == len(set(names))
    assert server.last.headers["x-n"] == "5"
    assert server.last.headers["idempotency-key"] == "mine"
    assert server.last.headers["user-agent"] == "me"
    assert "x-none" not in server.last.headers


async def test_a_signed_url_goes_out_as_it_is_written(http, serve):
    server = await serve(answer())
    await call(http, server, "/a%2fb%41//c/../d?sig=%2b%2F~+=&e")
    assert server.last.target == "/a%2fb%41//c/../d?sig=%2b%2F~+=&e"


async def test_a_user_in_the_url_is_basic_authentication(http, serve):
    server = await serve(lambda r: answer(302, headers=["Location: /next"]) if r.target == "/" else answer())
    await http.execute(task(server.url.replace("//", "//ada:p%40ss@")))
    assert [r.headers["authorization"] for r in server.requests] == [
        "Basic " + base64.b64encode(b"ada:p@ss").decode()
    ] * 2


@pytest.mark.parametrize(
    "config",
    [
        {"headers": {"X-A": "a\r\nX-B: b"}},
        {"headers": {"X-A": "a\nb"}},
        {"headers": {"X-A": "a\0b"}},
        {"headers": {"X A": "b"}},
        {"headers": {"": "b"}},
        {"headers": {"X\r\n": "b"}},
        {"headers": {"Content-Length": "1"}},
        {"headers": {"Transfer-Encoding": "chunked"}},
        {"headers": {"X": ["a"]}},
        {"headers": ["a"]},
        {"query": "a=b"},
        {"query": {"a": {"b": 1}}},
        {"method": "GET\r\n"},
        {"method": "CONNECT"},
        {"method": 5},
        {"json": 1, "text": "a"},
        {"text": 5},
        {"form": "a=b"},
        {"accept": [200]},
        {"max_redirects": -1},
        {"max_response_bytes": "5"},
        {"text": {"$concat": 5}},
    ],
)
async def test_what_cannot_be_sent(http, serve, config):
    server = await serve(answer())
    outcome = await call(http, server, **config)
    assert (outcome.code, outcome.retryable) == ("invalid_request", False)
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/path",
        "ftp://x/",
        "file:///etc/passwd",
        "http://",
        "http:///x",
        "http://h:99999/",
        "http://[::1",
        "http://a\r\nb/",
        "http://a\0/",
        "http://" + "a" * 70 + ".example/",
        "http://h:x/",
        "http://ex ample/",
        None,
        5,
        {"a": 1},
        "javascript:1",
        "http://xn--\u2764\u2764/",
    ],
)
async def test_urls_that_are_none(http, url):
    outcome = await http.execute(task(url))
    assert (outcome.code, outcome.retryable) == ("invalid_request", False)


# Secrets


async def test_secrets_are_sent_and_never_come_back(http, serve):
    def echo(request):
        encoded = base64.b64encode(b"x" + request.body).decode()
        return answer(
            body=json.dumps(
                {
                    "body": request.body.decode(),
                    "target": request.target,
                    "b64": encoded,
                    request.headers["x-key"]: 12345678,
                }
            ).encode(),
            headers=["X-Echo: " + request.headers["authorization"]],
        )

    server = await serve(echo)
    outcome = await call(
        http,
        server,
        method="POST",
        headers={"Authorization": {"$concat": ["Bearer ", TOKEN]}, "X-Key": TOKEN},
        query={"t": TOKEN, "p": {"$secret": "PIN"}},
        text={"$concat": ["<", TOKEN, ">"]},
    )
    assert server.last.headers["authorization"] == "Bearer s3cr3t/value+1"
    assert server.last.target == "/?t=s3cr3t/value%2B1&p=12345678"
    assert server.last.body == b"<s3cr3t/value+1>"
    assert outcome.output["body"]["body"] == "<***>"
    assert outcome.output["body"]["***"] == "***"
    assert outcome.output["headers"]["x-echo"] == "Bearer ***"
    for form in ("s3cr3t", "czNjcjN0", base64.b64encode(b"x<s3cr3t/value")[4:-4].decode(), "12345678"):
        assert form not in json.dumps(outcome.output)


async def test_echoes_in_failures_are_masked_also_at_the_end_of_the_excerpt(http, serve):
    server = await serve(lambda r: answer(500, b"x" * 4090 + r.headers["x-key"].encode() * 3, kind="text/plain"))
    outcome = await call(http, server, headers={"X-Key": TOKEN})
    assert outcome.details["body"] == "x" * 4090 + "***"
    assert "s3cr3t" not in repr(outcome)


async def test_a_missing_secret_is_named(http, serve):
    server = await serve(answer())
    outcome = await call(http, server, headers={"X": {"$secret": "NOPE"}})
    assert (outcome.code, outcome.retryable, outcome.details) == ("secret_missing", False, {"secret": "NOPE"})
    assert "NOPE" in outcome.message
    assert server.requests == []


async def test_a_secret_with_a_line_break_does_not_leak_into_the_error(http, serve, monkeypatch):
    monkeypatch.setitem(VAULT, "BAD", "top-secret\nvalue")
    server = await serve(answer())
    outcome = await call(http, server, headers={"X-Bad": {"$secret": "BAD"}})
    assert outcome.code == "invalid_request"
    assert "top-secret" not in repr(outcome)


# Statuses


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_retryable_statuses(http, serve, status):
    server = await serve(answer(status, b"busy", ["Retry-After: 7"], "text/plain"))
    outcome = await call(http, server)
    assert (outcome.code, outcome.retryable, outcome.retry_after_s) == ("http_status", True, 7.0)
    assert (outcome.details["status"], outcome.details["body"]) == (status, "busy")
    assert outcome.details["headers"]["retry-after"] == "7"


@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 404, 409, 410, 422, 451])
async def test_statuses_that_no_retry_mends(http, serve, status):
    server = await serve(answer(status, headers=["Retry-After: 7"]))
    outcome = await call(http, server)
    assert (outcome.code, outcome.retryable, outcome.retry_after_s) == ("http_status", False, None)


async def test_accepted_statuses(http, serve):
    server = await serve(answer(404, b"{}"))
    assert isinstance(await call(http, server, accept=[[200, 299], [404, 404]]), Succeeded)
    assert isinstance(await call(http, server, accept=[[200, 200]]), Failed)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("3", 3),
        ("99999", 3600),
        ("9" * 500, 3600),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0),
        ("Sat, 01 Jan 2050 00:00:00 GMT", 3600),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
        ("²", None),
        ("Tue, 99 Foo 2023 99:99:99 GMT", None),
    ],
)
async def test_retry_after(http, serve, text, seconds):
    server = await serve(answer(503, headers=[f"Retry-After: {text}"]))
    assert (await call(http, server)).retry_after_s == seconds


# Redirects


async def test_redirects_within_the_origin_keep_everything(http, serve):
    server = await serve(
        lambda r: answer(307, headers=["Location: b?x=1#f"]) if r.target == "/a/a" else answer(body=b"1")
    )
    outcome = await call(http, server, "/a/a", method="PUT", json={"a": TOKEN}, headers={"X-Api-Key": TOKEN})
    assert outcome.output["body"] == 1
    first, second = server.requests
    assert second.target == "/a/b?x=1"
    assert (second.method, second.body, second.headers["x-api-key"]) == ("PUT", first.body, VAULT["TOKEN"])


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (303, "PUT", "GET"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
        (301, "PUT", "PUT"),
        (302, "DELETE", "DELETE"),
        (302, "GET", "GET"),
    ],
)
async def test_the_method_after_a_redirect(http, serve, status, method, then):
    server = await serve(lambda r: answer(status, headers=["Location: /b"]) if r.target == "/" else answer())
    await call(http, server, method=method, json={"a": 1}, headers={"Content-Language": "de"})
    assert server.last.method == then
    assert (server.last.body == b"") == (then != method)
    assert ("content-type" in server.last.headers) == (then == method)
    assert ("content-language" in server.last.headers) == (then == method)
    assert server.last.headers["idempotency-key"] == "run_1/call"


async def test_another_origin_gets_none_of_the_callers_headers(http, serve):
    other = await serve(answer())
    server = await serve(lambda r: answer(302, headers=[f"Location: http://evil:pw@127.0.0.1:{other.port}/b"]))
    headers = {
        "Authorization": "Bearer x",
        "Cookie": "a=b",
        "X-Api-Key": "k",
        "Idempotency-Key": "mine",
        "Accept": "text/html",
        "Accept-Language": TOKEN,
    }
    assert isinstance(await call(http, server, headers=headers), Succeeded)
    sent = other.last.headers
    assert not {"authorization", "cookie", "x-api-key", "accept-language"} & set(sent)
    assert sent["accept"] == "text/html"
    assert sent["idempotency-key"] == "run_1/call"


async def test_what_was_dropped_does_not_come_back(http, serve):
    async def no(*_): ...

    first = await serve(no)
    other = await serve(lambda r: answer(302, headers=[f"Location: {first.url}/back"]))
    first.script = lambda r: answer() if r.target == "/back" else answer(302, headers=[f"Location: {other.url}/"])
    await call(http, first, headers={"X-Api-Key": "k"})
    assert [r.headers.get("x-api-key") for r in first.requests] == ["k", None]


async def test_a_body_without_secrets_follows_to_another_origin(http, serve):
    other = await serve(answer())
    server = await serve(answer(308, headers=[f"Location: {other.url}/b"]))
    await call(http, server, method="POST", json={"a": 1}, headers={"X-Api-Key": TOKEN})
    assert (other.last.method, other.last.body, other.last.headers["content-type"]) == (
        "POST",
        b'{"a":1}',
        "application/json",
    )
    assert "x-api-key" not in other.last.headers


async def test_a_body_with_secrets_does_not(http, serve):
    other = await serve(answer())
    server = await serve(answer(307, headers=[f"Location: {other.url}/b"]))
    outcome = await call(http, server, method="POST", json={"a": TOKEN})
    assert (outcome.code, outcome.retryable) == ("unsafe_redirect", False)
    assert other.requests == []


@pytest.mark.parametrize(
    "location",
    ["ftp://x/", "file:///etc/passwd", "javascript:alert(1)", "http://[::1", "gopher://127.0.0.1:70/"],
)
async def test_redirects_to_anything_but_http(http, serve, location):
    server = await serve(answer(302, headers=[f"Location: {location}"]))
    outcome = await call(http, server)
    assert (outcome.code, outcome.retryable) == ("unsafe_redirect", False)


async def test_redirects_without_end(http, serve):
    server = await serve(answer(302, headers=["Location: /"]))
    outcome = await call(http, server, max_redirects=3)
    assert (outcome.code, outcome.retryable) == ("too_many_redirects", False)
    assert len(server.requests) == 4


async def test_with_no_redirects_allowed_it_is_a_status(http, serve):
    server = await serve(answer(302, headers=["Location: /x"]))
    failed = await call(http, server, max_redirects=0)
    assert failed.code == "http_status"
    assert "max_redirects" in failed.message
    assert (await call(http, server, max_redirects=0, accept=[[302, 302]])).output["headers"]["location"] == "/x"
    assert len(server.requests) == 2


async def test_a_redirect_without_a_location_is_a_status(http, serve):
    server = await serve(answer(302))
    assert (await call(http, server)).details["status"] == 302


# Bodies that come back


@pytest.mark.parametrize(
    ("kind", "raw", "body"),
    [
        ("application/json", b"", None),
        ("application/json; charset=utf-8", b'"\xc3\xbc"', "ü"),
        ("application/problem+json", b"[1]", [1]),
        ("application/json", b"\xef\xbb\xbf[1]", [1]),
        ("application/json; charset=iso-8859-1", b'"\xfc"', "ü"),
        ("text/html; charset=latin-1", b"\xfc", "ü"),
        ("text/plain", b"\xff", "\ufffd"),
        ("text/plain; charset=rot13", b"abc", "abc"),
        ("text/plain; charset=unicode_escape", b"\\ud800", "\\ud800"),
        ("text/plain; charset=no-such", b"abc", "abc"),
        ("application/atom+xml", b"<a/>", "<a/>"),
        ("", b"plain", "plain"),
        ("", b"\xff", {"base64": "/w=="}),
        ("image/png", b"\x89PNG", {"base64": "iVBORw=="}),
    ],
)
async def test_bodies_by_type(http, serve, kind, raw, body):
    server = await serve(answer(body=raw, kind=kind))
    assert (await call(http, server)).output["body"] == body


@pytest.mark.parametrize("raw", [b"{", b"NaN", b'{"a":1,"a":2}', b"[" * 5000, b'"\\ud800"', b"\xff", b"9" * 40])
async def test_json_that_is_none(http, serve, raw):
    server = await serve(answer(body=raw))
    outcome = await call(http, server)
    assert (outcome.code, outcome.retryable) == ("invalid_json", False)
    assert outcome.details["status"] == 200


async def test_the_excerpt_is_bounded(http, serve):
    server = await serve(answer(400, b"x" * 50_000, kind="text/plain"))
    assert (await call(http, server)).details["body"] == "x" * 4096


async def test_the_limit_is_the_last_size_that_passes(http, serve):
    server = await serve(lambda r: answer(body=b"x" * int(r.target[1:]), kind="text/plain"))
    assert len((await call(http, server, "/1000", max_response_bytes=1000)).output["body"]) == 1000
    outcome = await call(http, server, "/1001", max_response_bytes=1000)
    assert (outcome.code, outcome.retryable) == ("response_too_large", False)
    assert (await call(http, server, "/100001", max_response_bytes=10**9)).code == "response_too_large"


async def test_the_limit_counts_what_is_decompressed(http, serve):
    bomb = gzip.compress(b"\0" * 50_000_000)
    server = await serve(answer(body=bomb, headers=["Content-Encoding: gzip"], kind="text/plain"))
    assert len(bomb) < 100_000
    assert (await call(http, server)).code == "response_too_large"
    async with asyncio.timeout(GUARD):
        await server.gone.wait()


async def test_a_compressed_answer(http, serve):
    server = await serve(answer(body=gzip.compress(b'{"a":1}'), headers=["Content-Encoding: gzip"]))
    assert (await call(http, server)).output["body"] == {"a": 1}


async def test_an_endless_answer_is_cut_and_the_connection_closed(http, serve):
    def endless(request):
        async def flood(reader, writer):
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n")
                await writer.drain()

        return flood

    server = await serve(endless)
    assert (await call(http, server)).code == "response_too_large"
    async with asyncio.timeout(GUARD):
        await server.gone.wait()


async def test_headers_with_bytes_that_are_no_text(http, serve):
    server = await serve(answer(headers=["X-A: \xff\xc3\xbc"]))
    assert (await call(http, server)).output["headers"]["x-a"] == "\ufffdü"


async def test_head_has_no_body(http, serve):
    server = await serve(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nContent-Type: application/json\r\n\r\n")
    assert (await call(http, server, method="HEAD")).output["body"] is None


# Servers that lie, stop or break


def then_close(data):
    async def script(reader, writer):
        writer.write(data)
        await writer.drain()
        writer.close()
        return True

    return lambda request: script


def then_reset(data):
    async def script(reader, writer):
        writer.write(data)
        await writer.drain()
        writer.transport.abort()
        return True

    return lambda request: script


@pytest.mark.parametrize(
    "script",
    [
        then_close(b""),
        then_reset(b""),
        then_close(b"HTTP/1.1 200 OK\r\nContent-Le"),
        then_close(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
        then_reset(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
        then_close(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
        then_close(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n"),
        then_close(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\n\r\nabc"),
        then_close(b"SSH-2.0-OpenSSH_9.2\r\n"),
        then_close(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"),
        then_close(b"HTTP/1.1 abc OK\r\n\r\n"),
    ],
)
async def test_an_answer_that_is_broken_is_a_network_error(http, serve, script):
    server = await serve(script)
    outcome = await call(http, server, method="POST")
    assert (outcome.code, outcome.retryable, outcome.is_unknown) == ("network", True, True), outcome


async def test_a_body_until_the_connection_closes(http, serve):
    server = await serve(then_close(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it"))
    assert (await call(http, server)).output["body"] == "all of it"


async def test_nobody_listens(http, serve):
    listening = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    listening.close()
    await listening.wait_closed()
    outcome = await http.execute(task(f"http://127.0.0.1:{port}/path?token=abc"))
    assert (outcome.code, outcome.retryable, outcome.is_unknown) == ("network", True, False)
    assert f"127.0.0.1:{port}" in outcome.message
    assert "abc" not in outcome.message


async def test_a_name_that_does_not_exist(http):
    outcome = await http.execute(task("http://no-such-name.invalid/"))
    assert (outcome.code, outcome.retryable, outcome.is_unknown) == ("network", True, False)


def never(data=b""):
    async def script(reader, writer):
        writer.write(data)
        await reader.read()
        raise ConnectionError

    return lambda request: script


def trickle(request):
    async def script(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(SHORT / 10)

    return script


@pytest.mark.parametrize(
    "script",
    [never(), never(b"HTTP/1.1 200 OK\r\n"), never(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), trickle],
)
async def test_a_server_that_is_too_slow(http, serve, script):
    server = await serve(script)
    outcome = await call(http, server, timeout_s=SHORT)
    assert (outcome.code, outcome.retryable) == ("timeout", True)
    async with asyncio.timeout(GUARD):
        await server.gone.wait()


async def test_the_default_timeout(serve):
    http = HttpExecutor(timeout_s=SHORT)
    await http.start()
    server = await serve(never())
    outcome = await call(http, server, timeout_s=None)
    assert (outcome.code, outcome.is_unknown) == ("timeout", True)
    await http.close()


async def test_the_whole_chain_of_redirects_has_one_deadline(http, serve):
    def slowly(request):
        async def script(reader, writer):
            await asyncio.sleep(SHORT / 4)
            writer.write(answer(302, headers=["Location: /"]))

        return script

    server = await serve(slowly)
    assert (await call(http, server, timeout_s=SHORT, max_redirects=20)).code == "timeout"


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
async def test_cancelling_closes_the_connection(http, serve, data):
    arrived = asyncio.Event()
    inner = never(data)

    def script(request):
        arrived.set()
        return inner(request)

    server = await serve(script)
    attempt = asyncio.create_task(call(http, server))
    await arrived.wait()
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    async with asyncio.timeout(GUARD):
        await server.gone.wait()


async def test_a_connection_that_the_server_closed_meanwhile(http, serve):
    """An idempotent method goes out again; the caller does not notice."""
    server = await serve(then_close(answer(body=b"1")))
    for _ in range(3):
        assert (await call(http, server)).output["body"] == 1


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    signed = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - dt.timedelta(1), now + dt.timedelta(1)
    ).sign(key, hashes.SHA256())
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(plain + signed.public_bytes(serialization.Encoding.PEM))
    return path


async def test_a_certificate_that_nobody_signed(http, serve, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = await serve(answer(), tls=context)
    outcome = await call(http, server)
    assert (outcome.code, outcome.retryable, outcome.is_unknown) == ("tls", False, False)
    assert server.requests == []


async def test_a_server_that_does_not_speak_tls(http, serve):
    async def plain(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(plain, "127.0.0.1", 0)
    outcome = await http.execute(task(f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"))
    assert outcome.code in {"tls", "network"}
    listening.close()


# What a failure says about the effect


@pytest.mark.parametrize(
    ("status", "is_unknown"),
    [(400, False), (408, False), (429, False), (500, False), (502, True), (503, False), (504, True)],
)
async def test_only_a_gateway_does_not_know(http, serve, status, is_unknown):
    server = await serve(answer(status))
    assert (await call(http, server)).is_unknown is is_unknown


async def test_an_accepted_request_whose_answer_is_of_no_use(http, serve):
    for raw in (b"{", b'"' + b"x" * 200_000 + b'"'):
        assert (await call(http, await serve(answer(body=raw)), method="POST")).is_unknown


async def test_a_redirect_is_an_answer_to_what_was_sent(http, serve):
    for target in ("http://127.0.0.1:1/", "ftp://x/", "http://[::1", "/"):
        server = await serve(answer(303, headers=[f"Location: {target}"]))
        assert (await call(http, server, method="POST", max_redirects=1)).is_unknown, target
    assert not (await http.execute(task("http://127.0.0.1:1/"))).is_unknown


async def test_it_must_be_started():
    with pytest.raises(RuntimeError):
        await HttpExecutor().execute(task("http://127.0.0.1/"))


async def test_a_failure_names_method_and_path_and_neither_query_nor_user(http, serve):
    server = await serve(answer(404))
    url = server.url.replace("//", "//alice:pass@") + "/some/path?key=value#end"
    failed = await http.execute(task(url, method="POST"))
    assert failed.message == f"POST {server.url}/some/path answered 404"
    gone = await http.execute(task("http://alice:pass@127.0.0.1:1/some/path?key=value"))
    assert gone.message.startswith("GET http://127.0.0.1:1/some/path: no connection")
    long = await call(http, server, "/" + "x" * 5000)
    assert len(long.message) < 300
