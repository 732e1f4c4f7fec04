"""Decoders that an engine's graph becomes: who keeps the KV cache, and how a prompt is cut into calls."""
