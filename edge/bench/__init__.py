"""How fast a bundle is on this machine, stage by stage: `runner.bench` measures in processes of their own, `results`
reads and compares what was kept."""
