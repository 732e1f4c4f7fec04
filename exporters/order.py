"""What an export was told to write, and what it is measured and proven with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.inputs.calibration import Record
from edge.recipes import SEARCH, Target
from exporters.judge import MAX_LOSS
from exporters.sources.checkpoint import Checkpoint
from exporters.targets import Options
from exporters.widening import Widened

Stages = Callable[[str, float], None]  # a stage's name, and the share of it that is done


@dataclass(frozen=True)
class Order:
    """What is to be written, and what it is measured and proven with."""

    checkpoint: Checkpoint
    targets: Mapping[str, Target]  # by role
    options: Options  # of the formats
    picture: NDArray[np.uint8]  # RGB `[H, W, 3]`, for golden
    question: str
    calibration: Sequence[Record] = ()
    importance: Path | None = None  # a file of it, instead of measuring it on the calibration
    widened: Widened = field(default_factory=dict)  # linear layers with schemes of their own; of a role: no others
    max_loss: float = MAX_LOSS  # of each component
    explain: bool = False  # measure each linear layer, whether rounding hurts or not
    quantize: str = SEARCH  # of edge.recipes.QUANTIZERS
