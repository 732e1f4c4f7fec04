"""Nothing leaves the machine unasked: what libraries would send home by themselves is off.

ONNX Runtime (from 1.29 on) keeps a device id in the user's cache and sends usage to its maker; huggingface_hub says in
every request which libraries are installed. Both read the environment when they start.
"""

from __future__ import annotations

import os

SETTINGS = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def keep() -> None:
    """Before such a library is imported; processes that are started later inherit it. What the user's environment says
    stays as it is."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
