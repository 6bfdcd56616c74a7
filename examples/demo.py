"""Taskforge's main job, live, in a scratch home: `make demo`.

A GitHub release arrives as a signed webhook; it is verified, stored and answered, and a workflow builds and deploys it
step by step. Then: the same delivery again, a forged one, and a `kill -9` in the middle of a run. Everything that this
script says is checked; the first thing that is not so ends it with an explanation and exit code 1. Whatever happens,
no process and no file is left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
DEFINITION = ROOT / "examples" / "deploy-api.yaml"
PAYLOAD = ROOT / "tests" / "fixtures" / "github" / "release.published.json"
CTL = Path(sys.executable).with_name("taskforgectl")
SECRET = "It's a Secret to Everybody"
TARGET = "http://127.0.0.1:7499"
"""What the definition has as default; when the port is taken, the demo applies a copy with another one."""
WAIT_S = 30.0

_COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


class DemoError(Exception):
    """Something is not as the demo says."""


def _paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if _COLOUR else text


def title(text: str) -> None:
    """Begin a chapter."""
    print(f"\n{_paint('1;36', '── ' + text)}", flush=True)


def say(text: str) -> None:
    """Tell what happens."""
    print(f"   {text}", flush=True)


def check(condition: object, text: str, *, seen: object = "") -> None:
    """Claim something, and prove it."""
    if not condition:
        raise DemoError(f"not so: {text}" + (f"\nseen instead: {seen}" if seen != "" else ""))
    print(f"   {_paint('32', 'ok')} {text}", flush=True)


def until(what: str, probe: Callable[[], Any]) -> Any:
    """Wait, in bounds, until `probe` answers something; answers that."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := probe():
            return found
        time.sleep(0.05)
    raise DemoError(f"waited {WAIT_S:.0f} s in vain for {what}")


class Demo:
    """The scratch home, the target service and the daemon."""

    def __init__(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="taskforge-demo-"))
        self.home = self.scratch / "home"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("TASKFORGE_")} | {
            "TASKFORGE_HOME": str(self.home),
            "TASKFORGE_GRPC_LISTEN": "127.0.0.1:0",
            "TASKFORGE_HTTP_LISTEN": "127.0.0.1:0",
        }
        self.target: subprocess.Popen[str] | None = None
        self.target_url = ""

    # -- taskforgectl

    def ctl(self, *arguments: str, stdin: str | None = None, show: bool = True, quiet: bool = False) -> str:
        """Run taskforgectl; answers what it printed, or shows it. A failure ends the demo."""
        if not quiet:
            print(f"   {_paint('1', '$ taskforgectl ' + ' '.join(arguments))}", flush=True)
        done = subprocess.run(
            [CTL, *arguments],
            env=self.environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            timeout=90,
            check=False,
        )
        if done.returncode:
            told = "" if show else f"\n{done.stdout}{done.stderr}"
            raise DemoError(f"`taskforgectl {' '.join(arguments)}` exited with {done.returncode}{told}")
        return "" if show else done.stdout

    def ctl_json(self, *arguments: str) -> Any:
        """Run taskforgectl quietly and answer its JSON."""
        text = self.ctl(*arguments, "-o", "json", show=False, quiet=True)
        try:
            return json.loads(text)
        except ValueError:
            raise DemoError(f"`taskforgectl {' '.join(arguments)} -o json` printed no JSON:\n{text}") from None

    # -- the target service

    def start_target(self) -> None:
        """Start the service that the workflow deploys to."""
        for port in ("7499", "0"):
            command = [sys.executable, ROOT / "examples" / "target_service.py", "--port", port]
            self.target = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            assert self.target.stdout is not None
            self.target_url = self.target.stdout.readline().strip()
            if self.target_url:
                return
            self.target.communicate()
        raise DemoError("the target service did not start")

    def definition(self) -> Path:
        """The definition, or a copy that knows the service's port."""
        if self.target_url == TARGET:
            return DEFINITION.relative_to(ROOT)
        copy = self.scratch / DEFINITION.name
        copy.write_text(DEFINITION.read_text().replace(TARGET, self.target_url))
        return copy

    def calls(self, run_id: str) -> list[dict[str, Any]]:
        """What the service was asked for by a run."""
        with urllib.request.urlopen(f"{self.target_url}/calls", timeout=10) as response:
            return [call for call in json.load(response) if call["key"].startswith(f"{run_id}/")]

    # -- the outside world

    def deliver(self, body: bytes, delivery: str, *, secret: str = SECRET) -> tuple[int, dict[str, Any]]:
        """Do what GitHub does when a release is published."""
        url = f"{self.ctl_json('status')['http']}/hooks/default/github"
        signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "GitHub-Hookshot/demo",
            "X-GitHub-Event": "release",
            "X-GitHub-Delivery": delivery,
            "X-Hub-Signature-256": f"sha256={signature}",
        }
        print(f"   {_paint('1', f'POST {url}')}  X-GitHub-Delivery: {delivery[:8]}…", flush=True)
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"{}")

    # -- the end

    def close(self) -> None:
        """Leave no process and no file behind."""
        for pid in self.daemon_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.target is not None:
            self.target.kill()
            self.target.communicate()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def daemon_pids(self) -> list[int]:
        """The daemon of our own home, should it still run: its command line names the home."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes()
                environment = (folder / "environ").read_bytes()
                ours = str(self.home).encode()
                if b"taskforged" in command and (ours in command or b"TASKFORGE_HOME=" + ours in environment):
                    found.append(int(folder.name))
        return found


# -- the chapters


def set_up(demo: Demo) -> None:
    """A home, a daemon, a secret, a workflow."""
    title("A home, a daemon, a secret, a workflow")
    demo.ctl("init")
    demo.ctl("up")
    status = demo.ctl_json("status")
    check(status["home"] == str(demo.home), f"the daemon runs on a scratch home, pid {status['pid']}", seen=status)
    demo.ctl("secret", "set", "GITHUB_WEBHOOK_SECRET", stdin=SECRET)
    demo.ctl("workflow", "apply", "-f", str(demo.definition()))


def release(demo: Demo) -> str:
    """The main job. Answers the run."""
    title("GitHub publishes a release")
    body = PAYLOAD.read_bytes()
    delivery = str(uuid.uuid4())
    say(f"a payload as GitHub recorded it, {len(body):,} bytes, signed with the secret")
    status, answer = demo.deliver(body, delivery)
    check(status == 202, "202: verified, and event and run are on disk before the answer", seen=(status, answer))
    run_ids = answer.get("run_ids", [])
    check(len(run_ids) == 1, f"event {answer.get('event_id')} has started one run", seen=answer)
    run_id = run_ids[0]
    demo.ctl("run", "watch", run_id)
    run = demo.ctl_json("run", "show", run_id)
    tag = json.loads(body)["release"]["tag_name"]
    check(run["state"] == "SUCCEEDED", f"release {tag} is built and deployed", seen=run["state"])
    check(
        run["output"] == {"version": tag, "stable": True}, f"the run's output is {json.dumps(run['output'])}", seen=run
    )
    check([c["path"] for c in demo.calls(run_id)] == ["/build", "/deploy/production"], "the service was called twice")

    title("GitHub delivers it again")
    status, again = demo.deliver(body, delivery)
    check(status == 200, "200: a duplicate is no error", seen=(status, again))
    same = (again.get("event_id"), again.get("run_ids")) == (answer["event_id"], run_ids)
    check(same, "it is answered with the first event and its run", seen=again)
    check(len(demo.ctl_json("run", "list")) == 1, "no second run was started")

    title("Somebody forges a delivery")
    status, refused = demo.deliver(body, str(uuid.uuid4()), secret="wrong")
    check(status == 401, "401: the signature is wrong", seen=(status, refused))
    check(len(demo.ctl_json("run", "list")) == 1, "nothing was started")
    demo.ctl("event", "list")
    return str(run_id)


def crash(demo: Demo) -> str:
    """Kill -9 in the middle of a run. Answers the run."""
    title("kill -9 in the middle of a run")
    slow = f"{demo.target_url}/slow"
    inputs = ["--input", "tag=v2.0.0-rc1", "--input", "repository=acme/api", "--input", f"target={slow}"]
    text = demo.ctl("run", "start", "deploy-api", *inputs, "-o", "name", show=False)
    found = re.search(r"run_[0-9a-z]+", text)
    if found is None:
        raise DemoError(f"`run start -o name` printed no run id: {text!r}")
    run_id = found[0]
    until("the build to be under way", lambda: demo.calls(run_id))
    pid = demo.ctl_json("status")["pid"]
    say(f"{run_id} has asked the service for a build and waits for the answer …")
    print(f"   {_paint('1', f'$ kill -9 {pid}')}", flush=True)
    os.kill(pid, signal.SIGKILL)
    until("the daemon to be gone", lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))
    check(not demo.calls(run_id)[0]["answered"], "the daemon is dead, and the build's answer finds nobody")
    demo.ctl("up")
    status = demo.ctl_json("status")
    check(status["pid"] != pid, f"another daemon, pid {status['pid']}, takes over")
    demo.ctl("run", "watch", run_id)
    run = demo.ctl_json("run", "show", run_id)
    check(run["state"] == "SUCCEEDED", "the run has continued and is done", seen=run["state"])
    keys = Counter((call["path"], call["key"].rpartition("/")[2]) for call in demo.calls(run_id))
    expected = {("/build", "build"): 2, ("/deploy/staging", "staging"): 1}
    check(
        keys == expected,
        "the cut call was repeated with the same Idempotency-Key, the next one was made once",
        seen=keys,
    )
    return run_id


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def prove(demo: Demo, run_ids: list[str]) -> None:
    """The history is whole."""
    title("The history can be checked")
    demo.ctl("run", "history", run_ids[-1])
    for run_id in run_ids:
        demo.ctl("run", "verify", run_id)
    demo.ctl("down")
    until("the daemon's process to end", lambda: not demo.daemon_pids())
    check(not (demo.home / "taskforged.json").exists(), "the daemon has stopped; nothing is left behind")


def _interrupted(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    """Show it."""
    signal.signal(signal.SIGTERM, _interrupted)
    began = time.monotonic()
    demo = Demo()
    try:
        demo.start_target()
        set_up(demo)
        runs = [release(demo), crash(demo)]
        prove(demo, runs)
        print(f"\n{_paint('1;32', f'All of it is so. {time.monotonic() - began:.0f} s.')}", flush=True)
    except (DemoError, subprocess.TimeoutExpired, urllib.error.URLError, OSError, KeyError) as error:
        print(f"\n{_paint('1;31', 'The demo failed: ')}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        _show_log(demo)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr, flush=True)
        return 130
    else:
        return 0
    finally:
        demo.close()


def _show_log(demo: Demo) -> None:
    for log in sorted(demo.home.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-20:]
        print(f"the end of {log.name}:\n" + "\n".join(lines), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
