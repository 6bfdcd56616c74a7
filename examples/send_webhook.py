"""Send a file as GitHub would: signed with X-Hub-Signature-256, with an event name and a delivery id.

    python3 examples/send_webhook.py URL SECRET EVENT FILE [DELIVERY_ID]

Prints the status and the answer. Exit code 0 for a 2xx, else 1. Standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path


def send(url: str, secret: str, event: str, body: bytes, delivery: str) -> tuple[int, str]:
    """Post a signed body and answer status and text."""
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery,
        "X-Hub-Signature-256": f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}",
    }
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def main() -> int:
    """Read the arguments, send, report."""
    if len(sys.argv) not in {5, 6}:
        print(__doc__, file=sys.stderr)
        return 2
    url, secret, event, file, *rest = sys.argv[1:]
    status, text = send(url, secret, event, Path(file).read_bytes(), rest[0] if rest else str(uuid.uuid4()))
    print(status, text)
    return 0 if 200 <= status < 300 else 1


if __name__ == "__main__":
    sys.exit(main())
