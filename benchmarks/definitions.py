"""The workflows that are measured."""

from __future__ import annotations

import sys

PURE = """
name: pure
input: {type: object, properties: {n: {type: integer}}}
steps:
  - id: one
    transform: {n: "${{ input.n }}"}
  - id: two
    transform: {n: "${{ steps.one.output.n + 1 }}"}
  - id: three
    transform: {n: "${{ steps.two.output.n + 1 }}"}
output: ${{ steps.three.output }}
"""

HTTP = """
name: http
input: {type: object, required: [url], properties: {url: {type: string}}}
steps:
  - id: one
    http: {method: POST, url: "${{ input.url }}", json: {step: 1}}
  - id: two
    http: {method: POST, url: "${{ input.url }}", json: {step: 2}}
  - id: three
    http: {method: POST, url: "${{ input.url }}", json: {step: 3}}
output: ${{ steps.three.output.body }}
"""

CHAIN = "name: chain\nsteps:\n  - id: s0\n    transform: {n: 0}\n" + "".join(
    f'  - id: s{n}\n    transform: {{n: "${{{{ steps.s{n - 1}.output.n + 1 }}}}"}}\n' for n in range(1, 40)
)

# Windmill's public scenario: 40 steps in a row, each the naive Fibonacci number of 10, made by somebody else's code.
FIBONACCI_HTTP = "name: fibohttp\ninput: {type: object}\nsteps:\n" + "".join(
    f'  - id: s{n}\n    http: {{method: POST, url: "${{{{ input.url }}}}", json: {{n: 10}}}}\n' for n in range(40)
)
_FIBONACCI = "f = lambda n: n if n < 2 else f(n-1) + f(n-2); print(f(10))"
FIBONACCI_SHELL = "name: fiboshell\nsteps:\n" + "".join(
    f'  - id: s{n}\n    shell: {{command: [{sys.executable}, -c, "{_FIBONACCI}"]}}\n' for n in range(40)
)

HOOK = """
name: hook
on:
  release:
    webhook: {path: github, verify: {scheme: github, secret: GITHUB_WEBHOOK_SECRET}}
    if: event.body.action == "published"
    input: {tag: "${{ event.body.release.tag_name }}"}
input: {type: object, properties: {tag: {type: string}}}
steps:
  - id: look
    transform: {tag: "${{ input.tag }}"}
"""

LISTENER = """
name: listener
on:
  paid:
    event: {type: "order.*"}
    if: event.body.n >= 0
    input: {n: "${{ event.body.n }}"}
steps:
  - {id: one, transform: {n: "${{ input.n }}"}}
"""

_FAN = """
name: fan
input: {type: object, properties: {n: {type: integer}, items: {type: array}, url: {type: string}}}
steps:
  - id: many
    for_each: ${{ input.items }}
    max_parallel: 1000
    %s
"""
FAN_LIGHT = _FAN % 'transform: {n: "${{ item + 1 }}"}'
FAN_HTTP = _FAN.replace("name: fan", "name: httpfan") % 'http: {method: POST, url: "${{ input.url }}", json: {n: 1}}'

# One run holds the group, all others of it are PENDING.
GROUPED = """
name: grouped
input: {type: object, properties: {n: {type: integer}}}
concurrency: {group: one, limit: 1}
steps:
  - {id: rest, sleep: 1h}
  - {id: after, transform: {n: "${{ input.n }}"}}
"""

WAITING = """
name: waiting
input: {type: object, properties: {n: {type: integer}}}
steps:
  - {id: rest, sleep: 1h}
  - {id: after, transform: {n: "${{ input.n }}"}}
"""

FAILING = """
name: failing
input: {type: object, properties: {n: {type: integer}}}
steps:
  - {id: one, transform: {n: "${{ input.n }}"}}
  - {id: two, fail: "on purpose"}
"""


def cron(number: int, count: int, expression: str) -> str:
    """A workflow with so many triggers that are due by one expression with seconds."""
    triggers = "".join(
        f'  t{n}: {{cron: {{schedule: "{expression}", seconds: true, overlap: allow}}}}\n' for n in range(count)
    )
    return f"name: cron-{number:04}\non:\n{triggers}steps:\n  - {{id: a, transform: {{n: 1}}}}\n"
