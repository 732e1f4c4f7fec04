"""Engines, one file each, named after what it runs. `edge.engines` reads what they declare without importing them."""
