"""`cron:`, `event:`, `for_each` and what stands beside them: what it means, and what is said of everything else."""

import itertools
import json

import jsonschema_rs
import pytest

from taskforged.language import compile_definition, json_schema
from taskforged.language.definition import CronTrigger, EventTrigger, ManualTrigger, WebhookTrigger
from taskforged.schedule import Policy

STEP = "steps: [{id: a, transform: 1}]\n"
DAY_US = 86_400_000_000


def source(text):
    """A definition whose trigger `t` is a line of YAML."""
    return f"name: x\non:\n  t: {text}\n{STEP}"


def trigger(text):
    return compile_definition(source(text)).triggers["t"]


def cron(keys, schedule="0 3 * * *"):
    return f"{{cron: {{schedule: {schedule}, {keys}}}}}"


# --- what it means ---------------------------------------------------------------------------------------------------


def test_a_cron_trigger_and_its_defaults():
    short, long = trigger("{cron: 0 3 * * *}"), trigger("{cron: {schedule: 0 3 * * *}}")
    assert short == long == CronTrigger("t", "0 3 * * *")
    assert (short.kind, short.seconds, short.zone, short.gap, short.fold) == ("cron", False, "UTC", "shift", "first")
    assert (short.jitter_s, short.start_at, short.end_at, short.overlap) == (0.0, 0, 0, "skip")
    assert short.policy == Policy("latest")


@pytest.mark.parametrize(
    ("keys", "name", "wanted"),
    [
        ("timezone: Europe/Berlin", "zone", "Europe/Berlin"),
        ("timezone: UTC", "zone", "UTC"),
        ("overlap: queue", "overlap", "queue"),
        ("overlap: cancel_running", "overlap", "cancel_running"),
        ("overlap: allow", "overlap", "allow"),
        ("jitter: 5m", "jitter_s", 300.0),
        ("jitter: 1d", "jitter_s", 86_400.0),
        ("jitter: 1ms", "jitter_s", 0.001),
        ("dst: {gap: skip}", "gap", "skip"),
        ("dst: {fold: last}", "fold", "last"),
        ("dst: {fold: both}", "fold", "both"),
        ("dst: {}", "fold", "first"),
        ("misfire: all", "policy", Policy("all")),
        ("misfire: {}", "policy", Policy("latest")),
        ("misfire: {policy: all, window: 2h, cap: 5}", "policy", Policy("all", 7_200_000_000, 5)),
        ("misfire: {window: 366d}", "policy", Policy("latest", 366 * DAY_US)),
        ("misfire: {policy: skip}", "policy", Policy("skip")),
        ("start: 1970-01-02T00:00:00Z", "start_at", DAY_US),
        ("start: '1970-01-02T01:00:00+01:00'", "start_at", DAY_US),
        ("end: 1970-01-02T00:00:00.5Z", "end_at", DAY_US + 500_000),
    ],
)
def test_what_the_keys_of_cron_mean(keys, name, wanted):
    assert getattr(trigger(cron(keys)), name) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "{cron: '@daily'}",
        "{cron: 'H H * * *'}",
        "{cron: '0 0 L * *'}",
        "{cron: '0 0 * * FRI#2'}",
        "{cron: '0 0 * * L5'}",
        "{cron: {schedule: '*/5 * * * * *', seconds: true}}",
        "{cron: '0 0 29 2 *'}",
    ],
)
def test_expressions_that_are_taken(text):
    assert trigger(text).kind == "cron"


def test_events_manuals_and_fans():
    assert trigger("{event: {type: order.*}}") == EventTrigger("t", "order.*")
    assert trigger("{manual: {}}") == ManualTrigger("t")
    assert trigger("{manual:}") == ManualTrigger("t")
    plain = trigger("{event: {type: a}, for_each: event.body.list, input: {n: '${{ item }}', i: '${{ index }}'}}")
    assert (plain.for_each.is_namespaces, plain.for_each.labels) == (False, frozenset())
    tenants = trigger(
        '{cron: 0 3 * * *, for_each: \'namespaces.filter(n, n.labels.plan == "pro" && n.labels["a b"] != "")\'}'
    )
    assert (tenants.for_each.is_namespaces, tenants.for_each.labels) == (True, {"plan", "a b"})
    for kind in ("{cron: 0 3 * * *", "{event: {type: a}", "{webhook: {path: p, verify: {scheme: none}}"):
        found = trigger(kind + ", if: 'true', for_each: [1, 2], input: {a: 1}}")
        assert isinstance(found, (CronTrigger, EventTrigger, WebhookTrigger))
        assert found.condition is not None
        assert found.input is not None
        assert found.for_each is not None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("namespaces", True),
        ("'namespaces.map(n, n.name)'", True),
        ("'${{ namespaces }}'", True),
        ("'[\"a\"] + namespaces.map(n, n.name)'", True),
        ("event.body.namespaces", False),
        ("event.body . namespaces", False),
        ("'event.body.?namespaces.orValue([])'", False),
        ("'event.body[\"namespaces\"]'", False),
        ("'event.body.filter(n, n == \"namespaces\")'", False),
        ("'event.body // and namespaces'", False),
        ("event.body.namespaces_of", False),
    ],
)
def test_when_items_are_namespaces(text, wanted):
    assert trigger(f"{{event: {{type: a}}, for_each: {text}}}").for_each.is_namespaces is wanted


def test_several_triggers_share_a_path_and_each_has_its_id():
    hook = "webhook: {path: p, verify: {scheme: none}}"
    text = f"name: x\non:\n  a: {{{hook}, if: event.body == 1}}\n  b: {{{hook}, if: event.body == 2}}\n  c: {{cron: 0 3 * * *}}\n{STEP}"
    found = compile_definition(text)
    assert {key: one.id for key, one in found.triggers.items() if key in "abc"} == {"a": "a", "b": "b", "c": "c"}
    assert set(found.sources()) == {"a", "b", "c"}


# --- what is wrong with it -------------------------------------------------------------------------------------------

E = "{event: {type: a}, "
FAULTS = [
    # cron: the expression
    ("{cron: 0 ¦25 * * *}", "on.t.cron.schedule", "25 is out of range: hour is 0-23"),
    ("{cron: {schedule: 0 ¦25 * * *}}", "on.t.cron.schedule", "25 is out of range"),
    ("{cron: '0 0 ¦30 2 *'}", "on.t.cron.schedule", "never"),
    ("{cron: '0 0 ¦31 4,6,9,11 *'}", "on.t.cron.schedule", "L for the last day of a month"),
    ("{cron: '0 3 * * * ¦*'}", "on.t.cron.schedule", "if the first is meant to be seconds, add `seconds: true`"),
    ("{cron: {schedule: '0 3 * * *¦', seconds: true}}", "on.t.cron.schedule", "write the seconds first, `0` for none"),
    ("{cron: '¦R * * * *'}", "on.t.cron.schedule", "`R` (random) is not supported; `H` spreads"),
    ("{cron: '0 0 ¦? * 1'}", "on.t.cron.schedule", "`?` is not supported; write `*`"),
    ("{cron: '0 0 ¦15W * *'}", "on.t.cron.schedule", "`W` (nearest working day) is not supported"),
    ("{cron: '¦@reboot'}", "on.t.cron.schedule", "start the workflow from an event instead"),
    ("{cron: '¦@dayly'}", "on.t.cron.schedule", "did you mean @daily?"),
    ("{cron: '0 0 * * ¦MONDAY'}", "on.t.cron.schedule", "did you mean MON?"),
    ("{cron: '¦'}", "on.t.cron.schedule", "is empty"),
    ("{cron: ¦5}", "on.t.cron.schedule", "quotes"),
    ("{cron: ¦[0 3 * * *]}", "on.t.cron", "must be a map"),
    ("{cron: ¦{}}", "on.t.cron", "'schedule' is missing"),
    ("{cron: {¦shedule: 0 3 * * *}}", "on.t.cron.shedule", "did you mean 'schedule'?"),
    # cron: its keys
    (cron("timezone: ¦Europe/Berlni"), "on.t.cron.timezone", "did you mean Europe/Berlin"),
    (cron("timezone: ¦CEST"), "on.t.cron.timezone", "'CEST' is no IANA time zone"),
    (cron("timezone: ¦'+01:00'"), "on.t.cron.timezone", "no IANA time zone"),
    (cron("timezone: ¦../etc/passwd"), "on.t.cron.timezone", "no IANA time zone"),
    (cron("timezone: ¦7"), "on.t.cron.timezone", "quotes"),
    (cron("seconds: ¦'yes'"), "on.t.cron.seconds", "true or false"),
    (cron("overlap: ¦skipp"), "on.t.cron.overlap", "did you mean 'skip'?"),
    (cron("jitter: ¦5"), "on.t.cron.jitter", "with a unit"),
    (cron("jitter: ¦0s"), "on.t.cron.jitter", "from 0.001 to 86400 seconds"),
    (cron("jitter: ¦25h"), "on.t.cron.jitter", "from 0.001 to 86400 seconds"),
    (cron("jitter: ¦soon"), "on.t.cron.jitter", "not a duration"),
    (cron("start: ¦tomorrow"), "on.t.cron.start", "write for example 2026-12-24T18:00:00Z"),
    (cron("start: ¦2026-01-01"), "on.t.cron.start", "2026-12-24T18:00:00Z"),
    (cron("end: ¦2026-01-01T00:00:00"), "on.t.cron.end", "no time with its offset"),
    (cron("end: ¦2026-02-30T00:00:00Z"), "on.t.cron.end", "no time with its offset"),
    (cron("start: 2026-01-02T00:00:00Z, ¦end: 2026-01-01T00:00:00Z"), "on.t.cron.end", "must be later than 'start'"),
    (cron("start: 2026-01-01T00:00:00Z, ¦end: 2026-01-01T00:00:00Z"), "on.t.cron.end", "must be later than 'start'"),
    (cron("misfire: ¦lates"), "on.t.cron.misfire", "did you mean 'latest'?"),
    (cron("misfire: {policy: ¦none}"), "on.t.cron.misfire.policy", "'none' is not possible"),
    (cron("misfire: {policy: latest, ¦cap: 5}"), "on.t.cron.misfire.cap", "only with policy all"),
    (cron("misfire: {¦cap: 5}"), "on.t.cron.misfire.cap", "only with policy all"),
    (cron("misfire: {policy: all, cap: ¦0}"), "on.t.cron.misfire.cap", "from 1 to 1,000"),
    (cron("misfire: {policy: all, cap: ¦1001}"), "on.t.cron.misfire.cap", "from 1 to 1,000"),
    (cron("misfire: {policy: skip, ¦window: 1h}"), "on.t.cron.misfire.window", "no meaning with policy skip"),
    (cron("misfire: {window: ¦500ms}"), "on.t.cron.misfire.window", "from 1 to 31622400 seconds"),
    (cron("misfire: {window: ¦1y}"), "on.t.cron.misfire.window", "not a duration"),
    (cron("misfire: {¦widow: 1h}"), "on.t.cron.misfire.widow", "did you mean 'window'?"),
    (cron("dst: ¦skip"), "on.t.cron.dst", "must be a map with gap, fold"),
    (cron("dst: {gap: ¦first}"), "on.t.cron.dst.gap", "known: shift, skip"),
    (cron("dst: {fold: ¦skip}"), "on.t.cron.dst.fold", "known: both, first, last"),
    (cron("dst: {¦flod: last}"), "on.t.cron.dst.flod", "did you mean 'fold'?"),
    # event
    ("{event: ¦order.paid}", "on.t.event", "must be a map with type"),
    ("{event: ¦{}}", "on.t.event", "'type' is missing"),
    ("{event: {type: ¦'order paid'}}", "on.t.event.type", "write for example order.paid, or order.*"),
    ("{event: {type: ¦.paid}}", "on.t.event.type", "no type of an event"),
    ("{event: {type: ¦''}}", "on.t.event.type", ""),
    ("{event: {type: ¦7}}", "on.t.event.type", "quotes"),
    ("{event: {type: ¦" + "a" * 201 + "}}", "on.t.event.type", "200"),
    ("{event: {type: a, ¦tipe: b}}", "on.t.event.tipe", "did you mean 'type'?"),
    # if, input and for_each
    (E + "if: ¦item == 1}", "on.t.if", "item"),
    (E + "if: '¦namespaces == []'}", "on.t.if", "namespaces"),
    (E + "if: ¦input.a == 1}", "on.t.if", "input"),
    (E + "if: 'event.body ==¦'}", "on.t.if", ""),
    (E + "if: ¦steps.a.output}", "on.t.if", "has no result here"),
    (E + "input: {a: '${{ ¦item }}'}}", "on.t.input.a", "item"),
    (E + "input: {a: '${{ ¦index }}'}}", "on.t.input.a", "index"),
    (E + "input: {a: '${{ ¦namespaces }}'}}", "on.t.input.a", "namespaces"),
    (E + "for_each: '[1]', input: {a: '${{ ¦namespaces }}'}}", "on.t.input.a", "namespaces"),
    (E + "for_each: ¦item}", "on.t.for_each", "item"),
    (E + "for_each: ['${{ ¦namespaces[0].name }}']}", "on.t.for_each[0]", "namespaces"),
    (E + "for_each: ¦7}", "on.t.for_each", "must be an expression that answers a list"),
    (E + "for_each: ¦{a: 1}}", "on.t.for_each", "for example event.body.commits"),
    (E + "for_each: 'event.body.filter(x,¦'}", "on.t.for_each", ""),
    (E + "¦foreach: '[1]'}", "on.t.foreach", "did you mean 'for_each'?"),
    # which kinds there are
    ("¦{}", "on.t", "manual, webhook, cron, event"),
    ("{cron: 0 3 * * *, ¦event: {type: a}}", "on.t.event", "exclude each other"),
    ("{manual: {}, ¦if: 'true'}", "on.t.if", "'if' is possible only with webhook, cron, event"),
    ("{manual: {}, ¦input: {a: 1}}", "on.t.input", "'input' is possible only with webhook, cron, event"),
    ("{manual: {}, ¦for_each: '[1]'}", "on.t.for_each", "'for_each' is possible only with webhook, cron, event"),
    ("{¦chron: 0 3 * * *}", "on.t.chron", "did you mean 'cron'?"),
    ("¦daily", "on.t", "must be a map"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "path", "part"), FAULTS, ids=[one[0].replace("¦", "")[:60] for one in FAULTS])
def test_faults_are_named_and_pointed_at(faults, text, path, part):
    before, _, after = source(text).partition("¦")
    place = (before.count("\n") + 1, len(before) - before.rfind("\n"))
    found = faults(before + after)
    assert any(place == one[:2] and one[2] == path and part in one[3] for one in found), (place, found)
    assert len({one[:3] for one in found}) == len(found) <= 2


@pytest.mark.parametrize(
    ("on", "path", "part"),
    [
        ("manual: {cron: 0 3 * * *}", "on.manual", "the id 'manual' is reserved for the manual trigger"),
        ("Daily: {cron: 0 3 * * *}", "on.Daily", "a trigger id: a-z"),
        ("9to5: {cron: 0 3 * * *}", 'on["9to5"]', "a trigger id: a-z"),
        (f"{'a' * 64}: {{cron: 0 3 * * *}}", f"on.{'a' * 64}", "at most 63"),
    ],
)
def test_ids_of_triggers(faults, on, path, part):
    [(line, _, found, message)] = faults(f"name: x\non:\n  {on}\n{STEP}")
    assert (found, part in message) == (path, True), message
    assert line in {2, 3}


def test_triggers_of_one_path_prove_in_one_way(faults):
    first = "{webhook: {path: p, verify: {scheme: github, secret: A}}}"
    for other in (
        "{webhook: {path: p, verify: {scheme: none}}}",
        "{webhook: {path: p, verify: {scheme: github, secret: B}}}",
        "{webhook: {path: p, verify: {scheme: github, secret: A}, rate_limit: 1/s}}",
        "{webhook: {path: p, verify: {scheme: github, secret: A}, delivery_header: X}}",
    ):
        [(line, column, path, message)] = faults(f"name: x\non:\n  a: {first}\n  b: {other}\n{STEP}")
        assert (line, column, path) == (4, 3, "on.b")
        assert message == "trigger 'a' has the same path; verify, delivery_header and rate_limit must be the same, too"
    assert not faults(f"name: x\non:\n  a: {first}\n  b: {first.replace('}}}', '}, wait: 5s}}')}\n{STEP}")


def test_every_fault_is_reported_at_once(faults):
    text = "{cron: {schedule: 0 25 * * *, timezone: Berlin, overlap: never, misfire: {cap: 1}, dst: {gap: x}, jitter: 1}, if: inptu, input: {a: '${{ item }}'}}"
    said = " | ".join(message for *_, message in faults(source(text)))
    for part in (
        "'Berlin' is no IANA time zone",
        "'never' is not possible",
        "'cap' has a meaning only with policy all",
        "'x' is not possible",
        "with a unit",
        "inptu",
        "item",
    ):
        assert part in said, (part, said)


# --- editors ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    return jsonschema_rs.Draft202012Validator(json_schema(), offline=True)


def document(trigger_value):
    return {"name": "x", "on": {"t": trigger_value}, "steps": [{"id": "a", "transform": 1}]}


def judged(faults, validator, trigger_value):
    """Answer what the compiler and the schema think; the schema may be laxer, but never stricter."""
    good = not faults(json.dumps(document(trigger_value)))
    fits = validator.is_valid(document(trigger_value))
    assert fits or not good, trigger_value
    return good, fits


KEYS = {
    "schedule": ["0 3 * * *", 7],
    "seconds": [False, "false"],
    "timezone": ["UTC", 1],
    "misfire": [
        "latest",
        "never",
        {"policy": "all", "cap": 5, "window": "1h"},
        {"cpa": 5},
        {"policy": "all", "cap": 0},
    ],
    "overlap": ["allow", "maybe"],
    "jitter": ["5m", 5],
    "dst": [{"gap": "skip"}, {"fold": "skip"}, "skip", {}],
    "start": ["2026-01-01T00:00:00Z", 2026, "tomorrow"],
    "end": ["2027-01-01T00:00:00Z", True],
    "shedule": ["0 3 * * *"],
}


def test_the_schema_of_cron_accepts_what_the_compiler_accepts(faults, validator):
    counts = dict.fromkeys(itertools.product((True, False), (True, False)), 0)
    for first, second in itertools.combinations(KEYS, 2):
        for a, b in itertools.product(KEYS[first], KEYS[second]):
            counts[judged(faults, validator, {"cron": {"schedule": "0 3 * * *", first: a, second: b}})] += 1
    assert counts[True, True] > 50
    assert counts[False, False] > 150
    assert counts[False, True] <= 20, "what a schema cannot say is little"
    assert judged(faults, validator, {"cron": "0 3 * * *"}) == (True, True)
    for bad in (7, None, [], {}, {"timezone": "UTC"}):
        assert judged(faults, validator, {"cron": bad}) == (False, False)


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ({"event": {"type": "order.*"}}, True),
        ({"event": {"type": "*"}}, True),
        ({"event": {"type": "a", "more": 1}}, False),
        ({"event": {}}, False),
        ({"event": "a"}, False),
        ({"event": {"type": 7}}, False),
        ({"event": {"type": "a b"}}, False),
        ({"event": {"type": "-a"}}, False),
        ({"event": {"type": ""}}, False),
        ({"event": {"type": "a" * 201}}, False),
        ({"manual": {}}, True),
        ({"manual": None}, True),
        ({"manual": {}, "cron": "0 3 * * *"}, False),
        ({"manual": {"a": 1}}, False),
        ({}, False),
        ({"event": {"type": "a"}, "for_each": "event.body", "input": {"a": "${{ item }}"}}, True),
        ({"event": {"type": "a"}, "for_each": [1, "${{ event.body }}"]}, True),
        ({"event": {"type": "a"}, "for_each": 7}, False),
        ({"event": {"type": "a"}, "for_each": {"a": 1}}, False),
        ({"event": {"type": "a"}, "if": "event.body.a == 1"}, True),
        ({"event": {"type": "a"}, "if": 7}, False),
        ({"event": {"type": "a"}, "input": 7}, False),
        ({"event": {"type": "a"}, "input": {}}, True),
        ({"event": {"type": "a"}, "unknown": 1}, False),
        ({"manual": {}, "if": "event.body.a == 1"}, False),
        ({"manual": {}, "input": {"a": 1}}, False),
        ({"manual": {}, "for_each": "[1]"}, False),
    ],
)
def test_the_schema_of_triggers_accepts_what_the_compiler_accepts(faults, validator, value, good):
    assert judged(faults, validator, value)[0] is good
