from __future__ import annotations

import json

import pytest


def test_secrets_from_stdin_and_files_never_come_back(ctl, tmp_path):
    made = ctl.json("secret", "set", "CLI_A", stdin="s3cr3t-value\n")
    assert (made["name"], made["version"], made["namespace"]) == ("CLI_A", 1, "default")
    (tmp_path / "value").write_bytes(b"other-value\r\n")
    assert ctl("secret", "set", "CLI_A", "--value-file", str(tmp_path / "value")) == "CLI_A  version 2  set\n"
    assert ctl("secret", "set", "CLI_B", "--value-file", "-", "-o", "name", stdin="b") == "CLI_B\n"
    listed = ctl("secret", "list") + json.dumps(ctl.json("secret", "list"))
    assert "CLI_A" in listed
    assert "value" not in listed
    assert ctl("secret", "delete", "CLI_B") == "CLI_B  deleted\n"
    ctl.error("secret", "delete", "CLI_B", code=3)


def test_the_hosts_of_a_secret_stay_until_they_are_changed(ctl):
    made = ctl.json("secret", "set", "CLI_H", "--host", "API.example.com", "--host", "*.example.org:443", stdin="v1")
    assert made["hosts"] == ["*.example.org:443", "api.example.com"]
    assert ctl.json("secret", "set", "CLI_H", stdin="v2")["hosts"] == made["hosts"]
    assert "*.example.org:443, api.example.com" in ctl("secret", "list")
    assert ctl.json("secret", "set", "CLI_H", "--host", "10.0.0.1", stdin="v3")["hosts"] == ["10.0.0.1"]
    assert ctl.json("secret", "set", "CLI_H", "--any-host", stdin="v4")["hosts"] == []
    ctl.error("secret", "set", "CLI_H", "--any-host", "--host", "a.example", code=2, stdin="v")
    assert "must be a host name" in ctl.error(
        "secret", "set", "CLI_H", "--host", "https://a.example/", code=2, stdin="v"
    )
    versions = {one["name"]: one["version"] for one in ctl.json("secret", "list")}
    assert versions["CLI_H"] == 4


def test_secrets_that_cannot_be(ctl, tmp_path):
    ctl.error("secret", "set", "lower", code=2, stdin="x")
    ctl.error("secret", "set", "CLI_EMPTY", code=2, stdin="\n")
    ctl.error("secret", "set", "CLI_X", "--value-file", str(tmp_path / "none"), code=2)
    ctl.error("secret", "set", "CLI_X", "value-on-the-command-line", code=2)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    ctl.error("secret", "set", "CLI_X", "--value-file", str(tmp_path / "binary"), code=2)


def test_tokens(ctl):
    done = ctl.run("token", "create", "ci", "--role", "viewer", "--ttl", "30d")
    secret = done.stdout.strip()
    assert secret.startswith("tfk_")
    assert "not shown again" in done.stderr
    made = ctl.json("token", "create", "ci2", "--role", "trigger", "--for-namespace", "default")
    assert (made["role"], made["namespace"], made["expire_time"]) == ("TRIGGER", "default", None)
    listed = ctl.json("token", "list")
    assert [one["name"] for one in listed][:2] == ["ci2", "ci"]
    assert listed[1]["expire_time"] is not None
    assert "secret" not in listed[0]
    ctl("run", "list", TASKFORGE_TOKEN=secret)
    assert ctl("token", "revoke", listed[1]["id"]) == f"{listed[1]['id']}  revoked\n"
    ctl.error("run", "list", code=4, TASKFORGE_TOKEN=secret)
    ctl.error("token", "create", "x", "--role", "king", code=2)
    ctl.error("token", "create", "x", "--role", "viewer", "--ttl", "soon", code=2)
    ctl.error("token", "revoke", "bogus", code=3)


def test_roles_are_4_where_they_do_not_reach(ctl):
    viewer = ctl.json("token", "create", "v", "--role", "viewer")["secret"]
    trigger = ctl.json("token", "create", "t", "--role", "trigger")["secret"]
    ctl.error("--token", viewer, "run", "start", "hello", code=4)
    ctl.error("token", "list", "--token", viewer, code=4)
    ctl.error("--token", trigger, "run", "list", code=4)


def test_a_trigger_token_can_wait(ctl):
    trigger = ctl.json("token", "create", "t", "--role", "trigger")["secret"]
    for name in ("hello", "short-naps"):
        assert ctl.json("run", "start", name, "--wait", "--token", trigger)["state"] == "SUCCEEDED"


@pytest.mark.parametrize("token", ["nonsense", "tfk_aaaaaaaaaaaa_" + "A" * 43])
def test_a_wrong_token_is_4_and_not_repeated_in_the_message(ctl, token):
    told = ctl.error("run", "list", "--token", token, code=4)
    assert token not in told
    assert "hint: give a token" in told


def test_no_token_is_4(ctl, tmp_path):
    address = ctl.json("status")["grpc"][-1]
    told = ctl.error("--home", str(tmp_path), "--address", address, "run", "list", code=4)
    assert "there is no token" in told


def test_addresses(ctl):
    for address in ctl.json("status")["grpc"]:
        ctl("--address", address, "run", "list")
        assert ctl.json("status", TASKFORGE_ADDRESS=address)["state"] == "ready"
    for address in ("nonsense", "127.0.0.1", "127.0.0.1:99999", ":7420"):
        assert "is not an address" in ctl.error("--address", address, "run", "list", code=2)
    for address in ("example.org:7420", "10.0.0.1:7420", "0.0.0.0:7420"):
        assert "clear text" in ctl.error("--address", address, "run", "list", code=2)
    assert "not to be reached" in ctl.error("--address", "127.0.0.1:1", "run", "list", code=5)
    ctl.error("--address", "127.0.0.1:1", "status", code=5)


def test_a_proxy_in_the_environment_is_not_asked(ctl):
    address = ctl.json("status")["grpc"][-1]
    ctl("--address", address, "run", "list", http_proxy="http://127.0.0.1:1", grpc_proxy="http://127.0.0.1:1")


def test_what_can_be_no_token_is_refused_before_it_is_sent(ctl):
    for bad in ("two\nlines", "esc\x1b[31m", "gr\u00fcn", "with space"):
        text = ctl.error("run", "list", "--token", bad, code=4)
        assert "that is not a token" in text
        assert "\x1b" not in text


def test_a_token_of_a_namespace_needs_no_namespace_named(ctl):
    secret = ctl.run("token", "create", "tenant", "--role", "viewer", "--for-namespace", "default").stdout.strip()
    assert ctl.json("workflow", "list", "--token", secret)


def test_the_home_s_token_is_rotated_with_its_file(ctl, shared):
    home = shared.home
    before = (home / "token").read_text().strip()
    token_id = before.split("_")[1]
    done = ctl.run("token", "rotate", token_id, "--grace", "1h")
    assert "has the new one" in done.stderr
    assert (home / "token").read_text().strip() == done.stdout.strip() != before
    assert (home / "token").stat().st_mode & 0o777 == 0o600
    ctl("token", "list", TASKFORGE_TOKEN=before)  # in its grace
    other = ctl.json("token", "create", "other", "--role", "viewer")
    fresh = ctl.json("token", "rotate", other["id"])
    assert (fresh["id"], fresh["name"]) == (other["id"], "other")
    ctl.error("run", "list", code=4, TASKFORGE_TOKEN=other["secret"])
    ctl("run", "list", TASKFORGE_TOKEN=fresh["secret"])
    ctl("token", "revoke", other["id"])
    assert other["id"] not in ctl("token", "list", "--live", "-o", "name")
    assert other["id"] in ctl("token", "list", "-o", "name")
    ctl.error("token", "rotate", other["id"], code=6)
    ctl.error("token", "rotate", token_id, "--grace", "soon", code=2)


def test_the_audit_is_listed(ctl):
    ctl("secret", "set", "AUDITED", stdin="value")
    ctl.error("secret", "delete", "ABSENT", code=3)
    first, second = ctl.json("audit", "list", "--method", "SecretService/", "--limit", "2")
    assert (first["method"], first["outcome"]) == ("SecretService/DeleteSecret", "NOT_FOUND")
    assert (second["resource_type"], second["resource"], second["token_name"]) == ("secret", "AUDITED", "home")
    told = ctl("audit", "list", "--outcome", "not_found", "--since", "-1h")
    assert "secret/ABSENT" in told
    assert "AUDITED" not in told
    done = ctl.run("audit", "list", "--until", "-1h")
    assert "nothing was changed" in done.stdout + done.stderr


def test_the_master_key_is_rotated(ctl, shared):
    home = shared.home
    ctl("secret", "set", "KEPT", stdin="value")
    before = (home / "master.key").read_text()
    done = ctl.json("secret", "rotate-key")
    assert int(done["secrets"]) >= 1
    assert done["key_id"] != done["previous_key_id"]
    assert (home / "master.key").read_text() != before
    assert not (home / "master.key.new").exists()
    assert ctl.json("secret", "list")[0]["key_id"] == done["key_id"]
