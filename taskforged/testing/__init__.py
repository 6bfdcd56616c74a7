"""What tests of the engine, and of things built on it, need: fakes, factories, and a simulated host.

Reading order: `fakes` and `factory` (definitions without a language), `generator` (random definitions), `invariants`
(what must hold after every commit), `driver` (one run by hand), `simulator` (a host in virtual time that crashes,
repeats and loses things), `states_doc` (prints the state tables).
"""
