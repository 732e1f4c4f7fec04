"""A saved conversation: one safetensors file of its turns, the rows of its images, and the KV cache that holds them.

`conversation` is JSON in UTF-8; `image.N` are the rows f32 [n, hidden] of the image whose key it names; `held` i32
[positions, 2] says what the KV cache holds: a token's id and -1, or an image's N and a row; `kv.NAME` are the arrays of
the decoder's snapshot; `checksum` is the sha256 of all the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.bundle import safetensors
from edge.bundle.manifest import MANIFEST, Bundle, sha256
from edge.devices import whole_files
from edge.errors import BundleError, SessionError
from edge.inference.prefix import Held, Prefix
from edge.inputs.prompt import Turn
from edge.types import Array, Embeddings, Snapshot

VERSION = 1
_MOST_JSON = 1 << 22  # bytes of what was said
_HINT = "name another file, or remove this one"


@dataclass(frozen=True, eq=False)
class SavedChat:
    system: str | None
    turns: tuple[Turn, ...]  # all of them answered
    images: tuple[Embeddings, ...]  # of the next question
    prefix: Prefix | None  # None: nothing of it was computed, or the engine keeps its KV cache out of reach


def write(path: str | os.PathLike[str], chat: SavedChat, bundle: Bundle) -> None:
    """Aside, and renamed when it is whole and on the disk; only its owner may read it. Raises SessionError."""
    final = Path(path)
    try:
        arrays = _arrays(chat, sha256(bundle.path / MANIFEST))
        with whole_files.aside(final, mode=0o600) as beside:
            safetensors.write(beside, {**arrays, "checksum": _checksum(arrays)})
    except OSError as error:
        raise SessionError(
            f"cannot write {final}: {error.strerror or error}", hint="check the path, and the room there"
        ) from error


def read(path: str | os.PathLike[str], bundle: Bundle) -> SavedChat:
    """Raises SessionError on a file that is not there, torn, damaged, too large, no conversation or one of another
    bundle."""
    arrays = _read(Path(path), bundle)
    try:
        return _parsed(arrays, bundle)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise SessionError(f"{path} is no conversation that this edge-vlm wrote: {error}", hint=_HINT) from error


def _arrays(chat: SavedChat, bundle: str) -> dict[str, Array]:
    shown = [item for turn in chat.turns for item in turn.content if isinstance(item, Embeddings)]
    images = {image.key: image for image in (*shown, *chat.images)}
    numbers = {key: number for number, key in enumerate(images)}
    said = {
        "version": VERSION,
        "bundle": bundle,
        "system": chat.system,
        "turns": [_turn(turn, numbers) for turn in chat.turns],
        "images": list(images),
        "grids": [image.grid for image in images.values()],
        "next": [numbers[image.key] for image in chat.images],
        "layout": chat.prefix and chat.prefix.snapshot.layout,
    }
    text = json.dumps(said).encode()
    arrays: dict[str, Array] = {"conversation": np.frombuffer(text, np.uint8)}
    arrays |= {f"image.{number}": np.asarray(image.rows, np.float32) for number, image in enumerate(images.values())}
    if chat.prefix is not None:
        arrays["held"] = _table(chat.prefix.held, numbers)
        arrays |= {f"kv.{name}": array for name, array in chat.prefix.snapshot.arrays.items()}
    return arrays


def _turn(turn: Turn, numbers: Mapping[str, int]) -> dict[str, Any]:
    content = [numbers[item.key] if isinstance(item, Embeddings) else item for item in turn.content]
    return {"content": content, "answer": turn.answer, "ids": None if turn.answer_ids is None else [*turn.answer_ids]}


def _table(held: Sequence[Held], numbers: Mapping[str, int]) -> Array:
    rows = [(item, -1) if isinstance(item, int) else (numbers[item[0]], item[1]) for item in held]
    return np.array(rows, np.int32).reshape(-1, 2)


def _checksum(arrays: Mapping[str, Array]) -> Array:
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.data if array.size else b"")
    return np.frombuffer(found.digest(), np.uint8)


def _read(path: Path, bundle: Bundle) -> dict[str, Array]:
    """Its arrays, which are whole."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise SessionError(f"cannot read the conversation {path}: {error}", hint=_HINT) from error
    if not stat.S_ISREG(found.st_mode):
        raise SessionError(f"{path} is no file", hint=_HINT)
    if found.st_size > (most := _most_bytes(bundle)):
        raise SessionError(
            f"{path} has {found.st_size} bytes; a conversation with this bundle has at most {most}", hint=_HINT
        )
    try:
        arrays = safetensors.read(path)
    except BundleError as error:
        raise SessionError(f"{error.message}: it is torn, or no conversation", hint=_HINT) from error
    if not np.array_equal(arrays.pop("checksum", np.zeros(0)), _checksum(arrays)):
        raise SessionError(f"{path} is damaged, or no conversation: its checksum is another", hint=_HINT)
    return arrays


def _most_bytes(bundle: Bundle) -> int:
    decoder = bundle.manifest.spec.decoder
    position = 4 * decoder.hidden + 8 * decoder.layers * decoder.kv_heads * decoder.head_dim  # in single precision
    return 2 * _MOST_JSON + 2 * decoder.context * position


def _parsed(arrays: Mapping[str, Array], bundle: Bundle) -> SavedChat:
    """Nothing is taken on trust: a checksum finds damage, and a forger computes it."""
    content = arrays["conversation"]
    _require(content.dtype == np.uint8 and content.nbytes <= _MOST_JSON, "what was said takes too many bytes")
    said = json.loads(content.tobytes())
    _require(isinstance(said, dict) and said["version"] == VERSION, f"its version is not {VERSION}")
    _require_bundle(said["bundle"], bundle)
    keys = _list(said["images"])
    grids = _list(said.get("grids", [None] * len(keys)))
    images = [_image(arrays, number, key, grids[number], bundle) for number, key in enumerate(keys)]
    turns = tuple(_told(turn, images, bundle) for turn in _list(said["turns"]))
    system = said["system"]
    _require(system is None or isinstance(system, str), "its system prompt is no text")
    following = tuple(images[_index(number, len(images))] for number in _list(said["next"]))
    return SavedChat(system, turns, following, _prefix(arrays, said["layout"], images, bundle))


def _require_bundle(told: object, bundle: Bundle) -> None:
    if told != sha256(bundle.path / MANIFEST):
        raise SessionError(
            f"the conversation was with another bundle than {bundle.path}",
            hint="edge run THAT_BUNDLE --session FILE, or name another file",
        )


def _image(arrays: Mapping[str, Array], number: int, key: object, grid: object, bundle: Bundle) -> Embeddings:
    spec = bundle.manifest.spec
    rows, hidden = arrays[f"image.{number}"], spec.decoder.hidden
    fits = rows.dtype == np.float32 and rows.ndim == 2 and rows.shape[1] == hidden and len(rows) > 0
    _require(isinstance(key, str) and fits, f"image {number} is no array of rows of {hidden}")
    if grid is None:
        return Embeddings(rows, str(key))
    high, wide = (_index(edge, len(rows) + 1) for edge in _list(grid))
    _require(
        len(rows) == (high * wide + 1) * spec.prompt.image_tokens, f"image {number} is not of {high} x {wide} tiles"
    )
    return Embeddings(rows, str(key), grid=(high, wide))


def _told(turn: Any, images: Sequence[Embeddings], bundle: Bundle) -> Turn:
    content = tuple(
        item if isinstance(item, str) else images[_index(item, len(images))] for item in _list(turn["content"])
    )
    answer, ids = turn["answer"], turn["ids"]
    _require(isinstance(answer, str), "an answer is no text")
    vocab = bundle.manifest.spec.decoder.vocab
    return Turn(content, answer, None if ids is None else tuple(_index(i, vocab) for i in _list(ids)))


def _prefix(arrays: Mapping[str, Array], layout: object, images: Sequence[Embeddings], bundle: Bundle) -> Prefix | None:
    if layout is None:
        return None
    _require(isinstance(layout, str), "its layout has no name")
    table, decoder = arrays["held"], bundle.manifest.spec.decoder
    _require(table.dtype == np.int32 and table.ndim == 2 and table.shape[1] == 2, "what it holds is no table")
    _require(len(table) <= decoder.context, f"it holds more than {decoder.context} positions")
    held: list[Held] = []
    for first, row in table.tolist():
        if row == -1:
            held.append(_index(first, decoder.vocab))
        else:
            image = images[_index(first, len(images))]
            held.append((image.key, _index(row, len(image))))
    kept = {name.removeprefix("kv."): array for name, array in arrays.items() if name.startswith("kv.")}
    return Prefix(tuple(held), Snapshot(str(layout), len(held), kept))


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a {type(value).__name__} stands where a list should")
    return value


def _index(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value < most:
        raise ValueError(f"{value!r}"[:40] + f" is no number below {most}")
    return value


def _require(ok: bool, why: str) -> None:
    if not ok:
        raise ValueError(why)
