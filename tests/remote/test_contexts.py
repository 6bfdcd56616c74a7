"""`taskforgectl context` and what commands do with one, against real daemons."""

import io
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from cli.support import Typist
from remote.support import CA, OTHER_CA, bare_server, chain_of, fingerprint, here, leaf, put, shown

from taskforgectl import trust
from taskforgectl.contexts import ContextBook
from taskforgectl.errors import CliError
from taskforgectl.kinds import CONTEXT
from taskforgectl.options import Settings

WRONG = ":".join(["AB"] * 32)


@pytest.fixture
def ca(tmp_path):
    """The CA's certificate as a file."""
    path = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def there(secured):
    """Where the shared daemon is reached, by an address that its certificate names."""
    return here(secured.tcp)


def seen(address):
    return trust.fingerprint_of(shown(address))


# Who is believed


def test_a_ca(client, secured, there, ca):
    item = client.json("context", "add", "prod", "--address", there, "--ca", ca, "--token", secured.token)
    assert (item["proof"], item["ca"], item["fingerprint"], item["has_token"]) == ("CA", ca, None, True)
    assert client.json("--context", "prod", "status")["pid"] == secured.pid


def test_a_pin_needs_no_name(client, secured, there):
    put(secured.home / "tls", leaf("elsewhere.example"))
    client("context", "add", "prod", "--address", there, "--fingerprint", seen(there), "--token", secured.token)
    assert client.json("--context", "prod", "status")["pid"] == secured.pid


@pytest.mark.parametrize("form", [str, str.lower, lambda text: text.replace(":", ""), lambda text: f"SHA256:{text}"])
def test_a_fingerprint_in_any_form(form):
    plain = ":".join(f"{number:02X}" for number in range(32))
    assert trust.parse_fingerprint(form(plain)) == plain


@pytest.mark.parametrize("text", ["", "AB", ":".join(["AB"] * 20), "G" * 64, "AB:" * 33])
def test_what_is_no_fingerprint(client, text):
    with pytest.raises(CliError, match="is not a SHA-256 fingerprint"):
        trust.parse_fingerprint(text)


def test_a_first_sight_is_refused_without_a_terminal_and_asked_with_one(client, secured, there):
    add = ("context", "add", "prod", "--address", there, "--token", secured.token)
    told = client(*add, code=4).err
    assert f"--fingerprint {seen(there)}" in told
    assert client("context", "list").out.startswith("no contexts yet")
    assert seen(there) in client(*add, code=130, stdin=Typist("n\n")).err
    assert client("context", "list").out.startswith("no contexts yet")
    client(*add, stdin=Typist("y\n"))
    assert client.json("context", "show", "prod")["fingerprint"] == seen(there)
    assert client.json("--context", "prod", "status")["state"] == "ready"


def test_a_ca_of_this_machine_is_believed_without_questions(client, secured, there, ca, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", ca)
    client("context", "add", "prod", "--address", there, "--token", secured.token)
    assert client.json("context", "show", "prod")["proof"] == "the system's CAs"
    assert client.json("--context", "prod", "status")["state"] == "ready"


def test_another_ca(client, secured, there, tmp_path):
    OTHER_CA.cert_pem.write_to_path(tmp_path / "other.pem")
    told = client("context", "add", "prod", "--address", there, "--ca", str(tmp_path / "other.pem"), code=4).err
    assert "is signed by no CA in" in told
    assert not client.book.exists()


def test_the_wrong_fingerprint(client, there):
    told = client("context", "add", "prod", "--address", there, "--fingerprint", WRONG, code=4).err
    assert WRONG in told
    assert seen(there) in told
    assert not client.book.exists()


def test_a_certificate_for_another_host(client, secured, there, ca):
    put(secured.home / "tls", leaf("tf.example.com", "10.1.2.3"))
    told = client("context", "add", "prod", "--address", there, "--ca", ca, code=4).err
    assert "is for another host" in told
    assert "tf.example.com, 10.1.2.3" in told


@pytest.mark.parametrize(("days", "begins", "words"), [(-2, -100, "expired on"), (9, 5, "is valid from")])
@pytest.mark.parametrize("by", ["ca", "fingerprint"])
def test_a_certificate_that_is_not_valid_now(client, ca, days, begins, words, by):
    one = leaf(days=days, begins=begins)
    credentials = grpc.ssl_server_credentials([(one.private_key_pem.bytes(), chain_of(one))])
    proof = ["--ca", ca] if by == "ca" else ["--fingerprint", fingerprint(one)]
    with bare_server(credentials) as address:
        assert words in client("context", "add", "old", "--address", address, *proof, code=4).err


def test_a_daemon_that_is_away_can_be_added_with_a_proof_only(client, ca):
    add = ("context", "add", "away", "--address", "127.0.0.1:1", "--token", "tfk_a_b")
    assert "nobody answers at 127.0.0.1:1" in client(*add, code=5).err
    client(*add, "--fingerprint", WRONG)
    client(*add, "--ca", ca, "--replace")
    assert "is the daemon of the context away running" in client("--context", "away", "status", code=5).err


def test_a_pin_that_was_added_unseen_is_held_against_what_is_seen(client, secured, there):
    client("context", "add", "prod", "--address", "127.0.0.1:1", "--fingerprint", WRONG, "--token", secured.token)
    text = client.book.read_text().replace("127.0.0.1:1", there)
    client.book.write_text(text)
    assert "HAS CHANGED" in client("--context", "prod", "status", code=4).err
    client.book.write_text(text.replace(WRONG, seen(there)))
    assert client.json("--context", "prod", "status")["state"] == "ready"


# A certificate changes


def test_a_changed_certificate_is_refused_until_it_is_accepted(client, secured, there):
    before = seen(there)
    client("context", "add", "prod", "--address", there, "--fingerprint", before, "--token", secured.token)
    put(secured.home / "tls", leaf())
    told = client("--context", "prod", "status", code=4).err
    assert "HAS CHANGED" in told
    assert f"expected  {before}" in told
    assert f"seen      {seen(there)}" in told
    assert f"taskforgectl context trust prod --fingerprint {seen(there)}" in told
    client("context", "trust", "prod", code=4)
    client("context", "trust", "prod", "--fingerprint", WRONG, code=4)
    assert "HAS CHANGED" in client("--context", "prod", "run", "list", code=4).err
    client("context", "trust", "prod", "--fingerprint", seen(there))
    assert client.json("--context", "prod", "status")["state"] == "ready"


def test_nothing_is_sent_to_who_shows_another_certificate(client, secured, there):
    """A server of somebody who has no key of ours: it would see the token in the first request."""
    one = leaf(ca=OTHER_CA)
    calls = []

    class Eyes(grpc.GenericRpcHandler):
        def service(self, details):
            calls.append(details.invocation_metadata)

    client("context", "add", "prod", "--address", there, "--fingerprint", seen(there), "--token", "tfk_secret_x")
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Eyes()])
    credentials = grpc.ssl_server_credentials([(one.private_key_pem.bytes(), chain_of(one))])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        client.book.write_text(client.book.read_text().replace(there, f"127.0.0.1:{port}"))
        assert "HAS CHANGED" in client("--context", "prod", "status", code=4).err
        assert calls == []
        client("context", "trust", "prod", "--fingerprint", fingerprint(one))
        client("--context", "prod", "status", code=1)
        assert calls, "it would have seen them"
    finally:
        server.stop(0).wait()


# Client certificates


def test_client_certificates(client, guarded, files, ca):
    there = here(guarded.tcp)
    add = ("context", "add", "prod", "--address", there, "--ca", ca, "--token", guarded.token)
    assert "asks for a client certificate" in client(*add, code=4).err
    cert, key = files("other", leaf("me@example.com", ca=OTHER_CA))
    told = client(*add, "--cert", cert, "--key", key, code=4).err
    assert f"does not accept the client certificate {cert}" in told
    cert, key = files("mine", leaf("me@example.com"))
    client(*add, "--cert", cert, "--key", key)
    assert client.json("--context", "prod", "status")["pid"] == guarded.pid
    os.unlink(key)
    assert f"cannot read {key}" in client("--context", "prod", "status", code=2).err


def test_a_pin_with_a_client_certificate(client, guarded, files):
    there = here(guarded.tcp)
    cert, key = files("mine", leaf("me@example.com"))
    proof = ["--fingerprint", seen(there), "--cert", cert, "--key", key]
    client("context", "add", "prod", "--address", there, *proof, "--token", guarded.token)
    assert client.json("--context", "prod", "status")["pid"] == guarded.pid


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--cert", "x"], "belong together"),
        (["--ca", "/nowhere"], "cannot read /nowhere"),
        (["--fingerprint", "x"], "is not a SHA-256 fingerprint"),
        (["--home", "/x"], "--address or --home"),
    ],
)
def test_wrong_usage_of_add(client, arguments, words):
    assert words in client("context", "add", "x", "--address", "127.0.0.1:1", *arguments, code=2).err


def test_files_that_are_no_certificates(client, tmp_path):
    (tmp_path / "x").write_text("x")
    add = ("context", "add", "x", "--address", "127.0.0.1:1")
    assert "holds no certificate" in client(*add, "--ca", str(tmp_path / "x"), code=2).err
    pair = ["--cert", str(tmp_path / "x"), "--key", str(tmp_path / "x")]
    assert "not a certificate and its key" in client(*add, *pair, code=2).err


@pytest.mark.parametrize("name", ["local", "", "a b", "../x", "x" * 64, "-x"])
def test_names_that_no_context_can_have(client, name):
    assert "cannot be the name" in client("context", "add", "--address", "127.0.0.1:1", "--", name, code=2).err


# One side speaks TLS, the other does not


def test_a_plain_client_is_told_that_the_port_speaks_tls(client, there):
    told = client("--address", there, "--token", "tfk_a_b", "status", code=4).err
    assert "speaks TLS" in told
    assert "taskforgectl context add NAME" in told


def test_a_tls_client_is_told_that_the_port_is_plain(client, ca):
    with bare_server(None) as address:
        assert "does not speak TLS" in client("context", "add", "x", "--address", address, "--ca", ca, code=5).err


def test_a_plain_context_on_loopback_is_for_a_tunnel(client):
    with bare_server(None) as address:
        assert client.json("context", "add", "x", "--address", address)["proof"] == "nothing (plain)"


def test_the_port_of_webhooks_is_not_that_of_clients(client, secured, ca):
    webhooks = here(secured.http).removeprefix("https://")
    assert "not gRPC" in client("context", "add", "x", "--address", webhooks, "--ca", ca, code=5).err


def test_clear_text_beyond_loopback_is_refused(client):
    told = client("--address", "192.0.2.1:7420", "--token", "tfk_a_b", "status", code=2).err
    assert "clear text" in told
    assert "taskforgectl context add NAME --address 192.0.2.1:7420" in told


# Which daemon is meant


@pytest.fixture
def two(client):
    """Two contexts, the first of them current."""
    for name in ("one", "two"):
        client("context", "add", name, "--address", "127.0.0.1:1", "--fingerprint", WRONG, "--token", f"tfk_{name}_x")
    client("context", "use", "one")
    return client


@pytest.mark.parametrize(
    "options, variables, expected",
    [
        ({}, {}, "one"),
        ({"context": "two"}, {}, "two"),
        ({}, {"CONTEXT": "two"}, "two"),
        ({"context": "one"}, {"CONTEXT": "two", "ADDRESS": "127.0.0.1:9"}, "one"),
        ({"context": "local"}, {}, None),
        ({}, {"CONTEXT": "local"}, None),
        ({"address": "127.0.0.1:9"}, {"CONTEXT": "two"}, None),
        ({"home": "/x"}, {"CONTEXT": "two"}, None),
        ({}, {"HOME": "/x"}, None),
        ({}, {"ADDRESS": "127.0.0.1:9"}, None),
        ({"context": "local", "home": "/x"}, {}, None),
    ],
)
def test_options_go_before_variables_and_these_before_the_current_context(
    two, monkeypatch, options, variables, expected
):
    for name, value in variables.items():
        monkeypatch.setenv(f"TASKFORGE_{name}", value)
    settings = Settings()
    for name, value in options.items():
        settings.give(name, value)
    found = settings.context
    assert (found.name if found else None) == expected
    assert settings.token == (f"tfk_{expected}_x" if expected else "")


@pytest.mark.parametrize("other", ["address", "home"])
def test_two_daemons_at_once(two, monkeypatch, other):
    assert (
        f"--context and --{other} name two daemons" in two("--context", "two", f"--{other}", "/x", "status", code=2).err
    )
    monkeypatch.setenv("TASKFORGE_CONTEXT", "two")
    monkeypatch.setenv(f"TASKFORGE_{other.upper()}", "/x")
    assert f"TASKFORGE_CONTEXT and TASKFORGE_{other.upper()} name" in two("status", code=2).err


def test_what_options_say_of_token_and_namespace_goes_before_the_context(two, monkeypatch):
    two("context", "add", "three", "--address", "127.0.0.1:1", "--fingerprint", WRONG, "-n", "team", "--token", "kept")
    monkeypatch.setenv("TASKFORGE_CONTEXT", "three")
    assert (Settings().namespace, Settings().token) == ("team", "kept")
    monkeypatch.setenv("TASKFORGE_NAMESPACE", "other")
    monkeypatch.setenv("TASKFORGE_TOKEN", "given")
    assert (Settings().namespace, Settings().token) == ("other", "given")


def test_the_homes_token_is_not_sent_to_the_daemon_of_a_context(client, secured, there):
    client("init")
    client("context", "add", "prod", "--address", there, "--fingerprint", seen(there))
    assert "has no token" in client("--context", "prod", "status", code=4).err
    assert client("--context", "prod", "--token", secured.token, "status").out


def test_a_token_from_stdin(client, there):
    add = ("context", "add", "prod", "--address", there, "--fingerprint", seen(there), "--token", "-")
    client(*add, stdin=io.TextIOWrapper(io.BytesIO(b"tfk_from_stdin\n")))
    assert ContextBook().get("prod").token == "tfk_from_stdin"


@pytest.mark.parametrize("verb", ["up", "down", "init", "restore", "prune --compact"])
def test_what_works_on_a_home_refuses_a_remote_context(two, verb):
    told = two(*verb.split(), *(["latest", "--yes"] if verb == "restore" else []), code=2).err
    assert "the context one is of the daemon at 127.0.0.1:1" in told
    assert f"taskforgectl --context local {verb}" in told
    assert not (two.folder / ".taskforge").exists()


def test_a_context_of_a_home(client, secured):
    item = client.json("context", "add", "test", "--home", str(secured.home))
    assert (item["home"], item["proof"]) == (str(secured.home), "home")
    client("context", "use", "test")
    assert client.json("status")["pid"] == secured.pid


# The book


def test_use_list_show_delete(two):
    assert [(one["name"], one["is_current"]) for one in two.json("context", "list")] == [("one", True), ("two", False)]
    assert two.json("context", "show")["name"] == "one"
    assert two("context", "list", "-o", "name").out == "one\ntwo\n"
    assert "there is no context 'three'" in two("context", "use", "three", code=3).err
    two("context", "use", "two")
    assert two.json("context", "show")["name"] == "two"
    two("context", "use", "--none")
    assert "no context is in force" in two("context", "show", code=1).err
    two("context", "use", "two")
    two("context", "use", "local")
    assert [one["is_current"] for one in two.json("context", "list")] == [False, False]
    two("context", "use", "one")
    two("context", "delete", "one")
    assert [(one["name"], one["is_current"]) for one in two.json("context", "list")] == [("two", False)]
    two("context", "delete", "one", code=3)
    two("context", "use", code=2)
    assert (
        "there is a context two already"
        in two("context", "add", "two", "--address", "127.0.0.1:1", "--fingerprint", WRONG, code=6).err
    )


def test_names_are_completed(two):
    assert [one.value for one in CONTEXT.shell_complete(None, None, "t")] == ["two"]
    two.book.write_text("{")
    assert CONTEXT.shell_complete(None, None, "t") == []


def test_tokens_are_kept_privately_and_never_shown(two):
    assert "tfk_one_x" in two.book.read_text()
    assert stat.S_IMODE(two.book.stat().st_mode) == 0o600
    assert stat.S_IMODE(two.book.parent.stat().st_mode) == 0o700
    for words in (["list"], ["show", "one"], ["use", "two"], ["delete", "two"]):
        for output in ("table", "json", "yaml", "name"):
            if output == "table" or words[0] in {"list", "show"}:
                told = two("context", *words, "-o", output)
                assert "tfk_one_x" not in told.out + told.err
    assert "tfk_one_x" not in repr(ContextBook().all())


def test_a_book_that_others_can_read_is_refused(two):
    two.book.chmod(0o644)
    assert f"chmod 600 {two.book}" in two("context", "list", code=1).err
    assert "is open to other users" in two("status", code=1).err


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"contexts": []}', '{"contexts": {"one": 1}}', '{"contexts": {"one": {"tls": {"x": 1}}}}']
)
def test_a_damaged_book_is_told(two, content):
    two.book.write_text(content)
    assert "damaged" in two("context", "list", code=1).err


def test_many_at_once_lose_nothing(client):
    code = (
        "import sys; from taskforgectl.contexts import Context, ContextBook\n"
        "for n in range(20): ContextBook().put(Context(f'{sys.argv[1]}-{n}', '127.0.0.1:1'))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "abc"]
    assert [one.wait(60) for one in writers] == [0, 0, 0]
    assert len(json.loads(client.book.read_text())["contexts"]) == 60
    assert [path.name for path in client.book.parent.iterdir()] == ["contexts.json"]
