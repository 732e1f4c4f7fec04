"""What computes a part where no engine can: one file each, with the contract of an engine (`runtimes/`).

Slow and exact: `edge verify` uses it to prove a part, and nothing else does.
"""
