"""A bundle on disk: its manifest, checksums, golden sample, and how one is written."""
