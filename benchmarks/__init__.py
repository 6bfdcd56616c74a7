"""Benchmarks that anyone can run: `make bench`, `make bench-growth`, `make bench-peer PEER=...`. See README.md."""

import sys
from pathlib import Path

# The daemon as a process, and recorded webhooks, are what the tests have them.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
