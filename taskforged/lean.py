"""A start that imports what it needs: a quarter of it, and ten megabytes, were for what a daemon hardly ever uses.

`lazy` stands in for a module until it is used. `import_lean` imports two libraries without what they bring along:

* structlog imports rich where that is installed, for colourful tracebacks. Ours are plain.
* aiohttp reads the authorities of the system twice, for the TLS contexts of a client that is given none. Ours always
  is, see `steps.tls_contexts`. What aiohttp gets here instead trusts nobody: if it is used after all, nothing goes out.

The collector of reference cycles rests during the start, which makes much and drops little. From then on `settle` lets
it look at what came later only, and less often: our own code makes hardly any cycles.
"""

from __future__ import annotations

import gc
import importlib
import ssl
import sys
from types import ModuleType
from typing import Any

__all__ = ["import_lean", "lazy", "settle"]

_THRESHOLDS = (10_000, 20, 20)
"""Python's are 700, 10, 10: a twentieth of the time of a busy daemon went into looking at what was still in use."""


class _Lazy(ModuleType):
    """Stands in for a module, and imports it when an attribute of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        """Answer the module's attribute."""
        return getattr(importlib.import_module(self.__name__), name)


def lazy(name: str) -> Any:
    """Answer what stands in for a module; it belongs where a type checker sees the import itself."""
    return _Lazy(name)


def import_lean() -> None:
    """Import structlog and aiohttp; whoever imports them later gets these. The collector rests until `settle`."""
    gc.disable()
    _import_without("rich", "structlog")
    _import_without_authorities("aiohttp")


def settle() -> None:
    """Take what is there for what stays."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    gc.enable()


def _import_without(unwanted: str, name: str) -> None:
    if unwanted in sys.modules:
        return  # somebody in this process wants it
    sys.modules[unwanted] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        importlib.import_module(name)
    finally:
        del sys.modules[unwanted]


def _import_without_authorities(name: str) -> None:
    make, load = ssl.create_default_context, ssl.SSLContext.set_default_verify_paths
    ssl.create_default_context = _trusting_nobody
    ssl.SSLContext.set_default_verify_paths = _load_nothing  # type: ignore[method-assign,assignment]
    try:
        importlib.import_module(name)
    finally:
        ssl.create_default_context = make
        ssl.SSLContext.set_default_verify_paths = load  # type: ignore[method-assign]


def _trusting_nobody(*_: object, **__: object) -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _load_nothing(_: ssl.SSLContext) -> None:
    pass
