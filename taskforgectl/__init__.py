"""Taskforge's command line: a client of the daemon's public contract, and nothing more."""

import os

__version__ = "0.1.0"

# Here, since any stub imports grpc, and it looks only then.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # we never fork without exec
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core prints what we report better
