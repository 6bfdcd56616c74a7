"""What is shown of runs and workflows besides themselves, to messages: graphs."""

from __future__ import annotations

from taskforge.v1 import graph_pb2

from taskforged.engine.graph import Edge, Graph, Node

__all__ = ["graph_to_proto"]


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
