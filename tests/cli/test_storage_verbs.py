"""What the command line tells of the database's size, and of runs that are no longer in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cli.fake import Caller
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from taskforge.v1 import run_pb2
from taskforge.v1 import run_service_pb2 as runs
from taskforge.v1 import storage_service_pb2 as storage

MIB = 1 << 20
DAY = Timestamp(seconds=1_700_000_000)


def tell(call: Caller, **fields: Any) -> None:
    call.fake.answers["GetStorage"] = lambda _: storage.GetStorageResponse(backup_folder="/b", **fields)


def test_a_young_database(call):
    tell(call, database_bytes=MIB, can_shrink=True)
    told = call("storage", "show").out
    for words in ("1.0 MiB, 0 B of it free\n", "none by the clock", "not since the daemon started", "accepted"):
        assert words in told
    assert "failed backup" not in told


def test_an_old_one_that_is_full(call):
    tables = [storage.TableSize(name=f"t{index}", size_bytes=MIB) for index in range(9)]
    tell(
        call,
        database_bytes=3 * MIB,
        free_bytes=MIB,
        budget_bytes=2 * MIB,
        refuses_new_work="STORE_FULL",
        tables=tables,
        pruned_runs=1234,
        pruned_runs_until=DAY,
        backup_every=Duration(seconds=7200),
        last_backup_time=DAY,
        last_backup_path="/b/one.db",
        backup_failure="no room",
        backup_failure_time=DAY,
    )
    told = call("storage", "show").out
    for words in ("prune --compact", "refused: STORE_FULL", "1,234, the newest of 2023-11-1", "every 2h", "no room"):
        assert words in told
    assert ("t4" in told, "t5" in told) == (True, False)
    shown = json.loads(call("storage", "show", "-o", "json").out)
    assert (shown["pruned_runs"], len(shown["tables"])) == (1234, 9)
    assert call("storage", "show", "-o", "name").out == f"{3 * MIB}\n"


def listed(call: Caller, count: int, pruned: int) -> None:
    """Let a daemon have `count` runs still and `pruned` no longer."""

    def answer(request: Any) -> runs.ListRunsResponse:
        begin = int(request.page_token or 0)
        end = min(count, begin + request.page_size)
        return runs.ListRunsResponse(
            runs=[run_pb2.Run(id=f"run_{index}") for index in range(begin, end)],
            next_page_token=str(end) if end < count else "",
            pruned=pruned,
            pruned_until=DAY if pruned else None,
        )

    call.fake.answers["ListRuns"] = answer


@pytest.mark.parametrize("count", [0, 3])
def test_a_list_of_runs_says_what_is_no_longer_there(call, count):
    listed(call, count, 4711)
    assert (
        call("run", "list")
        .out.splitlines()[-1]
        .startswith("4,711 older runs have been pruned, the newest of them of 2023")
    )
    assert len(json.loads(call("run", "list", "-o", "json").out)) == count, "other formats have rows and nothing else"
    assert "pruned" not in call("run", "list", "-o", "name").out


def test_a_list_that_stops_before_its_end_does_not(call):
    listed(call, 3, 4711)
    assert "pruned" not in call("run", "list", "--limit", "2").out
    listed(call, 3, 0)
    assert "pruned" not in call("run", "list").out


def test_a_long_list_is_read_page_by_page(call):
    listed(call, 2500, 0)
    assert len(call("run", "list", "--all", "-o", "name").out.splitlines()) == 2500
    assert [(one.page_size, one.page_token) for one in call.fake.requests[-3:]] == [
        (1000, ""),
        (1000, "1000"),
        (1000, "2000"),
    ]
    assert len(call("run", "list", "--limit", "1001", "-o", "name").out.splitlines()) == 1001
    assert call.request.page_size == 1
