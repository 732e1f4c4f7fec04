"""The windows of torch's adaptive average pooling, for formats whose pooling has windows of one size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def windows(size: int, count: int) -> NDArray[np.bool_]:
    """Which of `size` values each of `count` results is the mean of: `[count, size]`.

    Where `count` does not divide `size` they differ in size and overlap; where it is larger they repeat.
    """
    result, value = np.arange(count)[:, None], np.arange(size)
    start, end = result * size // count, -(-(result + 1) * size // count)
    return (start <= value) & (value < end)
