"""Other engines, with the same work under the same pressure: one file for each, run by its own interpreter.

An adapter imports its engine, the standard library, aiohttp and `engine.py`, and nothing of Taskforge.
"""
