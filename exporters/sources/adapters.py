"""Files of a folder that are no whole model: adapters, lone projectors, shards without their index, deltas.

LLaVA's code and transformers load some of them on top of a base; so does `exporters.sources.lora` where a base is
given. Without one each is refused by name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from edge.errors import CheckpointError

log = logging.getLogger(__name__)
# What PEFT, LLaVA's LoRA training and torchtune leave. transformers' from_pretrained loads the first two beside whole
# weights too; LLaVA's loader puts the third on top of them.
ADAPTER = re.compile(r"adapter_(config\.json|\w+([.-].*)?\.(safetensors|bin|pt|pth))|non_lora_trainables\.bin")
PROJECTOR = "mm_projector.bin"
WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|h5|msgpack|npz|onnx)(\.index\.json)?")
SHARD = re.compile(r"(?P<stem>.+)-\d+-of-\d+(?P<suffix>\.safetensors|\.bin)")
# A decoder's norms scale its activations by numbers around one; the differences between two decoders' norms are
# hundredths. No trained decoder has all of its norms below this.
DELTA = 0.1


def refuse(folder: Path) -> None:
    """Raises CheckpointError where an adapter lies in the folder, whole weights beside it or not."""
    if found := [name for name in _names(folder) if ADAPTER.fullmatch(name)]:
        raise CheckpointError(
            f"{str(folder)!r} holds an adapter, which is not read without its base: {', '.join(found)}",
            hint=f"edge export {folder} --base CKPT merges it into CKPT; if it is merged already, move the file away",
        )


def present(folder: Path) -> bool:
    """Whether what a fine-tune changes lies in the folder."""
    return any(ADAPTER.fullmatch(name) or name == PROJECTOR for name in _names(folder))


def nothing(folder: Path, layouts: Iterable[str]) -> CheckpointError:
    """The error for a folder that is to hold weights in one of `layouts` and does not: what lies there instead."""
    if not folder.is_dir():
        return CheckpointError(f"{str(folder)!r} is not a folder", hint="a folder with weights")
    hint = f"it must hold one of: {', '.join(layouts)}"
    found = weight_files(folder)
    if shard := next(filter(None, map(SHARD.fullmatch, found)), None):
        index = f"{shard['stem']}{shard['suffix']}.index.json"
        return CheckpointError(
            f"{str(folder)!r} has shards ({shard[0]}) without their index {index}",
            hint="download the index too, or save the model again",
        )
    if PROJECTOR in found:
        return CheckpointError(
            f"{str(folder)!r} has no weights but the projector's, {PROJECTOR}",
            hint=f"edge export {folder} --base CKPT puts it onto the language model CKPT",
        )
    if files := [name for name in found if name.endswith(".gguf")]:
        hint = f"edge export {folder / files[0]}"
    listed = f"{', '.join(found[:8])}{' and more' * (len(found) > 8)}"
    there = f" by a name that is read; there are {listed}" if found else ""
    return CheckpointError(f"{str(folder)!r} has no weights{there}", hint=hint)


def check_projector(folder: Path, weights: Iterable[str], prefix: str) -> None:
    """A projector that lies beside whole weights is theirs already, as in the published LLaVA-1.5: LLaVA's code loads
    the file only onto a base that has none, and so it is not read here."""
    if not (folder / PROJECTOR).is_file():
        return
    if any(name.startswith(prefix) for name in weights):
        log.warning("%s is not read: the weights beside it hold a projector", folder / PROJECTOR)
        return
    raise CheckpointError(
        f"{str(folder)!r} keeps its projector apart, in {PROJECTOR}, which is not read",
        hint="load both in LLaVA's code (model_base) and save the whole with save_pretrained",
    )


def refuse_delta(weights: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where the decoder's weights are differences to a base, as of LLaVA before 1.5."""
    norms = [name for name in weights if re.fullmatch(r"model\.(norm|layers\.\d+\..*norm)\.weight", name)]
    # The last norm, which stands first here, tells a whole model at once.
    norms.sort(key=lambda name: name != "model.norm.weight")
    if norms and all(float(weights[name].float().abs().mean()) < DELTA for name in norms):
        raise CheckpointError(
            f"the weights are deltas to a base model: all {len(norms)} norms of the decoder are near zero",
            hint="apply them first: python -m llava.model.apply_delta --base BASE --target DIR --delta THIS",
        )


def weight_files(folder: Path) -> list[str]:
    """Whatever holds weights, in a layout that is read or not."""
    return [name for name in _names(folder) if WEIGHTS.fullmatch(name)]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
