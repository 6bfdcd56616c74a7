"""Pages whose commands are typed by a machine, in order, in an empty HOME, as a reader would.

Blocks of `sh` are typed, YAML becomes the file that the text names. What needs a systemd session or installs packages
stands in blocks of `sh systemd` and `sh install`, and is left out here by that second word.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
from manual.pages import ROOT

LEFT_OUT = {"install", "systemd"}


def script_of(page, folder):
    """Answer the commands of a page, and put the definitions that it shows into a folder, where it names them."""
    text = (ROOT / "docs" / page).read_text()
    for name, source in re.findall(
        r"^Put this into `([\w.-]+)`:\n\n```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    ):
        (folder / name).write_text(source)
    found = re.findall(r"^```sh *(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert {word for word, _ in found} - {""} <= LEFT_OUT
    return "\n".join(block for word, block in found if not word)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def typed(tmp_path):
    """Types a page, and leaves no daemon behind."""
    home = tmp_path / ".taskforge"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    port = free_port()
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "TASKFORGE_GRPC_LISTEN": "127.0.0.1:0",
        "TASKFORGE_HTTP_LISTEN": f"127.0.0.1:{port}",
    }

    def type_it(page, before="", after=""):
        script = script_of(page, tmp_path).replace("source .venv/bin/activate", ":")
        for file in tmp_path.glob("*.yaml"):
            file.write_text(file.read_text().replace("127.0.0.1:7421", f"127.0.0.1:{port}"))
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{before}\n{script}\n{after}"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (home / "taskforged.json").exists(), "the page leaves no daemon behind"
        return done.stdout

    try:
        yield type_it
    finally:
        with suppress(OSError, ValueError):
            if (home / "taskforged.json").exists():
                os.kill(int((home / "taskforged.lock").read_text()), signal.SIGKILL)


def test_the_quick_start(typed, tmp_path):
    said = typed("quickstart.md")
    assert "07:00:00 +0" in said, "when it is due"
    assert "coffee.ready" in said, "what the workflow has seen with its secret"
    assert "SUCCEEDED" in said
    assert "intact" in said
    stored = b"".join(file.read_bytes() for file in (tmp_path / ".taskforge").glob("taskforge.db*"))
    assert b"MORNING_TOKEN" in stored
    assert b"Bearer tfk_" not in stored
    assert "tfk_" not in said


def test_the_concepts(typed):
    said = typed("concepts.md", "taskforgectl init\ntaskforgectl up", "taskforgectl down")
    assert "`if` is false: event.body.total > 0 (event.body.total was 0)" in said
    assert "waits for approval" in said
    assert "intact" in said
    assert "nightly" in said and "acme" in said and "ci.example" in said
