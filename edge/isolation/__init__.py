"""Isolation: a bundle is opened in a child process that may die, and answers through a bounded protocol.

The parent holds no engine and trusts nothing that the child says. `process.py` starts and ends the child, `frames.py`
is the wire, `events.py` reads what came over it, `session.py` is what a command uses; `child.py` is the other side.
`edge/devices/confine.py` is what it takes from itself before it opens anything.
"""
