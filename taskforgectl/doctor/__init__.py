"""What `taskforgectl doctor` looks at by itself: files, processes, units. The daemon examines the rest.

A check is a function of `Ground` that answers findings; `checks.py` has the table of them.
"""
