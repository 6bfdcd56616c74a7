"""The engine is pure: what it imports, and that not even the seed of Python's hashes gets into a history."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path as File

import pytest

import taskforged.engine

FOLDER = File(taskforged.engine.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
FORBIDDEN = {
    "asyncio", "concurrent", "ctypes", "glob", "http", "io", "locale", "logging", "multiprocessing", "os", "pathlib",
    "queue", "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver", "sqlite3", "ssl",
    "subprocess", "tempfile", "threading", "time", "urllib", "uuid", "weakref", "zoneinfo",
}  # fmt: skip


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_imports(file):
    for name in imports(ast.parse(file.read_text())):
        top = name.split(".")[0]
        if top == "taskforged":
            assert name.startswith("taskforged.engine.") or name == "taskforged.ids", name  # which is as pure
        else:
            assert top in sys.stdlib_module_names, name
            assert top not in FORBIDDEN, name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_clock_no_dice_no_io(file):
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            assert text not in {"open", "print", "input", "eval", "exec", "__import__", "id", "hash"}, text
            assert not text.endswith((".now", ".utcnow", ".today")), text
        assert not isinstance(node, (ast.AsyncFunctionDef, ast.Await, ast.Global, ast.Nonlocal)), ast.unparse(node)
        if isinstance(node, (ast.For, ast.comprehension)):
            assert not isinstance(node.iter, (ast.Set, ast.SetComp)), ast.unparse(node)
            assert not ast.unparse(node.iter).startswith(("set(", "frozenset(")), ast.unparse(node)


SCRIPT = """
from random import Random
from taskforged.testing.generator import random_model
from taskforged.testing.simulator import Simulator
import hashlib
digest = hashlib.sha256()
for seed in range(150):
    digest.update(Simulator(random_model(Random(seed)), seed=seed).run().fingerprint().encode())
print(digest.hexdigest())
"""


def test_the_seed_of_hashes_does_not_matter():
    found = set()
    for seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(FOLDER.parents[1])}
        command = [sys.executable, "-c", SCRIPT]
        found.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(found) == 1
    assert len(found.pop().strip()) == 64
