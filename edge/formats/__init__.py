"""Readers of the files that engines open: bounds are checked here before native code sees a file."""
