"""Completion in shells. Click knows how; our script for bash keeps words with `:` or `=` whole, and never globs."""

from __future__ import annotations

import os
from typing import ClassVar

from click.shell_completion import BashComplete, ShellComplete, add_completion_class, get_completion_class
from click.shell_completion import split_arg_string as split

from taskforgectl.lazy import LazyGroup

__all__ = ["PROGRAM", "SHELLS", "VARIABLE", "script"]

PROGRAM = "taskforgectl"
VARIABLE = "_TASKFORGECTL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")

_BASH = """\
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class Bash(BashComplete):
    """Bash, which splits words at `:` and `=`; the line itself is not split."""

    source_template: ClassVar[str] = _BASH

    def source(self) -> str:
        """Answer the script, without asking a bash how old it is."""
        return ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        """Answer the words before the cursor, and the one at it."""
        line = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="replace")
        words = split(line)
        incomplete = "" if line[-1:].isspace() or len(words) < 2 else words.pop()
        return words[1:], incomplete


def script(shell: str, top: LazyGroup) -> str:
    """Answer what a shell is to execute."""
    made = get_completion_class(shell)
    assert made is not None, shell
    return made(top, {}, PROGRAM, VARIABLE).source()
