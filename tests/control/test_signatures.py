"""A webhook's signature proves the bytes, or it is a mismatch; nothing in between."""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskforged.control.signatures import verify
from taskforged.language.definition import Verify

GITHUB = Verify(scheme="github", secret="HOOK")
SECRET = "It's a Secret to Everybody"
BODY = b"Hello, World!"
SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def github(signature=SIGNATURE, secret=SECRET, body=BODY):
    return verify(GITHUB, secret, {"x-hub-signature-256": signature}, body)


def test_the_vector_that_github_documents():
    assert github() is None


def test_the_prefix_belongs_to_the_scheme():
    assert github(signature=SIGNATURE.removeprefix("sha256=")) is not None


@pytest.mark.parametrize("at", range(len(BODY) * 8))
def test_every_flipped_bit_of_the_body_is_noticed(at):
    body = bytearray(BODY)
    body[at // 8] ^= 1 << at % 8
    assert github(body=bytes(body)) is not None


@pytest.mark.parametrize("at", range(len(SIGNATURE) * 8))
def test_every_flipped_bit_of_the_header_is_noticed(at):
    raw = bytearray(SIGNATURE.encode())
    raw[at // 8] ^= 1 << at % 8
    assert github(signature=raw.decode("latin-1")) is not None


@given(st.text(max_size=90))
def test_a_malformed_signature_is_a_mismatch(signature):
    assert github(signature=signature) is not None


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "sha256=",
        "sha1=" + "0" * 40,
        SIGNATURE + " ",
        SIGNATURE * 2,
        f"{SIGNATURE}, {SIGNATURE}",
        "sha256=\udcff",
        "sha256=" + "ü" * 64,
    ],
)
def test_near_misses(signature):
    assert github(signature=signature) == "the signature in x-hub-signature-256 does not match"


def test_upper_case_hex_is_hex():
    assert github(signature="sha256=" + SIGNATURE[7:].upper()) is None


def test_a_missing_header_is_named():
    assert verify(GITHUB, SECRET, {}, BODY) == "the header x-hub-signature-256 is missing"


@pytest.mark.parametrize(("secret", "reason"), [(None, "the secret HOOK is not set"), ("", "the secret HOOK is empty")])
def test_without_a_secret_nothing_is_proved(secret, reason):
    assert github(secret=secret) == reason


def test_an_empty_secret_is_no_key_even_when_the_sender_uses_it():
    signature = "sha256=" + hmac.new(b"", BODY, hashlib.sha256).hexdigest()
    assert github(signature=signature, secret="") is not None


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
@pytest.mark.parametrize("prefix", ["", "v1,"])
def test_hmac_in_every_form(algorithm, encoding, prefix):
    digest = hmac.new(b"key", BODY, algorithm).digest()
    text = digest.hex() if encoding == "hex" else base64.b64encode(digest).decode()
    scheme = Verify("hmac", "HOOK", "X-Signature", algorithm, encoding, prefix)
    assert verify(scheme, "key", {"x-signature": prefix + text}, BODY) is None
    assert verify(scheme, "Key", {"x-signature": prefix + text}, BODY) is not None
    assert verify(scheme, "key", {"x-signature": prefix + text.rstrip("=") + "A"}, BODY) is not None
    assert verify(scheme, "key", {"x-signature": "w" + prefix + text}, BODY) is not None


def test_no_scheme_proves_nothing_and_asks_for_nothing():
    assert verify(Verify("none"), None, {}, b"") is None


@pytest.mark.parametrize(
    "scheme",
    [
        Verify("token", "HOOK"),
        Verify("hmac", "HOOK", "x", "md5"),
        Verify("hmac", "HOOK", "x", "sha256", "base32"),
        Verify("", "HOOK"),
    ],
)
def test_what_is_not_known_is_refused(scheme):
    assert "not supported" in verify(scheme, SECRET, {"x": ""}, b"")


def test_reasons_hold_no_secret():
    assert SECRET not in str(github(signature="x"))
