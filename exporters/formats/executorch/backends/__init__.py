"""One file for each backend, beside XNNPACK, that a program's picture encoder can be handed to on this machine.

Each has `partitioner()`, and the literal `DIM_ORDER`: whether it wants to be told how tensors lie in memory.
"""
