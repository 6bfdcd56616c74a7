from __future__ import annotations

import pytest
from cli.support import named

BAD = "name: bad\nsteps:\n  - id: a\n    http: {url: 3}\n  - id: a\n    bogus: {}\n"


def test_apply_is_idempotent(ctl):
    source = named("applied")
    first = ctl.json("workflow", "apply", "-f", "-", stdin=source)
    assert [(one["name"], one["version"]["number"], one["changed"]) for one in first] == [("applied", 1, True)]
    assert first[0]["workflow"]["active"] is True
    assert ctl("workflow", "apply", "-f", "-", stdin=source) == "applied  version 1  unchanged\n"
    assert ctl("workflow", "apply", "-f", "-", "-o", "name", stdin=source) == "applied\n"


def test_apply_takes_files_and_folders(ctl, tmp_path):
    folder = tmp_path / "defs"
    folder.mkdir()
    (folder / "b.yaml").write_text(named("from-b"))
    (folder / "a.yml").write_text(named("from-a"))
    (folder / "readme.md").write_text("not a definition")
    single = tmp_path / "c.txt"
    single.write_text(named("from-c"))
    assert ctl("workflow", "apply", "-f", str(folder), "-f", str(single), "-o", "name") == "from-a\nfrom-b\nfrom-c\n"


def test_problems_are_told_with_their_place_and_the_good_ones_applied(ctl, tmp_path):
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "good.yaml").write_text(named("still-good"))
    done = ctl.run("workflow", "apply", "-f", str(tmp_path), code=2)
    place = f"{tmp_path}/bad.yaml"
    assert f"{place}:4:17: steps[0].http.url: must be an absolute address" in done.stderr
    assert f"{place}:6:5: steps[1].bogus: unknown key 'bogus'" in done.stderr
    assert done.stdout == "still-good  version 1  applied\n"
    ctl.error("workflow", "show", "bad", code=3)


def test_validate_stores_nothing(ctl):
    assert ctl("workflow", "validate", "-f", "-", stdin=named("never")) == "<stdin>: never is valid\n"
    ctl.error("workflow", "show", "never", code=3)
    (verdict,) = ctl.json("workflow", "validate", "-f", "-", code=2, stdin=BAD)
    assert verdict["valid"] is False
    assert [(one["path"], one["line"], one["column"]) for one in verdict["problems"]][0] == ("steps[0].http.url", 4, 17)


@pytest.mark.parametrize("text", ["", "{", "- 1", "name: x\n", "\x00"])
def test_hopeless_definitions_are_2(ctl, text):
    assert "<stdin>" in ctl.run("workflow", "apply", "-f", "-", code=2, stdin=text).stderr


def test_files_that_cannot_be_read_are_2(ctl, tmp_path):
    assert "there is no file" in ctl.error("workflow", "apply", "-f", str(tmp_path / "none.yaml"), code=2)
    assert "has no *.yaml" in ctl.error("workflow", "apply", "-f", str(tmp_path), code=2)
    (tmp_path / "x.yaml").write_bytes(b"\xff")
    assert "not UTF-8" in ctl.error("workflow", "apply", "-f", str(tmp_path / "x.yaml"), code=2)


def test_list_show_versions_steer_delete(ctl):
    ctl.apply(named("steered"))
    ctl.apply(named("steered", text="second"))
    rows = {one["name"]: one for one in ctl.json("workflow", "list", "--limit", "0")}
    assert rows["steered"]["latest_version"] == 2
    assert "steered" in ctl("workflow", "list", "--limit", "0")
    assert len(ctl.json("workflow", "list", "--limit", "1")) == 1
    shown = ctl.json("workflow", "show", "steered")
    assert (shown["version"], "second" in shown["source"]) == (2, True)
    assert ctl("workflow", "show", "steered", "--version", "1", "--source") == named("steered")
    assert "second" in ctl("workflow", "show", "steered")
    assert ctl("workflow", "versions", "steered", "-o", "name") == "2\n1\n"
    assert "CONTENT" in ctl("workflow", "versions", "steered")
    assert ctl("workflow", "deactivate", "steered") == "steered  deactivated\n"
    assert ctl.json("workflow", "show", "steered")["active"] is False
    assert ctl.json("workflow", "activate", "steered")["active"] is True
    assert ctl("workflow", "delete", "steered") == "steered  deleted\n"
    for verb in ("show", "versions", "activate", "deactivate", "delete"):
        ctl.error("workflow", verb, "steered", code=3)
    ctl.error("run", "start", "steered", code=3)


def test_a_workflow_with_open_runs_is_not_deleted(ctl):
    run_id = ctl("run", "start", "nap", "-o", "name").strip()
    ctl.error("workflow", "delete", "nap", code=6)
    ctl("run", "cancel", run_id)


def test_source_is_exact_in_a_pipe(ctl):
    source = "# a\r\n" + named("exact").rstrip("\n")
    ctl("workflow", "apply", "-f", "-", stdin=source)
    with ctl.popen("workflow", "show", "exact", "--source") as process:
        assert process.communicate(timeout=30)[0].decode() == source + "\n"
