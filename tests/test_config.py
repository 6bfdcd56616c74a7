"""Settings: precedence, bounds, and errors that name the place."""

from pathlib import Path

import pytest

from taskforged.config import SETTINGS, load_config
from taskforged.errors import InvalidArgumentError


def load(home, environment=None, file=None):
    return load_config(home, file, environment or {})


def test_everything_has_a_default(tmp_path):
    config = load(tmp_path)
    assert {key: config.values[key] for key in config.values} == {
        (s.section, s.key): s.parse(s.default) for s in SETTINGS
    }
    assert config("grpc", "listen") == "127.0.0.1:7420"


def test_the_environment_goes_before_the_file_and_the_file_before_the_default(tmp_path):
    (tmp_path / "config.toml").write_text('[executor]\npool_size = 7\n[log]\nlevel = "debug"\n')
    config = load(tmp_path, {"TASKFORGE_EXECUTOR_POOL_SIZE": "9"})
    assert (config("executor", "pool_size"), config("log", "level")) == (9, "debug")


def test_the_home_comes_from_flag_environment_or_default(tmp_path):
    assert load(None, {"TASKFORGE_HOME": str(tmp_path)}).home == tmp_path
    assert load(None, {}).home == Path.home() / ".taskforge"
    assert load(Path("relative"), {}).home.is_absolute()


@pytest.mark.parametrize(
    "text, message",
    [
        ("[executor]\npool_size = 0\n", "pool_size = 0: must be a whole number from 1"),
        ("[executor]\npool_size = true\n", "must be a whole number"),
        ('[executor]\npool_size = "many"\n', "pool_size = 'many'"),
        ("[executor]\npoolsize = 3\n", r"unknown setting \[executor\] poolsize; did you mean \[executor\] pool_size"),
        ("[nonsense]\nx = 1\n", r"unknown setting \[nonsense\] x"),
        ("x = 1\n", "x must be a table"),
        ("[grpc\n", "cannot be read"),
        ('[grpc]\nlisten = "0.0.0.0:7420"\n', "loopback"),
        ('[grpc]\nlisten = "7420"\n', "HOST:PORT"),
        ('[http]\nlisten = "127.0.0.1:99999"\n', "HOST:PORT"),
        ('[store]\nsynchronous = "OFF"\n', "one of FULL, NORMAL"),
        ("[executor]\ngrace = -1\n", "from 0 to"),
        ("[executor]\ngrace = nan\n", "from 0 to"),
        ('[egress]\nallow = ["10.0.0.1/8"]\n', "host bits"),
        ("[egress]\ndeny = 7\n", "must be a list"),
        ('[egress]\nports = ["https"]\n', "numbers of ports"),
        ("[egress]\nports = [0]\n", "numbers of ports"),
        ('[egress]\nproxy = "proxy.example:3128"\n', "must be a URL"),
        ('[egress]\nproxy = "http://proxy.example/path"\n', "must be a URL"),
        ('[egress]\nproxy = "http://[::1"\n', "must be a URL"),
    ],
)
def test_a_bad_setting_is_refused_with_its_place(tmp_path, text, message):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path / "config.toml") in caught.value.message


def test_a_bad_variable_is_named(tmp_path):
    with pytest.raises(InvalidArgumentError, match="TASKFORGE_EXECUTOR_POOL_SIZE = 'x'"):
        load(tmp_path, {"TASKFORGE_EXECUTOR_POOL_SIZE": "x"})


def test_a_config_file_that_was_named_must_exist(tmp_path):
    with pytest.raises(InvalidArgumentError, match="there is no config file"):
        load(tmp_path, file=tmp_path / "missing.toml")


@pytest.mark.parametrize(
    "proxy", ["http://u:hidden/word@h:1", "http://u:hid@den@h", "http://u:hidden@h:99999", "x:hidden"]
)
def test_what_is_wrong_with_a_proxy_does_not_show_its_password(tmp_path, proxy):
    with pytest.raises(InvalidArgumentError, match="TASKFORGE_EGRESS_PROXY") as caught:
        load(tmp_path, {"TASKFORGE_EGRESS_PROXY": proxy})
    assert "hid" not in caught.value.message


def test_lists_of_rules_have_commas_between_in_the_environment(tmp_path):
    config = load(tmp_path, {"TASKFORGE_EGRESS_ALLOW": "nas.lan, 10.0.0.0/8,", "TASKFORGE_EGRESS_PORTS": "80,443"})
    assert config("egress", "allow") == ("nas.lan", "10.0.0.0/8")
    assert config("egress", "ports") == (80, 443)
