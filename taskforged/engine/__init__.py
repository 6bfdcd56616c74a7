"""The engine: a pure state machine with no clock, no random numbers, no network and no disk.

Standard library only and synchronous, so that any host can run it: the embedded one over SQLite, the simulator in
`taskforged.testing`, another engine later. Reading order: `model` (what a definition means), `states` (the tables),
`events` (facts, history, commands), `run` (the state of a run and its fold), `retry`, `machine` (the decisions).
"""
