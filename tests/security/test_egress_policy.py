"""Threat: a step is made to reach what only this machine or its network should. The policy itself, without sockets."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskforged.egress import Policy, leaves, literal, parse_rule, plain_host

PUBLIC = "8.8.8.8"

CLOSED = """
0.0.0.0 0.1.2.3 169.254.169.254 169.254.0.1 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192 192.0.0.8
192.0.2.1 198.51.100.7 203.0.113.9 198.18.0.1 198.19.255.255 192.88.99.1 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255 :: fe80::1 febf::1 fe80::1%eth0 ff02::1 ff0e::1 fd00:ec2::254 fd20:ce::254 2001:db8::1 2001:2::1
fd00:ec2::23 fd00:42::42 2001:10::1 3fff::1 100::1 4000::1 5f00::1 e000::1 64:ff9b:1::7f00:1 64:ff9b:1::808:808
::ffff:169.254.169.254 ::169.254.169.254 ::ffff:0:169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::1
2001:0:4136:e378:8000:63bf:5601:5601 2001:0:a9fe:a9fe::f7f7:f7f7 2606:4700::5efe:a9fe:a9fe 2606:4700::200:5efe:a9fe:a9fe
fe80::5efe:808:808 ::ffff:0.0.0.0 ::ffff:224.0.0.1 ::ffff:255.255.255.255
""".split()
"""Closed by default."""
PRIVATE = """
127.0.0.1 127.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 ::1 fc00::1 fd12::1
fec0::1 ::ffff:127.0.0.1 ::ffff:7f00:1 ::7f00:1 ::ffff:0:7f00:1 64:ff9b::7f00:1 64:ff9b::a00:1 2002:7f00:1::
2002:c0a8:101::1 2001:0:4136:e378:8000:63bf:80ff:fffe 2606:4700::5efe:7f00:1 ::ffff:10.0.0.1 ::ffff:100.64.0.1
""".split()
"""Open by default, closed with `private = false`."""
OPEN = """
8.8.8.8 1.1.1.1 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1 192.0.1.1 198.17.255.255 198.20.0.1 223.255.255.255
169.253.255.255 169.255.0.1 126.255.255.255 128.0.0.1 9.255.255.255 11.0.0.1 2606:4700::1111 2a00:1450:4001::1
64:ff9b::808:808 2002:808:808::1 ::ffff:8.8.8.8 2001:4860:4860::8888
""".split()


def rules(*texts):
    return [parse_rule(text) for text in texts]


def judged(address, *, host=None, port=443, is_own=False, allow=(), deny=(), **settings):
    policy = Policy(allow=rules(*allow), deny=rules(*deny), **settings)
    return policy.judge(plain_host(host or address), port, ipaddress.ip_address(address), is_own=is_own)


@pytest.mark.parametrize("address", CLOSED)
def test_closed_whatever_private_says(address):
    for private in (True, False):
        verdict = judged(address, private=private)
        assert not verdict.is_allowed
        assert "[egress] allow" in verdict.remedy


@pytest.mark.parametrize("address", PRIVATE)
def test_private_is_a_switch(address):
    assert judged(address).is_allowed
    verdict = judged(address, private=False)
    assert not verdict.is_allowed
    assert "[egress] private is false" in verdict.reason


@pytest.mark.parametrize("address", OPEN)
def test_the_rest_is_open(address):
    assert judged(address, private=False).is_allowed


@pytest.mark.parametrize("address", [a for a in CLOSED + PRIVATE if "%" not in a])
def test_what_the_remedy_names_opens(address):
    wanted = {str(leaf) for leaf in leaves(ipaddress.ip_address(address))}
    named = set()
    for _ in wanted:  # a Teredo or ISATAP address stands for two
        verdict = judged(address, private=False, allow=sorted(named))
        if not verdict.is_allowed:
            named.add(verdict.remedy.split('"')[1])
    assert named <= wanted
    assert judged(address, private=False, allow=sorted(named)).is_allowed
    assert judged(address, host="svc.example", private=False, allow=["svc.example"]).is_allowed


@pytest.mark.parametrize(
    "allow, address, is_allowed",
    [
        # a range opens what it lies within, and nothing that merely lies within it
        ("0.0.0.0/0", "10.0.0.1", False),
        ("0.0.0.0/0", "169.254.169.254", False),
        ("::/0", "::1", False),
        ("::/0", "::ffff:127.0.0.1", False),
        ("::/0", "100::1", False),
        ("64:ff9b::/96", "64:ff9b::7f00:1", False),
        ("10.0.0.0/8", "10.0.0.1", True),
        ("10.20.0.0/16", "10.20.0.1", True),
        ("10.20.0.0/16", "10.21.0.1", False),
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("::ffff:10.0.0.1", "10.0.0.1", False),
        ("fd00::/8", "fd00::7", True),
        ("169.254.0.0/16", "169.254.1.1", True),
        ("169.254.0.0/16", "169.254.169.254", False),
        ("169.254.169.254", "169.254.169.254", True),
        ("169.254.169.254:80", "169.254.169.254", False),
        ("169.254.169.254:443", "169.254.169.254", True),
        ("169.254.169.254:400-500", "169.254.169.254", True),
        # a name opens what it leads to, a domain does not
        ("svc.example", "10.0.0.1", True),
        ("svc.example", "169.254.169.254", True),
        ("SVC.Example.", "10.0.0.1", True),
        ("*.example", "10.0.0.1", False),
        ("*.example", "169.254.169.254", False),
        ("*", "10.0.0.1", False),
        ("other.example", "10.0.0.1", False),
    ],
)
def test_what_an_allowing_rule_opens(allow, address, is_allowed):
    assert judged(address, host="svc.example", private=False, allow=[allow]).is_allowed is is_allowed


@pytest.mark.parametrize(
    "deny",
    ["10.0.0.1", "10.0.0.0/8", "svc.example", "*.example", "*", "*:443", "svc.example:1-500", "::ffff:10.0.0.0/104"],
)
def test_deny_wins_over_the_same_rule_in_allow(deny):
    address = "::ffff:10.0.0.1"
    allow = [deny, "10.0.0.1", "svc.example:443"]
    verdict = judged(address, host="svc.example", allow=allow, deny=[deny])
    assert not verdict.is_allowed
    assert f'"{deny}"' in verdict.reason
    assert judged(address, host="svc.example", allow=allow).is_allowed


@pytest.mark.parametrize("deny", ["10.0.0.2", "*.svc.example", "svc.example:80", "*:80", "example", "c.example"])
def test_a_rule_for_something_else_denies_nothing(deny):
    assert judged("10.0.0.1", host="svc.example", deny=[deny]).is_allowed


@pytest.mark.parametrize(
    "allow, is_allowed",
    [
        ([], False),
        (["svc.example"], True),
        (["*.example"], True),
        (["svc.example:80"], False),
        (["8.8.8.0/24"], True),
        (["0.0.0.0/0"], True),
        (["::/0"], False),
        (["1.1.1.1"], False),
    ],
)
def test_only_allowed(allow, is_allowed):
    assert judged(PUBLIC, host="svc.example", allow=allow, only_allowed=True).is_allowed is is_allowed
    if is_allowed:  # the list opens no more than it says
        assert not judged("169.254.169.254", host="x.example", allow=allow, only_allowed=True).is_allowed


def test_ports():
    assert judged(PUBLIC, port=443, ports=[80, 443]).is_allowed
    verdict = judged(PUBLIC, port=22, ports=[80, 443])
    assert (verdict.is_allowed, verdict.reason) == (False, "port 22 is not among [egress] ports")
    assert judged(PUBLIC, port=22, ports=[80, 443], allow=["8.8.8.8:22"]).is_allowed
    assert not judged(PUBLIC, port=22, ports=[80, 443], allow=["8.8.8.8"]).is_allowed


def test_the_own_control_plane_is_opened_by_its_very_port_only():
    for allow in ([], ["127.0.0.1"], ["127.0.0.0/8"], ["127.0.0.1:7000-8000"], ["*:7420"], ["svc.example"]):
        verdict = judged("127.0.0.1", host="svc.example", port=7420, is_own=True, allow=allow)
        assert not verdict.is_allowed
        assert "control plane" in verdict.reason
    for allow in (["127.0.0.1:7420"], ["svc.example:7420"]):
        assert judged("127.0.0.1", host="svc.example", port=7420, is_own=True, allow=allow).is_allowed


@pytest.mark.parametrize("host", ["metadata.google.internal", "METADATA.google.internal.", "metadata", "instance-data"])
def test_names_of_metadata_are_closed_wherever_they_lead(host):
    assert not judged(PUBLIC, host=host).is_allowed
    assert not judged(PUBLIC, host=host, allow=["*", "*.internal", "0.0.0.0/0"]).is_allowed
    assert judged(PUBLIC, host=host, allow=[host]).is_allowed
    for is_final in (True, False):
        assert not Policy().judge_name(plain_host(host), 80, is_final=is_final).is_allowed


def test_a_name_that_a_proxy_resolves_is_judged_by_itself():
    def named(host, **settings):
        settings = {key: rules(*value) if key in {"allow", "deny"} else value for key, value in settings.items()}
        return Policy(**settings).judge_name(host, 443, is_final=True).is_allowed

    assert named("svc.example", private=False)
    assert not named("svc.example", deny=["*.example"])
    assert not named("svc.example", only_allowed=True)
    assert not named("svc.example", only_allowed=True, allow=["8.8.8.8"])
    assert named("svc.example", only_allowed=True, allow=["*.example"])
    assert not named("svc.example", ports=[80])
    assert named("localhost")
    assert not named("localhost", private=False)
    assert not named("a.localhost", private=False)
    assert named("localhost", private=False, allow=["localhost"])


def test_before_a_name_is_resolved_a_rule_for_its_address_may_still_speak():
    policy = Policy(allow=rules("8.8.8.0/24"), only_allowed=True)
    assert policy.judge_name("svc.example", 443, is_final=False).is_allowed
    assert not Policy(only_allowed=True).judge_name("svc.example", 443, is_final=False).is_allowed


SPELLINGS = {
    # as a URL holds it: what it is, or None when it is refused
    "127.0.0.1": "127.0.0.1",
    "127.1": None,
    "127.0.1": None,
    "2130706433": None,
    "0x7f000001": None,
    "0x7f.1": None,
    "0X7F.0.0.1": None,
    "0177.0.0.1": None,
    "017700000001": None,
    "127.0.0.01": None,
    "0": None,
    "0x": None,
    "127.0.0.1.": None,
    "256.1.1.1": None,
    "1.2.3.4.5": None,
    "4294967296": None,
    "a.b.1": None,
    "1.0x7f": None,
    "::1": "::1",
    "0:0:0:0:0:0:0:1": "::1",
    "::ffff:7f00:1": "::ffff:7f00:1",
    "::ffff:127.0.0.1": "::ffff:7f00:1",
    "fe80::1%eth0": "fe80::1%eth0",
    "::1::": None,
    "12345::": None,
}


@pytest.mark.parametrize("host", SPELLINGS)
def test_an_address_has_one_spelling(host):
    wanted = SPELLINGS[host]
    if wanted is None:
        with pytest.raises(ValueError):
            literal(host)
    else:
        assert literal(host) == ipaddress.ip_address(wanted)


@pytest.mark.parametrize("host", ["example.com", "1.example", "0x7f.example", "localhost", "a1", "7f000001.x0"])
def test_names_are_no_addresses(host):
    assert literal(host) is None


@given(st.integers(0, 2**32 - 1))
def test_no_envelope_leads_around_the_verdict_on_an_address(number):
    inner = ipaddress.IPv4Address(number)
    policy = Policy(private=False)
    bare = policy.judge("h", 443, inner).is_allowed
    envelopes = [
        0xFFFF << 32 | number,
        0xFFFF << 48 | number,
        0x64FF9B << 96 | number,
        0x2002 << 112 | number << 80 | 1,
        0x20010000 << 96 | 0x08080808 << 64 | (number ^ 0xFFFFFFFF),
        0x26064700 << 96 | 0x5EFE << 32 | number,
    ]
    for envelope in envelopes:
        assert policy.judge("h", 443, ipaddress.IPv6Address(envelope)).is_allowed is bare


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no rule"),
        ("a b", "no rule"),
        ("*.*.example", "no rule"),
        ("ex*mple", "no rule"),
        ("-a.example", "no rule"),
        ("münchen.example", "xn--"),
        ("10.0.0.1/8", "host bits"),
        ("10.0.0.0/33", "no range"),
        ("127.1", "no address"),
        ("0x7f.1", "no address"),
        ("1.2.3.4:0", "no port"),
        ("1.2.3.4:65536", "no port"),
        ("a.example:9-8", "no port"),
        ("a.example:http", "no port"),
        ("[::1", "write"),
        ("[::1]x", "write"),
        ("http://a.example", "is a URL"),
    ],
)
def test_rules_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        parse_rule(text)


def test_a_rule_for_an_ipv6_address_takes_a_port_behind_brackets():
    rule = parse_rule("[fd00::/8]:443-444")
    assert rule.covers(ipaddress.ip_address("fd00::1"), 444)
    assert not rule.covers(ipaddress.ip_address("fd00::1"), 445)
    assert parse_rule("fd00::/8").covers(ipaddress.ip_address("fd00::1"), 445)
    assert parse_rule("[::1]").covers(ipaddress.ip_address("::1"), 1)


def test_forms_of_the_threat_model_are_many():
    assert len(CLOSED) + len(PRIVATE) + len(SPELLINGS) >= 60
