"""Threats: SQL injection (CVE-2026-38428), names that are paths, look-alikes of names, NUL and line breaks in names.

Every text of every request of the API gets hostile values. That the statements are constants is proved in
`test_source_rules.py`; that arguments of programs are whole arguments in `tests/steps/test_shell_step.py`.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from security.calls import BUGS, ask, request_with, texts_of
from switchboard import METHODS, Board

CANARY = "canary-7f3a"
WORKFLOW = """
name: {name}
on:
  go: {{event: {{type: go.now}}}}
steps:
  - {{id: say, transform: {marker}}}
output: {marker}
"""
NAMES = [
    *("..", ".", "../default", "../../etc/passwd", "/etc/passwd", "a/../b", "a/b", "a\\b", "~", "~root", "file:///etc"),
    *("%2e%2e", "%2e%2e%2fa", "a%00b", "a\0", "\0", "a\0b", "a\nb", "a\r\nb", "a\tb", " a", "a ", "a b", "\u2028"),
    *(
        "\u0430dmin",
        "\uff41bc",
        "a\u0301",
        "\u00e4",
        "\ufb01",
        "a\u200bb",
        "a\u202eb",
        "\u0131",
        "\u212a",
        "\U0001f680",
    ),
    *("A", "DEFAULT", "-a", "--help", "_a", "a;b", "a'b", 'a"b', "a`id`", "$(id)", "a|b", "a*", "a" * 64, "a" * 5000),
]
SQL = [
    *(
        "' OR 1=1 --",
        "' OR '1'='1",
        "'; DROP TABLE runs; --",
        '"; DELETE FROM events; --',
        "x') UNION SELECT body FROM",
    ),
    *("%", "_", "*", "[a-z]", "?", ":name", "@x", "$1", "x'||(SELECT secret FROM tokens)||'", "0x41", "NULL", "1e309"),
    *("' AND randomblob(1000000000) --", "') OR EXISTS(SELECT 1 FROM history) --", "x\0' OR 1=1 --", "\\' OR 1=1 --"),
]
BASE = {
    "SetSecret": {"value": "value-of-a-secret"},
    "CreateToken": {"role": 4},
    "SetQueue": {"running_steps_max": 1},
    "PublishEvent": {"type": "go.now"},
}
LISTS = sorted(name for name in METHODS if name.startswith(("List", "Get", "Explain")))
EXPENSIVE = {"VacuumStore", "CreateBackup", "BackUp", "PruneRuns"}
"""Calls that work on the whole store whatever their texts say; their own tests give them hostile values."""


async def victim(board: Board) -> Board:
    """A namespace of somebody else, with something of everything."""
    other = await board.fresh()
    await other.apply(WORKFLOW.format(name=CANARY, marker=CANARY))
    await other.secret("CANARY", CANARY)
    await other("SetQueue", name=CANARY)
    event = await other.publish("go.now", {"marker": CANARY})
    await other.output(event.runs[0])
    return other


async def counts(other: Board) -> tuple[int, ...]:
    """How much there is of everything in a namespace."""
    secrets = (await other("ListSecrets")).secrets
    return len(await other.runs()), len(await other.listed()), len(secrets), len((await other("ListQueues")).queues)


@pytest.mark.parametrize("method", LISTS)
async def test_what_looks_like_sql_is_a_text_that_nothing_equals(board, method):
    other = await victim(board)
    before = await counts(other)
    mine = (await board.token("OPERATOR")).secret
    paths = list(texts_of(METHODS[method][1].DESCRIPTOR))

    @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from(SQL) | st.text(max_size=20), min_size=len(paths), max_size=len(paths)))
    def collect(texts):
        made.append(texts)

    made: list[list[str]] = [[one] * len(paths) for one in SQL]
    collect()
    for texts in made:
        for path, text in zip(paths, texts, strict=True):
            try:
                request = request_with(method, path, text)
            except (ValueError, UnicodeEncodeError):  # half a character is no text of a protobuf message
                continue
            code, answer, said = await ask(board, method, request, bearer=mine)
            assert code not in BUGS, (path, text, said)
            assert CANARY.encode() not in answer, (path, text)
            assert "sqlite" not in said.lower() and "syntax error" not in said.lower(), (path, text, said)
    assert await counts(other) == before


async def test_hostile_names_make_no_thing_and_touch_no_file(board):
    """Namespaces, queues, secrets, workflows, and whatever else a request names."""
    other = await victim(board)
    before = await counts(other)
    files = {file for file in board.daemon.home.rglob("*") if not file.name.startswith("taskforge.db")}
    for method in sorted(METHODS.keys() - EXPENSIVE):
        for path in texts_of(METHODS[method][1].DESCRIPTOR):
            base = {key: value for key, value in BASE.get(method, {}).items() if key != path[0]}
            asked = [ask(board, method, request_with(method, path, text, **base)) for text in NAMES]
            for text, (code, answer, said) in zip(NAMES, await asyncio.gather(*asked), strict=True):
                assert code not in BUGS, (method, path, text, said)
                assert b"root:" not in answer, (method, path, text)
    for method, field, rule in (
        ("ListNamespaces", "namespaces", r"[a-z0-9][a-z0-9-]{0,62}"),
        ("ListWorkflows", "workflows", r"[a-z0-9][a-z0-9._-]{0,62}"),
        ("ListQueues", "queues", r"[a-z0-9][a-z0-9._-]{0,62}"),
        ("ListSecrets", "secrets", r"[A-Za-z_][A-Za-z0-9_]{0,127}"),
    ):
        for namespace in ("", board.namespace):
            fields = {} if method == "ListNamespaces" else {"namespace": namespace}
            for one in getattr(await board(method, page_size=1000, **fields), field):
                assert re.fullmatch(rule, one.name), (method, one.name)
    assert {file for file in board.daemon.home.rglob("*") if not file.name.startswith("taskforge.db")} == files
    assert await counts(other) == before
    for line in board.daemon.log_text().splitlines():
        if line.startswith("{"):
            json.loads(line)  # what came in did not break out of a line
    assert "rpc.bug" not in board.daemon.log_text()
    connection = sqlite3.connect(f"file:{board.daemon.home / 'taskforge.db'}?mode=ro", uri=True)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.parametrize(
    "other",
    ["CANARY-7F3A", "canary-7f3a ", " canary-7f3a", "canary-7f3a\0", "c\u0430nary-7f3a", "canary\u20107f3a", "canary%2d7f3a",
     "./canary-7f3a", "canary-7f3", "canary-7f3a.", "canary-7f3a/../canary-7f3a"],
)  # fmt: skip
async def test_a_name_is_that_name_alone(board, other):
    await board.apply(WORKFLOW.format(name=CANARY, marker=CANARY))
    assert (await board("GetWorkflow", name=CANARY)).workflow.name == CANARY
    for method, field in (("GetWorkflow", "name"), ("StartRun", "workflow"), ("FireTrigger", "workflow"), ("DeleteWorkflow", "name")):  # fmt: skip
        code, _, _ = await ask(board, method, METHODS[method][1](namespace=board.namespace, **{field: other}))
        assert code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}, method
    assert (await board("GetWorkflow", name=CANARY)).workflow.name == CANARY
