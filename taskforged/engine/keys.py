"""Keys of steps within a run, and ids that are derived instead of drawn.

A step outside of a fan-out has its id as key. Item 3 of the fan-out `notify` is `notify[3]`, and a step of a group that
is fanned out `notify[3].send`; fan-outs nest as in `regions[0].hosts[2].probe`. The compensation of a step has its key
and `:compensate`. So a key tells which items it belongs to, without the definition.
"""

from __future__ import annotations

import hashlib

from taskforged.ids import ENTROPY_BYTES, sortable_id

__all__ = ["compensation_key", "definition_id", "derived_id", "inner_prefix", "item_key", "items_of", "split_item"]

_COMPENSATE = ":compensate"


def definition_id(key: str) -> str:
    """Answer the id in the definition of the step with this key; a fan-out's item has `[]` behind the fan-out's id."""
    name = key[key.rfind(".") + 1 :]
    opening = name.find("[")
    if opening < 0:
        return name
    return f"{name[:opening]}[]{name[name.index(']') + 1 :]}"


def item_key(fan_out: str, index: int) -> str:
    """Answer the key of an item."""
    return f"{fan_out}[{index}]"


def split_item(key: str) -> tuple[str, int]:
    """Answer the fan-out and the index of an item's key."""
    fan_out, _, index = key[:-1].rpartition("[")
    return fan_out, int(index)


def items_of(key: str) -> tuple[str, ...]:
    """Answer the keys of the items that a step belongs to, the outermost first; an item belongs to itself."""
    found = []
    at = key.find("]")
    while at >= 0:
        found.append(key[: at + 1])
        at = key.find("]", at + 1)
    return tuple(found)


def inner_prefix(key: str) -> str:
    """Answer what stands before the ids of the steps inside a step."""
    if key.endswith("]"):
        return key + "."
    return key[: key.rfind(".") + 1]


def compensation_key(key: str) -> str:
    """Answer the key of the step that undoes this one."""
    return key + _COMPENSATE


def derived_id(kind: str, at: int, *seed: object) -> str:
    """Answer an id that sorts by time like those of `clock.new_id`, but is a hash of its seed instead of random.

    So a host that starts a child again after a crash starts the same one.
    """
    digest = hashlib.sha256("/".join(map(str, seed)).encode()).digest()
    return sortable_id(kind, at, digest[:ENTROPY_BYTES])
