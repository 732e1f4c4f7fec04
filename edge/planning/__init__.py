"""Planning: which engines, how much memory, how fast; functions of manifest and device profile."""
