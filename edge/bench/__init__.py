"""The benchmark: how fast a bundle is on this machine, stage by stage.

`runner.bench` measures in processes of their own; `results` and `compare` read and compare saved results.
"""
