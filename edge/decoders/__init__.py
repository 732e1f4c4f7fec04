"""Decoders over an engine's graph: who keeps the KV cache, and how a prompt is cut into calls."""
