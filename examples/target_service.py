"""What examples/deploy-api.yaml talks to: a build server and two environments, in 80 lines of standard library.

    python examples/target_service.py [--port 7499]

POST /build answers the version that was built, POST /deploy/production and /deploy/staging deploy it, POST /alert takes
a message. With /slow in front of the path each takes three times as long. GET /calls lists what was asked for, with
the Idempotency-Key of each request: a real service would answer a key that it knows with the answer it gave before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUILD_S = 1.0
DEPLOY_S = 0.6
SLOW = 3

calls: list[dict[str, Any]] = []


class Target(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """List the calls."""
        self._answer(HTTPStatus.OK, calls) if self.path == "/calls" else self._answer(HTTPStatus.NOT_FOUND, {})

    def do_POST(self) -> None:
        """Do some pretended work."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        slow = self.path.startswith("/slow/")
        path = self.path.removeprefix("/slow")
        call = {"path": path, "key": self.headers.get("Idempotency-Key", ""), "body": body, "answered": False}
        calls.append(call)
        seconds, answer = _work(path, body)
        time.sleep(seconds * (SLOW if slow else 1))
        with contextlib.suppress(ConnectionError):  # whoever asked may have died meanwhile
            self._answer(HTTPStatus.OK if answer is not None else HTTPStatus.NOT_FOUND, answer or {})
            call["answered"] = True

    def _answer(self, status: HTTPStatus, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the library's
        """Say nothing."""


def _work(path: str, body: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    if path == "/build":
        return BUILD_S, {"version": str(body.get("ref", "")).removeprefix("v"), "image": "registry/api"}
    if path in {"/deploy/production", "/deploy/staging"}:
        return DEPLOY_S, {"deployed": body.get("version"), "to": path.rpartition("/")[2]}
    if path == "/alert":
        return 0.0, {"ok": True}
    return 0.0, None


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="The service that examples/deploy-api.yaml talks to.")
    parser.add_argument("--port", type=int, default=7499, help="0 picks a free one")
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Target)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
