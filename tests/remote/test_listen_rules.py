"""Which settings let somebody in from outside, and what certificates a daemon takes."""

import datetime as dt
import re

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from remote.support import CA, in_days, leaf, put

from taskforged.config import is_loopback, load_config
from taskforged.errors import FailedPreconditionError, InvalidArgumentError
from taskforged.tls import Certificates, find_certificates

PAIR = {"TASKFORGE_TLS_CERT": "c.pem", "TASKFORGE_TLS_KEY": "k.pem"}
OPEN = "0.0.0.0:1"


def load(home, **settings):
    return load_config(home, None, {f"TASKFORGE_{name}": value for name, value in settings.items()})


@pytest.mark.parametrize(
    "listen, expected",
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("::1:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.168.1.1:1", False),
        ("localhost.example.com:1", False),
        ("127.1:1", False),
        ("host:1", False),
        ("[::ffff:192.168.1.1]:1", False),
    ],
)
def test_loopback(listen, expected):
    assert is_loopback(listen) is expected


@pytest.mark.parametrize(
    "settings, https",
    [
        ({}, False),
        ({**PAIR}, False),
        ({**PAIR, "TASKFORGE_TLS_HTTP": "true"}, True),
        ({**PAIR, "TASKFORGE_GRPC_LISTEN": OPEN}, False),
        ({**PAIR, "TASKFORGE_HTTP_LISTEN": OPEN}, True),
        ({**PAIR, "TASKFORGE_HTTP_LISTEN": OPEN, "TASKFORGE_HTTP_BEHIND_PROXY": "true"}, False),
        ({"TASKFORGE_HTTP_LISTEN": OPEN, "TASKFORGE_HTTP_BEHIND_PROXY": "true"}, False),
        (
            {
                **PAIR,
                "TASKFORGE_HTTP_LISTEN": OPEN,
                "TASKFORGE_HTTP_BEHIND_PROXY": "true",
                "TASKFORGE_TLS_HTTP": "true",
            },
            True,
        ),
    ],
)
def test_what_is_allowed_and_whether_webhooks_come_over_tls(tmp_path, settings, https):
    assert load_config(tmp_path, None, settings).https is https


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"GRPC_LISTEN": OPEN}, "TASKFORGE_GRPC_LISTEN = '0.0.0.0:1' would carry tokens"),
        ({"HTTP_LISTEN": OPEN}, "TASKFORGE_HTTP_LISTEN = '0.0.0.0:1' would carry tokens"),
        ({"HTTP_LISTEN": OPEN, "TLS_CERT": "c", "TLS_KEY": "k", "TLS_HTTP": "false"}, "leave [tls] http to auto"),
        ({"GRPC_LISTEN": OPEN, "HTTP_BEHIND_PROXY": "true"}, "TASKFORGE_GRPC_LISTEN"),
        ({"TLS_CERT": "c"}, "[tls] key is missing"),
        ({"TLS_KEY": "k"}, "[tls] cert is missing"),
        ({"TLS_CLIENT_CA": "x"}, "needs [tls] cert and key"),
        ({"TLS_HTTP": "true"}, "needs [tls] cert and key"),
        ({"TLS_HTTP": "maybe"}, "must be true or false"),
        ({"TLS_CERT": "a\0b", "TLS_KEY": "k"}, "must be the path of a file"),
    ],
)
def test_what_is_refused(tmp_path, settings, words):
    with pytest.raises(InvalidArgumentError, match=re.escape(words)):
        load(tmp_path, **settings)


def test_paths_begin_at_the_home(tmp_path):
    config = load(tmp_path, TLS_CERT="tls/c.pem", TLS_KEY="/etc/k.pem")
    assert (config.file("tls", "cert"), str(config.file("tls", "key"))) == (tmp_path / "tls/c.pem", "/etc/k.pem")
    assert config.file("tls", "client_ca") is None
    assert find_certificates(load(tmp_path)) is None


# What a certificate must be


@pytest.fixture
def pair(tmp_path):
    return put(tmp_path, leaf())


def private_pem(key, secret=b""):
    how = serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def test_a_chain_a_renewed_ca_and_a_key_only_its_owner_reads(pair):
    cert, key = pair
    key.chmod(0o400)
    cert.write_bytes(cert.read_bytes() + CA.cert_pem.bytes())
    ca = cert.with_name("ca.pem")
    ca.write_bytes(CA.cert_pem.bytes() * 2)
    assert Certificates(cert, key, ca).asks_clients


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda cert, key, ca: cert.unlink(), ["cert.pem", "is not there", "init --tls"]),
        (lambda cert, key, ca: key.unlink(), ["key.pem", "is not there"]),
        (lambda cert, key, ca: ca.unlink(), ["ca.pem", "is not there"]),
        (lambda cert, key, ca: (cert.unlink(), cert.mkdir()), ["cert.pem", "cannot be read"]),
        (lambda cert, key, ca: cert.write_text("x"), ["cert.pem", "holds no certificate"]),
        (lambda cert, key, ca: ca.write_text(""), ["ca.pem", "holds no certificate"]),
        (lambda cert, key, ca: key.write_text("x"), ["key.pem", "holds no private key"]),
        (lambda cert, key, ca: cert.write_bytes(b"x" * (2 << 20)), ["cert.pem", "is larger than"]),
        (lambda cert, key, ca: key.chmod(0o604), ["key.pem", "chmod 600"]),
        (
            lambda cert, key, ca: key.write_bytes(private_pem(rsa.generate_private_key(65537, 2048))),
            ["is not the key of"],
        ),
        (lambda cert, key, ca: key.write_bytes(private_pem(rsa.generate_private_key(65537, 1024))), ["1024 bits"]),
        (lambda cert, key, ca: key.write_bytes(private_pem(ed25519.Ed25519PrivateKey.generate())), ["use EC"]),
        (
            lambda cert, key, ca: key.write_bytes(private_pem(rsa.generate_private_key(65537, 2048), b"secret")),
            ["needs a passphrase"],
        ),
        (lambda cert, key, ca: put(cert.parent, leaf(days=-1)), ["cert.pem", "expired on"]),
        (lambda cert, key, ca: put(cert.parent, leaf(begins=1)), ["cert.pem", "is valid from", "clock"]),
    ],
)
def test_what_cannot_be_used_is_named_with_its_file_and_how_to_mend_it(pair, spoil, words):
    cert, key = pair
    ca = cert.with_name("ca.pem")
    ca.write_bytes(CA.cert_pem.bytes())
    Certificates(cert, key, ca)
    spoil(cert, key, ca)
    with pytest.raises(FailedPreconditionError) as caught:
        Certificates(cert, key, ca)
    assert caught.value.reason == "TLS_UNUSABLE"
    assert all(word in caught.value.message for word in words), caught.value.message


def test_a_symbolic_link_that_leads_elsewhere_is_a_renewal(tmp_path):
    for name in ("one", "two"):
        put(tmp_path / name, leaf())
    (tmp_path / "live").symlink_to("one")
    found = Certificates(tmp_path / "live" / "cert.pem", tmp_path / "live" / "key.pem", None)
    assert found.current().chain == (tmp_path / "one" / "cert.pem").read_bytes()
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "live")
    assert found.current().chain == (tmp_path / "two" / "cert.pem").read_bytes()


def test_files_that_stay_are_read_once(pair):
    found = Certificates(*pair, None)
    assert found.current() is found.current()
    assert found._context() is found._context()


def test_the_end_is_told_once_a_day(pair, monkeypatch):
    put(pair[0].parent, leaf(days=40))
    told = []

    class Log:
        def warning(self, event, **_):
            told.append(event)

    monkeypatch.setattr("taskforged.tls._log", Log())
    found = Certificates(*pair, None)
    for days in (0, 9, 11, 11.5, 12.1, 41, 41.1):
        found.look_after(in_days(days))
    assert told == ["tls.expires_soon", "tls.expires_soon", "tls.expired"]
    assert found.current().expires - in_days(40) < dt.timedelta(minutes=5)
