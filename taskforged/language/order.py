"""The order of the steps of a list: a chain by default, a graph with `needs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from taskforged.language.loader import MappingNode, Node, ScalarNode, SequenceNode
from taskforged.language.paths import did_you_mean, join

__all__ = ["Order", "Place", "Report", "fan_outs_of", "own_id", "read_order", "steps_inside"]

Report: TypeAlias = Callable[[Node, str, str], None]
"""Takes a fault: where it is, the path, the message."""

_LISTS = ("steps", "on_failure", "on_cancel", "switch")


@dataclass(frozen=True, slots=True)
class Order:
    """How the steps of one list follow each other.

    Attributes:
        ids: of the steps; empty for one that has none.
        after: for each step the indexes of those that come directly before it.
        needs: for each step whether it says so itself.
        sequence: all indexes, each after those that come before it.
        ancestors: for each step a bit mask of all that come before it.
        is_faulty: the graph is not the one that was meant, so nothing more should be said about it.
    """

    ids: tuple[str, ...]
    after: tuple[tuple[int, ...], ...]
    needs: tuple[bool, ...]
    sequence: tuple[int, ...]
    ancestors: tuple[int, ...]
    is_faulty: bool

    def before(self, index: int) -> Iterator[int]:
        """Yield the steps that have certainly ended when this one starts."""
        mask = self.ancestors[index]
        return (other for other in range(len(self.ids)) if mask >> other & 1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the definition something is read: step `index` of a list, inside of `outer`.

    Attributes:
        order: of the list.
        inside: for each step of the list the ids of the steps inside it.
        index: of the step.
        is_fan_out: the step has `for_each`.
        outer: the place of the list.
    """

    order: Order
    inside: Sequence[frozenset[str]]
    index: int
    is_fan_out: bool = False
    outer: Place | None = field(default=None, repr=False)

    def fan_outs(self) -> frozenset[str]:
        """Answer the ids of the fan-outs around this place."""
        around = frozenset[str]() if self.outer is None else self.outer.fan_outs()
        return around | {self.order.ids[self.index]} if self.is_fan_out else around

    def missing_need(self, step_id: str) -> tuple[str, str] | None:
        """Answer which step would have to need which other one, for `step_id` to come before this place."""
        order = self.order
        for other, own in enumerate(order.ids):
            if other == self.index or (own != step_id and step_id not in self.inside[other]):
                continue
            is_later = order.ancestors[other] >> self.index & 1
            return None if is_later or order.is_faulty else (order.ids[self.index], own)
        return None if self.outer is None else self.outer.missing_need(step_id)


def own_id(node: Node) -> str:
    """Answer the id that a step gives itself; empty when it does not."""
    found = node.get("id") if isinstance(node, MappingNode) else None
    return found.text if isinstance(found, ScalarNode) else ""


def steps_inside(node: Node | None) -> Iterator[MappingNode]:
    """Yield what stands below a node where steps stand, and is a map, the node itself included."""
    if isinstance(node, SequenceNode):
        for item in node.items:
            yield from steps_inside(item)
    elif isinstance(node, MappingNode):
        yield node
        for key in _LISTS:
            yield from steps_inside(node.get(key))


def fan_outs_of(node: Node | None, around: tuple[str, ...] = ()) -> Mapping[str, tuple[str, ...]]:
    """Answer for each step inside a fan-out the fan-outs around it, the outermost first."""
    found: dict[str, tuple[str, ...]] = {}
    if isinstance(node, SequenceNode):
        for item in node.items:
            found |= fan_outs_of(item, around)
    elif isinstance(node, MappingNode):
        if around:
            found[own_id(node)] = around
        inner = (*around, own_id(node)) if "for_each" in node.entries else around
        for key in _LISTS:
            found |= fan_outs_of(node.get(key), inner)
    return found


def read_order(items: Sequence[Node], path: str, report: Report) -> Order:
    """Read the `needs` of the steps of a list and report what is wrong with them."""
    reader = _Reader([own_id(item) for item in items], report)
    after = [reader.read(index, item, join(path, index)) for index, item in enumerate(items)]
    sequence, cycles = _sort(after)
    for cycle in cycles:
        reader.report_cycle(cycle, items, path)
    masks = [0] * len(items)
    for index in sequence:
        for before in after[index]:
            masks[index] |= masks[before] | 1 << before
    needs = (isinstance(item, MappingNode) and "needs" in item.entries for item in items)
    return Order(
        tuple(reader.ids), tuple(after), tuple(needs), tuple(sequence), tuple(masks), reader.is_faulty or bool(cycles)
    )


class _Reader:
    def __init__(self, ids: list[str], report: Report) -> None:
        self.ids = ids
        self._index = {own: index for index, own in reversed(list(enumerate(ids))) if own}
        self._report = report
        self.is_faulty = False

    def read(self, index: int, item: Node, path: str) -> tuple[int, ...]:
        node = item.get("needs") if isinstance(item, MappingNode) else None
        if node is None:
            return (index - 1,) if index else ()
        path = join(path, "needs")
        if isinstance(node, SequenceNode):
            parts = [(part, join(path, at)) for at, part in enumerate(node.items)]
        else:
            parts = [(node, path)]
        found: list[int] = []
        for part, where in parts:
            fault = self._fault(part, index, found)
            if fault:
                self._report(part, where, fault)
                self.is_faulty = True
        return tuple(sorted(found))

    def _fault(self, node: Node, index: int, found: list[int]) -> str | None:
        if not isinstance(node, ScalarNode) or not isinstance(node.value, str):
            return "must be the id of a step of this list, or a list of them; [] starts at once"
        other = self._index.get(node.text)
        if other is None:
            known = [own for own in self.ids if own and own != self.ids[index]]
            return f"there is no step {node.text[:80]!r} in this list{did_you_mean(node.text, known)}"
        if other == index:
            return "a step cannot need itself"
        if other in found:
            return f"{node.text!r} is named twice"
        found.append(other)
        return None

    def report_cycle(self, cycle: list[int], items: Sequence[Node], path: str) -> None:
        shown = [self.ids[index] or f"step {index + 1}" for index in (*cycle, cycle[0])]
        names = " -> ".join(shown if len(shown) <= _SHOWN_MAX else [*shown[: _SHOWN_MAX - 2], "…", shown[-1]])
        index, node = next((one, found) for one in cycle if (found := _needs_of(items[one])) is not None)
        hint = "" if all(_needs_of(items[one]) is not None for one in cycle) else _CHAIN
        self._report(node, join(join(path, index), "needs"), f"the steps wait for each other: {names}{hint}")


_SHOWN_MAX = 12
"""Steps of a cycle that a message names."""
_CHAIN = "; a step without `needs` follows the one above it"


def _needs_of(item: Node) -> Node | None:
    return item.get("needs") if isinstance(item, MappingNode) else None


def _sort(after: list[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Answer all indexes in an order that keeps `after`, and the cycles; each is cut where it was found."""
    waiting = {index: set(before) for index, before in enumerate(after)}
    followers: dict[int, list[int]] = {index: [] for index in waiting}
    for index, before in enumerate(after):
        for one in before:
            followers[one].append(index)
    sequence: list[int] = []
    cycles: list[list[int]] = []
    ready = [index for index in reversed(waiting) if not waiting[index]]
    while waiting:
        if not ready:
            cycle = _cycle(waiting)
            cycles.append(cycle)
            ready = cycle[::-1]
        index = ready.pop()
        if waiting.pop(index, None) is None:
            continue
        sequence.append(index)
        for one in followers[index]:
            if one in waiting:
                waiting[one].discard(index)
                if not waiting[one]:
                    ready.append(one)
    return sequence, cycles


def _cycle(waiting: Mapping[int, set[int]]) -> list[int]:
    """Answer a cycle, beginning with its first step; each waits for the next one."""
    path: list[int] = []
    at = min(waiting)
    while at not in path:
        path.append(at)
        at = min(waiting[at])
    cycle = path[path.index(at) :]
    first = cycle.index(min(cycle))
    return cycle[first:] + cycle[:first]
