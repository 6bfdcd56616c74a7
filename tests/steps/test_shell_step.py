"""The step `shell` with real processes: honest ones, stubborn ones, floods, and those that an earlier daemon left."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from taskforged.config import load_config
from taskforged.errors import InvalidArgumentError, NotFoundError
from taskforged.steps.base import Failed, SecretValue, Succeeded, Task
from taskforged.steps.shell import ShellExecutor, processes, streams

SH = "/bin/sh"
VAULT = {
    "TOKEN": "s3cr3t/value+1",
    "KEY": "-----BEGIN-----\nline-one-of-it\nline-two-of-it\n-----END-----",
    "NUL": "a\0bcd",
}
TOKEN = {"$secret": "TOKEN"}
GUARD = 20
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def vault(name):
    if name not in VAULT:
        raise NotFoundError(name)
    return SecretValue(VAULT[name])


class Logged(list):
    def __call__(self, stream, text):
        self.append((stream, text))

    def of(self, stream):
        return [text for name, text in self if name == stream]


def task(*command, timeout_s=GUARD, log=None, **config):
    return Task(
        "run_1", "default", "wf", "call", 2, {"command": list(command), **config}, timeout_s, "run_1/call", "cor_1",
        vault, log=Logged() if log is None else log,
    )  # fmt: skip


def script(text, **config):
    return task(SH, "-c", textwrap.dedent(text), **config)


def python(text, **config):
    return task(sys.executable, "-I", "-S", "-c", textwrap.dedent(text), **config)


@pytest.fixture
async def shell(tmp_path):
    executor = ShellExecutor(scratch=tmp_path / "shell", unsafe=True, grace_s=0.3)
    assert await executor.start() == 0
    assert await executor.start() == 0
    yield executor
    await executor.close()
    await executor.close()
    assert left(tmp_path) == []


@pytest.fixture
def limited(tmp_path):
    made = []

    async def make(*allow):
        executor = ShellExecutor(scratch=tmp_path / f"limited{len(made)}", allow=[str(path) for path in allow])
        await executor.start()
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor._signals.shutdown()


def left(tmp_path):
    """Files of attempts that are still there."""
    return [path for path in (tmp_path / "shell").rglob("*") if path.name != "groups"]


def program(path, text="#!/bin/sh\necho done\n", mode=0o755):
    path.write_text(text)
    path.chmod(mode)
    return path


def is_alive(pid):
    found = processes.stat_of(pid)
    return found is not None and found.is_alive


async def appears(path):
    async with asyncio.timeout(GUARD):
        while not path.exists() or not path.read_text().endswith("\n"):
            await asyncio.sleep(0.005)
    return path.read_text()


# What may be executed


async def test_off_by_default(tmp_path):
    executor = ShellExecutor(scratch=tmp_path / "shell")
    await executor.start()
    outcome = await executor.execute(task("/usr/bin/env"))
    await executor.close()
    assert (outcome.code, outcome.retryable, outcome.is_unknown) == ("shell_not_allowed", False, False)
    for part in ("[shell]", "config.toml", "TASKFORGE_SHELL_ALLOW", '"/usr/bin/env"', "restart"):
        assert part in outcome.message


async def test_before_start_it_is_a_bug(tmp_path):
    with pytest.raises(RuntimeError):
        await ShellExecutor(scratch=tmp_path, unsafe=True).execute(task(SH))


async def test_only_what_is_listed(tmp_path, limited):
    good, other = program(tmp_path / "good"), program(tmp_path / "other")
    (tmp_path / "link").symlink_to(good)
    (tmp_path / "folder").symlink_to(tmp_path)
    shell = await limited(good)
    assert isinstance(await shell.execute(task(str(good))), Succeeded)
    for spelled in (
        f"{tmp_path}/./good",
        f"{tmp_path}/../{tmp_path.name}//good",
        f"/{good}",
        f"{tmp_path}/folder/good",
    ):
        assert isinstance(await shell.execute(task(spelled)), Succeeded), spelled
    for spelled in (
        other,
        tmp_path / "link",
        f"{tmp_path}/good/../other",
        "/bin/sh",
        "sh",
        "/usr/bin/../bin/sh",
        "env",
    ):
        assert (await shell.execute(task(str(spelled)))).code == "shell_not_allowed", spelled


async def test_an_entry_may_be_a_link(tmp_path, limited):
    good, other = program(tmp_path / "good"), program(tmp_path / "other")
    (tmp_path / "current").symlink_to(good)
    (tmp_path / "folder").symlink_to(tmp_path)
    shell = await limited(tmp_path / "current", f"{tmp_path}/folder/other")
    assert isinstance(await shell.execute(task(f"{tmp_path}/current")), Succeeded)
    assert isinstance(await shell.execute(task(str(other))), Succeeded)
    assert (await shell.execute(task(str(good)))).code == "shell_not_allowed"


async def test_a_plain_name_is_looked_up_in_fixed_folders(shell, limited, monkeypatch, tmp_path):
    program(tmp_path / "mine-only")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (await shell.execute(task("mine-only"))).code == "program_not_found"
    outcome = await (await limited("/bin/sh")).execute(task("sh", "-c", "echo $PATH"))
    assert outcome.output["stdout"] == "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin\n"


async def test_the_loader_is_not_a_way_around(limited, shell):
    for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "GCONV_PATH"):
        outcome = await (await limited(SH)).execute(script("true", env={name: "/tmp/evil.so"}))
        assert (outcome.code, outcome.retryable) == ("shell_not_allowed", False)
    assert isinstance(await shell.execute(script("true", env={"LD_LIBRARY_PATH": "/opt"})), Succeeded)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"command": ["/nowhere/prog"]}, "program_not_found"),
        ({"command": ["no-such-program-at-all"]}, "program_not_found"),
        ({"command": ["/usr/bin"]}, "program_not_found"),
        ({"command": ["/etc/passwd"]}, "program_not_found"),
        ({"command": ["/usr/bin/.."]}, "invalid_request"),
        ({"command": ["./prog"]}, "invalid_request"),
        ({"command": ["/bin/\0sh"]}, "invalid_request"),
        ({"command": [""]}, "invalid_request"),
        ({"command": []}, "invalid_request"),
        ({"command": "ls -l"}, "invalid_request"),
        ({"command": [TOKEN]}, "invalid_request"),
        ({"command": [SH, TOKEN]}, "invalid_request"),
        ({"command": [SH, None]}, "invalid_request"),
        ({"command": [SH, "a\0b"]}, "invalid_request"),
        ({"command": [SH, "x" * 3_000_000]}, "invalid_request"),
        ({"command": [SH], "env": {"A=B": "x"}}, "invalid_request"),
        ({"command": [SH], "env": {"": "x"}}, "invalid_request"),
        ({"command": [SH], "env": {"TASKFORGE_RUN_ID": "x"}}, "invalid_request"),
        ({"command": [SH], "env": {"A": ["x"]}}, "invalid_request"),
        ({"command": [SH], "env": {"A": {"$secret": "NUL"}}}, "invalid_request"),
        ({"command": [SH], "env": {"A": {"$secret": 5}}}, "invalid_request"),
        ({"command": [SH], "env": ["A"]}, "invalid_request"),
        ({"command": [SH], "env": {"A": {"$secret": "MISSING"}}}, "secret_missing"),
        ({"command": [SH], "stdin": {"$secret": "MISSING"}}, "secret_missing"),
        ({"command": [SH], "stdin": ["x"]}, "invalid_request"),
        ({"command": [SH], "cwd": "relative"}, "invalid_request"),
        ({"command": [SH], "cwd": "/no/such/folder"}, "invalid_request"),
        ({"command": [SH], "output": "xml"}, "invalid_request"),
        ({"command": [SH], "exit_codes": []}, "invalid_request"),
        ({"command": [SH], "exit_codes": [True]}, "invalid_request"),
        ({"command": [SH], "max_output": -1}, "invalid_request"),
        ("sh", "invalid_request"),
    ],
)
async def test_what_can_never_work(shell, config, code):
    outcome = await shell.execute(replace(task(), config=config))
    assert (outcome.code, outcome.retryable, outcome.is_unknown) == (code, False, False)
    assert "bcd" not in outcome.message


async def test_programs_that_cannot_be_started(shell, tmp_path):
    empty = program(tmp_path / "no-interpreter", "#!/no/such/interpreter\n")
    assert (await shell.execute(task(str(empty)))).code == "program_not_found"
    bare = program(tmp_path / "no-first-line", "\x01\x02\x03")
    assert (await shell.execute(task(str(bare)))).code == "invalid_request"


# What a program gets


async def test_the_environment_is_made_from_scratch(shell, monkeypatch):
    monkeypatch.setenv("DAEMONS_OWN", "secret")
    outcome = await shell.execute(task("env", "-0", env={"A": "1 2", "N": 5, "T": True, "NONE": None, "LANG": "de_DE"}))
    found = dict(line.split("=", 1) for line in outcome.output["stdout"].split("\0") if line)
    assert len(found.pop("TASKFORGE_GROUP")) == 32
    assert found == {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "HOME": os.path.expanduser("~"),
        "LANG": "de_DE",
        "TASKFORGE_RUN_ID": "run_1",
        "TASKFORGE_STEP": "call",
        "TASKFORGE_ATTEMPT": "2",
        "TASKFORGE_IDEMPOTENCY_KEY": "run_1/call",
        "TASKFORGE_CORRELATION_ID": "cor_1",
        "TASKFORGE_NAMESPACE": "default",
        "TASKFORGE_WORKFLOW": "wf",
        "A": "1 2",
        "N": "5",
        "T": "true",
    }


async def test_arguments_are_not_read_by_a_shell(shell):
    evil = ["; id", "$(id)", "`id`", "a\nb", "-n", "*", "ü", "", 5, 1.5]
    outcome = await shell.execute(task(sys.executable, "-I", "-c", "import sys; print(ascii(sys.argv[1:]))", *evil))
    assert outcome.output["stdout"] == ascii([str(one) for one in evil]) + "\n"


async def test_the_folder_is_private_and_removed(shell, tmp_path):
    outcome = await shell.execute(
        script("pwd; stat -c %a .; mkdir -p a/b; touch a/b/c; ln -s / root; chmod 0 a/b; chmod 500 a")
    )
    folder, mode = outcome.output["stdout"].split()
    assert Path(folder).parent == tmp_path / "shell"
    assert mode == "700"
    assert left(tmp_path) == []
    assert os.stat("/").st_mode & 0o777 != 0o700
    assert (await shell.execute(script("pwd", cwd=str(tmp_path)))).output["stdout"] == f"{tmp_path}\n"


async def test_stdin(shell):
    text = "hü\n" * 200_000
    outcome = await shell.execute(task("wc", "-c", stdin=text))
    assert int(outcome.output["stdout"]) == len(text.encode())
    assert (await shell.execute(task("cat"))).output["stdout"] == ""
    assert (await shell.execute(script("true", stdin=text))).output["exit_code"] == 0  # nobody reads it


async def test_a_program_inherits_nothing_of_the_daemon(shell):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, hard))
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        outcome = await shell.execute(script("ls /proc/self/fd | wc -l; ulimit -v; umask; ps -o sid=,pgid=,pid= -p $$"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        os.close(read_end)
        os.close(write_end)
    fds, memory, umask, *numbers = outcome.output["stdout"].split()
    assert (fds, umask) == ("4", "0022")  # the fourth is the folder that `ls` lists
    assert memory == ("unlimited" if hard == resource.RLIM_INFINITY else str(hard >> 10))
    assert resource.getrlimit(resource.RLIMIT_AS) == (soft, hard)
    assert len(set(numbers)) == 1


# What comes back


async def test_output_as_text(shell):
    outcome = await shell.execute(script("printf 'out\\n'; printf 'err' >&2"))
    assert outcome.output.pop("duration_s") >= 0
    assert outcome.output == {"exit_code": 0, "stdout": "out\n", "stderr": "err", "truncated": False}


async def test_output_as_json(shell):
    outcome = await shell.execute(script('echo \'{"a": [1, null, "ü"]}\'; echo noise >&2', output="json"))
    assert outcome.output["json"] == {"a": [1, None, "ü"]}
    assert (outcome.output["stdout"], outcome.output["stderr"]) == (None, "noise\n")


@pytest.mark.parametrize("text", ["", "no json", '{"a": 1, "a": 2}', "NaN", "1 2", '"\\377"'])
async def test_output_that_is_no_json(shell, text):
    outcome = await shell.execute(task("printf", text, output="json"))
    assert (outcome.code, outcome.retryable, outcome.is_unknown) == ("invalid_json", False, True)
    assert outcome.details["exit_code"] == 0


async def test_json_that_is_cut_is_no_json(shell):
    outcome = await shell.execute(task("echo", "11111", output="json", max_output=3))
    assert outcome.code == "invalid_json"
    assert "max_output" in outcome.message


async def test_no_output(shell):
    outcome = await shell.execute(task("echo", "x", output="none"))
    assert outcome.output["stdout"] is None
    assert "json" not in outcome.output


async def test_bytes_that_are_no_text_are_replaced(shell):
    outcome = await shell.execute(task("printf", r"a\377b\n"))
    assert outcome.output["stdout"] == "a\ufffdb\n"


async def test_exit_codes(shell):
    assert (await shell.execute(script("exit 3", exit_codes=[0, 3]))).output["exit_code"] == 3
    outcome = await shell.execute(script("echo out; echo err >&2; exit 4", exit_codes=[0, 3]))
    assert (outcome.code, outcome.retryable, outcome.is_unknown) == ("exit_code", True, False)
    assert outcome.details == {"exit_code": 4, "signal": None, "stdout": "out\n", "stderr": "err\n"}
    assert (await shell.execute(script("exit 0", exit_codes=[1]))).code == "exit_code"


async def test_a_signal(shell):
    outcome = await shell.execute(script("echo out; kill -9 $$"))
    assert (outcome.code, outcome.retryable, outcome.is_unknown) == ("signal", True, True)
    assert outcome.details == {"exit_code": None, "signal": "SIGKILL", "stdout": "out\n", "stderr": ""}
    assert (await shell.execute(script("kill -s RTMIN+1 $$ 2>/dev/null || kill -35 $$"))).details[
        "signal"
    ] == "signal 35"


async def test_a_failure_keeps_the_end_of_its_output(shell):
    outcome = await shell.execute(script("seq 100000; seq 50000 >&2; exit 1"))
    assert len(outcome.details["stdout"]) == 4096
    assert outcome.details["stdout"].endswith("99999\n100000\n")
    assert outcome.details["stderr"].endswith("49999\n50000\n")


# Bounds


async def test_what_is_too_much_is_cut(shell):
    outcome = await shell.execute(script("seq 100000; echo ok >&2", max_output=10))
    assert (outcome.output["stdout"], outcome.output["stderr"]) == ("1\n2\n3\n4\n5\n", "ok\n")
    assert outcome.output["truncated"]
    exact = await shell.execute(script("printf 1234567890", max_output=10))
    assert (exact.output["stdout"], exact.output["truncated"]) == ("1234567890", False)
    assert (await shell.execute(script("printf üüü", max_output=3))).output["stdout"] == "ü"


async def test_a_flood_takes_bounded_memory_and_leaves_the_loop_free(shell):
    lag = 0.0

    async def watch():
        nonlocal lag
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            lag = max(lag, time.perf_counter() - before - 0.005)

    await shell.execute(task("true"))
    log = Logged()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watcher = asyncio.create_task(watch())
    outcome = await shell.execute(
        script("yes | head -c 50000000 & head -c 50000000 /dev/zero >&2; wait", env={"A": TOKEN}, log=log)
    )
    watcher.cancel()
    assert len(outcome.output["stdout"]) == len(outcome.output["stderr"]) == 65536
    assert outcome.output["truncated"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB
    assert len(log.of("stdout")) == streams.LINES_MAX
    assert sorted(log.of("system")) == [
        "stderr: the rest of this line is not logged",
        "stdout: further lines are not logged",
    ]
    assert lag < 0.5


async def test_lines_are_logged_live(shell, tmp_path):
    log = Logged()
    running = asyncio.create_task(
        shell.execute(
            script(f"echo one; echo two >&2; mkfifo {tmp_path}/gate; read x < {tmp_path}/gate; printf three", log=log)
        )
    )
    async with asyncio.timeout(GUARD):
        while len(log) < 2 or not (tmp_path / "gate").exists():
            await asyncio.sleep(0.005)
    assert sorted(log) == [("stderr", "two"), ("stdout", "one")]
    await asyncio.to_thread((tmp_path / "gate").write_text, "go\n")
    await running
    assert log.of("stdout") == ["one", "three"]


async def test_long_lines_are_logged_in_pieces(shell):
    log = Logged()
    await shell.execute(
        python("print('x' * 9000); print('ü' * 1500, end='\\r\\n'); print(); print('e', end='')", log=log)
    )
    assert [len(text) for text in log.of("stdout")] == [4096, 4096, 808, 1024, 476, 0, 1]
    await shell.execute(python("print('x' * 200_000); print('next')", log=(log := Logged())))
    assert set(map(len, log.of("stdout")[:-1])) == {4096}
    assert 65536 <= sum(map(len, log.of("stdout")[:-1])) <= 65536 + 8192
    assert log.of("stdout")[-1] == "next"


# Secrets


async def test_secrets_are_given_and_masked(shell):
    log = Logged()
    outcome = await shell.execute(
        script(
            'cat; echo "[$A]"; echo "$B" >&2; test "$A" = "s3cr3t/value+1" && printf %s "$A"',
            env={"A": TOKEN, "B": {"$concat": ["Bearer ", TOKEN]}},
            stdin={"$concat": ["in ", TOKEN, "\n"]},
            log=log,
        )
    )
    assert outcome.output["stdout"] == "in ***\n[***]\n***"
    assert outcome.output["stderr"] == "Bearer ***\n"
    assert log.of("stdout") == ["in ***", "[***]", "***"]
    assert log.of("stderr") == ["Bearer ***"]


async def test_secrets_in_json_and_failures_are_masked(shell):
    outcome = await shell.execute(script('echo "{\\"$A\\": [\\"x$A\\"]}"', env={"A": TOKEN}, output="json"))
    assert outcome.output["json"] == {"***": ["x***"]}
    outcome = await shell.execute(script('echo "$A"; echo "$A" >&2; exit 1', env={"A": TOKEN}))
    assert (outcome.details["stdout"], outcome.details["stderr"]) == ("***\n", "***\n")


async def test_a_secret_of_several_lines(shell):
    log = Logged()
    env = {"KEY": {"$secret": "KEY"}}
    outcome = await shell.execute(
        script('echo "$KEY"; for l in "$KEY"; do echo "$l" | head -2 | tail -1; done', env=env, log=log)
    )
    assert "line" not in outcome.output["stdout"] + "".join(text for _, text in log)
    slow = await shell.execute(
        python(
            "import os, time\nfor c in os.environ['KEY']: os.write(1, c.encode()); time.sleep(0.001)", env=env, log=log
        )
    )
    assert "line" not in slow.output["stdout"] + "".join(text for _, text in log)


@pytest.mark.parametrize("at", range(0, 16, 3))
async def test_a_secret_at_an_edge(shell, at):
    # Where the output, the excerpt, a piece of the log and a long line are cut, the secret lies across the cut.
    log = Logged()
    parts = [100 - at, 4096 - at - 100, 65536 - 4096]
    text = "".join("x" * size + "s3cr3t/value+1" for size in parts) + "y" * 200_000
    outcome = await shell.execute(
        python(
            f"""
            import os, sys
            t = os.environ["A"]
            print("".join("x" * size + t for size in {parts}) + "y" * 200_000, flush=True)
            for size in ({at}, 300): print("z" * 50 + (t * 1000)[size:], file=sys.stderr, flush=True)
            sys.exit(int(os.environ.get("CODE")))
            """,
            env={"A": TOKEN, "CODE": "1"},
            log=log,
        )
    )
    shown = json.dumps(outcome.details) + "".join(text for _, text in log)
    assert "s3cr3t" not in shown.replace("***", "")
    assert "cr3t/val" not in "".join(text for name, text in log if name == "stdout")
    kept = await shell.execute(
        python(
            f"import os; t = os.environ['A']; print('x' * {100 - at} + t * 3 + 'y' * 5000)",
            env={"A": TOKEN},
            max_output=100,
        )
    )
    assert set(kept.output["stdout"]) <= set("x*y")
    assert text


# Ends


async def test_a_timeout_kills_the_whole_group(shell, tmp_path):
    started = time.monotonic()
    outcome = await shell.execute(
        script(
            f"""
            (trap '' TERM; echo $$ > /dev/null; sh -c 'trap "" TERM; echo $$ > {tmp_path}/grandchild; while :; do sleep 0.05; done') &
            echo started
            wait
            """,
            timeout_s=0.5,
        )
    )
    assert (outcome.code, outcome.retryable, outcome.is_unknown) == ("timeout", True, True)
    assert "0.5 s" in outcome.message
    assert outcome.details["stdout"] == "started\n"
    assert not is_alive(int((tmp_path / "grandchild").read_text()))
    assert time.monotonic() - started < 4


async def test_a_program_may_clean_up_at_a_timeout(tmp_path):
    shell = ShellExecutor(scratch=tmp_path / "shell", unsafe=True, grace_s=GUARD)
    await shell.start()
    outcome = await shell.execute(
        script(
            f"""
            sh -c 'trap "sleep 0.2; echo child > {tmp_path}/child; exit" TERM; while :; do sleep 0.01; done' &
            trap 'echo bye; exit 7' TERM
            while :; do sleep 0.01; done
            """,
            timeout_s=0.3,
        )
    )
    await shell.close()
    assert (outcome.code, outcome.details["exit_code"], outcome.details["stdout"]) == ("timeout", 7, "bye\n")
    assert (tmp_path / "child").read_text() == "child\n"
    assert left(tmp_path) == []


async def test_no_time_at_all(shell):
    assert (await shell.execute(task("sleep", "60", timeout_s=0))).code == "timeout"


async def test_cancelled_in_the_middle(shell, tmp_path):
    running = asyncio.create_task(
        shell.execute(script(f"sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done' & wait"))
    )
    pid = int(await appears(tmp_path / "pid"))
    for _ in range(3):  # impatient
        running.cancel()
        await asyncio.sleep(0.02)
    assert not running.done()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not is_alive(pid)
    assert left(tmp_path) == []


async def test_cancelled_at_any_moment(shell, tmp_path):
    for steps in range(40):
        running = asyncio.create_task(shell.execute(task("sleep", "60", stdin="x")))
        for _ in range(steps):
            await asyncio.sleep(0.0003 if steps > 20 else 0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert left(tmp_path) == []
    assert children() == []


async def test_what_stays_behind_after_a_normal_end_is_killed(shell, tmp_path):
    # `timeout` moves into a group of its own; both hold the streams open.
    outcome = await shell.execute(
        script(
            f"""
            sh -c 'trap "" TERM; echo $$ > {tmp_path}/a; exec sleep 60' &
            timeout 60 sh -c 'echo $$ > {tmp_path}/b; exec sleep 60' &
            while ! test -s {tmp_path}/a || ! test -s {tmp_path}/b; do sleep 0.01; done
            echo done
            """
        )
    )
    assert outcome.output["stdout"] == "done\n"
    assert outcome.output["duration_s"] < 10
    assert not is_alive(int((tmp_path / "a").read_text()))
    assert not is_alive(int((tmp_path / "b").read_text()))


async def test_a_daemon_that_left_the_session_does_not_hold_the_step(shell, tmp_path):
    outcome = await shell.execute(
        script(
            f"""
            setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' &
            while ! test -s {tmp_path}/pid; do sleep 0.01; done
            echo done
            """
        )
    )
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert outcome.output["stdout"] == "done\n"
    assert outcome.output["duration_s"] < 10


async def test_without_descriptors_of_processes(shell, monkeypatch, tmp_path):
    def forbidden(_pid):
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    await test_what_stays_behind_after_a_normal_end_is_killed(shell, tmp_path)
    assert (await shell.execute(script("exit 3"))).details["exit_code"] == 3
    assert (await shell.execute(task("sleep", "60", timeout_s=0.1))).code == "timeout"


# Many


OTHERS = set()
"""Children that were there before the test: daemons of other tests."""


@pytest.fixture(autouse=True)
def _know_the_others():
    OTHERS.clear()
    OTHERS.update(pid for pid, _ in children())


def children():
    found = []
    for pid in processes.pids():
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and pid not in OTHERS:
            found.append((pid, fields[0]))
    return found


async def test_nothing_leaks(shell, tmp_path):
    await asyncio.gather(*(shell.execute(task("true")) for _ in range(20)))
    fds, tasks, before = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), children()
    for kind in ("true", "false", "/no/such"):
        for _ in range(4):
            await asyncio.gather(*(shell.execute(task(kind, stdin="x")) for _ in range(17)))
    assert len(os.listdir("/proc/self/fd")) == fds
    assert len(asyncio.all_tasks()) == tasks
    assert children() == before


async def test_fifty_at_once(shell):
    log = Logged()
    started = time.monotonic()
    outcomes = await asyncio.gather(
        *(shell.execute(script("sleep 0.5; echo $N", env={"N": n}, log=log)) for n in range(50))
    )
    assert [outcome.output["stdout"] for outcome in outcomes] == [f"{n}\n" for n in range(50)]
    assert time.monotonic() - started < 10
    assert sorted(log) == sorted(("stdout", str(n)) for n in range(50))


def test_under_uvloop(tmp_path):
    async def run():
        shell = ShellExecutor(scratch=tmp_path / "shell", unsafe=True, grace_s=0.2)
        await shell.start()
        for _ in range(3):
            outcomes = await asyncio.gather(
                *(shell.execute(script("cat; exit $N", stdin="x", env={"N": n})) for n in (0, 0, 5))
            )
            assert [isinstance(one, Succeeded) for one in outcomes] == [True, True, False]
        assert (
            await shell.execute(script("trap '' TERM; while :; do sleep 0.01; done", timeout_s=0.2))
        ).code == "timeout"
        await shell.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    assert children() == []
    assert left(tmp_path) == []


def test_the_end_of_the_event_loop_is_the_end_of_programs(tmp_path):
    async def run():
        shell = ShellExecutor(scratch=tmp_path / "shell", unsafe=True, grace_s=GUARD)
        await shell.start()
        running = asyncio.create_task(
            shell.execute(script(f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"))
        )
        pid = int(await appears(tmp_path / "pid"))
        running.cancel()
        await asyncio.sleep(0.05)
        return pid, shell  # and asyncio.run cancels all that is left

    pid, shell = asyncio.run(run())
    shell._signals.shutdown()
    assert not is_alive(pid)
    assert children() == []


# What an earlier daemon left behind

DAEMON = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from taskforged.steps.base import Task
from taskforged.steps.shell import ShellExecutor

async def main():
    shell = ShellExecutor(scratch=Path(sys.argv[1]), unsafe=True)
    await shell.start()
    config = {"command": ["/bin/sh", "-c", sys.argv[2]]}
    await shell.execute(Task("r", "n", "w", "s", 1, config, 60.0, "k", "c", None))

asyncio.run(main())
"""


async def killed_daemon(tmp_path, text, files):
    """A daemon killed with kill -9 while its program runs; answers what the program wrote into its files."""
    repository = str(Path(processes.__file__).parents[3])
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(tmp_path / "shell"), textwrap.dedent(text), repository]
    )
    try:
        return [int(await appears(tmp_path / name)) for name in files]
    finally:
        daemon.kill()
        daemon.wait()


async def swept(tmp_path):
    shell = ShellExecutor(scratch=tmp_path / "shell", unsafe=True)
    killed = await shell.start()
    await shell.close()
    return killed


async def test_the_next_daemon_kills_what_was_left_behind(tmp_path):
    pids = await killed_daemon(
        tmp_path,
        f"""
        sh -c 'trap "" TERM; echo $$ > {tmp_path}/a; exec sleep 60' &
        timeout 60 sh -c 'echo $$ > {tmp_path}/b; exec sleep 60' &
        echo $$ > {tmp_path}/c
        wait
        """,
        "abc",
    )
    assert all(map(is_alive, pids))
    assert await swept(tmp_path) == 1
    assert not any(map(is_alive, pids))
    assert left(tmp_path) == []
    assert await swept(tmp_path) == 0


async def test_also_when_the_leader_is_gone(tmp_path):
    leader, member = await killed_daemon(
        tmp_path,
        f"sh -c 'echo $$ > {tmp_path}/b; exec sleep 60' & echo $$ > {tmp_path}/a; wait",
        "ab",
    )
    os.kill(leader, signal.SIGKILL)
    async with asyncio.timeout(GUARD):
        while processes.stat_of(leader) is not None:
            await asyncio.sleep(0.005)
    assert await swept(tmp_path) == 1
    assert not is_alive(member)


async def test_also_when_it_died_before_the_record_was_complete(tmp_path):
    (pid,) = await killed_daemon(tmp_path, f"echo $$ > {tmp_path}/a; exec sleep 60", "a")
    (record,) = (tmp_path / "shell" / "groups").iterdir()
    record.write_bytes(record.read_bytes().splitlines(keepends=True)[0] + b'{"pid": 1')
    assert await swept(tmp_path) == 1
    assert not is_alive(pid)


@pytest.mark.parametrize("change", [{"boot_id": "another"}, {"start": 1}, {"pid": None}])
async def test_a_stranger_is_left_alone(tmp_path, change):
    stranger = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
    try:
        groups = tmp_path / "shell" / "groups"
        groups.mkdir(parents=True)
        facts = {"boot_id": BOOT_ID, "pid": stranger.pid, "start": processes.stat_of(stranger.pid).start, **change}
        (groups / ("0" * 32)).write_text(json.dumps(facts))
        (groups / "notes.txt").write_text("not ours")
        assert await swept(tmp_path) == 0
        assert stranger.poll() is None
        assert [path.name for path in groups.iterdir()] == ["notes.txt"]
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_stranger_without_a_leader_is_left_alone(tmp_path):
    leader = subprocess.Popen(
        ["/bin/sh", "-c", f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' & read x"],
        start_new_session=True,
        stdin=subprocess.PIPE,
    )
    stranger = int(await appears(tmp_path / "pid"))
    facts = {"boot_id": BOOT_ID, "pid": leader.pid, "start": processes.stat_of(leader.pid).start - 1}
    leader.communicate(b"\n")
    try:
        groups = tmp_path / "shell" / "groups"
        groups.mkdir(parents=True)
        (groups / ("0" * 32)).write_text(json.dumps(facts))
        assert await swept(tmp_path) == 0
        assert is_alive(stranger)
    finally:
        os.kill(stranger, signal.SIGKILL)


async def test_what_cannot_be_killed_keeps_its_record(tmp_path, monkeypatch):
    shell = ShellExecutor(scratch=tmp_path / "shell", unsafe=True, grace_s=0.05)
    await shell.start()
    started = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, start=subprocess.Popen, **kw: started.append(start(*a, **kw)) or started[-1]
    )
    monkeypatch.setattr("taskforged.steps.shell.program.GONE_S", 0.2)
    monkeypatch.setattr(
        "taskforged.steps.shell.program.signal_session", lambda session, _: bool(processes.members_of(session))
    )
    outcome = await shell.execute(task("sleep", "60", timeout_s=0.1))
    assert outcome.code == "timeout"
    (record,) = (tmp_path / "shell" / "groups").iterdir()
    monkeypatch.setattr("taskforged.steps.shell.program.signal_session", processes.signal_session)
    await shell.close()
    assert await swept(tmp_path) == 1
    assert left(tmp_path) == []
    assert not record.exists()
    assert started[0].wait() == -signal.SIGKILL


async def test_failed_is_never_a_bug(shell):
    assert isinstance(await shell.execute(task("/no/such")), Failed)


# Settings


def settings(tmp_path, text="", **environment):
    (tmp_path / "config.toml").write_text(text)
    config = load_config(tmp_path, None, environment)
    return config("shell", "allow"), config("shell", "unsafe")


def test_settings(tmp_path):
    assert settings(tmp_path) == ((), False)
    assert settings(tmp_path, '[shell]\nallow = ["/bin/a"]\nunsafe = true\n') == (("/bin/a",), True)
    variables = {"TASKFORGE_SHELL_ALLOW": "/bin/a:/bin/b:", "TASKFORGE_SHELL_UNSAFE": "true"}
    assert settings(tmp_path, "[shell]\nunsafe = false\n", **variables) == (("/bin/a", "/bin/b"), True)
    assert settings(tmp_path, '[shell]\nallow = ["/bin/a"]\n', TASKFORGE_SHELL_ALLOW="") == ((), False)


@pytest.mark.parametrize(
    "text", ['allow = ["git"]', 'allow = "git"', "allow = 1", "allow = [1]", "unsafe = 1", 'unsafe = "yes"']
)
def test_bad_settings(tmp_path, text):
    with pytest.raises(InvalidArgumentError, match=text.split()[0]):
        settings(tmp_path, f"[shell]\n{text}\n")
