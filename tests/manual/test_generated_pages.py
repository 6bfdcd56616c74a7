"""Pages that are made from code say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
from taskforge.v1 import event_service_pb2, run_service_pb2

from taskforged.control.access import GRANTS, Role
from taskforged.rpc.guard import NEEDS
from tools import grpc_reference, language_reference

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(("name", "made"), [("grpc", grpc_reference), ("language-keys", language_reference)])
def test_the_page_is_what_the_code_says(name, made):
    assert (DOCS / f"{name}.md").read_text() == made.page(), f"run `make docs` and commit docs/{name}.md"


def test_every_method_and_field_is_on_the_page():
    text = (DOCS / "grpc.md").read_text()
    for module in (run_service_pb2, event_service_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                row = next(line for line in text.splitlines() if line.startswith(f"| `{method.name}`"))
                assert row.rstrip(" |").count("|") >= 2
                assert "Needs role" not in row, "the role is a column"
        for message in module.DESCRIPTOR.message_types_by_name.values():
            assert f"### {message.name}\n" in text
            assert all(f"| `{field.name}` |" in text for field in message.fields)


def test_every_method_tells_its_role():
    lines = (DOCS / "grpc.md").read_text().splitlines()
    roles = [line.split(" | ")[1] for line in lines if line.startswith("| `") and " → " in line]
    assert len(roles) > 60
    assert set(roles) <= {"admin", "operator", "trigger", "viewer", "worker", "any"}
    assert roles.count("any") <= 3


@pytest.mark.parametrize("role", list(Role))
def test_the_table_of_roles_is_that_of_the_daemon(role):
    """The page for people; `grpc.md` has the role of each method."""
    lines = (DOCS / "security.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith(f"| `{role.value}` |")]
    assert len(rows) == 1
    _, _, includes, services = rows[0]
    assert includes == (", ".join(one.value for one in Role if one in GRANTS[role] - {role}) or "nothing")
    asking = {name.split(".")[2].partition("Service/")[0] for name, need in NEEDS.items() if need is role}
    assert services == (", ".join(sorted(asking)) or "none yet")
