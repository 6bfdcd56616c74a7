"""Graphs: the pictures, what may stand in them, and the command."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import grpc
import pytest
from cli.fake import Refusal
from cli.test_render import EVIL
from hypothesis import given, settings
from hypothesis import strategies as st
from taskforge.v1 import graph_pb2
from taskforge.v1 import workflow_service_pb2 as pb

from taskforgectl.render.graph.dot import draw_dot
from taskforgectl.render.graph.mermaid import draw_mermaid
from taskforgectl.render.graph.model import Block, load
from taskforgectl.render.graph.svg import _block, draw_svg
from taskforgectl.render.graph.text import draw_text
from taskforgectl.render.plain import plain
from taskforgectl.render.safe import safe_lines

GRAPH, NODE, EDGE = graph_pb2.Graph, graph_pb2.Graph.Node, graph_pb2.Graph.Edge
EVERY = [draw_text, draw_mermaid, draw_dot, draw_svg]


def node(name: str, kind: str = "http", phase: str = "main", **fields) -> graph_pb2.Graph.Node:
    return NODE(id=name, kind=kind, phase=phase, **fields)


def edge(from_id: str, to_id: str, kind: str = "FOLLOWS") -> graph_pb2.Graph.Edge:
    return EDGE(from_id=from_id, to_id=to_id, kind=EDGE.Kind.Value(f"KIND_{kind}"))


WHOLE = GRAPH(
    name="release",
    version=3,
    nodes=[
        node("fetch", label="GET https://x.example"),
        node("build"),
        node("lint", "shell", condition="input.lint"),
        node("publish", label="POST https://reg"),
        node("publish:compensate", phase="compensate", label="DELETE https://reg"),
        node("notify", "steps", fan_out=True),
        node("render", "transform", parent="notify"),
        node("send", parent="notify"),
        node("route", "switch"),
        node("prod", parent="route", case_label="input.stable"),
        node("approve", "wait", parent="route", case_label="input.stable"),
        node("each", fan_out=True, parent="route", case_label="otherwise"),
        node("docs", "shell"),
        node("alert", phase="on_failure"),
        node("undo", "shell", phase="on_cancel"),
    ],
    edges=[
        edge("fetch", "build"),
        edge("fetch", "lint", "NEEDS"),
        edge("build", "publish", "NEEDS"),
        edge("lint", "publish", "NEEDS"),
        edge("publish:compensate", "publish", "COMPENSATES"),
        edge("publish", "notify"),
        edge("render", "send"),
        edge("notify", "route"),
        edge("prod", "approve"),
    ],
)
PICTURE = """\
release v3
╭─╮
● │ fetch  http  GET https://x.example
├─┼─╮
● │ │ build  http
│ │ ● lint  shell  if input.lint  needs fetch
├─┼─╯
● │ publish  http  POST https://reg  needs build, lint
│ │ ↶ undone by publish:compensate  http  DELETE https://reg
● │ notify  × for each  steps
│ │ ┊ ● render  transform
│ │ ┊ ● send  http
◆ │ route  switch
  │ ├─ input.stable
  │ │  ● prod  http
  │ │  ◷ approve  wait
  │ ╰─ otherwise
  │    ● each  × for each  http
  ● docs  shell

on failure
● alert  http

on cancel
● undo  shell
"""


def test_the_picture():
    assert "\n".join(draw_text(load(plain(WHOLE)))) + "\n" == PICTURE


def test_a_chain_needs_no_fuss():
    chain = GRAPH(name="x", nodes=[node("a"), node("b"), node("c")], edges=[edge("a", "b"), edge("b", "c")])
    assert list(draw_text(load(plain(chain)))) == ["x", "● a  http", "● b  http", "● c  http"]


def test_mermaid():
    lines = list(draw_mermaid(load(plain(WHOLE))))
    assert lines[0] == "flowchart TD"
    text = "\n".join(lines)
    for part in ('{"route<br/>switch"}', '[["each ×<br/>http"]]', '-. "undoes" .->', '["on failure"]', "n1 ==> n3"):
        assert part in text, part
    assert sum(line.split()[0] == "subgraph" for line in lines) == sum(line.strip() == "end" for line in lines)


def test_dot():
    text = "\n".join(draw_dot(load(plain(WHOLE))))
    assert text.startswith('digraph "release" {')
    assert text.count("{") == text.count("}")
    for part in ("shape=diamond", 'label="input.stable"', "style=dashed", "lhead=cluster_", "peripheries=2"):
        assert part in text, part


def test_svg():
    root = ET.fromstring("\n".join(draw_svg(load(plain(WHOLE)))))
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    for part in ("release v3", "fetch", "if input.lint", "notify ×", "otherwise", "publish:compensate", "on cancel"):
        assert part in texts, part


TEXT = '<script>"&\\]}) --> `x` #quot; %%{init}%% \n end' + EVIL


@pytest.mark.parametrize("draw", EVERY)
def test_text_from_definitions_cannot_break_out(draw):
    evil = GRAPH(
        name=TEXT,
        nodes=[
            node(TEXT, TEXT, label=TEXT, condition=TEXT),
            node("s", "switch"),
            node("c", parent="s", case_label=TEXT),
            node("e", phase="on_failure", label="x" * 500),
        ],
        edges=[edge(TEXT, "s")],
    )
    drawn = "\n".join(draw(load(plain(evil))))
    assert safe_lines(drawn) == drawn
    assert "x" * 100 not in drawn
    if draw is draw_svg:
        root = ET.fromstring(drawn)
        assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
        assert any("<script>" in (one.text or "") for one in root.iter())
    elif draw is draw_mermaid:
        for line in drawn.splitlines():
            assert line.count('"') in (0, 2), line
        assert "<script" not in drawn
        assert "`" not in drawn
    elif draw is draw_dot:
        for line in drawn.splitlines():
            assert line.replace("\\\\", "").replace('\\"', "").count('"') % 2 == 0, line


@st.composite
def graphs(draw) -> graph_pb2.Graph:
    """Blocks inside of blocks, each a DAG; not all edges in the order of the document."""
    nodes, edges = [], []
    count = draw(st.integers(1, 24))
    for index in range(count):
        parent = draw(st.sampled_from(["", *(one.id for one in nodes)])) if draw(st.booleans()) else ""
        siblings = [one.id for one in nodes if one.parent == parent]
        case = draw(st.sampled_from(["", "a", "b"])) if parent else ""
        kind = draw(st.sampled_from(["http", "switch", "steps"]))
        nodes.append(node(f"s{index}", kind, parent=parent, case_label=case, fan_out=draw(st.booleans())))
        for other in draw(st.lists(st.sampled_from(siblings), unique=True, max_size=4)) if siblings else []:
            edges.append(edge(other, f"s{index}", draw(st.sampled_from(["FOLLOWS", "NEEDS"]))))
    order = draw(st.permutations(nodes))
    return GRAPH(name="g", nodes=order, edges=edges)


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_every_step_is_drawn_once_in_every_format(graph):
    drawing = load(plain(graph))
    lines = list(draw_text(drawing))
    for one in graph.nodes:
        assert sum(f" {one.id}  " in line for line in lines) == 1, one.id
    marks = sum(line.count("●") + line.count("◆") for line in lines)
    assert marks == len(graph.nodes)
    mermaid, dot = "\n".join(draw_mermaid(drawing)), "\n".join(draw_dot(drawing))
    root = ET.fromstring("\n".join(draw_svg(drawing)))
    titles = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text") if one.get("class") == "t"]
    for one in graph.nodes:
        title = f"{one.id} ×" if one.fan_out else one.id
        assert f'"{title}<br/>' in mermaid
        assert f'"{title}\\n' in dot
        assert titles.count(title) == 1


def _check_rails(block: Block) -> None:
    seen: set[str] = set()
    for step in block.steps:
        assert all(one.source in seen for one in block.before(step.id))
        seen.add(step.id)
        for branch in step.branches:
            _check_rails(branch.block)


def _check_boxes(box) -> None:
    for index, one in enumerate(box.inner):
        assert one.x >= -0.01
        assert one.x + one.width <= box.width + 0.01
        assert one.y + one.height <= box.height + 0.01
        for other in box.inner[:index]:
            apart_x = one.x + one.width <= other.x or other.x + other.width <= one.x
            apart_y = one.y + one.height <= other.y or other.y + other.height <= one.y
            assert apart_x or apart_y
        _check_boxes(one)


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_nothing_comes_before_what_it_follows_and_no_boxes_overlap(graph):
    ((_, block), *_) = load(plain(graph)).phases
    _check_rails(block)
    _check_boxes(_block(block))


def test_what_a_daemon_would_refuse_is_drawn_all_the_same():
    odd = GRAPH(
        name="odd",
        nodes=[node("a", parent="gone"), node("b", phase="new"), node("c")],
        edges=[edge("a", "b"), edge("b", "a"), edge("c", "c"), edge("x", "c"), edge("x", "c", "COMPENSATES")],
    )
    for draw in EVERY:
        drawn = "\n".join(draw(load(plain(odd))))
        assert all(name in drawn for name in "abc")


# --- the command -----------------------------------------------------------------------------------------------------


def test_graph_of_a_workflow(call):
    call.fake.answers["GetWorkflowGraph"] = lambda _: pb.GetWorkflowGraphResponse(graph=WHOLE)
    assert call("workflow", "graph", "release", "--version", "3", "-n", "ops").out == PICTURE
    request = call.request
    assert (request.namespace, request.name, request.number, request.source) == ("ops", "release", 3, "")
    assert call("workflow", "graph", "release", "--format", "dot").out.startswith("digraph")
    assert json.loads(call("workflow", "graph", "release", "-o", "json").out)["nodes"][0]["id"] == "fetch"


@pytest.mark.parametrize(
    ("name", "begin"),
    [("g.svg", "<svg "), ("g.dot", "digraph"), ("g.mmd", "flowchart"), ("g.txt", "release v3"), ("g", "release v3")],
)
def test_graph_of_a_file_to_a_file(call, tmp_path, name, begin):
    call.fake.answers["GetWorkflowGraph"] = lambda _: pb.GetWorkflowGraphResponse(graph=WHOLE)
    (tmp_path / "in.yaml").write_text("name: release")
    told = call("workflow", "graph", "-f", str(tmp_path / "in.yaml"), "--out", str(tmp_path / name))
    assert (call.request.source, call.request.name) == ("name: release", "")
    assert told.out.endswith(f"{name}  written\n")
    assert (tmp_path / name).read_text().startswith(begin)


def test_the_faults_of_a_file_are_told_like_a_compilers(call, tmp_path):
    def refuse(_):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad", {"steps[0].http": "line 3, column 5: needs a url"})

    call.fake.answers["GetWorkflowGraph"] = refuse
    path = tmp_path / "in.yaml"
    path.write_text("x")
    assert f"{path}:3:5: steps[0].http: needs a url\n" in call("workflow", "graph", "-f", str(path), code=2).err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x", "-f", "y"],
        ["-f", "/dev/null", "--version", "1"],
        ["x", "--format", "png"],
        ["x", "--out", "g.png"],
        ["-f", "/nonexistent"],
    ],
)
def test_wrong_usage(call, arguments):
    call("workflow", "graph", *arguments, code=2)
    assert not call.fake.requests


def test_an_unknown_ending_is_refused_with_a_hint_unless_the_format_is_said(call, tmp_path):
    told = call("workflow", "graph", "release", "--out", str(tmp_path / "x.png"), code=2).err
    assert ".png files cannot be written" in told
    assert "hint: use .svg, .dot" in told
    call.fake.answers["GetWorkflowGraph"] = lambda _: pb.GetWorkflowGraphResponse(graph=WHOLE)
    call("workflow", "graph", "release", "--format", "svg", "--out", str(tmp_path / "x.html"))
    assert (tmp_path / "x.html").read_text().startswith("<svg ")
