"""A definition as a graph: which nodes, what encloses them, what follows what, and what they are labelled with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from taskforged.clock import Clock
from taskforged.control.trigger_book import TriggerBook
from taskforged.control.workflows import Workflows
from taskforged.engine.graph import LABEL_MAX, Edge, EdgeKind, graph_of
from taskforged.errors import InvalidArgumentError, NotFoundError
from taskforged.language import compile_definition
from taskforged.rpc.convert_views import graph_to_proto
from taskforged.store.store import Store
from taskforged.testing.factory import (
    activity,
    approval,
    case,
    child,
    dag,
    fail,
    fan_out,
    group,
    publish,
    sleep,
    sleep_until,
    switch,
    transform,
    wait,
    with_,
    workflow,
)
from taskforged.testing.fakes import Constant


@dataclass(frozen=True)
class Source:
    source: str

    def evaluate(self, scope):
        return None


def nodes(graph):
    return {node.id: node for node in graph.nodes}


def edges(graph):
    return [f"{edge.from_id} {edge.kind.value} {edge.to_id}" for edge in graph.edges]


def test_a_chain():
    graph = graph_of(workflow(activity("a"), activity("b"), activity("c")), 7)
    assert (graph.name, graph.version) == ("sample", 7)
    assert [node.id for node in graph.nodes] == ["a", "b", "c"]
    assert edges(graph) == ["a follows b", "b follows c"]
    assert {node.phase for node in graph.nodes} == {"main"}
    assert {node.parent for node in graph.nodes} == {""}


def test_a_dag_tells_needs_from_order():
    last = replace(activity("d"), needs=True)
    block = dag((activity("a"), []), (activity("b"), ["a"]), (activity("c"), []), (last, ["b", "c"]))
    assert edges(graph_of(workflow(main=block))) == ["a follows b", "b needs d", "c needs d"]


def test_branches_groups_and_phases():
    model = workflow(
        switch("route", case(Source("input.x"), activity("x"), activity("y")), case(None, activity("z"))),
        group("pair", activity("p"), switch("inner", case(True, activity("q")))),
        on_failure=[activity("alert")],
        on_cancel=[activity("tidy"), activity("tell")],
    )
    graph = graph_of(model)
    assert [node.id for node in graph.nodes] == [
        "route",
        "x",
        "y",
        "z",
        "pair",
        "p",
        "inner",
        "q",
        "alert",
        "tidy",
        "tell",
    ]
    found = nodes(graph)
    assert [(found[key].parent, found[key].case_label) for key in "xyzpq"] == [
        ("route", "input.x"),
        ("route", "input.x"),
        ("route", "otherwise"),
        ("pair", ""),
        ("inner", "true"),
    ]
    assert [found[key].phase for key in ("alert", "tidy", "q")] == ["on_failure", "on_cancel", "main"]
    assert edges(graph) == ["x follows y", "p follows inner", "route follows pair", "tidy follows tell"]


def test_a_case_that_cannot_be_told_has_its_number():
    graph = graph_of(workflow(switch("route", case(object_with_evaluate(), activity("x")))))
    assert nodes(graph)["x"].case_label == "case 1"


def object_with_evaluate():
    class Silent:
        def evaluate(self, scope):
            return True

    return Silent()


def test_a_fan_out_and_its_body_are_one_node():
    body = group("ignored", activity("send"), activity("check"))
    graph = graph_of(workflow(fan_out("notify", Source("input.people"), body, max_parallel=3, max_failures=1)))
    found = nodes(graph)
    assert list(found) == ["notify", "send", "check"]
    assert found["notify"].fan_out
    assert found["notify"].kind == "steps"
    assert found["notify"].label == "for each of input.people; 3 at a time; 1 may fail"
    assert found["send"].parent == "notify"
    assert edges(graph) == ["send follows check"]


def test_fan_outs_nest():
    inner = fan_out("hosts", [1], activity("probe"))
    graph = graph_of(workflow(fan_out("regions", [1], group("one", inner))))
    assert [(node.id, node.parent, node.fan_out) for node in graph.nodes] == [
        ("regions", "", True),
        ("hosts", "regions", True),
    ]


def test_compensations():
    undo = activity("x")
    model = workflow(
        with_(activity("book"), compensate=undo),
        fan_out("seats", [1], with_(activity("seat"), compensate=undo)),
    )
    graph = graph_of(model)
    assert [(node.id, node.phase) for node in graph.nodes] == [
        ("book", "main"),
        ("book:compensate", "compensate"),
        ("seats", "main"),
        ("seats:compensate", "compensate"),
    ]
    assert Edge("book:compensate", "book", EdgeKind.COMPENSATES) in graph.edges
    assert Edge("seats:compensate", "seats", EdgeKind.COMPENSATES) in graph.edges


def test_labels():
    model = workflow(
        with_(activity("a"), if_=Source("input.x > 1")),
        transform("t", {"x": 1, "y": 2}),
        sleep("s", 90),
        sleep("dynamic", Source("${{ input.pause }}")),
        sleep_until("u", Source("input.at")),
        wait("w", "go", timeout_s=60),
        approval("ok", "Deploy it?"),
        child("c", "report"),
        child("c2", "report", version=3),
        publish("e", "order.paid"),
        fail("f", "no\nway"),
        fail("g", Source("input.why")),
        fail("long", "x" * 1000),
    )
    found = nodes(graph_of(model))
    assert {key: node.label for key, node in found.items() if key != "long"} == {
        "a": "",
        "t": "x, y",
        "s": "90 s",
        "dynamic": "${{ input.pause }}",
        "u": "until input.at",
        "w": "signal go; at most 60 s",
        "ok": "approval: Deploy it?",
        "c": "report",
        "c2": "report v3",
        "e": "order.paid",
        "f": "no way",
        "g": "${{ input.why }}",
    }
    assert found["a"].condition == "input.x > 1"
    assert found["t"].condition == ""
    assert len(found["long"].label) == LABEL_MAX


SOURCE = """
name: deploy
input: {type: object, properties: {tag: {type: string}}}
steps:
  - id: build
    if: input.tag != ""
    http:
      method: POST
      url: https://ci.example/${{ input.tag }}/build
      headers: {Authorization: "Bearer ${{ secrets.TOKEN }}"}
  - id: route
    switch:
      - if: steps.build.output.status == 200
        steps:
          - id: good
            http: {url: "${{ input.tag }}"}
      - steps:
          - id: bad
            fail: "no ${{ input.tag }}"
  - id: pause
    sleep: 5s
"""


def test_what_the_language_compiles_can_be_told():
    found = nodes(graph_of(compile_definition(SOURCE).model))
    assert found["build"].label == "POST https://ci.example/${{ input.tag }}/build"
    assert found["build"].condition == 'input.tag != ""'
    assert found["good"].label == "GET ${{ input.tag }}"
    assert found["good"].case_label == "steps.build.output.status == 200"
    assert found["bad"].label == "no ${{ input.tag }}"
    assert found["pause"].label == "5 s"


def test_every_field_reaches_the_message():
    model = workflow(
        with_(activity("a"), if_=Source("x"), compensate=activity("u")), switch("s", case(None, activity("b")))
    )
    graph = graph_of(model, 3)
    message = graph_to_proto(graph)
    assert message.version == 3
    assert [tuple(getattr(one, name) for name in graph.nodes[0]._fields) for one in message.nodes] == [
        tuple(node) for node in graph.nodes
    ]
    assert [(one.from_id, one.to_id, one.Kind.Name(one.kind)) for one in message.edges] == [
        (edge.from_id, edge.to_id, f"KIND_{edge.kind.name}") for edge in graph.edges
    ]
    assert all(
        graph_to_proto(graph_of(workflow(activity("a"), activity("b")))).edges[0].Kind.Value(f"KIND_{kind.name}")
        for kind in EdgeKind
    )


def test_constants_of_any_type():
    assert nodes(graph_of(workflow(fail("f", Constant(None)), publish("e", Constant(True)))))["e"].label == "true"


async def test_the_control_plane_answers_graphs(tmp_path):
    store = Store(tmp_path / "t.db")
    await store.start()
    try:
        clock = Clock()
        workflows = Workflows(store, clock, TriggerBook(store, clock), str)
        await workflows.apply(1, SOURCE, "me")
        await workflows.apply(1, SOURCE.replace("5s", "6s"), "me")
        labels = {number: nodes(await workflows.graph(1, "deploy", number))["pause"].label for number in (0, 1, 2)}
        assert labels == {0: "6 s", 1: "5 s", 2: "6 s"}
        assert (await workflows.graph(1, "deploy")).version == 2
        assert (await workflows.graph(1, "", source=SOURCE)).version == 0
        for name, number in (("deploy", 0), ("", 1)):
            with pytest.raises(InvalidArgumentError):
                await workflows.graph(1, name, number, source=SOURCE)
        with pytest.raises(InvalidArgumentError):
            await workflows.graph(1, "", source="name: [")
        for name, number in (("deploy", 3), ("other", 0), ("", 0)):
            with pytest.raises(NotFoundError):
                await workflows.graph(1, name, number)
    finally:
        await store.stop()
