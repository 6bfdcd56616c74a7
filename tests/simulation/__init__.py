"""Deterministic simulation of the whole host: real parts, virtual time, a disk that survives, and one seed."""
