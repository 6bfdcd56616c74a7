"""The step `shell`: one program, executed directly and not by a shell, with everything it starts under control.

Reading order: `executor` (an attempt from beginning to end), `plan` (what is executed), `place` (the files), `program`
(a running one), `streams` (what it prints), `processes` (sessions and signals), `sweep` (what an earlier daemon left
behind), `failure` (how an attempt ends early).
"""

from taskforged.steps.shell.executor import ShellExecutor

__all__ = ["ShellExecutor"]
