"""Commands that pages show, held against the parsers of the programs, without executing anything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import click
from manual.pages import ROOT, Block, Found

from taskforgectl.__main__ import root
from taskforged.__main__ import _parser

SHELLS = {"sh", "bash", "shell", "console", ""}
_START = re.compile(
    r"(?:^|[|;&(]|\b(?:do|then|else|sudo|time|exec|timeout \d+)\s)\s*(?:\$ )?(?:[A-Z_]+=\S*\s+)*"
    r"(taskforgectl|taskforged)(?=\s|\)|$)"
)
_SYNOPSIS = re.compile(r"[\[\]…]|\w\|\w|\.\.\.")


class Command(NamedTuple):
    """A call of one of the two programs. A synopsis may leave arguments out."""

    place: str
    words: tuple[str, ...]
    is_whole: bool

    @property
    def text(self) -> str:
        """As one would type it."""
        return shlex.join(self.words)


def in_block(block: Block) -> Iterator[Command]:
    """Answer the commands of a block of shell lines; in a console these are the lines that begin with `$ `."""
    if block.kind not in SHELLS:
        return
    text = re.sub(r"\\\n", "  ", block.text)
    prompted = block.kind == "console" or re.search(r"^\$ ", text, re.MULTILINE)
    number = 0
    for line in text.splitlines():
        if line.startswith("$ ") or not prompted:
            for found in _START.finditer(line):
                words = _words(line[found.start(1) :])
                yield Command(
                    f"{block.page.relative_to(ROOT)}:{block.line + number}", words, not _SYNOPSIS.search(line)
                )
        number += 1


def in_span(span: Found) -> Iterator[Command]:
    """Answer the command that stands in backquotes, if one does."""
    if span.text.startswith(("taskforgectl ", "taskforged ")):
        plain = re.sub(r"(\w)\|[\w|]*", r"\1", re.sub(r"[\[\]…]|\.\.\.", " ", span.text))
        yield Command(span.place, _words(plain), is_whole=False)


def _words(text: str) -> tuple[str, ...]:
    """Answer the words up to the end of the command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    while True:
        try:
            word = lexer.get_token()
        except ValueError:  # a quotation that began before the command, `"$(taskforgectl …)"`
            return tuple(words)
        if not word or set(word) <= set("();<>|&"):
            if words and word and set(word) <= set("<>") and words[-1] == "2":
                words.pop()
            return tuple(words)
        words.append(word)


def fault(command: Command) -> str:
    """Answer what is wrong with a command; empty when nothing is."""
    program, *words = command.words
    try:
        return _daemon(words) if program == "taskforged" else _client(words, is_whole=command.is_whole)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "taskforgectl"
        return f"{path}: {error.format_message()}"


def _daemon(words: Sequence[str]) -> str:
    known = {name for action in _parser()._actions for name in action.option_strings}
    wrong = [word for word in words if word.startswith("-") and word.split("=")[0] not in known]
    return f"taskforged has no option {wrong[0]}; it has {', '.join(sorted(known))}" if wrong else ""


def _client(words: Sequence[str], *, is_whole: bool) -> str:
    command: click.Command = root()
    context = click.Context(command, info_name="taskforgectl")
    while True:
        given, rest, _ = command.make_parser(context).parse_args(list(words))
        _check_values(command, context, given)
        if not isinstance(command, click.Group):
            return _arguments(command, given, rest) if is_whole and "help" not in given else ""
        if not rest:
            return "" if given or not is_whole or not words else f"{context.command_path} lacks its verb"
        found = command.get_command(context, rest[0])
        if found is None:
            if rest[0].isupper() and not is_whole:
                return ""
            known = ", ".join(command.list_commands(context))
            return f"{context.command_path} has no command {rest[0]!r}; it has {known}"
        command, context, words = found, click.Context(found, info_name=rest[0], parent=context), rest[1:]


def _check_values(command: click.Command, context: click.Context, given: dict[str, object]) -> None:
    """Hold what can be judged without looking at files against its type; placeholders stand for anything."""
    for parameter in command.get_params(context):
        value = given.get(parameter.name or "")
        if isinstance(parameter.type, click.Choice | click.types.IntParamType | click.types.FloatParamType):
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and not _is_placeholder(parameter, text):
                    parameter.type.convert(text, parameter, context)


def _is_placeholder(parameter: click.Parameter, text: str) -> bool:
    """Whether a value stands for others: `$N`, `<n>`, `N`, or the option's own name in capitals."""
    return bool(re.search(r"[$<|]", text)) or (text.isupper() and text in {text[:1], (parameter.name or "").upper()})


def _arguments(command: click.Command, given: dict[str, object], rest: Sequence[str]) -> str:
    if rest:
        return f"{command.name} takes no further argument {rest[0]!r}"
    for parameter in command.params:
        if parameter.required and not isinstance(given.get(parameter.name or ""), str | list | tuple):
            return f"{command.name} lacks {parameter.human_readable_name}"
    return ""
