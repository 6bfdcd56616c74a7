"""What a daemon says never drives a terminal, whatever command shows it and in whatever format.

A fake daemon fills every text of every answer with escape sequences, and every command that asks it is executed.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

import click
import grpc
import pytest
from cli.fake import SERVICES, Refusal
from google.protobuf import message_factory

from taskforgectl import __main__ as program
from taskforgectl import reference

CORPUS = (
    "\x1b[2J\x1b[38;5;77m",  # clear the screen, a colour of theirs
    "\x1b]8;;http://evil.example\x07link\x1b]8;;\x07",  # OSC 8: a link to elsewhere
    "\x1b]52;c;ZXZpbA==\x07",  # OSC 52: into the clipboard
    "\x1b]0;title\x1b\\",
    "\x9b31m\x9d0;title\x9c\x90q\x85",  # the same in C1
    "good\rbad\x08\x08\x0b\x0c\x07\x00\x7f",  # overwrite what stands there
    "\u202egnp.exe\u2066\u2069\u200e\u200f\u061c",  # turn around (CVE-2021-42574)
    "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg\U000e0041",  # pass for another name
    "x\u2028y\u2029z",
)
EVIL = "".join(CORPUS)
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
)
OURS = re.compile(r"\x1b\[[0-9;]*m")

LOCAL = (
    *("init", "up", "down", "restart", "status", "logs", "doctor", "completion", "version", "backup", "restore"),
    *("config", "context", "trigger test", "run watch", "event watch", "prune", "torture"),
)
"""Commands that ask no daemon, or whose streams have no end here; the live view has a test of its own."""

ARGUMENTS = {"TRIGGER": "a/b", "FILE": "{file}", "TYPE": "a.b"}
OPTIONS = {
    "workflow apply": ["-f", "{file}"],
    "workflow validate": ["-f", "{file}"],
    "run resolve": ["--as", "retry"],
    "schedule backfill": ["--from", "-2d", "--yes"],
    "token create": ["--role", "viewer"],
    "secret set": ["--value-file", "{file}"],
}
VERBS = [
    one for one in reference.commands() if not isinstance(one.command, click.Group) and not one.path.startswith(LOCAL)
]


def filled(descriptor: Any, depth: int = 0) -> Any:
    """A message that is full of it."""
    message = message_factory.GetMessageClass(descriptor)()
    if descriptor.full_name == "google.protobuf.Timestamp":
        message.seconds = 1_700_000_000
        return message
    if descriptor.full_name == "google.protobuf.Duration":
        message.seconds = 90
        return message
    for field in descriptor.fields:
        if field.name in {"next_page_token", "more"} or (depth > 4 and field.message_type):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            fill_map(getattr(message, field.name), field)
        elif field.is_repeated:
            values = getattr(message, field.name)
            if field.message_type is not None:
                values.append(filled(field.message_type, depth + 1))
            else:
                values.append(scalar(field))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(filled(field.message_type, depth + 1))
        else:
            setattr(message, field.name, scalar(field))
    return message


def fill_map(entries: Any, field: Any) -> None:
    value = field.message_type.fields_by_name["value"]
    entries[EVIL] = scalar(value)


def scalar(field: Any) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values[1].number
    if field.type == field.TYPE_STRING:
        return json.dumps({EVIL: [EVIL]}) if field.name.endswith("_json") else EVIL
    if field.type == field.TYPE_BYTES:
        return EVIL.encode()
    return True if field.type == field.TYPE_BOOL else 3


@pytest.fixture
def evil(call):
    """A fake daemon whose every answer is full of it."""
    for name in SERVICES:
        module = importlib.import_module(f"taskforge.v1.{name}_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                call.fake.answers[method.name] = lambda _, kind=method.output_type, stream=method.server_streaming: (
                    iter([filled(kind)]) if stream else filled(kind)
                )
    return call


def line_of(one: reference.Command, file: str) -> list[str]:
    words = one.path.split()
    for argument in one.command.params:
        if isinstance(argument, click.Argument):
            metavar = (argument.metavar or "").strip("[].").split("|")[0]
            words.append(ARGUMENTS.get(metavar, "some"))
    words += OPTIONS.get(one.path, [])
    return [word.replace("{file}", file) for word in words]


@pytest.mark.parametrize("output", ["table", "terminal", "json", "yaml", "name"])
@pytest.mark.parametrize("one", VERBS, ids=[one.path.replace(" ", "-") for one in VERBS])
def test_no_command_lets_it_through(evil, monkeypatch, capsys, tmp_path, one, output):
    file = tmp_path / "some.yaml"
    file.write_text("name: some\n")
    where = ["--address", f"127.0.0.1:{evil.fake.port}", "--token", "tfk_a_b", "--no-pager"]
    form = ["-o", "table" if output == "terminal" else output]
    monkeypatch.setattr(sys, "argv", ["taskforgectl", *where, *form, *line_of(one, str(file))])
    if output == "terminal":
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code = program._run()
    told = capsys.readouterr()
    assert code in ({2} if one.path == "workflow validate" else {0, 1, 6}), (code, told.err)
    out = OURS.sub("", told.out) if output == "terminal" else told.out
    assert "\x1b[38;5;77m" not in told.out
    for text in (out, told.err):
        found = UNSAFE.search(text)
        assert found is None, (
            f"{one.path} -o {output} lets {found[0]!r} through: {text[max(0, found.start() - 60) :][:120]!r}"
        )
    if output == "json" and told.out.strip():
        json.loads(told.out)


def test_errors_are_cleaned_too(call):
    def refuse(_: Any) -> Any:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, EVIL, {EVIL: EVIL})

    call.fake.answers["GetWorkflowVersion"] = refuse
    told = call("workflow", "show", "x", code=2)
    assert UNSAFE.search(told.err) is None
    assert "gnp.exe" in told.err


def test_the_corpus_is_what_it_says():
    assert all(UNSAFE.search(one) for one in CORPUS)
    message = filled(importlib.import_module("taskforge.v1.run_service_pb2").GetRunResponse.DESCRIPTOR)
    assert message.run.workflow == EVIL
    assert message.run.steps[0].error.message == EVIL
