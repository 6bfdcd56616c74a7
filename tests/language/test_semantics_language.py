"""Order, fan-outs, groups, waits, sub-workflows, events, shell, effects, compensation: the model, and every fault."""

import pytest

from taskforged.engine.model import (
    ActivitySpec,
    Backoff,
    ChildSpec,
    Effect,
    ExpressionError,
    FanOutSpec,
    GroupSpec,
    OnLimit,
    OnTimeout,
    PublishSpec,
    SleepSpec,
    SwitchSpec,
    WaitSpec,
)
from taskforged.errors import InvalidArgumentError
from taskforged.language import compile_definition
from taskforged.language.durations import parse_instant
from taskforged.language.tokens import rewrite_status


class DictScope:
    def __init__(self, values):
        self.values = values

    def resolve(self, name):
        return self.values[name]


def steps(*lines):
    return "name: x\nsteps:\n" + "".join(f"  - {line}\n" for line in lines)


def model(*lines):
    return compile_definition(steps(*lines)).model


# --- order -----------------------------------------------------------------------------------------------------------


def test_needs_make_a_graph():
    main = model(
        "{id: a, transform: 1}",
        "{id: b, needs: a, transform: 1}",
        "{id: c, needs: [], transform: 1}",
        "{id: d, transform: 1}",
        "{id: e, needs: [d, b], transform: ['${{ steps.a.output }}', '${{ steps.c.output }}']}",
    ).main
    assert [step.after for step in main.steps] == [(), (0,), (), (2,), (1, 3)]
    assert [step.needs for step in main.steps] == [False, True, True, False, True]


def test_needs_may_point_forwards():
    main = model(
        "{id: last, needs: [middle], transform: '${{ steps.first.output + steps.middle.output }}'}",
        "{id: middle, needs: [first], transform: '${{ steps.first.output }}'}",
        "{id: first, needs: [], transform: 1}",
    ).main
    assert [step.id for step in main.steps] == ["last", "middle", "first"]
    assert [step.after for step in main.steps] == [(1,), (2,), ()]


def test_without_needs_the_flag_is_off_and_the_list_a_chain():
    main = model("{id: a, transform: 1}", "{id: b, transform: 1}").main
    assert [(step.after, step.needs) for step in main.steps] == [((), False), ((0,), False)]


def test_needs_are_of_one_list_each(faults):
    source = steps(
        "{id: a, transform: 1}",
        "{id: g, needs: [], steps: [{id: b, transform: 1}, {id: c, needs: [], transform: '${{ steps.a.output }}'}]}",
    )
    ((_, _, path, message),) = faults(source)
    assert path == "steps[1].steps[1].transform"
    assert message.endswith("so it has no result here; add 'a' to the `needs` of 'g'")


def test_what_ancestors_contain_is_seen_and_nothing_else(faults):
    source = steps(
        "{id: a, switch: [{if: 'true', steps: [{id: b, transform: 1}]}]}",
        "{id: g, steps: [{id: c, transform: '${{ steps.b.output }}'}], output: '${{ steps.c.output }}'}",
        "{id: d, needs: [g], transform: ['${{ steps.b.state }}', '${{ steps.c.output }}', '${{ steps.g.output }}']}",
        "{id: e, needs: [a], transform: ['${{ steps.b.state }}', '${{ steps.c.output }}']}",
    )
    ((_, _, path, message),) = faults(source)
    assert path == "steps[3].transform[1]"
    assert "add 'g' to the `needs` of 'e'" in message


def test_a_step_that_comes_later_cannot_be_needed(faults):
    ((_, _, _, message),) = faults(steps("{id: a, transform: '${{ steps.b.output }}'}", "{id: b, transform: 1}"))
    assert message == "step 'b' does not come before this place, so it has no result here"


def test_every_cycle_is_named_once_and_nothing_follows_from_it(faults):
    found = faults(
        steps(
            "{id: a, needs: b, transform: '${{ steps.b.output }}'}",
            "{id: b, needs: c, transform: '${{ steps.a.output }}'}",
            "{id: c, needs: a, transform: 1}",
            "{id: d, needs: e, transform: 1}",
            "{id: e, transform: '${{ steps.a.output }}'}",
            "{id: f, needs: [a], transform: 1}",
        )
    )
    assert [(line, path, message) for line, _, path, message in found] == [
        (3, "steps[0].needs", "the steps wait for each other: a -> b -> c -> a"),
        (
            6,
            "steps[3].needs",
            "the steps wait for each other: d -> e -> d; a step without `needs` follows the one above it",
        ),
    ]


def test_a_long_cycle_is_shortened(faults):
    ((_, _, _, message),) = faults(steps(*(f"{{id: s{i}, needs: [s{(i + 1) % 40}], transform: 1}}" for i in range(40))))
    assert message.endswith("s7 -> s8 -> s9 -> … -> s0")


def test_a_long_list_in_reverse():
    lines = [f"{{id: s{i}, needs: [s{i + 1}], transform: 1}}" for i in range(499)]
    main = model(*lines, "{id: s499, needs: [], transform: 1}").main
    assert main.ancestors[0] == (1 << 500) - 2


def test_too_many_steps_in_all(faults):
    groups = "".join(
        f"  - {{id: g{g}, steps: [{', '.join(f'{{id: s{g}_{i}, sleep: 1s}}' for i in range(300))}]}}\n"
        for g in range(7)
    )
    (found,) = faults("name: x\nsteps:\n" + groups)
    assert found[2:] == ("steps", "has 2,107 steps in all; the limit is 2,000")


# --- conditions that ask for the status ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("always()", "always__"),
        ("failure()", "failure__"),
        ("'${{ success() }}'", "success__"),
        ("'!success( )'", "success__"),
        ("failure() && true", "failure__"),
    ],
)
def test_status_functions(text, seen):
    step = model("{id: a, transform: 1}", f"{{id: b, if: {text}, transform: 1}}").steps["b"]
    assert step.asks_status is True
    is_negated = text.startswith("'!")
    assert step.condition.evaluate(DictScope({seen: True})) is not is_negated
    assert step.condition.evaluate(DictScope({seen: False})) is is_negated


@pytest.mark.parametrize(
    "text", ['input.x == "always()"', "input.x == 'failure()'", "true // success()", "input.success"]
)
def test_status_functions_in_texts_and_comments_are_none(text):
    step = compile_definition(f"name: x\nsteps:\n  - id: b\n    if: >-\n      {text}\n    transform: 1\n").model.steps[
        "b"
    ]
    assert step.asks_status is False


@pytest.mark.parametrize(
    ("source", "rewritten", "used"),
    [
        ("always()", "always__", {"always__"}),
        ("success (\n ) || x", "success__    || x", {"success__"}),
        ("x.always()", "x.always()", set()),
        ("x . always()", "x . always()", set()),
        ('\'always()\' + """failure()""" + r\'success()\'', '\'always()\' + """failure()""" + r\'success()\'', set()),
        ("a // failure()\n&& failure()", "a // failure()\n&& failure__", {"failure__"}),
        ("unalways() || always(1)", "unalways() || always(1)", set()),
        ("'it\\'s always()' == x || always()", "'it\\'s always()' == x || always__", {"always__"}),
    ],
)
def test_rewriting_keeps_every_position(source, rewritten, used):
    assert rewrite_status(source) == (rewritten, used)
    assert len(rewritten) == len(source)


def test_the_source_of_a_condition_stays_as_it_was_written():
    step = model("{id: b, if: always() && input.x, transform: 1}").steps["b"]
    with pytest.raises(ExpressionError) as caught:
        step.condition.evaluate(DictScope({"input": {}, "always__": True}))
    assert caught.value.source == "always() && input.x"


# --- fan-outs --------------------------------------------------------------------------------------------------------


def test_fan_out(scope):
    step = model(
        "{id: a, transform: 1}",
        "{id: f, if: always(), continue_on_error: true, needs: [a], for_each: '${{ input.xs }}', max_parallel: 3, "
        "max_failures: 2, timeout: 5s, retry: {max_attempts: 2, if: item > 1}, effect: pure, "
        "http: {url: 'http://x/${{ item }}/${{ index }}', method: POST}}",
    ).main.steps[1]
    assert (step.id, step.kind, step.after, step.needs, step.asks_status, step.continue_on_error) == (
        "f", "http", (0,), True, True, True,
    )  # fmt: skip
    assert (step.timeout_s, step.retry, step.compensate) == (None, None, None)
    fan = step.spec
    assert isinstance(fan, FanOutSpec)
    assert (fan.max_parallel, fan.max_failures) == (3, 2)
    assert fan.items.evaluate(scope(input={"xs": [1, 2]})) == [1, 2]
    body = fan.body
    assert (body.id, body.kind, body.condition, body.after, body.timeout_s) == ("f[]", "http", None, (), 5.0)
    assert (body.spec.effect, body.retry.max_attempts) == (Effect.PURE, 2)
    assert body.retry.condition.evaluate(scope(item=2)) is True
    assert body.spec.config.evaluate(scope(item="i", index=4))["url"] == "http://x/i/4"


def test_fan_out_defaults_and_literal_items(scope):
    one = model("{id: f, for_each: [1, '${{ input.a }}'], transform: '${{ item }}'}").steps["f"].spec
    assert (one.max_parallel, one.max_failures) == (100, 0)
    assert one.items.evaluate(scope(input={"a": 2})) == [1, 2]
    two = model("{id: f, for_each: {b: '${{ input.a }}', a: 1}, transform: '${{ item.key }}'}").steps["f"].spec
    assert two.items.evaluate(scope(input={"a": 2})) == {"b": 2, "a": 1}
    assert model("{id: f, for_each: [], transform: 1}").steps["f"].spec.items.evaluate(scope()) == []


NESTED = """name: x
steps:
  - id: regions
    for_each: ${{ input.regions }}
    steps:
      - {id: name, transform: "${{ item.name }}"}
      - id: hosts
        if: item.on && index < 3
        for_each: ${{ item.hosts }}
        steps:
          - {id: probe, http: {url: "http://${{ item }}/${{ steps.name.output }}"}}
          - {id: note, transform: "${{ steps.probe.output.status }}"}
        output: [ "${{ item }}", "${{ steps.note.output }}" ]
      - {id: sum, transform: "${{ steps.hosts.output }}"}
    output: ${{ steps.sum.output }}
output: ${{ steps.regions.output }}
"""


def test_fan_outs_nest_through_groups(scope):
    made = compile_definition(NESTED).model
    assert list(made.steps) == ["regions", "regions[]", "name", "hosts", "hosts[]", "probe", "note", "sum"]
    assert dict(made.depth) == {
        "regions": 0, "regions[]": 1, "name": 1, "hosts": 1, "hosts[]": 2, "probe": 2, "note": 2, "sum": 1,
    }  # fmt: skip
    body = made.steps["hosts[]"]
    assert isinstance(body.spec, GroupSpec)
    assert body.kind == "steps"
    assert body.spec.output.evaluate(scope(item="h", steps__note__output=200)) == ["h", 200]
    assert made.steps["hosts"].condition.evaluate(scope(item={"on": True}, index=1)) is True


@pytest.mark.parametrize("kind", ["switch: [{steps: [{id: b, transform: '${{ item }}'}]}]", "sleep: '${{ item }}'",
                                  "wait: {approval: '${{ item }}?'}", "workflow: {name: c, input: {a: '${{ index }}'}}",
                                  "event: {type: a.b, data: '${{ item }}'}", "fail: 'no ${{ item }}'",
                                  "shell: {command: [ls, '${{ item }}']}"])  # fmt: skip
def test_every_kind_can_be_fanned_out(kind):
    fan = model(f"{{id: f, for_each: [1], {kind}}}").steps["f"]
    assert fan.kind == fan.spec.body.kind == kind.partition(":")[0]


# --- groups ----------------------------------------------------------------------------------------------------------


def test_groups(scope):
    made = model(
        "{id: g, steps: [{id: a, transform: 1}, {id: b, transform: 2}], output: {sum: '${{ steps.a.output + steps.b.output }}'}}",
        "{id: h, steps: [{id: c, transform: 3}]}",
        "{id: z, transform: ['${{ steps.g.output.sum }}', '${{ steps.a.output }}', '${{ steps.c.output }}']}",
    )
    group = made.steps["g"]
    assert (group.kind, [step.after for step in group.spec.block.steps]) == ("steps", [(), (0,)])
    assert group.spec.output.evaluate(scope(steps__a__output=1, steps__b__output=2)) == {"sum": 3}
    assert made.steps["h"].spec.output is None
    assert list(made.steps) == ["g", "a", "b", "h", "c", "z"]


# --- sleep, wait, workflow, event ------------------------------------------------------------------------------------


def test_sleep_has_three_forms(scope):
    plain, four, until, when = (
        model(f"{{id: s, sleep: {text}}}").steps["s"].spec
        for text in ("5m", "{for: 5m}", "{until: '2026-12-24T18:00:00+01:00'}", "{until: '${{ input.at }}'}")
    )
    assert isinstance(plain, SleepSpec)
    assert (plain.duration.evaluate(scope()), plain.until) == (300, None)
    assert four == plain
    assert (until.duration, until.until.evaluate(scope())) == (None, 1_798_131_600_000_000)
    assert when.until.evaluate(scope(input={"at": "1970-01-01T00:00:01.5Z"})) == 1_500_000
    assert when.until.evaluate(scope(input={"at": 2.25})) == 2_250_000
    assert type(when.until.evaluate(scope(input={"at": 2}))) is int


def test_sleep_until_a_cel_timestamp(scope):
    until = (
        model("{id: s, sleep: {until: '${{ timestamp(run.started_at) + duration(\"1h\") }}'}}").steps["s"].spec.until
    )
    assert until.evaluate(scope(run={"started_at": "2026-01-01T00:00:00Z"})) == parse_instant("2026-01-01T01:00:00Z")


@pytest.mark.parametrize(
    "value",
    ["soon", "2026-12-24", "2026-12-24T18:00:00", True, None, [], -1, float("inf"), 1e300, "2026-02-30T00:00:00Z"],
)
def test_computed_times_are_refused_with_a_reason(scope, value):
    until = model("{id: s, sleep: {until: '${{ input.at }}'}}").steps["s"].spec.until
    with pytest.raises(ExpressionError) as caught:
        until.evaluate(scope(input={"at": value}))
    assert caught.value.position.startswith("steps[0].sleep.until (line 3")
    assert caught.value.source == "${{ input.at }}"


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:01z", 1_000_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:00.123456789Z", 123_456),
        ("1970-01-01T00:00:00.1Z", 100_000),
        ("9999-12-31T23:59:59Z", 253_402_300_799_000_000),
    ],
)
def test_instants(text, micros):
    assert parse_instant(text) == micros


@pytest.mark.parametrize(
    "text",
    ["", "2026-12-24", "2026-12-24T18:00:00", "2026-12-24 18:00:00Z", "2026-13-01T00:00:00Z", "1969-12-31T23:59:59Z",
     "2026-12-24T18:00:60Z", "2026-12-24T18:00:00+25:00", "2026-12-24T18:00:00Z\n", "٢٠٢٦-12-24T18:00:00Z", "0001-01-01T00:00:00+12:00"],
)  # fmt: skip
def test_no_instants(text):
    with pytest.raises(ValueError):
        parse_instant(text)


def test_waits(scope):
    signal = model(
        "{id: w, wait: {signal: order.paid, schema: {type: string, maxLength: 3}, timeout: 24h, on_timeout: continue}}"
    ).steps["w"]
    assert signal.kind == "wait"
    spec = signal.spec
    assert isinstance(spec, WaitSpec)
    assert (spec.signal, spec.message, spec.timeout_s, spec.on_timeout) == (
        "order.paid",
        None,
        86_400,
        OnTimeout.CONTINUE,
    )
    assert spec.contract.accept("abc") == "abc"
    with pytest.raises(InvalidArgumentError, match="the payload does not fit") as caught:
        spec.contract.accept("abcd")
    assert caught.value.reason == "INVALID_PAYLOAD"
    approval = model("{id: w, wait: {approval: 'Deploy ${{ input.tag }}?'}}").steps["w"].spec
    assert (approval.signal, approval.contract, approval.timeout_s, approval.on_timeout) == (
        "",
        None,
        None,
        OnTimeout.FAIL,
    )
    assert approval.message.evaluate(scope(input={"tag": "v1"})) == "Deploy v1?"


def test_a_payload_gets_its_defaults():
    spec = model("{id: w, wait: {signal: s, schema: {type: object, properties: {a: {default: 1}}}}}").steps["w"].spec
    assert spec.contract.accept({}) == {"a": 1}


def test_sub_workflows(scope):
    made = model(
        "{id: a, workflow: child}",
        "{id: b, workflow: {name: other, version: 3, input: {x: '${{ input.x }}'}}}",
        "{id: c, workflow: {name: third, input: '${{ input }}'}}",
    )
    first, second, third = (made.steps[key].spec for key in "abc")
    assert isinstance(first, ChildSpec)
    assert (first.workflow, first.version, first.input.evaluate(scope())) == ("child", 0, {})
    assert (second.workflow, second.version, second.input.evaluate(scope(input={"x": 1}))) == ("other", 3, {"x": 1})
    assert third.input.evaluate(scope(input={"y": 1})) == {"y": 1}
    assert made.children == {"child", "third"}


def test_events(scope):
    spec = model("{id: e, event: {type: order.paid, data: {a: '${{ input.a }}'}}}").steps["e"].spec
    assert isinstance(spec, PublishSpec)
    assert (spec.type.evaluate(scope()), spec.data.evaluate(scope(input={"a": 1}))) == ("order.paid", {"a": 1})
    assert model("{id: e, event: {type: a}}").steps["e"].spec.data.evaluate(scope()) == {}


@pytest.mark.parametrize(
    ("value", "good"), [("paid", True), ("a-b.c_d", True), ("Paid", True), ("", False), ("x" * 200, False)]
)
def test_computed_types_of_events(scope, value, good):
    spec = model("{id: e, event: {type: 'order.${{ input.t }}'}}").steps["e"].spec
    if good:
        assert spec.type.evaluate(scope(input={"t": value})) == f"order.{value}"
    else:
        with pytest.raises(ExpressionError, match="is no type of an event"):
            spec.type.evaluate(scope(input={"t": value}))


def test_a_computed_type_cannot_be_reserved(scope):
    spec = model("{id: e, event: {type: '${{ input.t }}'}}").steps["e"].spec
    with pytest.raises(ExpressionError, match="those of Taskforge itself"):
        spec.type.evaluate(scope(input={"t": "run.failed"}))


# --- shell, effects, defaults ----------------------------------------------------------------------------------------


def test_shell_defaults(scope):
    spec = model("{id: s, shell: {command: [/usr/bin/true]}}").steps["s"].spec
    assert isinstance(spec, ActivitySpec)
    assert (spec.executor, spec.effect) == ("shell", Effect.IDEMPOTENT)
    assert spec.config.evaluate(scope()) == {
        "command": ["/usr/bin/true"], "env": {}, "cwd": None, "stdin": None, "output": "text",
        "exit_codes": [0], "max_output": 65_536,
    }  # fmt: skip


def test_shell_in_full(scope):
    definition = compile_definition(
        steps(
            "{id: s, shell: {command: [tar, -C, '${{ input.d }}', 5, true], env: {TOKEN: 'x ${{ secrets.T }}', N: 1}, "
            "cwd: '/srv/${{ input.d }}', stdin: '${{ secrets.S }}', output: json, exit_codes: [0, 3], max_output: 1048576}}"
        )
    )
    assert definition.secrets == {"T", "S"}
    assert definition.model.steps["s"].spec.config.evaluate(scope(input={"d": "data"})) == {
        "command": ["tar", "-C", "data", "5", "true"],
        "env": {"TOKEN": {"$concat": ["x ", {"$secret": "T"}]}, "N": "1"},
        "cwd": "/srv/data",
        "stdin": {"$secret": "S"},
        "output": "json",
        "exit_codes": [0, 3],
        "max_output": 1_048_576,
    }


@pytest.mark.parametrize(
    ("text", "effect"),
    [
        ("http: {url: 'http://x'}", Effect.PURE),
        ("http: {url: 'http://x', method: HEAD}", Effect.PURE),
        ("http: {url: 'http://x', method: OPTIONS}", Effect.PURE),
        ("http: {url: 'http://x', method: DELETE}", Effect.IDEMPOTENT),
        ("shell: {command: [ls]}", Effect.IDEMPOTENT),
        ("shell: {command: [ls]}, effect: once, retry: {max_attempts: 1}", Effect.ONCE),
        ("http: {url: 'http://x'}, effect: idempotent", Effect.IDEMPOTENT),
    ],
)
def test_effects(text, effect):
    assert model(f"{{id: s, {text}}}").steps["s"].spec.effect is effect


def test_defaults():
    made = compile_definition(
        "name: x\ndefaults: {timeout: 7s, retry: {max_attempts: 3, strategy: fixed}}\n"
        "on_failure: [{id: f, shell: {command: [ls]}}]\non_cancel: [{id: c, shell: {command: [ls]}}]\n"
        "steps:\n"
        "  - {id: a, http: {url: 'http://x'}, compensate: {shell: {command: [ls]}}}\n"
        "  - {id: b, http: {url: 'http://x'}, timeout: 1s, retry: {max_attempts: 1}}\n"
        "  - {id: d, http: {url: 'http://x'}, effect: once}\n"
        "  - {id: e, for_each: [1], shell: {command: [ls]}}\n"
        "  - {id: g, transform: 1}\n"
    ).model.steps
    for key in ("a", "a:compensate", "f", "c", "e[]"):
        assert (made[key].timeout_s, made[key].retry.max_attempts, made[key].retry.strategy) == (7, 3, Backoff.FIXED), (
            key
        )
    assert (made["b"].timeout_s, made["b"].retry.max_attempts) == (1, 1)
    assert (made["d"].timeout_s, made["d"].retry) == (7, None)
    assert all((made[key].timeout_s, made[key].retry) == (None, None) for key in ("e", "g"))


# --- compensation ----------------------------------------------------------------------------------------------------


def test_compensation(scope):
    made = model(
        "{id: a, transform: 1}",
        "{id: b, http: {url: 'http://x', method: POST}, compensate: {http: {method: DELETE, url: 'http://x/${{ steps.b.output.body.id }}', "
        "json: ['${{ steps.a.output }}', '${{ error.message }}']}, timeout: 5s, retry: {max_attempts: 2}, effect: pure}}",
    )
    undo = made.steps["b"].compensate
    assert undo is made.steps["b:compensate"]
    assert (undo.id, undo.kind, undo.timeout_s, undo.retry.max_attempts, undo.spec.effect) == (
        "b:compensate",
        "http",
        5,
        2,
        Effect.PURE,
    )
    config = undo.spec.config.evaluate(
        scope(steps__b__output={"body": {"id": 7}}, steps__a__output=1, error={"message": "m"})
    )
    assert (config["url"], config["json"]) == ("http://x/7", [1, "m"])
    assert made.phases["b:compensate"] == "compensate"
    assert made.compensates


def test_compensation_of_an_item(scope):
    made = model(
        "{id: f, for_each: [1], shell: {command: [ls]}, compensate: {event: {type: undone, data: ['${{ item }}', '${{ index }}']}}}"
    )
    assert made.steps["f"].compensate is None
    undo = made.steps["f[]"].compensate
    assert undo.id == "f[]:compensate"
    assert undo.spec.data.evaluate(scope(item="a", index=1)) == ["a", 1]


def test_compensation_inside_a_fanned_group_sees_its_step(faults):
    source = steps(
        "{id: f, for_each: [1], steps: [{id: b, transform: 1, compensate: {event: {type: u, data: ['${{ steps.b.output }}', '${{ item }}']}}}]}"
    )
    assert faults(source) == []


@pytest.mark.parametrize(
    "kind",
    ["transform: 1", "sleep: 1s", "wait: {signal: s}", "workflow: c", "event: {type: t}", "shell: {command: [ls]}"],
)
def test_what_can_be_compensated(kind):
    assert model(f"{{id: a, {kind}, compensate: {{shell: {{command: [ls]}}}}}}").compensates


# --- the top level ---------------------------------------------------------------------------------------------------


def test_the_top_level(scope):
    definition = compile_definition(
        'name: x\nconcurrency: {group: "d-${{ input.r }}", limit: 2, on_limit: cancel_running}\nqueue: slow.lane\npriority: 9\n'
        "cancel_grace: 5m\nsteps: [{id: a, transform: 1}]\n"
        "on_cancel: [{id: b, transform: '${{ steps.a.output }}'}, {id: w, wait: {signal: s}}]\n"
        "output: ['${{ run.id }}', '${{ run.namespace }}', '${{ run.trigger }}', '${{ run.priority }}', '${{ run.queue }}', "
        "'${{ run.parent }}', '${{ run.attempt }}', '${{ run.correlation_id }}', '${{ run.started_at }}']\n"
    )
    made = definition.model
    assert definition.concurrency == ("d-${{ input.r }}", 2, "cancel_running")
    assert (made.concurrency.limit, made.concurrency.on_limit) == (2, OnLimit.CANCEL_RUNNING)
    assert made.concurrency.group.evaluate(scope(input={"r": "x"})) == "d-x"
    assert (made.queue, made.priority, made.cancel_grace_s) == ("slow.lane", 9, 300)
    assert [step.after for step in made.on_cancel.steps] == [(), (0,)]
    assert made.phases["b"] == "on_cancel"


def test_the_top_level_by_default():
    definition = compile_definition("name: x\nsteps: [{id: a, transform: 1}]\n")
    made = definition.model
    assert (definition.concurrency, made.concurrency, made.queue, made.priority, made.cancel_grace_s) == (
        None,
        None,
        "default",
        5,
        60,
    )
    assert made.on_cancel.steps == ()
    group = compile_definition("name: x\nconcurrency: {group: deploy}\nsteps: [{id: a, transform: 1}]\n")
    assert group.concurrency == ("deploy", 1, "queue")


def test_switch_inside_a_graph_keeps_its_cases():
    made = model(
        "{id: s, needs: [], switch: [{if: 'true', steps: [{id: a, needs: [b], transform: 1}, {id: b, needs: [], transform: 1}]}]}"
    )
    spec = made.steps["s"].spec
    assert isinstance(spec, SwitchSpec)
    assert [step.after for step in spec.cases[0].block.steps] == [(1,), ()]


# --- faults ----------------------------------------------------------------------------------------------------------

FAULTS = [
    # needs
    ("{id: a, needs: ¦c, transform: 1}\n  - {id: b, transform: 1}", "steps[0].needs", "there is no step 'c' in this list; known: b"),
    ("{id: build, transform: 1}\n  - {id: b, needs: [build, ¦biuld], transform: '${{ steps.build.output }}'}", "steps[1].needs[1]", "did you mean 'build'?"),
    ("{id: a, needs: [¦a], transform: 1}", "steps[0].needs[0]", "a step cannot need itself"),
    ("{id: a, transform: 1}\n  - {id: b, needs: [a, ¦a], transform: 1}", "steps[1].needs[1]", "'a' is named twice"),
    ("{id: a, needs: ¦5, transform: 1}", "steps[0].needs", "must be the id of a step of this list"),
    ("{id: a, needs: ¦{b: c}, transform: 1}", "steps[0].needs", "must be the id of a step of this list"),
    ("{id: a, needs:¦ , transform: 1}", "steps[0].needs", "[] starts at once"),
    ("{id: a, steps: [{id: b, transform: 1}]}\n  - {id: c, needs: [¦b], transform: 1}", "steps[1].needs[0]", "there is no step 'b' in this list"),
    ("{id: a, transform: 1}\n  - {id: b, needs: [], transform: '${{ ¦steps.a.output }}'}", "steps[1].transform", "add 'a' to the `needs` of 'b'"),
    ("{id: a, transform: 1}\n  - {id: b, needs: [], if: ¦steps.a.output == 1, transform: 1}", "steps[1].if", "add 'a' to the `needs` of 'b'"),
    # status functions
    ("{id: a, transform: '${{ ¦always() }}'}", "steps[0].transform", "the function always() exists only in the `if` of a step"),
    ("{id: a, switch: [{if: ¦failure(), steps: [{id: b, transform: 1}]}]}", "steps[0].switch[0].if", "exists only in the `if` of a step"),
    ("{id: a, if: ¦always(1), transform: 1}", "steps[0].if", "always() takes no arguments"),
    ("{id: a, if: '¦always__', transform: 1}", "steps[0].if", "'always__' is not known here"),
    ("{id: a, if: failure() && ¦stpes.b.output, transform: 1}", "steps[0].if", "unknown name 'stpes'"),
    ("{id: a, if: 'failure () &&\n      ¦inpt.x', transform: 1}", "steps[0].if", "unknown name 'inpt'"),
    # for_each
    ("{id: a, for_each: ¦5, transform: 1}", "steps[0].for_each", "must be a list or a map, is a number"),
    ("{id: a, for_each: ¦text, transform: 1}", "steps[0].for_each", "is a text"),
    ("{id: a, for_each: ¦'${{ input.a }}, b', transform: 1}", "steps[0].for_each", "is a text"),
    ("{id: a, for_each: ¦'${{ 1 + 1 }}', transform: 1}", "steps[0].for_each", "is a number"),
    ("{id: a, for_each:¦ , transform: 1}", "steps[0].for_each", "is null"),
    ("{id: a, for_each: '${{ ¦inptu.x }}', transform: 1}", "steps[0].for_each", "unknown name 'inptu'"),
    ("{id: a, for_each: [1], max_parallel: ¦0, transform: 1}", "steps[0].max_parallel", "from 1 to 10,000"),
    ("{id: a, for_each: [1], max_failures: ¦-1, transform: 1}", "steps[0].max_failures", "from 0 to 1,000,000"),
    ("{id: a, ¦max_parallel: 5, transform: 1}", "steps[0].max_parallel", "means nothing without `for_each`"),
    ("{id: a, ¦max_failures: 5, transform: 1}", "steps[0].max_failures", "means nothing without `for_each`"),
    ("{id: a, for_each: [1], if: ¦item == 1, transform: 1}", "steps[0].if", "it exists only inside a for_each"),
    ("{id: a, for_each: ['${{ ¦index }}'], transform: 1}", "steps[0].for_each[0]", "it exists only inside a for_each"),
    ("{id: a, transform: '${{ ¦item }}'}", "steps[0].transform", "it exists only inside a for_each"),
    ("{id: a, for_each: [1], transform: 1}\n  - {id: b, transform: '${{ ¦item }}'}", "steps[1].transform", "it exists only inside a for_each"),
    ("{id: f, for_each: [1], steps: [{id: a, transform: 1}]}\n  - {id: b, transform: '${{ ¦steps.a.output }}'}", "steps[1].transform", "step 'a' is inside the fan-out 'f': from outside write steps.f.output, a list in the order of the items"),
    ("{id: f, for_each: [1], steps: [{id: a, transform: 1}]}\noutput: ${{ ¦steps.a.output }}", "output", "inside the fan-out 'f'"),
    ("{id: f, for_each: [1], steps: [{id: a, transform: 1}]}\non_failure: [{id: b, transform: '${{ ¦steps.a.output }}'}]", "on_failure[0].transform", "inside the fan-out 'f'"),
    ("{id: f, for_each: [1], transform: '${{ ¦steps.f.output }}'}", "steps[0].transform", "does not come before this place"),
    ("{id: f, for_each: [1], steps: [{id: g, for_each: [1], steps: [{id: a, transform: 1}]}, {id: b, transform: '${{ ¦steps.a.output }}'}]}", "steps[0].steps[1].transform", "inside the fan-out 'g'"),
    # groups
    ("{id: g, steps: ¦[]}", "steps[0].steps", "at least one step"),
    ("{id: g, ¦output: 1, transform: 1}", "steps[0].output", "only on a group"),
    ("{id: g, steps: [{id: ¦g, transform: 1}]}", "steps[0].steps[0].id", "is taken"),
    ("{id: g, ¦timeout: 5s, steps: [{id: a, transform: 1}]}", "steps[0].timeout", "possible only on http and shell steps, not on steps"),
    # sleep
    ("{id: s, sleep: ¦{}}", "steps[0].sleep", "one of for, until is missing"),
    ("{id: s, sleep: {for: 5m, ¦until: '2026-12-24T18:00:00Z'}}", "steps[0].sleep.until", "exclude each other"),
    ("{id: s, sleep: {until: ¦'2026-12-24T18:00:00'}}", "steps[0].sleep.until", "is no time with its offset"),
    ("{id: s, sleep: {until: ¦5m}}", "steps[0].sleep.until", "is no time with its offset"),
    ("{id: s, sleep: {until: ¦[x]}}", "steps[0].sleep.until", "must be a time such as"),
    ("{id: s, sleep: {¦til: 5m}}", "steps[0].sleep.til", "did you mean 'until'?"),
    # wait
    ("{id: w, wait: ¦{}}", "steps[0].wait", "one of signal, approval is missing"),
    ("{id: w, wait: ¦go}", "steps[0].wait", "must be a map with signal"),
    ("{id: w, wait: {signal: s, ¦approval: a}}", "steps[0].wait.approval", "exclude each other"),
    ("{id: w, wait: {signal: ¦Go}}", "steps[0].wait.signal", "not the name of a signal"),
    ("{id: w, wait: {signal: ¦'${{ input.a }}'}}", "steps[0].wait.signal", "expressions are not possible here"),
    ("{id: w, wait: {signal: s, ¦on_timeout: continue}}", "steps[0].wait.on_timeout", "means nothing without `timeout`"),
    ("{id: w, wait: {signal: s, timeout: 5s, on_timeout: ¦skip}}", "steps[0].wait.on_timeout", "'skip' is not possible"),
    ("{id: w, wait: {signal: s, schema: ¦5}}", "steps[0].wait.schema", "must be a JSON Schema"),
    ("{id: w, wait: {signal: s, schema: {type: ¦objekt}}}", "steps[0].wait.schema.type", "no valid JSON Schema"),
    ("{id: w, wait: {approval: '${{ ¦secrets.A }}'}}", "steps[0].wait.approval", "a secret may only be written"),
    ("{id: w, wait: {signal: s}, ¦timeout: 5s}", "steps[0].timeout", "write it inside of `wait`"),
    # workflow
    ("{id: w, workflow: ¦Child}", "steps[0].workflow", "not a name"),
    ("{id: w, workflow: ¦'${{ input.a }}'}", "steps[0].workflow", "expressions are not possible here"),
    ("{id: w, workflow: ¦{version: 1}}", "steps[0].workflow", "'name' is missing"),
    ("{id: w, workflow: {name: c, version: ¦0}}", "steps[0].workflow.version", "whole number from 1"),
    ("{id: w, workflow: {name: c, input: ¦[1]}}", "steps[0].workflow.input", "must be a map, the input of the run"),
    # event
    ("{id: e, event: ¦{}}", "steps[0].event", "'type' is missing"),
    ("{id: e, event: {type: ¦.order}}", "steps[0].event.type", "is no type of an event"),
    ("{id: e, event: {type: ¦order..paid}}", "steps[0].event.type", "is no type of an event"),
    ("{id: e, event: {type: ¦run.failed}}", "steps[0].event.type", "those of Taskforge itself"),
    ("{id: e, event: {type: ¦trigger.paused}}", "steps[0].event.type", "those of Taskforge itself"),
    ("{id: e, event: {type: ¦'taskforge.${{ input.a }}'}}", "steps[0].event.type", "those of Taskforge itself"),
    ("{id: e, event: {type: a, data: '${{ ¦secrets.A }}'}}", "steps[0].event.data", "a secret may only be written"),
    # shell
    ("{id: s, shell: ¦{}}", "steps[0].shell", "'command' is missing"),
    ("{id: s, shell: {command: ¦tar -cf x}}", "steps[0].shell.command", "there is no shell that would take a line apart; write [tar, -cf, x]"),
    ("{id: s, shell: {command: ¦[]}}", "steps[0].shell.command", "must be a list: the program"),
    ("{id: s, shell: {command: [¦bin/x]}}", "steps[0].shell.command[0]", "not a program"),
    ("{id: s, shell: {command: [¦'${{ input.p }}']}}", "steps[0].shell.command[0]", "expressions are not possible here"),
    ("{id: s, shell: {command: [ls, ¦[x]]}}", "steps[0].shell.command[1]", "must be a text, is a list"),
    ("{id: s, shell: {command: [ls, '${{ ¦secrets.A }}']}}", "steps[0].shell.command[1]", "pass it in env"),
    ("{id: s, shell: {command: [ls, '-p=${{ ¦secrets.A }}']}}", "steps[0].shell.command[1]", "pass it in env"),
    ("{id: s, shell: {command: [ls, '${{ ¦secrets.A + \"x\" }}']}}", "steps[0].shell.command[1]", "pass it in env"),
    ("{id: s, shell: {command: [ls], env: {¦'A B': x}}}", 'steps[0].shell.env["A B"]', "not the name of a variable"),
    ("{id: s, shell: {command: [ls], env: {¦TASKFORGE_X: x}}}", "steps[0].shell.env.TASKFORGE_X", "are set by Taskforge"),
    ("{id: s, shell: {command: [ls], cwd: ¦tmp}}", "steps[0].shell.cwd", "must be an absolute path"),
    ("{id: s, shell: {command: [ls], cwd: '/${{ ¦secrets.A }}'}}", "steps[0].shell.cwd", "a secret may only be written"),
    ("{id: s, shell: {command: [ls], output: ¦yaml}}", "steps[0].shell.output", "'yaml' is not possible"),
    ("{id: s, shell: {command: [ls], exit_codes: ¦0}}", "steps[0].shell.exit_codes", "must be a list of exit codes"),
    ("{id: s, shell: {command: [ls], exit_codes: [¦256]}}", "steps[0].shell.exit_codes[0]", "from 0 to 255"),
    ("{id: s, shell: {command: [ls], max_output: ¦1048577}}", "steps[0].shell.max_output", "from 1 to 1,048,576"),
    # effect
    ("{id: a, ¦effect: once, transform: 1}", "steps[0].effect", "possible only on http and shell steps, not on transform"),
    ("{id: a, effect: ¦twice, shell: {command: [ls]}}", "steps[0].effect", "'twice' is not possible"),
    ("{id: a, effect: once, ¦retry: {max_attempts: 2}, shell: {command: [ls]}}", "steps[0].retry", "cannot be retried by itself"),
    ("{id: a, shell: {command: [ls]}, compensate: {shell: {command: [ls]}, effect: once, ¦retry: {max_attempts: 2}}}", "steps[0].compensate.retry", "cannot be retried by itself"),
    # compensate
    ("{id: a, transform: 1, compensate: ¦{}}", "steps[0].compensate", "one of http, shell, event is missing"),
    ("{id: a, transform: 1, compensate: {¦transform: 1}}", "steps[0].compensate.transform", "unknown key 'transform'"),
    ("{id: a, transform: 1, compensate: {¦id: b, shell: {command: [ls]}}}", "steps[0].compensate.id", "unknown key 'id'"),
    ("{id: a, transform: 1, compensate: {event: {type: t}, ¦timeout: 5s}}", "steps[0].compensate.timeout", "not on event"),
    ("{id: a, fail: x, ¦compensate: {event: {type: t}}}", "steps[0].compensate", "is not possible on fail"),
    ("{id: a, steps: [{id: b, transform: 1}], ¦compensate: {event: {type: t}}}", "steps[0].compensate", "write it on the steps inside"),
    ("{id: a, switch: [{steps: [{id: b, transform: 1}]}], ¦compensate: {event: {type: t}}}", "steps[0].compensate", "write it on the steps inside"),
    ("{id: a, transform: 1}\non_failure: [{id: b, transform: 1, ¦compensate: {event: {type: t}}}]", "on_failure[0].compensate", "only on the main steps, not in on_failure"),
    ("{id: a, transform: 1}\non_cancel: [{id: b, transform: 1, ¦compensate: {event: {type: t}}}]", "on_cancel[0].compensate", "only on the main steps, not in on_cancel"),
    ("{id: a, for_each: [1], transform: 1, compensate: {event: {type: t, data: '${{ ¦steps.a.output }}'}}}", "steps[0].compensate.event.data", "write for_each with a group"),
    ("{id: a, transform: 1, compensate: {event: {type: t, data: '${{ ¦steps.b.output }}'}}}\n  - {id: b, transform: 1}", "steps[0].compensate.event.data", "does not come before this place"),
    # the top level
    ("{id: a, transform: 1}\non_cancel: ¦[]", "on_cancel", "at least one step"),
    ("{id: a, transform: 1}\non_cancel: [{id: b, transform: '${{ ¦error.message }}'}]", "on_cancel[0].transform", "only in on_failure, in compensate and in retry.if"),
    ("{id: a, transform: 1}\non_cancel: [{id: b, transform: 1}]\noutput: ${{ ¦steps.b.output }}", "output", "does not come before"),
    ("{id: a, transform: 1}\non_failure: [{id: b, transform: 1}]\non_cancel: [{id: c, transform: '${{ ¦steps.b.output }}'}]", "on_cancel[0].transform", "does not come before"),
    ("{id: a, transform: 1}\ncancel_grace: ¦2h", "cancel_grace", "from 1 to 3600 seconds"),
    ("{id: a, transform: 1}\nqueue: ¦'${{ input.q }}'", "queue", "expressions are not possible here"),
    ("{id: a, transform: 1}\npriority: ¦10", "priority", "from 0 to 9"),
    ("{id: a, transform: 1}\ndefaults: {¦effect: once}", "defaults.effect", "unknown key 'effect'"),
    ("{id: a, transform: 1}\nconcurrency: {group: g, limit: ¦0}", "concurrency.limit", "from 1 to 10,000"),
    ("{id: a, transform: 1}\nconcurrency: {group: g, on_limit: ¦drop}", "concurrency.on_limit", "'drop' is not possible"),
    ("{id: a, transform: 1}\nconcurrency: {group: ¦''}", "concurrency.group", "must not be empty"),
    ("{id: a, transform: 1}\nconcurrency: {group: '${{ ¦secrets.A }}'}", "concurrency.group", "a secret may only be written"),
    ("{id: a, transform: 1}\nconcurrency: {group: '${{ ¦steps.a.output }}'}", "concurrency.group", "does not come before"),
    ("{id: a, transform: 1}\noutput: ${{ ¦run.prioritty }}", "output", "did you mean 'priority'?"),
]  # fmt: skip


# Each is the steps of a definition, after two lines, with a mark where the fault is, its path, a part of the message.


@pytest.mark.parametrize(("marked", "path", "part"), FAULTS, ids=[f"{path}-{part[:30]}" for _, path, part in FAULTS])
def test_faults(faults, marked, path, part):
    marked = f"name: x\nsteps:\n  - {marked}\n"
    before, _, after = marked.partition("¦")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    found = faults(before + after)
    assert len(found) == 1, found
    assert part in found[0][3]
    assert found[0][:3] == (line, column, path)


def test_a_faulty_needs_does_not_make_references_faulty(faults):
    found = faults(steps("{id: a, transform: 1}", "{id: b, needs: [aa], transform: '${{ steps.a.output }}'}"))
    assert [one[2] for one in found] == ["steps[1].needs[0]"]


def test_all_faults_of_new_constructs_come_at_once(faults):
    source = steps(
        "{id: a, needs: [z], for_each: 5, shell: {command: ls}}",
        "{id: b, max_parallel: 2, wait: {signal: S, on_timeout: fail}}",
        "{id: c, event: {type: run.x}, compensate: {sleep: 1s}}",
    )
    found = faults(source)
    assert [one[2] for one in found] == [
        "steps[0].needs[0]", "steps[0].for_each", "steps[0].shell.command", "steps[1].wait.signal",
        "steps[2].event.type", "steps[2].compensate.sleep",
    ]  # fmt: skip
    assert found == sorted(found, key=lambda one: one[:2])
