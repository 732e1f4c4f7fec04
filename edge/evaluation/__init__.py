"""Accuracy of a bundle by the field's own benchmarks: their files, prompts and metrics."""
