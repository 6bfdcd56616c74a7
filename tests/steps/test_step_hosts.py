"""Patterns of hosts: one form for each, and what they fit."""

import pytest

from taskforged.steps.base import SecretValue
from taskforged.steps.hosts import fits, normal_pattern

ONE_FORM = {
    "api.example.com": "api.example.com",
    " API.Example.COM. ": "api.example.com",
    "api.example.com:8443": "api.example.com:8443",
    "*.Example.com": "*.example.com",
    "*.example.com:443": "*.example.com:443",
    "localhost": "localhost",
    "my_host": "my_host",
    "xn--bcher-kva.example": "xn--bcher-kva.example",
    "10.0.0.7": "10.0.0.7",
    "10.0.0.7:80": "10.0.0.7:80",
    "0:0::1": "[::1]",
    "[2001:DB8:0::1]": "[2001:db8::1]",
    "[::1]:8080": "[::1]:8080",
}


@pytest.mark.parametrize("text", ONE_FORM)
def test_each_pattern_has_one_form(text):
    normal = normal_pattern(text)
    assert normal == ONE_FORM[text]
    assert normal_pattern(normal) == normal


@pytest.mark.parametrize(
    "text",
    ["", ".", "*", "*.", "a.*", "*a.example", "a..b", "-a.example", "a b", "a/b", "https://a.example", "u@a.example"]
    + [
        "a.example:",
        "a.example:0",
        "a.example:65536",
        "a.example:x",
        "a.example:1:2",
        "10.0.0.256",
        "127.1",
        "0x7f.0.0.1",
    ]
    + [
        "2130706433",
        "b\u00fccher.example",
        "a\nb",
        "[a.example]",
        "[::1",
        "::1]",
        "a." * 130 + "b",
        "a\0",
        "10.0.0.0/8",
    ],
)
def test_what_is_no_pattern(text):
    with pytest.raises(ValueError, match="must be a host name"):
        normal_pattern(text)


@pytest.mark.parametrize(
    ("pattern", "host", "port", "expected"),
    [
        ("api.example.com", "api.example.com", 443, True),
        ("api.example.com", "API.example.com.", 80, True),
        ("api.example.com", "xapi.example.com", 443, False),
        ("api.example.com", "api.example.com.evil.example", 443, False),
        ("api.example.com", "api-example.com", 443, False),
        ("api.example.com:443", "api.example.com", 443, True),
        ("api.example.com:443", "api.example.com", 8443, False),
        ("*.example.com", "api.example.com", 443, True),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "evilexample.com", 443, False),
        ("*.example.com", ".example.com", 443, False),
        ("*.example.com:443", "api.example.com", 80, False),
        ("10.0.0.7", "10.0.0.7", 80, True),
        ("10.0.0.7", "10.0.0.70", 80, False),
        ("10.0.0.7", "10.7", 80, False),
        ("[::1]", "0:0:0:0:0:0:0:1", 80, True),
        ("[::1]:80", "[::1]", 80, True),
        ("[::1]:80", "::1", 81, False),
        ("[::1]", "::ffff:7f00:1", 80, False),
    ],
)
def test_what_a_pattern_fits(pattern, host, port, expected):
    assert fits(pattern, host, port) is expected
    assert SecretValue("x", (pattern,)).may_go_to(host, port) is expected


def test_a_secret_without_hosts_goes_anywhere():
    assert SecretValue("x").may_go_to("anything.example", 1)
