"""How large a model can be that a file describes: looked at before anything is built of its sizes."""

from __future__ import annotations

MOST_SIZE = 1 << 24  # of any size: a vocabulary is the largest there is
MOST_LAYERS = 1 << 10
