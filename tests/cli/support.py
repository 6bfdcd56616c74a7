"""The command line as a process, and definitions to use it on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HELLO = """\
name: hello
input:
  type: object
  properties:
    name: {type: string, minLength: 1, default: world}
    count: {type: integer}
    tags: {type: array, items: {type: string}}
  additionalProperties: false
steps:
  - id: greet
    transform:
      text: Hello, ${{ input.name }}!
output: ${{ steps.greet.output }}
"""
NAP = """\
name: nap
input:
  type: object
  properties: {seconds: {type: integer, default: 60}}
steps:
  - id: before
    transform: {a: 1}
  - id: nap
    sleep: 60s
"""
SHORT_NAPS = """\
name: short-naps
steps:
  - id: one
    sleep: 700ms
  - id: two
    sleep: 700ms
  - id: three
    sleep: 700ms
"""
FAILS = """\
name: fails
steps:
  - id: stop
    fail: nothing works
"""


class Ctl:
    """Runs `taskforgectl` on a home."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment without settings from outside."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKFORGE_")}
        free = {"TASKFORGE_GRPC_LISTEN": "127.0.0.1:0", "TASKFORGE_HTTP_LISTEN": "127.0.0.1:0"}
        return kept | free | {"TASKFORGE_HOME": str(self.home), "PYTHONWARNINGS": "default"} | extra

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "taskforgectl", *arguments]

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "", **extra: str) -> str:
        """Run it, check the exit code, answer stdout."""
        return self.run(*arguments, code=code, stdin=stdin, **extra).stdout

    def run(self, *arguments: str, code: int = 0, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(**extra),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        assert (code in (0, 1)) or done.stdout or done.stderr
        return done

    def json(self, *arguments: str, code: int = 0, stdin: str = "", **extra: str) -> Any:
        """Run it with `-o json`, answer the value."""
        return json.loads(self(*arguments, "-o", "json", code=code, stdin=stdin, **extra))

    def error(self, *arguments: str, code: int, stdin: str = "", **extra: str) -> str:
        """Run it expecting a failure, answer stderr."""
        done = self.run(*arguments, code=code, stdin=stdin, **extra)
        assert done.stderr.startswith("error: "), done.stderr
        return done.stderr

    def popen(self, *arguments: str, **extra: str) -> subprocess.Popen[bytes]:
        """Start it; see `finish`."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # what a buffer has read ahead `communicate` would miss
        )

    def apply(self, source: str) -> None:
        """Apply a definition."""
        self("workflow", "apply", "-f", "-", stdin=source)


def finish(process: subprocess.Popen[bytes], timeout_s: float = 60) -> tuple[str, str]:
    """Wait for the end; answers what is left of stdout, and stderr."""
    out, err = process.communicate(timeout=timeout_s)
    return out.decode(), err.decode()


def named(name: str, text: str = "first") -> str:
    """A definition that does nothing much."""
    return f"name: {name}\nsteps:\n  - id: one\n    transform: {{text: {text}}}\n"


class Typist:
    """A terminal with somebody who answers, in place of `sys.stdin`."""

    def __init__(self, answer: str) -> None:
        self._answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self, *_: object) -> str:
        return self._answer
