"""A real daemon with TLS on its TCP listeners: who gets in, and how a certificate is renewed."""

import contextlib
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
import warnings

import grpc
import pytest
from harness import Daemon, DaemonError, github_headers
from remote.support import CA, OTHER_CA, der, get_info, here, leaf, port_of, put, shown, tls_daemon, trusting
from taskforge.v1 import secret_service_pb2, secret_service_pb2_grpc, system_service_pb2
from taskforge.v1.system_service_pb2_grpc import SystemServiceStub

HOOK = """\
name: hook
on:
  push:
    webhook:
      path: github
      verify: {scheme: github, secret: HOOK}
steps:
  - id: one
    transform: {a: 1}
"""


def refused(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code().name


def test_a_client_that_trusts_the_ca_gets_in(secured):
    assert get_info(secured).http == secured.http
    assert secured.http.startswith("https://0.0.0.0:")


def test_tls_does_not_stand_in_for_a_token(secured):
    assert refused(get_info, secured, token="tfk_aaaaaaaaaaaa_" + "b" * 43) == "UNAUTHENTICATED"


def test_a_client_of_another_ca_gets_nowhere(secured):
    assert refused(get_info, secured, ca=OTHER_CA.cert_pem.bytes()) == "UNAVAILABLE"


def test_a_client_without_tls_gets_nowhere(secured):
    with grpc.insecure_channel(here(secured.tcp)) as channel:
        call = SystemServiceStub(channel).GetInfo
        assert refused(call, system_service_pb2.GetInfoRequest(), timeout=20) == "UNAVAILABLE"
    with pytest.raises(OSError):  # http.client's errors of a connection that was cut
        urllib.request.urlopen(here(secured.http).replace("https", "http") + "/healthz", timeout=20)


def test_the_certificate_for_another_host_is_not_believed(secured):
    put(secured.home / "tls", leaf("elsewhere.example"))
    assert refused(get_info, secured) == "UNAVAILABLE"


def greet(address, version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", port_of(address)), timeout=20) as raw,
        context.wrap_socket(raw) as wire,
    ):
        return wire.version()


@pytest.mark.parametrize("door", ["tcp", "http"])
def test_tls_below_1_2_is_refused(secured, door):
    address = getattr(secured, door)
    assert greet(address, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.raises(ssl.SSLError) as caught:
        greet(address, ssl.TLSVersion.TLSv1_1)
    told = f"{caught.value.reason} {caught.value}".upper()  # Python 3.11.2 knows no reason for an end
    assert "ALERT" in told or "EOF" in told, "the refusal comes from the daemon"


# Renewal


def test_a_renewed_certificate_is_shown_without_a_restart_and_open_connections_stay(secured):
    credentials = grpc.ssl_channel_credentials(CA.cert_pem.bytes())
    with grpc.secure_channel(here(secured.tcp), credentials) as channel:
        ask = SystemServiceStub(channel).GetInfo
        ask(system_service_pb2.GetInfoRequest(), metadata=secured.metadata, timeout=20)
        for _ in range(2):
            new = leaf()
            put(secured.home / "tls", new)
            assert shown(secured.tcp) == der(new)
            assert shown(secured.http) == der(new)
        ask(system_service_pb2.GetInfoRequest(), metadata=secured.metadata, timeout=20)
    assert "tls.reloaded" in secured.log_text()


def test_half_a_renewal_changes_nothing_until_the_other_half_comes(secured):
    tls = secured.home / "tls"
    old, new = leaf(), leaf()
    put(tls, old)
    assert shown(secured.tcp) == shown(secured.http) == der(old)
    (tls / "cert.pem").write_bytes(new.cert_chain_pems[0].bytes())
    assert shown(secured.tcp) == shown(secured.http) == der(old)
    assert "is not the key of the first certificate" in secured.log_text()
    (tls / "cert.pem").unlink()
    assert shown(secured.tcp) == shown(secured.http) == der(old)
    put(tls, new)
    assert shown(secured.tcp) == shown(secured.http) == der(new)


def test_what_ends_within_30_days_is_said_at_the_start(secured):
    """The first certificate of the module's daemon was good for ten days more."""
    assert [line for line in secured.log_text().splitlines() if "tls.expires_soon" in line]


def test_what_lasts_longer_is_not_warned_of(guarded):
    assert "tls.expires_soon" not in guarded.log_text()


# Client certificates


def test_a_client_certificate_of_the_ca_opens_the_door(guarded):
    assert get_info(guarded, client=leaf("me@example.com"))


@pytest.mark.parametrize("other", [None, leaf("me@example.com", ca=OTHER_CA), leaf("me@example.com", days=-1)])
def test_any_other_client_stays_outside(guarded, other):
    assert refused(get_info, guarded, client=other) == "UNAVAILABLE"


def test_a_client_certificate_is_no_token(guarded):
    assert refused(get_info, guarded, client=leaf("me@example.com"), token="nonsense") == "UNAUTHENTICATED"


def test_the_unix_socket_and_webhooks_ask_for_no_certificate(guarded):
    with grpc.insecure_channel(guarded.uds) as channel:
        ask = SystemServiceStub(channel).GetInfo
        assert ask(system_service_pb2.GetInfoRequest(), metadata=guarded.metadata, timeout=20)
    with urllib.request.urlopen(here(guarded.http) + "/healthz", context=trusting(), timeout=20) as answer:
        assert answer.status == 200


# Webhooks


async def test_a_webhook_arrives_over_https(secured):
    await secured.apply(HOOK)
    secrets = secured.stub(secret_service_pb2_grpc.SecretServiceStub)
    await secrets.SetSecret(secret_service_pb2.SetSecretRequest(name="HOOK", value="s3cret"), timeout=20)
    body = b'{"ref": "main"}'
    url = here(secured.http) + "/hooks/default/github"
    request = urllib.request.Request(url, body, github_headers("s3cret", body, "push"), method="POST")
    with urllib.request.urlopen(request, context=trusting(), timeout=20) as answer:
        assert answer.status == 202
        assert json.loads(answer.read())["run_ids"]
    forged = urllib.request.Request(url, body, github_headers("guess", body, "push"), method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(forged, context=trusting(), timeout=20)
    assert caught.value.code == 401
    caught.value.close()
    await secured.disconnect()


def test_64_connections_of_one_address_leave_room_for_another(secured):
    """What nobody set is a limit where a network can reach the listener."""
    place = ("127.0.0.1", port_of(secured.http))
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(socket.create_connection(place, timeout=20))
        with socket.create_connection(place, timeout=20) as one_more:
            assert one_more.recv(1) == b"", "closed without a handshake"
        with (
            socket.create_connection(place, timeout=20, source_address=("127.0.0.2", 0)) as raw,
            trusting().wrap_socket(raw, server_hostname="127.0.0.1") as wire,
        ):
            wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b" 200 " in wire.recv(100)


def test_silence_is_cut_before_and_after_the_handshake(secured):
    """On the daemon's own event loop."""
    place = ("127.0.0.1", port_of(secured.http))
    with (
        socket.create_connection(place, timeout=60) as silent,
        socket.create_connection(place, timeout=60) as half,
        socket.create_connection(place, timeout=60) as raw,
        trusting().wrap_socket(raw, server_hostname="127.0.0.1") as greeted,
    ):
        half.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        for one in (silent, half, greeted):
            with contextlib.suppress(ConnectionError):
                assert one.recv(1) == b""


# Floods of the control plane


def test_connections_of_grpc_clients_are_bounded_and_silent_ones_end():
    daemon = tls_daemon(leaf(), TASKFORGE_GRPC_CONNECTIONS_MAX="10")
    try:
        daemon.start()
        place = ("127.0.0.1", port_of(daemon.tcp))
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection(place, timeout=30)) for _ in range(30)]
            ended = []
            for one in silent:
                with contextlib.suppress(ConnectionError):
                    assert one.recv(1) == b""
                ended.append(time.monotonic())
            assert len(ended) == 30, "each of them was closed, the first ten when their handshake took too long"
            assert get_info(daemon)
            with grpc.insecure_channel(daemon.uds) as channel:  # a listener of its own
                SystemServiceStub(channel).GetInfo(
                    system_service_pb2.GetInfoRequest(), metadata=daemon.metadata, timeout=20
                )
    finally:
        daemon.close()


# What does not start


@pytest.mark.parametrize(
    "env, spoil, words",
    [
        ({"TASKFORGE_TLS_CERT": "", "TASKFORGE_TLS_KEY": ""}, None, ["GRPC_LISTEN", "clear text", "init --tls"]),
        ({"TASKFORGE_TLS_HTTP": "false"}, None, ["HTTP_LISTEN", "clear text", "behind_proxy"]),
        ({}, lambda tls: put(tls, leaf(days=-3)), ["cert.pem", "expired on"]),
        ({}, lambda tls: (tls / "key.pem").chmod(0o640), ["key.pem", "chmod 600"]),
    ],
)
def test_what_would_be_open_or_cannot_work_does_not_start(env, spoil, words):
    daemon = tls_daemon(leaf(), **env)
    try:
        if spoil:
            spoil(daemon.home / "tls")
        with pytest.raises(DaemonError, match="ended with"):
            daemon.start()
        log = daemon.log_text()
        assert all(word in log for word in words), log
        assert "Traceback" not in log
    finally:
        daemon.close()


def test_behind_a_proxy_plain_http_may_go_beyond_loopback():
    env = {"TASKFORGE_HTTP_LISTEN": "0.0.0.0:0", "TASKFORGE_HTTP_BEHIND_PROXY": "true"}
    daemon = Daemon(env=env)
    try:
        daemon.start()
        assert daemon.http.startswith("http://0.0.0.0:")
        with urllib.request.urlopen(here(daemon.http) + "/healthz", timeout=20) as answer:
            assert answer.status == 200
    finally:
        daemon.close()
