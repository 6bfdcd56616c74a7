"""A workflow's graph, drawn as text, Mermaid, Graphviz DOT or SVG."""
