"""The gallery: automations for a home and for a company, each on a real daemon against stand-ins for the others."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from harness import github_headers, github_payload
from semantics.stage import Stage
from semantics.support import Run
from switchboard import basic
from taskforge.v1 import event_pb2


async def fired(stage: Stage, workflow: str, payload: Any = None, **more: Any) -> Run:
    """Fire the only trigger, and wait for the end of its only run."""
    event = await stage.fire(workflow, payload, **more)
    assert event.outcome == event_pb2.Event.OUTCOME_ACCEPTED, event.verdicts
    (run_id,) = event.run_ids
    run = await stage.ended(run_id)
    await stage.intact(run_id)
    return run


async def start(stage: Stage, workflow: str, payload: Any) -> str:
    """Start a run with exactly this input."""
    return str((await stage.call("StartRun", workflow=workflow, input_json=json.dumps(payload))).run.id)


def program(folder: Path, name: str, script: str) -> str:
    """A stand-in for a program."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


# --- heartbeat -------------------------------------------------------------------------------------------------------


async def test_a_job_that_falls_silent_raises_the_alarm_and_one_that_reports_does_not(stage: Stage):
    await stage.secret("HEARTBEAT_TOKEN", "beat-token")
    await stage.put("heartbeat", ("default: 26h", "default: 1s"))
    headers = {"Authorization": "Bearer beat-token"}
    runs = []
    for job in ("backup", "backup", "mirror"):
        status, answer = await stage.post(f"beat?job={job}", b"", headers)
        assert status == 202
        runs += answer["run_ids"]
    first, second, third = [await stage.ended(one) for one in runs]
    assert [first.state, second.state, third.state] == ["CANCELLED", "SUCCEEDED", "SUCCEEDED"]
    assert sorted(one["Title"] for one in stage.service.headers("/alerts")) == ["backup is silent", "mirror is silent"]
    status, answer = await stage.post("beat?job=../../etc", b"", headers)
    assert (status, answer["run_ids"]) == (202, []), "no job of this name"
    assert (await stage.post("beat?job=backup", b"", {"Authorization": "Bearer no"}))[0] == 401


# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def tls_hosts(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """A host whose certificate is good for a year, one whose certificate ends in three days, one that is not there."""
    hosts, servers = {}, []
    for name, days in (("fresh", 365), ("stale", 3)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate(tmp_path / name, days))
        server = await asyncio.start_server(lambda _, writer: writer.close(), "localhost", 0, ssl=context)
        hosts[name] = f"localhost:{server.sockets[0].getsockname()[1]}"
        servers.append(server)
    gone = await asyncio.start_server(lambda _, writer: writer.close(), "localhost", 0)
    hosts["gone"] = f"localhost:{gone.sockets[0].getsockname()[1]}"
    gone.close()
    yield hosts
    for server in servers:
        server.close()


def certificate(file: Path, days: int) -> Path:
    """A key and a certificate that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(secret + made.public_bytes(pem))
    return file


async def test_certificates_that_end_soon_or_cannot_be_seen_are_told(stage: Stage, tls_hosts: dict[str, str]):
    hosts = json.dumps(list(tls_hosts.values()))
    await stage.put(
        "certificate-expiry", ('["cloud.example:443", "mail.example:993"]', hosts), ("delay: 5s", "delay: 1ms")
    )
    run = await fired(stage, "certificate-expiry")
    assert run.state == "SUCCEEDED", run.error
    assert [one["host"] for one in run.output] == [tls_hosts["stale"], tls_hosts["gone"]]
    assert run.output[0]["ends"].startswith("notAfter=")
    (text,) = stage.service.texts("/alerts")
    assert f"{tls_hosts['gone']}: there is none to be seen" in text.splitlines()


# --- releases --------------------------------------------------------------------------------------------------------


async def test_a_release_is_told_by_the_hour_into_which_it_falls(stage: Stage):
    await stage.put("release-watcher")

    def release(tag: str, at: str, *, draft: bool = False) -> dict[str, Any]:
        return {"name": f"R {tag}", "tag_name": tag, "html_url": f"https://x.example/{tag}", "draft": draft} | (
            {"published_at": None if draft else at}
        )

    stage.service.script(
        "/repos/immich-app/immich/releases",
        (
            200,
            [
                release("v4", "", draft=True),
                release("v3", "2026-03-01T10:00:01Z"),
                release("v2", "2026-03-01T10:00:00Z"),
                release("v1", "2026-03-01T09:00:00Z"),
            ],
        ),
    )
    stage.service.script("/repos/caddyserver/caddy/releases", (404, {}))
    told = []
    for hour in (9, 10, 11):
        event = await stage.fire("release-watcher")
        await stage.ended(event.run_ids[0])
        run = await stage.ended(await stage.start("release-watcher", {"until": f"2026-03-01T{hour:02}:00:00Z"}))
        assert run.state == "SUCCEEDED", run.error
        told.append(run.output[0])
        assert run.output[1] is None, "a project that is gone holds up no other"
        await stage.intact(run.id)
    assert told == [["v1"], ["v2"], ["v3"]]
    assert stage.service.texts("/alerts") == ["v1 is out", "v2 is out", "v3 is out"]


# --- DNS -------------------------------------------------------------------------------------------------------------


async def test_a_dns_record_is_changed_only_when_the_address_has(stage: Stage):
    await stage.secret("DNS_TOKEN", "dns-token", hosts=["127.0.0.1"])
    await stage.put("dynamic-dns")
    records = "/client/v4/zones/023e105f4ecef8ad9ca31a8372d0c353/dns_records"
    stage.service.script("/ip", (200, {"ip": "203.0.113.7"}), (200, {"ip": "203.0.113.8"}))
    stage.service.script(records, (200, {"result": [{"id": "r1", "content": "203.0.113.7"}]}))
    same = await fired(stage, "dynamic-dns")
    assert same.output == {"address": "203.0.113.7", "changed": False}
    assert not [one for one in stage.service.asked if one.startswith("PATCH")]
    new = await fired(stage, "dynamic-dns")
    assert new.output == {"address": "203.0.113.8", "changed": True}
    assert stage.service.bodies(f"{records}/r1") == [{"content": "203.0.113.8"}]
    assert {one["Authorization"] for one in stage.service.headers(records)} == {"Bearer dns-token"}
    assert all("Authorization" not in one for one in stage.service.headers("/ip")), "the token is for the API alone"
    await stage.secret("DNS_TOKEN", "dns-token", hosts=["api.cloudflare.com"])
    stage.service.clear()
    elsewhere = await fired(stage, "dynamic-dns")
    assert (elsewhere.state, elsewhere.error.step) == ("FAILED", "record")
    assert "api.cloudflare.com" in elsewhere.error.message
    assert stage.service.paths() == ["/ip"]


# --- dumps -----------------------------------------------------------------------------------------------------------


async def test_a_dump_appears_whole_and_old_ones_go(stage: Stage, tmp_path: Path):
    await stage.secret("SHOP_DATABASE_PASSWORD", "db-password")
    old, young = tmp_path / "shop-2026-01-01.dump", tmp_path / "shop-2026-02-28.dump"
    for file in (old, young):
        file.write_text("dump")
    past = (dt.datetime.now() - dt.timedelta(days=16)).timestamp()
    os.utime(old, (past, past))
    dump = program(
        tmp_path, "pg_dump", 'for a; do case $a in --file=*) echo "$PGPASSWORD $*" >"${a#--file=}"; esac; done'
    )
    await stage.put(
        "database-dump", ("/usr/bin/pg_dump\n        - --f", f"{dump}\n        - --f"), ("/srv/dumps", str(tmp_path))
    )
    run = await fired(stage, "database-dump", {"local_time": "2026-03-01T02:30:00+01:00"})
    assert run.state == "SUCCEEDED", run.error
    assert run.output == {"dump": f"{tmp_path}/shop-2026-03-01.dump", "deleted": [str(old)]}
    assert (tmp_path / "shop-2026-03-01.dump").read_text().startswith("db-password --format=custom")
    assert sorted(file.name for file in tmp_path.glob("shop*")) == ["shop-2026-02-28.dump", "shop-2026-03-01.dump"]


async def test_a_dump_that_fails_leaves_no_dump_and_is_told(stage: Stage, tmp_path: Path):
    await stage.secret("SHOP_DATABASE_PASSWORD", "db-password")
    dump = program(tmp_path, "pg_dump", "echo no such database >&2; exit 1")
    await stage.put(
        "database-dump",
        ("/usr/bin/pg_dump\n        - --f", f"{dump}\n        - --f"),
        ("/srv/dumps", str(tmp_path)),
        ("delay: 1m", "delay: 1ms"),
    )
    run = await fired(stage, "database-dump", {"local_time": "2026-03-02T02:30:00+01:00"})
    assert (run.state, run.error.step) == ("DEAD", "dump")
    assert stage.service.texts("/alerts") == [f"dump: {dump} exited with 1"]
    assert not list(tmp_path.glob("*.dump"))


# --- deployments -----------------------------------------------------------------------------------------------------


def push(commit: str, ref: str = "refs/heads/main") -> tuple[bytes, dict[str, str]]:
    body = json.dumps(
        {
            "ref": ref,
            "after": commit * 40,
            "deleted": False,
            "repository": {"full_name": "acme/api"},
            "pusher": {"name": "ada"},
        }
    ).encode()
    return body, github_headers("push-secret", body, "push")


async def test_a_push_is_deployed_after_an_approval_and_a_newer_one_takes_its_place(stage: Stage):
    await stage.secret("GITHUB_WEBHOOK_SECRET", "push-secret")
    await stage.put("push-to-deploy", ("delay: 3s", "delay: 1ms"))
    stage.service.script("/build", (200, {"version": "v7"}))
    stage.service.script("/deployed", (200, {"version": "v6"}))
    _, branch = await stage.post("push", *push("c", "refs/heads/wip"))
    assert branch["outcome"] == "FILTERED"
    _, older = await stage.post("push", *push("a"))
    await stage.until(older["run_ids"][0], ask="WAITING")
    _, newer = await stage.post("push", *push("b"))
    assert (await stage.ended(older["run_ids"][0])).state == "CANCELLED"
    run_id = newer["run_ids"][0]
    waiting = await stage.until(run_id, ask="WAITING")
    assert waiting.steps["ask"].message == "Deploy bbbbbbbb of ada in place of v6?"
    await stage.call("ApproveRun", run_id=run_id)
    run = await stage.ended(run_id)
    assert (run.state, run.output) == ("SUCCEEDED", {"deployed": "v7", "approved_by": "home"})
    assert [one for one in stage.service.texts("/deployed") if one] == ['{"version":"v7"}']
    await stage.intact(run_id)


async def test_a_deployment_that_is_not_healthy_is_taken_back(stage: Stage):
    await stage.secret("GITHUB_WEBHOOK_SECRET", "push-secret")
    await stage.put("push-to-deploy", ("delay: 3s", "delay: 1ms"))
    stage.service.script("/build", (200, {"version": "v8"}))
    stage.service.script("/deployed", (200, {"version": "v7"}))
    stage.service.script("/health", (404, {}))
    _, answer = await stage.post("push", *push("d"))
    run_id = answer["run_ids"][0]
    await stage.until(run_id, ask="WAITING")
    await stage.call("ApproveRun", run_id=run_id)
    run = await stage.ended(run_id)
    assert (run.state, run.error.step, run.error.attempts) == ("DEAD", "healthy", 10)
    assert [one for one in stage.service.texts("/deployed") if one] == ['{"version":"v8"}', '{"version":"v7"}']
    await stage.intact(run_id)


# --- probes ----------------------------------------------------------------------------------------------------------


async def test_a_service_that_is_down_is_one_incident_that_ends_when_it_is_up(stage: Stage):
    await stage.secret("PAGER_KEY", "pager-key")
    await stage.put("uptime-probe", ("delay: 2s", "delay: 1ms"))
    stage.service.script("/photos/health", (503, {}), (503, {}), (503, {}), (200, {}))
    for up in (False, True):
        run = await fired(stage, "uptime-probe")
        assert run.output == [{"name": "photos", "up": up}, {"name": "wiki", "up": True}]
    messages = [one for one in stage.service.bodies("/v2/enqueue") if one["dedup_key"] == "uptime/photos"]
    assert [one["event_action"] for one in messages] == ["trigger", "resolve"]
    assert {one["routing_key"] for one in messages} == {"pager-key"}
    assert "503" in messages[0]["payload"]["summary"]


async def test_a_file_system_that_is_full_is_told_once_while_the_run_lasts(stage: Stage, tmp_path: Path):
    df = program(tmp_path, "df", "printf 'Use%% Mounted on\\n  7%% /\\n 93%% /srv/photos\\n100%% /mnt/my disk\\n'")
    await stage.put("disk-space", ("/usr/bin/df,", f"{df},"))
    run_id = (await stage.fire("disk-space")).run_ids[0]
    await stage.until(run_id, quiet="WAITING")
    second = await stage.ended((await stage.fire("disk-space")).run_ids[0])
    assert second.state == "CANCELLED", "the group says no while the first one is quiet"
    assert stage.service.texts("/alerts") == ["93% /srv/photos\n100% /mnt/my disk"]
    await stage.call("CancelRun", run_id=run_id)
    await stage.ended(run_id)


async def test_the_real_df_is_understood(stage: Stage):
    await stage.put("disk-space", ("default: 90}", "default: 1}"), ("default: 6h", "default: 1ms"))
    run = await fired(stage, "disk-space")
    assert run.state == "SUCCEEDED", run.error
    assert all(line.split("%")[0].isdigit() for line in run.output)


# --- offices ---------------------------------------------------------------------------------------------------------


async def test_last_months_invoices_are_booked_page_by_page(stage: Stage):
    await stage.secret("SHOP_TOKEN", "shop-token")
    await stage.secret("BOOKS_TOKEN", "books-token")
    await stage.put("invoice-page", ("delay: 1s", "delay: 1ms"))
    await stage.put("invoice-export")
    stage.service.script("/invoices/count", (200, {"pages": [1, 2]}))
    invoice = {"net": 100, "customer": "ada"}
    pages = ([{"number": "R-1", **invoice}, {"number": "R-2", **invoice}], [{"number": "R-3", **invoice}])
    stage.service.script("/invoices", *((200, {"invoices": page}) for page in pages))
    stage.service.script("/journal/R-2", (422, {"error": "closed"}))
    run = await fired(stage, "invoice-export", {"local_time": "2026-01-01T05:00:00+01:00"})
    assert run.state == "SUCCEEDED", run.error
    assert run.output["month"] == "2025-12"
    assert sorted(run.output["booked"]) == [1, 1]
    asked = [one for one in stage.service.asked if one.startswith("GET /invoices?")]
    assert sorted(asked) == ["GET /invoices?month=2025-12&page=1", "GET /invoices?month=2025-12&page=2"]
    keys = [one["Idempotency-Key"] for one in stage.service.headers("/journal/R-1")]
    assert len(keys) == 1
    assert "/book[0]" in keys[0]


@pytest.mark.parametrize(("day", "month"), [("2026-03-01", "2026-02"), ("2026-12-01", "2026-11")])
async def test_the_month_before(stage: Stage, day: str, month: str):
    await stage.secret("SHOP_TOKEN", "shop-token")
    await stage.put("invoice-page")
    await stage.put("invoice-export")
    stage.service.script("/invoices/count", (200, {"pages": []}))
    run = await fired(stage, "invoice-export", {"local_time": f"{day}T05:00:00+01:00"})
    assert run.output == {"month": month, "booked": []}


async def test_stale_branches_of_all_pages_are_deleted_after_somebody_has_seen_them(stage: Stage):
    await stage.secret("GITLAB_TOKEN", "gitlab-token")
    await stage.put("stale-branches")
    old, new = "2020-01-01T00:00:00.000+01:00", dt.datetime.now(dt.UTC).isoformat()

    def branch(name: str, at: str, **more: bool) -> dict[str, Any]:
        states = {"merged": False, "protected": False, "default": False, **more}
        return {"name": name, "commit": {"committed_date": at}, **states}

    place = "/api/v4/projects/4711/repository/branches"
    first = [branch("main", old, default=True), branch("fix/old", old), branch("fix/new", new)]
    second = [branch("done", new, merged=True), branch("release", old, protected=True)]
    stage.service.script(place, (200, first, {"X-Next-Page": "2"}), (200, second, {"X-Next-Page": ""}))
    run_id = (await stage.fire("stale-branches")).run_ids[0]
    waiting = await stage.until(run_id, ask="WAITING")
    assert waiting.steps["ask"].message == "Delete fix/old, done?"
    await stage.call("ApproveRun", run_id=run_id)
    run = await stage.ended(run_id)
    assert (run.state, run.output) == ("SUCCEEDED", {"stale": ["fix/old", "done"]})
    deleted = [one for one in stage.service.asked if one.startswith("DELETE")]
    assert sorted(deleted) == [f"DELETE {place}/done", f"DELETE {place}/fix%2Fold"]
    assert f"GET {place}?per_page=100&page=2" in stage.service.asked
    await stage.intact(run_id)


async def test_a_report_looks_again_when_the_figures_are_not_complete(stage: Stage):
    await stage.put("nightly-report")
    rows = [{"name": "a", "state": "open"}, {"name": "b", "state": "done"}]
    stage.service.script("/figures", (200, {"complete": False, "rows": []}), (200, {"complete": True, "rows": rows}))
    payload = {"source": f"{stage.service.url}/figures", "pause": "10ms"}
    run = await stage.ended(await start(stage, "nightly-report", payload))
    assert run.state == "SUCCEEDED", run.error
    assert run.output == {"count": 2, "open": 1, "names": ["a", "b"]}
    assert stage.service.bodies("/report") == [run.output]
    stage.service.script("/figures", (200, {"complete": True, "rows": []}))
    run = await stage.ended(await start(stage, "nightly-report", payload))
    assert (run.state, run.error.code) == ("FAILED", "no_figures")


async def test_a_release_of_github_is_built_and_deployed(stage: Stage):
    await stage.secret("GITHUB_WEBHOOK_SECRET", "push-secret")
    await stage.put("deploy-api")
    body = github_payload()
    _, answer = await stage.post("github", body, github_headers("push-secret", body))
    run = await stage.ended(answer["run_ids"][0])
    assert (run.state, run.output) == ("SUCCEEDED", {"version": "0.0.1", "stable": True})
    assert stage.service.bodies("/deploy/production") == [{"version": "0.0.1"}]
    stage.service.script("/deploy/staging", (404, {}))
    payload = {"tag": "v2-rc1", "repository": "acme/api"}
    run = await stage.ended(await start(stage, "deploy-api", payload))
    assert (run.state, run.error.step) == ("FAILED", "staging")
    assert stage.service.bodies("/alert")[0]["run"] == run.id


# --- what came from elsewhere ----------------------------------------------------------------------------------------


async def test_a_line_of_a_crontab(stage: Stage, tmp_path: Path):
    good = program(tmp_path, "rsync", 'test "$1 $2 $3 $4" = "-a --delete /srv/photos/ nas:/srv/photos/"')
    await stage.put("from-cron", ("/usr/bin/rsync,", f"{good},"))
    assert (await fired(stage, "from-cron")).state == "SUCCEEDED"
    assert stage.service.paths() == ["/photos"]
    stage.service.clear()
    bad = program(tmp_path, "rsync2", "exit 23")
    await stage.put("from-cron", ("/usr/bin/rsync,", f"{bad},"), ("delay: 5m", "delay: 1ms"))
    run = await fired(stage, "from-cron")
    assert (run.state, run.states["report"]) == ("DEAD", "SKIPPED")
    assert stage.service.texts("/alerts") == [f"copy: {bad} exited with 23"]


async def test_a_timer_of_systemd(stage: Stage, tmp_path: Path):
    certbot = program(tmp_path, "certbot", 'test "$LC_ALL $*" = "C.UTF-8 -q renew"')
    await stage.put("from-timer", ("/usr/bin/certbot,", f"{certbot},"))
    assert (await fired(stage, "from-timer")).state == "SUCCEEDED"
    bad = program(tmp_path, "certbot2", "exit 1")
    await stage.put("from-timer", ("/usr/bin/certbot,", f"{bad},"), ("delay: 30s", "delay: 1ms"))
    run = await fired(stage, "from-timer")
    assert (run.state, run.error.attempts) == ("DEAD", 5)
    assert stage.service.texts("/alerts") == [f"from-timer: {bad} exited with 1"]


async def test_a_flow_of_n8n(stage: Stage):
    await stage.secret("SHOP_FORM_PASSWORD", "form-password")
    await stage.secret("CRM_TOKEN", "crm-token")
    await stage.put("from-n8n", ("wait: 10s", "wait: 30s"), ("delay: 500ms", "delay: 1ms"))
    headers = {"Authorization": basic("shop", "form-password"), "Content-Type": "application/json"}
    small = await stage.post("quote", b'{"customer": "ada", "pieces": 3}', headers)
    assert small == (200, {"total": 37.5, "person": ""})
    stage.service.script("/leads", (500, {}))
    large = await stage.post("quote", b'{"customer": "bob", "pieces": 100}', headers)
    assert large == (200, {"total": 1250, "person": "somebody will call you"})
    assert stage.service.bodies("/leads") == [{"customer": "bob", "total": 1250}] * 3
    bad = await stage.post("quote", b'{"customer": "eve", "pieces": "many"}', headers)
    assert (bad[0], bad[1]["outcome"]) == (202, "FILTERED")
    forged = {**headers, "Authorization": basic("shop", "wrong")}
    assert (await stage.post("quote", b"{}", forged))[0] == 401


async def test_a_workflow_of_github_actions(stage: Stage):
    await stage.secret("GITHUB_WEBHOOK_SECRET", "push-secret")
    await stage.secret("CI_TOKEN", "ci-token")
    await stage.put("from-actions")
    _, answer = await stage.post("ci", *push("e", "refs/tags/v3"))
    run_id = answer["run_ids"][0]
    await stage.until(run_id, approve="WAITING")
    assert sorted(body["python"] for body in stage.service.bodies("/test")) == ["3.11", "3.12", "3.13"]
    await stage.call("ApproveRun", run_id=run_id)
    run = await stage.ended(run_id)
    assert (run.state, run.output) == ("SUCCEEDED", {"published": True})
    assert stage.service.bodies("/publish") == [{"ref": "v3"}]
    await stage.intact(run_id)

    stage.service.clear()
    stage.service.script("/lint", (422, {}))
    broken = await stage.ended(await stage.start("from-actions", {"tag": "v4"}))
    assert (broken.state, broken.states["publish"]) == ("FAILED", "SKIPPED")
    assert stage.service.bodies("/clean") == [{"publish": "SKIPPED"}]
    assert "/publish" not in stage.service.paths()
