"""Readers of the files that engines open, and what several engines need around them. Bounds are checked here."""
