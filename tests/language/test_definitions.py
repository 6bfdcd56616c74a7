"""The constructs: what they become in the model, and every fault with its place."""

import dataclasses

import pytest

from taskforged.engine.model import (
    ActivitySpec,
    Backoff,
    ExpressionError,
    FailSpec,
    Jitter,
    RetryPolicy,
    SleepSpec,
    SwitchSpec,
    TransformSpec,
)
from taskforged.errors import InvalidArgumentError
from taskforged.language import PROFILE, ManualTrigger, Verify, WebhookTrigger, compile_definition

STEP = "steps:\n  - id: a\n    transform: 1\n"


def steps(text):
    return "name: x\nsteps:\n" + text


def http(text):
    return steps("  - id: a\n    http:\n      url: http://x\n" + text)


# --- the model -------------------------------------------------------------------------------------------------------


def test_the_smallest_definition():
    definition = compile_definition("name: x\n" + STEP)
    assert definition.name == "x"
    assert definition.description == ""
    assert definition.labels == {}
    assert definition.triggers == {"manual": ManualTrigger()}
    assert definition.secrets == frozenset()
    assert definition.profile == PROFILE == "cel/1"
    assert definition.input.accept({"anything": 1}) == {"anything": 1}
    assert definition.model.name == "x"
    assert definition.model.output is None
    assert definition.model.timeout_s is None
    assert [step.id for step in definition.model.main.steps] == ["a"]


def test_equal_text_is_compiled_once():
    source = "name: cached\n" + STEP
    assert compile_definition(source) is compile_definition(source)


def test_a_definition_cannot_be_changed():
    definition = compile_definition("name: x\nlabels: {a: b}\n" + STEP)
    with pytest.raises(TypeError):
        definition.labels["c"] = "d"
    with pytest.raises(TypeError):
        definition.triggers["x"] = ManualTrigger()
    with pytest.raises(dataclasses.FrozenInstanceError):
        definition.name = "y"


def test_top_level():
    definition = compile_definition(
        "name: a.b-c_1\ndescription: Some text\nlabels: {team: ops, 'acme.io/x': '1'}\ntimeout: 1h30m\n" + STEP
        + "output: {v: '${{ steps.a.output }}'}\n"
    )  # fmt: skip
    assert definition.description == "Some text"
    assert definition.labels == {"team": "ops", "acme.io/x": "1"}
    assert definition.model.timeout_s == 5400


def test_steps_are_a_chain_in_every_block(scope):
    definition = compile_definition(
        steps(
            "  - {id: a, transform: 1}\n"
            "  - {id: b, if: steps.a.output == 1, sleep: 1m30s, continue_on_error: true, name: A nap}\n"
            "  - id: c\n"
            "    switch:\n"
            "      - {if: steps.a.output == 2, steps: [{id: d, fail: no}, {id: e, fail: {message: 'n ${{ run.id }}', code: bad}}]}\n"
            "      - steps: [{id: f, transform: {}}]\n"
            "on_failure: [{id: g, transform: '${{ error.message }}'}, {id: h, sleep: 0s}]\n"
        )
    )
    model = definition.model
    assert [step.after for step in model.main.steps] == [(), (0,), (1,)]
    assert [step.after for step in model.on_failure.steps] == [(), (0,)]
    assert list(model.steps) == ["a", "b", "c", "d", "e", "f", "g", "h"]
    assert [model.steps[name].kind for name in "abcdef"] == [
        "transform",
        "sleep",
        "switch",
        "fail",
        "fail",
        "transform",
    ]
    assert isinstance(model.steps["a"].spec, TransformSpec)
    nap = model.steps["b"]
    assert isinstance(nap.spec, SleepSpec)
    assert nap.spec.duration.evaluate(scope()) == 90
    assert nap.continue_on_error is True
    assert nap.condition.evaluate(scope(steps__a__output=1)) is True
    cases = model.steps["c"].spec
    assert isinstance(cases, SwitchSpec)
    assert [case.condition is None for case in cases.cases] == [False, True]
    assert [step.after for step in cases.cases[0].block.steps] == [(), (0,)]
    failing = model.steps["e"].spec
    assert isinstance(failing, FailSpec)
    assert (failing.code, failing.message.evaluate(scope(run={"id": "r1"}))) == ("bad", "n r1")
    assert (model.steps["d"].spec.code, model.steps["d"].spec.message.evaluate(scope())) == ("failed", "no")


def test_http_defaults(scope):
    spec = compile_definition(http("")).model.steps["a"].spec
    assert isinstance(spec, ActivitySpec)
    assert spec.executor == "http"
    assert spec.config.evaluate(scope()) == {
        "method": "GET", "url": "http://x", "query": {}, "headers": {}, "accept": [[200, 299]],
        "max_redirects": 0, "max_response_bytes": 1_048_576,
    }  # fmt: skip


def test_http_in_full(scope):
    source = steps(
        "  - id: a\n"
        "    http:\n"
        "      method: PATCH\n"
        "      url: https://${{ input.host }}/x?y=${{ input.n }}\n"
        "      query: {page: 1, all: true, who: '${{ input.n }}'}\n"
        "      headers: {X-Id: '${{ input.n }}', Accept: text/plain, X-Num: 5}\n"
        "      form: {a: '${{ input.n }}', b: text}\n"
        "      accept: [200, 4xx, 301-303, '204']\n"
        "      follow_redirects: 3\n"
        "      max_response_bytes: 10\n"
    )
    assert compile_definition(source).model.steps["a"].spec.config.evaluate(scope(input={"host": "h", "n": 7})) == {
        "method": "PATCH",
        "url": "https://h/x?y=7",
        "query": {"page": "1", "all": "true", "who": "7"},
        "headers": {"X-Id": "7", "Accept": "text/plain", "X-Num": "5"},
        "form": {"a": "7", "b": "text"},
        "accept": [[200, 200], [400, 499], [301, 303], [204, 204]],
        "max_redirects": 3,
        "max_response_bytes": 10,
    }


def test_tls_holds_references_and_what_the_run_knows(scope):
    source = http("      tls: {ca: '${{ input.ca }}', cert: '${{ secrets.CERT }}', key: '${{ secrets.KEY }}'}\n")
    config = compile_definition(source).model.steps["a"].spec.config.evaluate(scope(input={"ca": "pem"}))
    assert config["tls"] == {"ca": "pem", "cert": {"$secret": "CERT"}, "key": {"$secret": "KEY"}}


def test_a_whole_expression_as_url_or_header_becomes_text(scope):
    config = compile_definition(
        steps("  - id: a\n    http: {url: '${{ input.u }}', headers: {X: '${{ input.n }}'}, text: '${{ input.n }}'}\n")
    ).model.steps["a"].spec.config  # fmt: skip
    value = config.evaluate(scope(input={"u": "http://x", "n": 5}))
    assert (value["url"], value["headers"], value["text"]) == ("http://x", {"X": "5"}, "5")
    with pytest.raises(ExpressionError, match="null cannot be inserted"):
        config.evaluate(scope(input={"u": None, "n": 5}))


def test_changing_a_config_does_not_change_the_definition(scope):
    config = compile_definition(http("      headers: {A: b}\n")).model.steps["a"].spec.config
    config.evaluate(scope())["headers"]["Idempotency-Key"] = "r1/a"
    assert config.evaluate(scope())["headers"] == {"A": "b"}


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("{max_attempts: 1}", RetryPolicy(max_attempts=1)),
        ("{max_attempts: 100, strategy: linear, delay: 500ms, max_delay: 5m, jitter: none}", RetryPolicy(100, Backoff.LINEAR, 0.5, 300, Jitter.NONE)),
        ("{max_attempts: 2, delay: 5m}", RetryPolicy(2, delay_s=300, max_delay_s=300)),
        ("{max_attempts: 2, delay: 0s, jitter: equal, strategy: fixed}", RetryPolicy(2, Backoff.FIXED, 0, 60, Jitter.EQUAL)),
    ],
)  # fmt: skip
def test_retry(text, policy):
    step = compile_definition(http(f"    retry: {text}\n    timeout: 5s\n")).model.steps["a"]
    assert step.retry == policy
    assert step.timeout_s == 5


def test_retry_condition_sees_the_error(scope):
    policy = (
        compile_definition(http("    retry: {max_attempts: 2, if: error.code == 'timeout' && input.x}\n"))
        .model.steps["a"]
        .retry
    )
    assert policy.condition.evaluate(scope(error={"code": "timeout"}, input={"x": True})) is True


@pytest.mark.parametrize(("value", "seconds"), [(5, 5.0), (0.25, 0.25), ("1m", 60.0), (0, 0.0)])
def test_computed_sleep(scope, value, seconds):
    duration = compile_definition(steps("  - id: a\n    sleep: ${{ input.x }}\n")).model.steps["a"].spec.duration
    assert duration.evaluate(scope(input={"x": value})) == seconds


@pytest.mark.parametrize("value", [-1, True, None, [], "soon", "5", 366 * 86_400 + 1, "367d", float("inf")])
def test_computed_sleep_refuses(scope, value):
    duration = compile_definition(steps("  - id: a\n    sleep: ${{ input.x }}\n")).model.steps["a"].spec.duration
    with pytest.raises(ExpressionError) as caught:
        duration.evaluate(scope(input={"x": value}))
    assert caught.value.position.startswith("steps[0].sleep (line 4")


def test_cel_durations_can_be_slept(scope):
    duration = (
        compile_definition(steps("  - id: a\n    sleep: ${{ duration(input.x) }}\n")).model.steps["a"].spec.duration
    )
    assert duration.evaluate(scope(input={"x": "90s"})) == 90


def test_constant_conditions(scope):
    assert (
        compile_definition(steps("  - {id: a, if: false, transform: 1}\n")).model.steps["a"].condition.evaluate(scope())
        is False
    )


def test_conditions_may_be_wrapped(scope):
    for text in (
        "steps.a.output == 1",
        "${{ steps.a.output == 1 }}",
        "'${{steps.a.output == 1}}'",
        "|\n      steps.a.output\n        == 1\n",
    ):
        source = steps(f"  - {{id: a, transform: 1}}\n  - id: b\n    if: {text}\n    transform: 1\n")
        assert compile_definition(source).model.steps["b"].condition.evaluate(scope(steps__a__output=1)) is True


# --- triggers --------------------------------------------------------------------------------------------------------


def test_webhook_triggers(scope):
    definition = compile_definition(
        "name: x\nvars: {org: acme}\non:\n"
        "  hand: {manual: }\n"
        "  gh:\n"
        "    webhook: {path: github, verify: {scheme: github, secret: HOOK}}\n"
        "    if: event.body.org == vars.org\n"
        "    input: {tag: '${{ event.body.tag }}'}\n"
        "  ci:\n"
        "    webhook:\n"
        "      path: ci/builds\n"
        "      verify: {scheme: hmac, secret: CI, header: X-Sig, algorithm: sha512, encoding: base64, prefix: 'v1='}\n"
        "      delivery_header: X-Delivery\n"
        "    input: ${{ event.body }}\n"
        "  open: {webhook: {path: open, verify: {scheme: none}}}\n" + STEP
    )
    hand, gh, ci, open_ = (definition.triggers[key] for key in ("hand", "gh", "ci", "open"))
    assert hand == ManualTrigger(id="hand")
    assert set(definition.triggers) == {"manual", "hand", "gh", "ci", "open"}
    assert isinstance(gh, WebhookTrigger)
    assert (gh.id, gh.path, gh.delivery_header) == ("gh", "github", "x-github-delivery")
    assert gh.verify == Verify("github", ("HOOK",), header="x-hub-signature-256", prefix="sha256=")
    event = {"body": {"org": "acme", "tag": "v1"}}
    assert gh.condition.evaluate(scope(event=event)) is True
    assert gh.input.evaluate(scope(event=event)) == {"tag": "v1"}
    assert ci.verify == Verify("hmac", ("CI",), header="x-sig", algorithm="sha512", encoding="base64", prefix="v1=")
    assert (ci.path, ci.delivery_header) == ("ci/builds", "x-delivery")
    assert ci.input.evaluate(scope(event=event)) == event["body"]
    assert (open_.verify, open_.delivery_header, open_.condition, open_.input) == (Verify("none"), "", None, None)
    assert definition.secrets == {"HOOK", "CI"}


def test_two_triggers_may_share_a_path_when_they_agree(faults):
    def source(second):
        return (
            "name: x\non:\n  a: {webhook: {path: p, verify: {scheme: github, secret: S}}}\n"
            f"  b: {{webhook: {{path: p, verify: {second}}}, if: event.body.x}}\n" + STEP
        )

    assert faults(source("{scheme: github, secret: S}")) == []
    ((line, column, path, message),) = faults(source("{scheme: none}"))
    assert (line, column, path) == (4, 3, "on.b")
    assert "trigger 'a' has the same path" in message


# --- the content hash ------------------------------------------------------------------------------------------------


def test_content_hash_is_of_the_meaning():
    plain = "name: x\ndescription: d\nsteps:\n  - id: a\n    transform: {p: 1, q: [1, 2]}\n"
    same = [
        "# comment\n" + plain,
        "description: \"d\"\n\nname: 'x'\nsteps: [{transform: {q: [1, 2], p: 0x1}, id: a}]  # other order\n",
        plain.replace("\n", "\r\n"),
        "\ufeff---\n" + plain,
        "name: &n x\ndescription: d\nsteps:\n  - {id: a, transform: {p: &one 1, q: [*one, 2]}}\n",
    ]
    expected = compile_definition(plain).content_hash
    assert len(expected) == 64
    assert {compile_definition(source).content_hash for source in same} == {expected}
    other = [plain.replace("[1, 2]", "[2, 1]"), plain.replace("p: 1", "p: '1'"), plain.replace(": d", ": e")]
    assert expected not in {compile_definition(source).content_hash for source in other}
    assert len({compile_definition(source).content_hash for source in other}) == 3


def test_content_hash_is_stable():
    """Stored versions are compared by it: it may not change from release to release."""
    assert compile_definition("name: x\nsteps:\n  - id: a\n    transform: 1\n").content_hash == (
        "493c6871a146846b69ba3e4abc1a1657fbcd9caf5faa1f4d1e8ba4bfc84fe4b7"
    )


# --- faults ----------------------------------------------------------------------------------------------------------

FAULTS = [
    # the top level
    ("\\¦[]", "", "must be a map with name"),
    ("\\¦x", "", "must be a map with name"),
    ("\\¦name: x", "", "'steps' is missing"),
    ("\\¦@STEP@", "", "'name' is missing"),
    ("\\name: ¦X\n@STEP@", "name", "not a name"),
    ("\\name: ¦5\n@STEP@", "name", "must be a text, is a number; write it in quotes"),
    ("\\name: ¦" + "x" * 64 + "\n@STEP@", "name", "not a name"),
    ("\\name: ¦x${{ 1 }}\n@STEP@", "name", "expressions are not possible here"),
    ("\\name: ¦[x]\n@STEP@", "name", "must be a text, is a list"),
    ("description:¦\n@STEP@", "description", "must be a text, is null"),
    ("labels: {a: ¦1}\n@STEP@", "labels.a", "must be a text"),
    ("labels: {¦'a b': x}\n@STEP@", 'labels["a b"]', "not a label"),
    ("labels: ¦[a]\n@STEP@", "labels", "must be a map, is a list"),
    ("timeout: ¦5\n@STEP@", "timeout", "with a unit"),
    ("timeout: ¦soon\n@STEP@", "timeout", "not a duration"),
    ("timeout: ¦0s\n@STEP@", "timeout", "must be from 0.001"),
    ("timeout: ¦400d\n@STEP@", "timeout", "longer than 366d"),
    ("¦step: []\n@STEP@", "step", "unknown key 'step'; did you mean 'steps'?"),
    ("¦zzz: 1\n@STEP@", "zzz", "unknown key 'zzz'"),
    ("queue: ¦Q\n@STEP@", "queue", "not the name of a queue"),
    ("concurrency: ¦{}\n@STEP@", "concurrency", "'group' is missing"),
    ("vars: ¦[1]\n@STEP@", "vars", "map of constants"),
    ("vars: {a: [{b: ¦'${{ 1 }}'}]}\n@STEP@", "vars.a[0].b", "vars are constants"),
    ("steps: ¦[]\n", "steps", "at least one step"),
    ("steps: ¦{}\n", "steps", "must be a list"),
    ("@STEP@on_failure: ¦[]\n", "on_failure", "at least one step"),
    # input
    ("input: ¦{}\n@STEP@", "input", "type: object"),
    ("input:¦\n@STEP@", "input", "must be a JSON Schema"),
    ("input: {type: ¦array}\n@STEP@", "input.type", "type: object"),
    ("input:\n  type: object\n  properties:\n    a: {type: ¦strng}\n@STEP@", "input.properties.a.type", "no valid JSON Schema"),
    ("input: {type: object, properties: {a: {$ref: ¦'http://x'}}}\n@STEP@", "input.properties.a.$ref", "nothing is fetched"),
    ("input: {type: object, properties: {a: {type: string, default: ¦1}}}\n@STEP@", "input.properties.a.default", "does not fit"),
    # triggers
    ("on: ¦[push]\n@STEP@", "on", "must be a map, is a list"),
    ("on: {¦T: {manual: {}}}\n@STEP@", "on.T", "not a trigger id"),
    ("on: {t: ¦{}}\n@STEP@", "on.t", "one of manual, webhook, cron, event is missing"),
    ("on: {t: {cron: ¦{}}}\n@STEP@", "on.t.cron", "'schedule' is missing"),
    ("on: {t: {event: ¦{}}}\n@STEP@", "on.t.event", "'type' is missing"),
    ("on: {t: {¦webhok: {}}}\n@STEP@", "on.t.webhok", "did you mean 'webhook'?"),
    ("on: {t: {manual: {¦a: 1}}}\n@STEP@", "on.t.manual.a", "unknown key 'a'"),
    ("on: {t: {manual: {}, ¦input: {}}}\n@STEP@", "on.t.input", "only with webhook"),
    ("on: ¦{manual: {webhook: {path: p, verify: {scheme: none}}}}\n@STEP@", "on.manual", "reserved"),
    ("on: {t: {webhook: ¦{path: p}}}\n@STEP@", "on.t.webhook", "'verify' is missing: say how the sender is proved"),
    ("on: {t: {webhook: ¦{verify: {scheme: none}}}}\n@STEP@", "on.t.webhook", "'path' is missing"),
    ("on: {t: {webhook: {path: ¦/p, verify: {scheme: none}}}}\n@STEP@", "on.t.webhook.path", "not a path"),
    ("on: {t: {webhook: {path: ¦a/../b, verify: {scheme: none}}}}\n@STEP@", "on.t.webhook.path", "not a path"),
    ("on: {t: {webhook: {path: p, verify: {scheme: ¦gihub}}}}\n@STEP@", "on.t.webhook.verify.scheme", "did you mean 'github'?"),
    ("on: {t: {webhook: {path: p, verify: ¦{scheme: github}}}}\n@STEP@", "on.t.webhook.verify", "'secret' is missing, scheme github needs it"),
    ("on: {t: {webhook: {path: p, verify: ¦{scheme: hmac, secret: S}}}}\n@STEP@", "on.t.webhook.verify", "'header' is missing"),
    ("on: {t: {webhook: {path: p, verify: {scheme: none, ¦secret: S}}}}\n@STEP@", "on.t.webhook.verify.secret", "no meaning with scheme none"),
    ("on: {t: {webhook: {path: p, verify: {scheme: github, secret: ¦low}}}}\n@STEP@", "on.t.webhook.verify.secret", "not the name of a secret"),
    ("on: {t: {webhook: {path: p, verify: {scheme: github, secret: ¦'${{ secrets.A }}'}}}}\n@STEP@", "on.t.webhook.verify.secret", "expressions are not possible"),
    ("on:\n  t:\n    webhook:\n      path: p\n      verify: {scheme: none}\n    if: ¦input.x\n@STEP@", "on.t.if", "a trigger sees only event and vars"),
    ("on:\n  t:\n    webhook:\n      path: p\n      verify: {scheme: none}\n    if: ¦run.id == ''\n@STEP@", "on.t.if", "a trigger sees only event and vars"),
    ("on:\n  t:\n    webhook:\n      path: p\n      verify: {scheme: none}\n    if: ¦steps.a.output\n@STEP@", "on.t.if", "does not come before"),
    ("on:\n  t:\n    webhook:\n      path: p\n      verify: {scheme: none}\n    if: ¦event.hedaers.x == ''\n@STEP@", "on.t.if", "event has no 'hedaers'; did you mean 'headers'?"),
    ("on:\n  t:\n    webhook:\n      path: p\n      verify: {scheme: none}\n    input: ¦[1]\n@STEP@", "on.t.input", "must be a map"),
    ("on:\n  t:\n    webhook:\n      path: p\n      verify: {scheme: none}\n    input: {a: '${{ ¦inptu }}'}\n@STEP@", "on.t.input.a", "unknown name 'inptu'"),
    # steps
    ("steps:\n  - ¦5\n", "steps[0]", "must be a map with id"),
    ("steps:\n  - ¦transform: 1\n", "steps[0]", "'id' is missing"),
    ("steps:\n  - {id: ¦A, transform: 1}\n", "steps[0].id", "not an id"),
    ("steps:\n  - {id: ¦a-b, transform: 1}\n", "steps[0].id", "not an id"),
    ("steps:\n  - ¦{id: a}\n", "steps[0]", "one of http, shell, transform, switch, sleep, wait, workflow, event, steps, fail is missing"),
    ("steps:\n  - {id: a, transform: 1, ¦sleep: 5s}\n", "steps[0].sleep", "'sleep' and 'transform' exclude each other"),
    ("steps:\n  - {id: a, ¦trasnform: 1}\n", "steps[0].trasnform", "did you mean 'transform'?"),
    ("steps:\n  - {id: a, ¦task: ls}\n", "steps[0].task", "'task' is not supported by this version yet"),
    ("steps:\n  - {id: a, transform: 1}\n  - {id: ¦a, transform: 1}\n", "steps[1].id", "the id 'a' is taken, see line 3, column 10"),
    ("@STEP@on_failure: [{id: ¦a, transform: 1}]\n", "on_failure[0].id", "is taken"),
    ("steps:\n  - {id: a, transform: 1, ¦timeout: 5s}\n", "steps[0].timeout", "only on http"),
    ("steps:\n  - {id: a, sleep: 5s, ¦retry: {max_attempts: 2}}\n", "steps[0].retry", "only on http"),
    ("steps:\n  - {id: a, transform: 1, continue_on_error: ¦yes}\n", "steps[0].continue_on_error", "is 'yes', which YAML 1.2 reads as text"),
    ("steps:\n  - {id: a, if: ¦5, transform: 1}\n", "steps[0].if", "must be an expression, is a number"),
    ("steps:\n  - {id: a, if: ¦[x], transform: 1}\n", "steps[0].if", "must be an expression, is a list"),
    ("steps:\n  - {id: a, if: '¦1 + 1', transform: 1}\n", "steps[0].if", "must be true or false, is int"),
    ("steps:\n  - {id: a, if: '¦', transform: 1}\n", "steps[0].if", "empty"),
    ("steps:\n  - {id: a, if: '¦${{ true }} && true', transform: 1}\n", "steps[0].if", "leave out ${{ }}"),
    ("steps:\n  - id: a\n    if: ¦!input.x\n    transform: 1\n", "steps[0].if", "must be written in quotes"),
    ("steps:\n  - {id: a, sleep: ¦5}\n", "steps[0].sleep", "with a unit"),
    ("steps:\n  - {id: a, sleep: ¦-5s}\n", "steps[0].sleep", "not a duration"),
    ("steps:\n  - {id: a, fail: ¦[x]}\n", "steps[0].fail", "must be a text, is a list"),
    ("steps:\n  - {id: a, fail:¦ }\n", "steps[0].fail", "null cannot be inserted into text"),
    ("steps:\n  - {id: a, fail: ¦{code: x}}\n", "steps[0].fail", "'message' is missing"),
    ("steps:\n  - {id: a, fail: {message: x, code: ¦A B}}\n", "steps[0].fail.code", "not a code"),
    # switch
    ("steps:\n  - {id: a, switch: ¦[]}\n", "steps[0].switch", "list of cases"),
    ("steps:\n  - {id: a, switch: [¦{if: 'true'}]}\n", "steps[0].switch[0]", "'steps' is missing"),
    ("steps:\n  - id: a\n    switch:\n      - ¦steps: [{id: b, fail: x}]\n      - {if: 'true', steps: [{id: c, fail: x}]}\n", "steps[0].switch[0]", "only the last case may be without `if`"),
    ("steps:\n  - id: a\n    switch:\n      - {if: 'true', steps: [{id: b, transform: '${{ ¦steps.c.output }}'}]}\n      - steps: [{id: c, fail: x}]\n", "steps[0].switch[0].steps[0].transform", "step 'c' does not come before this place"),
    ("steps:\n  - id: a\n    switch:\n      - {if: 'true', steps: [{id: b, fail: x}]}\n      - steps: [{id: c, transform: '${{ ¦steps.b.output }}'}]\n", "steps[0].switch[1].steps[0].transform", "step 'b' does not come before this place"),
    # http
    ("steps:\n  - {id: a, http: ¦{}}\n", "steps[0].http", "'url' is missing"),
    ("steps:\n  - {id: a, http: ¦http://x}\n", "steps[0].http", "must be a map with method"),
    ("steps:\n  - {id: a, http: {url: ¦/x}}\n", "steps[0].http.url", "begins with http:// or https://"),
    ("steps:\n  - {id: a, http: {url: ¦'file:///etc/passwd'}}\n", "steps[0].http.url", "begins with http:// or https://"),
    ("steps:\n  - {id: a, http: {url: ¦'http://x y'}}\n", "steps[0].http.url", "absolute address"),
    ("@HTTP@      method: ¦post\n", "steps[0].http.method", "'post' is not possible"),
    ("@HTTP@      headers: {¦'a b': c}\n", 'steps[0].http.headers["a b"]', "not a header name"),
    ('@HTTP@      headers: {a: ¦"b\\r\\nc: d"}\n', "steps[0].http.headers.a", "a header has one line"),
    ("@HTTP@      headers: {A: b, ¦a: c}\n", "steps[0].http.headers.a", "is given twice"),
    ("@HTTP@      headers: {A: ¦null}\n", "steps[0].http.headers.A", "null cannot be inserted"),
    ("@HTTP@      query: {a: ¦[1]}\n", "steps[0].http.query.a", "must be a text, is a list"),
    ("@HTTP@      json: 1\n      ¦text: x\n", "steps[0].http.text", "'text' and 'json' exclude each other"),
    ("@HTTP@      accept: ¦200\n", "steps[0].http.accept", "list of status codes"),
    ("@HTTP@      accept: ¦[]\n", "steps[0].http.accept", "list of status codes"),
    ("@HTTP@      accept: [¦299-200]\n", "steps[0].http.accept[0]", "no status code"),
    ("@HTTP@      accept: [¦6xx]\n", "steps[0].http.accept[0]", "no status code"),
    ("@HTTP@      follow_redirects: ¦11\n", "steps[0].http.follow_redirects", "whole number from 0 to 10"),
    ("@HTTP@      follow_redirects: ¦true\n", "steps[0].http.follow_redirects", "whole number"),
    ("@HTTP@      json: {'¦${{ x }}': 1}\n", 'steps[0].http.json["${{ x }}"]', "a key cannot contain an expression"),
    ("@HTTP@      tls: ¦true\n", "steps[0].http.tls", "must be a map with ca"),
    ("@HTTP@      tls: {ca: x, ¦verify: false}\n", "steps[0].http.tls.verify", "unknown key"),
    ("@HTTP@      tls: ¦{cert: x}\n", "steps[0].http.tls", "cert and key belong together"),
    ("@HTTP@      tls: ¦{key: '${{ secrets.K }}'}\n", "steps[0].http.tls", "cert and key belong together"),
    ("@HTTP@      tls: {cert: x, key: ¦abc}\n", "steps[0].http.tls.key", "a key is a secret"),
    ("@HTTP@      tls: {cert: x, key: ¦'a ${{ secrets.K }}'}\n", "steps[0].http.tls.key", "a key is a secret"),
    ("@HTTP@    retry: ¦{}\n", "steps[0].retry", "'max_attempts' is missing"),
    ("@HTTP@    retry: {max_attempts: ¦101}\n", "steps[0].retry.max_attempts", "from 1 to 100"),
    ("@HTTP@    retry: {max_attempts: ¦1.0}\n", "steps[0].retry.max_attempts", "whole number"),
    ("@HTTP@    retry: {max_attempts: 2, strategy: ¦exp}\n", "steps[0].retry.strategy", "'exp' is not possible"),
    ("@HTTP@    retry: {max_attempts: 2, delay: 5s, max_delay: ¦1s}\n", "steps[0].retry.max_delay", "not be shorter"),
    ("@HTTP@    retry: {max_attempts: 2, if: ¦eror.code == ''}\n", "steps[0].retry.if", "did you mean 'error'?"),
    # references
    ("steps:\n  - {id: a, transform: '${{ ¦steps.a.output }}'}\n", "steps[0].transform", "step 'a' does not come before this place"),
    ("steps:\n  - {id: a, transform: '${{ ¦steps.b.output }}'}\n  - {id: b, transform: 1}\n", "steps[0].transform", "step 'b' does not come before this place"),
    ("steps:\n  - {id: abc, transform: 1}\n  - {id: b, transform: '${{ ¦steps.abd.output }}'}\n", "steps[1].transform", "there is no step 'abd'; did you mean 'abc'?"),
    ("steps:\n  - {id: a, transform: 1}\n  - {id: b, transform: '${{ ¦a.output }}'}\n", "steps[1].transform", "did you mean 'steps.a.output'?"),
    ("@STEP@on_failure: [{id: b, transform: 1}]\noutput: ${{ ¦steps.b.output }}\n", "output", "step 'b' does not come before"),
    ("@STEP@output: ${{ ¦error.message }}\n", "output", "only in on_failure, in compensate and in retry.if"),
    ("input: {type: object, properties: {tag: {}}}\n@STEP@output: ${{ ¦input.tga }}\n", "output", "input has no 'tga'; did you mean 'tag'?"),
    ("vars: {abc: {}}\n@STEP@output: ${{ ¦vars.abd }}\n", "output", "vars has no 'abd'; did you mean 'abc'?"),
    ("vars: {abc: {}}\n@STEP@output: ${{ ¦vars.abc.d }}\n", "output", "always fails: there is no key"),
    # templates
    ("@STEP@output: a ¦${{ 1\n", "output", "`${{` has no closing `}}`"),
    ("@STEP@output: a ${{ ¦}}\n", "output", "the expression is empty"),
    ("@STEP@output: a ${{ ¦null }}\n", "output", "null cannot be inserted into text"),
    ("@STEP@output: ¦${{ " + "1+" * 3000 + "1 }}\n", "output", "within 4,096 characters"),
    ("@STEP@output: ¦${{ '" + "x" * 4095 + "' }}\n", "output", "within 4,096 characters"),
    ("@STEP@output: ${{ 1 +¦ }}\n", "output", "Syntax error"),
    ("@STEP@output: ${{ ¦now() }}\n", "output", "there is no clock, use run.started_at"),
]  # fmt: skip


# Each is a definition with a mark where the fault is, its path and a part of the message. The first line is `name: x`,
# unless the text begins with a backslash.


@pytest.mark.parametrize(("marked", "path", "part"), FAULTS, ids=[f"{path}-{part[:30]}" for _, path, part in FAULTS])
def test_faults(faults, marked, path, part):
    marked = marked[1:] if marked.startswith("\\") else "name: x\n" + marked
    marked = marked.replace("@STEP@", STEP).replace("@HTTP@", http("").removeprefix("name: x\n"))
    before, _, after = marked.partition("¦")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    found = faults(before + after)
    assert len(found) == 1, found
    assert part in found[0][3]
    assert found[0][:3] == (line, column, path)


def test_all_faults_at_once_in_the_order_of_the_document(faults):
    source = (
        "nmae: x\n"
        "on: {t: {webhook: {path: p}}}\n"
        "steps:\n"
        "  - id: a\n"
        "    http: {url: x, json: '${{ inpt.a }} ${{ steps.b.output }}'}\n"
        "  - id: b\n"
        "    transform: ${{ steps.a.outptu + foo }}\n"
        "    retry: 5\n"
        "output: ${{ steps.c.output }}\n"
        "timeout: 5\n"
    )
    found = faults(source)
    assert [one[:2] for one in found] == [
        (1, 1),
        (1, 1),
        (2, 19),
        (5, 17),
        (5, 31),
        (5, 45),
        (7, 20),
        (7, 37),
        (8, 12),
        (9, 13),
        (10, 10),
    ]
    assert found == sorted(found, key=lambda one: one[:2])


def test_the_message_names_the_first_fault_and_the_number():
    with pytest.raises(InvalidArgumentError) as caught:
        compile_definition("name: X\nsteps: []\n")
    assert caught.value.message.startswith("the definition has 2 problems, the first: name: 'X' is not a name")
    assert caught.value.metadata == {"problems": "2"}


def test_a_faulty_step_does_not_make_references_to_it_faulty(faults):
    found = faults(steps("  - {id: a, transform: '${{ nope }}'}\n  - {id: b, transform: '${{ steps.a.output }}'}\n"))
    assert [one[2] for one in found] == ["steps[0].transform"]


def test_faults_of_yaml_and_of_the_language_come_together(faults):
    assert [one[:2] for one in faults("name: X\nname: y\nsteps: []\n")] == [(1, 7), (2, 1), (3, 8)]


def test_many_faults_are_cut(faults):
    assert len(faults("name: x\n" + "".join(f"k{i}: 1\n" for i in range(300)) + STEP)) == 100


def test_steps_of_a_switch_are_seen_afterwards(faults):
    source = steps(
        "  - id: a\n    switch:\n"
        "      - {if: 'true', steps: [{id: b, transform: 1}, {id: c, transform: '${{ steps.b.output }}'}]}\n"
        "      - steps: [{id: d, transform: 1}]\n"
        "  - {id: e, transform: ['${{ steps.a.state }}', '${{ steps.b.output }}', '${{ steps.d.error }}']}\n"
        "on_failure: [{id: f, transform: ['${{ steps.e.output }}', '${{ steps.c.output }}', '${{ error.code }}']}]\n"
        "output: ['${{ steps.d.output }}', '${{ steps.e.state }}']\n"
    )
    assert faults(source) == []


def test_open_inputs_are_not_checked(faults):
    for schema in (
        "{type: object}",
        "{type: object, properties: {a: {}}, additionalProperties: true}",
        "{type: object, properties: {a: {}}, anyOf: [{}]}",
    ):
        assert faults(f"name: x\ninput: {schema}\n{STEP}output: ${{{{ input.other }}}}\n") == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("${{ inpt }}", (4, 20)),
        ("'it''s ${{ inpt }}'", (4, 27)),
        ('"\\t\\u00e9\\n ${{ inpt }}"', (4, 32)),
        ("|\n      some\n\n      ${{ inpt }}", (7, 11)),
        ("|2-\n        some\n        ${{ inpt }}", (6, 13)),
        (">-\n      ${{ 1 +\n        inpt }}", (6, 9)),
        ("plain\n      text ${{ inpt }}", (5, 16)),
        ("[1, {a: '${{ 1 }}${{ [1,\n      inpt] }}'}]", (5, 7)),
        ("'🚀 é ${{ inpt }}'", (4, 25)),
        ("'${{ \"é🚀\" + inpt }}'", (4, 28)),
        ("'$${{ x }} ${{ inpt }}'", (4, 31)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_positions_point_into_the_expression(faults, text, where, line_break):
    source = steps(f"  - id: a\n    transform: {text}\n").replace("\n", line_break)
    ((line, column, _, message),) = faults(source)
    assert "unknown name 'inpt'" in message
    assert (line, column) == where
