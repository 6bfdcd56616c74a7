"""Rules that our own source keeps: threats that are ruled out by what is not there.

Deserialisation and import by name from data (CVE-2026-45360), evaluation of text (CVE-2026-0863), statements out of
text (CVE-2026-38428), a shell (CVE-2026-21877), comparisons that tell how much was right, templates out of stored text
(CVE-2024-56373), unchecked TLS. An exception is listed with its reason and counted, so that a second one fails.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    file
    for package in ("taskforged", "taskforgectl")
    for file in (ROOT / package).rglob("*.py")
    if "_pb2" not in file.name and "testing" not in file.parts
)
TREES = {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in FILES}

NO_IMPORT = {
    **dict.fromkeys(("pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "copyreg"), "objects out of bytes"),
    **dict.fromkeys(("code", "codeop", "runpy", "imp", "pkgutil", "zipimport"), "code out of text"),
    **dict.fromkeys(("jinja2", "mako", "chameleon", "tornado.template"), "templates"),
    **dict.fromkeys(("telnetlib", "ftplib", "xmlrpc", "wsgiref"), "protocols that nobody guards"),
    **dict.fromkeys(("multiprocessing", "pty"), "processes that are not asked for"),
}  # fmt: skip
NO_CALL = {
    "eval": "evaluates text",
    "exec": "executes text",
    "compile": "makes code of text",
    "__import__": "imports by name",
    "input": "reads a terminal",
    "os.system": "a shell",
    "os.popen": "a shell",
    "os.fork": "forks with threads and an open database",
    "os.forkpty": "forks",
    "asyncio.create_subprocess_shell": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "tempfile.mktemp": "a name that others can take",
    "yaml.load": "tags become objects",
    "yaml.unsafe_load": "tags become objects",
    "yaml.full_load": "tags become objects",
    "ssl._create_unverified_context": "believes every certificate",
    "ssl._create_default_https_context": "believes every certificate",
    "string.Template": "a template",
    "pickle.loads": "objects out of bytes",
    "types.FunctionType": "code out of data",
    "builtins.eval": "evaluates text",
    "builtins.exec": "executes text",
}
IMPORTS_BY_NAME = {"taskforgectl/lazy.py": 2, "taskforgectl/torture/wire.py": 2, "taskforged/lean.py": 3}
"""`importlib.import_module`: commands and services out of tables of constants; modules that our own sources name."""

PROVING = {"taskforged/control/signatures.py"}
"""Where whatever is compared came from a secret, under whatever name."""

SECRETS = re.compile(r"(?:^|_)(?:secret|signature|password|digest|mac|hmac|credential|verifier|passphrase)s?$")
SQL = re.compile(r"^\s*(?:SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH|CREATE|DROP|ALTER|ATTACH|VACUUM)\b", re.IGNORECASE)


def name_of(node: ast.expr) -> str:
    """Answer `a.b.c` of an attribute, else the name, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return ""


@cache
def nodes(tree: ast.AST) -> dict[type, list[ast.AST]]:
    """Answer the nodes of a file by their kind."""
    found: dict[type, list[ast.AST]] = {}
    for node in ast.walk(tree):
        found.setdefault(type(node), []).append(node)
    return found


def walk(kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Answer every node of a kind with its file."""
    for file, tree in TREES.items():
        for node in nodes(tree).get(kind, ()):
            yield file, node


def place(file: str, node: ast.AST) -> str:
    return f"{file}:{node.lineno}: {ast.unparse(node)[:120]}"  # type: ignore[attr-defined]


def test_there_is_something_to_look_at():
    assert len(TREES) > 150
    assert "taskforged/control/signatures.py" in TREES


def test_nothing_is_imported_that_turns_data_into_code():
    found = []
    for kind in (ast.Import, ast.ImportFrom):
        for file, node in walk(kind):
            names = [one.name for one in node.names] if kind is ast.Import else [node.module or ""]
            found += [
                f"{file}: {name}: {NO_IMPORT[name.split('.')[0]]}" for name in names if name.split(".")[0] in NO_IMPORT
            ]
    assert found == []


def test_nothing_is_called_that_evaluates_imports_or_opens_a_shell():
    found = []
    for file, node in walk(ast.Call):
        name = name_of(node.func)
        if name in NO_CALL:
            found.append(f"{place(file, node)}: {NO_CALL[name]}")
        for keyword in node.keywords:
            if keyword.arg == "shell" and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                if name.split(".")[0] in {"subprocess", "asyncio", "os"}:
                    found.append(f"{place(file, node)}: a shell")
            if keyword.arg == "preexec_fn":
                found.append(f"{place(file, node)}: runs code between fork and exec")
    assert found == []


def test_modules_are_imported_by_name_only_out_of_tables():
    found = Counter(
        file
        for file, node in walk(ast.Call)
        if name_of(node.func).endswith("import_module") and not isinstance(node.args[0], ast.Constant)
    )
    assert found == IMPORTS_BY_NAME


def test_attributes_are_not_looked_up_by_names_that_came_from_outside():
    """`getattr` and `setattr` with a name that is no constant stand only where the name comes out of a table."""
    allowed = {
        "taskforged/control/namespaces.py": "the fields of a NamedTuple",
        "taskforged/engine/events.py": "the fields of a dataclass",
        "taskforged/engine/run.py": "names that are in a constant set",
        "taskforged/rpc/auditing.py": "names out of a constant table",
        "taskforged/payload.py": "constant names of attributes",
        "taskforged/inventory.py": "names out of a constant table",
        "taskforged/lean.py": "what our own sources ask of a module",
        "taskforged/logs.py": "a choice of the configuration",
        "taskforgectl/render/plain.py": "the fields of a message",
    }
    calls = [
        (file, node)
        for file, node in walk(ast.Call)
        if name_of(node.func) in {"getattr", "setattr", "hasattr", "delattr", "operator.attrgetter"}
        and not (len(node.args) > 1 and isinstance(node.args[1], ast.Constant))
    ]
    assert [
        place(file, node) for file, node in calls if file not in allowed and not file.startswith("taskforgectl/")
    ] == []


def test_statements_are_constants_or_marked_and_made_of_constants():
    """A statement that is put together says `S608` and why; values are parameters always."""
    found = []
    for file, node in walk(ast.JoinedStr):
        first = node.values[0] if node.values else None
        text = first.value if isinstance(first, ast.Constant) else ""
        if isinstance(text, str) and SQL.match(text) and text.split()[0].isupper():
            lines = (ROOT / file).read_text().splitlines()[node.lineno - 1 : node.end_lineno]
            if not any("S608" in line for line in lines):
                found.append(place(file, node))
    assert found == []


def test_statements_are_not_put_together_in_other_ways():
    found = []
    for file, node in walk(ast.BinOp):
        if isinstance(node.op, (ast.Mod, ast.Add)):
            left = node.left
            if isinstance(left, ast.Constant) and isinstance(left.value, str) and SQL.match(left.value):
                found.append(place(file, node))
    for file, node in walk(ast.Call):
        inner = node.func
        if isinstance(inner, ast.Attribute) and inner.attr == "format" and isinstance(inner.value, ast.Constant):
            if SQL.match(str(inner.value.value)):
                found.append(place(file, node))
    assert found == []


def test_only_constants_are_format_strings():
    """`text.format(…)` on a text that came from outside reads attributes (`{0.__class__}`)."""
    found = []
    for file, node in walk(ast.Call):
        inner = node.func
        if isinstance(inner, ast.Attribute) and inner.attr in {"format", "format_map"}:
            is_constant = (
                isinstance(inner.value, ast.Constant) or name_of(inner.value).rpartition(".")[2].strip("_").isupper()
            )
            if not is_constant:
                found.append(place(file, node))
    assert found == []


def test_secrets_are_not_compared_with_equals():
    """`hmac.compare_digest` takes as long for a wrong first byte as for a wrong last one."""
    no_secret = {
        "taskforged/control/paging.py": "of the filters of a list",
        "taskforged/control/runs.py": "of a request, to know its repetition",
        "taskforged/control/repeats.py": "of a request, to know its repetition",
    }
    found = []
    for file, node in walk(ast.Compare):
        if file in no_secret and "digest" in ast.unparse(node):
            continue
        sides = [node.left, *node.comparators]
        if not any(isinstance(op, (ast.Eq, ast.NotEq)) for op in node.ops):
            continue
        if any(isinstance(side, ast.Constant) for side in sides):
            continue  # whether there is one at all
        if file in PROVING or any(SECRETS.search(name_of(side).rpartition(".")[2]) for side in sides):
            found.append(place(file, node))
    assert found == []


def test_no_connection_believes_every_certificate():
    allowed = {"taskforgectl/trust.py": "compares the fingerprint that is pinned instead"}
    found = []
    for file, node in walk(ast.keyword):
        if node.arg in {"verify", "ssl", "verify_ssl", "check_hostname"} and isinstance(node.value, ast.Constant):
            if node.value.value is False:
                found.append(f"{file}: {ast.unparse(node)}")
    for file, node in walk(ast.Attribute):
        if name_of(node) == "ssl.CERT_NONE" and file not in allowed:
            found.append(place(file, node))
    assert found == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("import pickle", test_nothing_is_imported_that_turns_data_into_code),
        ("eval(x)", test_nothing_is_called_that_evaluates_imports_or_opens_a_shell),
        ("subprocess.run(x, shell=True)", test_nothing_is_called_that_evaluates_imports_or_opens_a_shell),
        ("importlib.import_module(x)", test_modules_are_imported_by_name_only_out_of_tables),
        ("getattr(a, b)", test_attributes_are_not_looked_up_by_names_that_came_from_outside),
        ('sql = "SELECT " + x', test_statements_are_not_put_together_in_other_ways),
        ("text.format(x)", test_only_constants_are_format_strings),
        ("a.signature == b", test_secrets_are_not_compared_with_equals),
        ("hmac.new(k).digest() == b.signature", test_secrets_are_not_compared_with_equals),
        ("get(url, ssl=False)", test_no_connection_believes_every_certificate),
    ],
)
def test_these_rules_can_fail(source, rule, monkeypatch):
    monkeypatch.setitem(TREES, "taskforged/evil.py", ast.parse(source))
    with pytest.raises(AssertionError):
        rule()
