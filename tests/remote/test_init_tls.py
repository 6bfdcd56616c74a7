"""`taskforgectl init --tls`: what it makes, what it leaves alone, and that the line that it prints works."""

import datetime as dt
import ipaddress
import shlex
import ssl
import stat
import tomllib
import urllib.request

import pytest
from cryptography import x509
from harness import Daemon
from remote.support import here

from taskforged.tls import Certificates


@pytest.fixture
def home(client):
    return client.folder / ".taskforge"


def test_it_makes_a_certificate_and_names_it_in_a_fresh_configuration(client, home):
    item = client.json("init", "--tls", "--host", "TF.Example.com", "--host", "10.1.2.3", "--host", "[fe80::1]")
    cert, key = home / "tls" / "cert.pem", home / "tls" / "key.pem"
    assert {str(cert), str(key)} <= set(item["made"])
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cert.parent, key)] == [0o700, 0o600]
    assert tomllib.loads((home / "config.toml").read_text())["tls"] == {"cert": "tls/cert.pem", "key": "tls/key.pem"}
    made = x509.load_pem_x509_certificate(cert.read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"tf.example.com", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    addresses = {ipaddress.ip_address(one) for one in ("10.1.2.3", "fe80::1", "127.0.0.1", "::1")}
    assert set(names.get_values_for_type(x509.IPAddress)) == addresses
    assert made.not_valid_after_utc - made.not_valid_before_utc == dt.timedelta(days=825)
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert Certificates(cert, key, None), "the daemon takes it"
    assert ":".join(f"{byte:02X}" for byte in made.fingerprint(made.signature_hash_algorithm)) == item["fingerprint"]
    assert item["hosts"][:1] == ["tf.example.com"]


def test_it_writes_over_nothing(client, home):
    client("init", "--tls")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    told = client("init", "--tls", "--host", "other.example.com").out
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert "It is not for other.example.com" in told
    assert "Add to" not in told


def test_an_older_configuration_is_left_alone_and_told_what_it_lacks(client, home):
    client("init")
    config = (home / "config.toml").read_bytes()
    told = client("init", "--tls").out
    assert (home / "config.toml").read_bytes() == config
    assert '[tls]\n  cert = "tls/cert.pem"\n  key = "tls/key.pem"' in told
    assert 'set [grpc] listen = "0.0.0.0:7420"' in told


@pytest.mark.parametrize("name", ["cert.pem", "key.pem"])
def test_half_a_pair_is_told(client, home, name):
    client("init", "--tls")
    (home / "tls" / name).unlink()
    assert "is there alone" in client("init", "--tls", code=6).err
    assert not (home / "tls" / name).exists()


@pytest.mark.parametrize("host", ["", "a b", "tf.example.com:7420", "http://x", "-x", "a..b", "x" * 64, "a/b"])
def test_what_is_no_host(client, home, host):
    assert "is not a host" in client("init", "--tls", f"--host={host}", code=2).err


def test_a_host_without_tls_is_wrong_usage(client):
    assert "--host is for --tls" in client("init", "--host", "x", code=2).err


def test_the_line_that_it_prints_works(client, home, tmp_path, monkeypatch):
    line = client.json("init", "--tls", "--host", "127.0.0.1")["context_add"]
    daemon = Daemon(home, env={"TASKFORGE_GRPC_LISTEN": "0.0.0.0:0", "TASKFORGE_TLS_HTTP": "true"})
    try:
        daemon.start()
        words = shlex.split(line.replace("127.0.0.1:7420", here(daemon.tcp)).replace("NAME", "there"))
        assert words[0] == "taskforgectl"
        assert words[-2:] == ["--token", "-"]
        client(*words[1:-1], daemon.token)
        assert client.json("--context", "there", "status")["pid"] == daemon.pid
        # Others than our client can use the certificate as its own CA.
        context = ssl.create_default_context(cafile=str(home / "tls" / "cert.pem"))
        with urllib.request.urlopen(daemon.http + "/healthz", context=context, timeout=20) as answer:
            assert answer.status == 200
    finally:
        daemon.close()


def test_a_home_below_a_long_path_is_reached_by_tcp_with_tls(client, tmp_path):
    """There is no unix socket, so that its own client must know the certificate: the run file names it."""
    home = tmp_path / ("long" * 25) / "home"
    home.parent.mkdir()
    client("--home", str(home), "init", "--tls")
    daemon = Daemon(home, env={})
    daemon._wait_for_answer = lambda _: None  # plain
    try:
        daemon.start()
        assert daemon.info["grpc"] == [daemon.tcp]
        assert client.json("--home", str(home), "status")["pid"] == daemon.pid
        assert client.json("--home", str(home), "--address", daemon.tcp, "status")["pid"] == daemon.pid
        assert "speaks TLS" in client("--address", daemon.tcp, "--token", "x", "status", code=4).err
    finally:
        daemon.close()
