"""The README's tour, typed by a machine: every command in it works, in order, in an empty HOME."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(text):
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_it_opens_with_exactly_two_commands_and_both_are_targets():
    commands = [line.split("#")[0].strip() for line in blocks(README)[0].splitlines()]
    assert commands == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{command.removeprefix('make ')}:" in makefile for command in commands)


def test_every_file_that_it_links_to_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_tour(tmp_path):
    script = "\n".join(blocks(README)[1:])
    assert script.count("source .venv/bin/activate") == 1
    script = script.replace("source .venv/bin/activate", ":")
    environment = {
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "TASKFORGE_GRPC_LISTEN": "127.0.0.1:0",
        "TASKFORGE_HTTP_LISTEN": "127.0.0.1:0",
    }
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Hello, Ada!" in done.stdout
        assert '"outcome":"ACCEPTED"' in done.stdout
        assert done.stdout.count("SUCCEEDED") >= 3
        assert "intact" in done.stdout
        assert "waits for approval" in done.stdout
        assert "03:00:00 +0" in done.stdout, "when the backup is due"
        assert "Next due: " in done.stdout
        assert "SetSecret" in done.stdout, "the audit names the call that set a secret"
        assert list(tmp_path.glob("tmp.*/taskforge/backups/*.db")), "a backup was made"
        assert "`if` is false: event.body.total > 0 (event.body.total was 0)" in done.stdout
        assert not list(tmp_path.glob("tmp.*/taskforge/taskforged.json")), "the tour leaves no daemon behind"
    finally:
        for lock in tmp_path.glob("tmp.*/taskforge/taskforged.lock"):
            with suppress(ProcessLookupError, ValueError):
                if (lock.parent / "taskforged.json").exists():
                    os.kill(int(lock.read_text()), signal.SIGKILL)
