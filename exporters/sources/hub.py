"""Checkpoints named by their address on the Hugging Face hub (`owner/name`)."""

from __future__ import annotations

import re
from pathlib import Path

from edge import privacy
from edge.errors import CheckpointError
from exporters.sources import adapters

# What a checkpoint is read from, in the order of preference; weights for other frameworks are left there.
SMALL = ("*.json", "*.jinja", "tokenizer.model", "README.md", "LICENSE*")
CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
ADAPTERS = ("adapter_model.*", "non_lora_trainables.bin", "mm_projector.bin")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def is_name(text: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None


def fetch(name: str) -> Path:
    """The folder of the downloaded checkpoint; what the cache holds is not downloaded again.

    HF_TOKEN, HF_HOME and HF_HUB_OFFLINE count, as everywhere. Raises CheckpointError where it cannot be had.
    """
    for weights in WEIGHTS:
        folder = _download(name, [*SMALL, weights])
        if any(folder.glob(weights)):
            return folder
    adapters.refuse(folder)
    raise CheckpointError(f"{name!r} on the hub has no weights", hint="wanted: " + ", ".join(WEIGHTS))


def fetch_adapter(name: str) -> Path:
    """The folder of what a fine-tune changes. Raises CheckpointError as `fetch`."""
    return _download(name, [*SMALL, *ADAPTERS])


def fetch_configs(name: str) -> Path:
    """The folder of a checkpoint's JSON files alone. Raises CheckpointError as `fetch`."""
    return _download(name, [*CONFIGS])


def _download(name: str, patterns: list[str]) -> Path:
    privacy.keep()
    from huggingface_hub import errors, snapshot_download  # slow to import, and seldom needed

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name!r} is given only to those who accept its licence",
            hint=f"accept it at https://huggingface.co/{name}, then set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {name!r} here, and no such model on the hub",
            hint="is it spelled right? A private one needs HF_TOKEN",
        ) from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"there is no folder {name!r} here, and the hub cannot be asked: {reason}",
            hint=f"where there is a network, `hf download {name} --local-dir DIR`; then give DIR",
        ) from error
