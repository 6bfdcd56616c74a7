"""What is shown of runs and workflows besides themselves, to messages: logs, explanations, graphs."""

from __future__ import annotations

from taskforge.v1 import graph_pb2, run_pb2
from taskforge.v1 import run_service_pb2 as pb

from taskforged.control.explain import Explanation, Reason
from taskforged.control.logs import LogEntry, LogPortion
from taskforged.engine.graph import Edge, Graph, Node
from taskforged.rpc.convert import run_state, stamp

__all__ = ["explanation_to_proto", "graph_to_proto", "log_entry_to_proto", "log_portion_to_proto"]


def log_entry_to_proto(entry: LogEntry) -> run_pb2.LogEntry:
    """Answer a line of a log."""
    return run_pb2.LogEntry(
        cursor=entry.cursor,
        time=stamp(entry.at),
        step=entry.step,
        attempt=entry.attempt,
        stream=entry.stream,
        text=entry.text,
    )


def log_portion_to_proto(portion: LogPortion) -> pb.WatchRunLogsResponse:
    """Answer a portion of a stream of logs."""
    return pb.WatchRunLogsResponse(entries=map(log_entry_to_proto, portion.entries), run_state=run_state(portion.state))


def explanation_to_proto(explanation: Explanation) -> run_pb2.Explanation:
    """Answer an explanation."""
    return run_pb2.Explanation(
        run_id=explanation.run_id,
        state=run_state(explanation.state.value),
        summary=explanation.summary,
        reasons=map(_reason, explanation.reasons),
        checked_time=stamp(explanation.checked_at),
    )


def _reason(reason: Reason) -> run_pb2.Reason:
    return run_pb2.Reason(
        kind=run_pb2.Reason.Kind.Value(f"KIND_{reason.kind.name}"),
        step=reason.step,
        message=reason.message,
        until=stamp(reason.until),
        limit_name=reason.limit_name,
        limit=reason.limit,
        position=reason.position,
        holders=reason.holders,
        child_run_id=reason.child_run_id,
        hint=reason.hint,
    )


def graph_to_proto(graph: Graph) -> graph_pb2.Graph:
    """Answer a graph."""
    return graph_pb2.Graph(
        name=graph.name,
        nodes=map(_node, graph.nodes),
        edges=map(_edge, graph.edges),
        version=graph.version,
    )


def _node(node: Node) -> graph_pb2.Graph.Node:
    return graph_pb2.Graph.Node(**node._asdict())


def _edge(edge: Edge) -> graph_pb2.Graph.Edge:
    kind = graph_pb2.Graph.Edge.Kind.Value(f"KIND_{edge.kind.name}")
    return graph_pb2.Graph.Edge(from_id=edge.from_id, to_id=edge.to_id, kind=kind)
