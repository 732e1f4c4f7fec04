"""Checkpoints for measuring without the published weights: random numbers in exactly the upstream layout, and outliers
like those of trained models, planted in these or in any other checkpoint.

`python -m exporters.standin --shape 1.7b -o DIR` takes a minute, and 3.4 GB on disk.
"""

from exporters.standin.checkpoint import SHAPES, write
from exporters.standin.command import main
from exporters.standin.sentence_pieces import TEXT, sentence_pieces

__all__ = ["SHAPES", "TEXT", "main", "sentence_pieces", "write"]
