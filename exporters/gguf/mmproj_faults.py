"""What may be wrong with an mmproj: a CLIP tower and a projector, for llama.cpp's multimodal programs.

What those make of it was read in llama.cpp's `tools/mtmd/clip.cpp` and `models/llava.cpp` (as in llama-cpp-python
0.3.36).
"""

from __future__ import annotations

import re
from math import prod

from edge.errors import BundleError
from edge.formats.gguf import GGUF, GGUFArray, GGUFTensor
from exporters.gguf.fault import Change, Rows, listed, shape, values, whole
from exporters.gguf.names import FEATURE_LAYER, GRID, OURS, POSITIONS, WORKAROUND
from exporters.sources.published import MEAN, STD

_VISION = "clip.vision."
_MEAN, _STD = f"{_VISION}image_mean", f"{_VISION}image_std"
LISTS = (FEATURE_LAYER, _MEAN, _STD)
_TYPE, _INT32 = "clip.projector_type", 5
# Projector -> a tensor that no other has, and the one whose last axis is as wide as the decoder.
_PROJECTORS = {
    "ldpv2": ("mm.model.peg.0.weight", "mm.model.peg.0.bias"),
    "ldp": ("mm.model.mb_block.1.block.0.0.weight", "mm.model.mb_block.2.block.2.1.bias"),
    "mlp": ("mm.0.weight", "mm.2.bias"),
}
_MODELS = {"ldpv2": "MobileVLM V2", "ldp": "MobileVLM V1", "mlp": "LLaVA-1.5"}
_DEPTHS = {768: 12, 1024: 24, 1280: 32}  # layers of the published towers, by their width
_BLOCK = re.compile(r"v\.blk\.(\d+)\.")
_NORMS = ("0.1", "1.fc1", "1.fc2", "2.1")  # of V1's blocks: what has a bias
_REFUSES = "llama.cpp refuses the file"
_RIGHT = "edge export MODEL.gguf --mmproj MMPROJ.gguf -o OUT"
_Q8_0 = 34 / 32  # bytes a weight


def projector(file: GGUF) -> str:
    """What its tensors are of. Raises BundleError when they are of none that is known."""
    for name, (own, _) in _PROJECTORS.items():
        if own in file.tensors and "v.patch_embd.weight" in file.tensors:
            return name
    raise BundleError(
        f"{file.path.name} is no MobileVLM or LLaVA mmproj: {file.settings.get(_TYPE, 'unknown')!r}",
        hint="known projectors: " + ", ".join(_PROJECTORS),
    )


def model(file: GGUF) -> str:
    return _MODELS[projector(file)]


def width(file: GGUF) -> int:
    """Of the rows that it makes for the decoder; `clip.vision.projection_dim` is often another model's."""
    found = shape(file, _PROJECTORS[projector(file)][1])
    return found[-1] if found else 0


def examine(file: GGUF) -> Rows:
    rows = Rows("mmproj")
    kind = projector(file)
    blocks = len({match[1] for name in file.tensors if (match := _BLOCK.match(name))})
    _loads(rows, file, kind)
    _counts(rows, file, kind, blocks)
    _layers(rows, file, blocks)
    _feed_forward(rows, file, blocks)
    _activation(rows, file, kind)
    _colours(rows, file)
    _class_token(rows, file)
    _storage(rows, file)
    return rows


def _loads(rows: Rows, file: GGUF, kind: str) -> None:
    told, vision = file.settings.get(_TYPE), file.settings.get("clip.has_vision_encoder")
    settings: dict[str, str | bool] = {}
    if told != kind:
        settings[_TYPE] = kind
    if vision is not True:
        settings["clip.has_vision_encoder"] = True
    if settings:
        said = f"{_TYPE} is {told!r}, clip.has_vision_encoder {vision!r}; the tensors are {kind}'s"
        rows.wrong("projector", said, f"{_REFUSES}, or looks for other tensors", Change(settings))
    else:
        rows.ok("projector", f"{kind}: {_MODELS[kind]}")


def _counts(rows: Rows, file: GGUF, kind: str, blocks: int) -> None:
    """Sizes that the file sets, against those of its tensors."""
    hidden, patch = whole(file, f"{_VISION}embedding_length"), whole(file, f"{_VISION}patch_size")
    grid = whole(file, f"{_VISION}image_size") // max(patch, 1)
    told: dict[str, tuple[object, object]] = {
        "blocks": (whole(file, f"{_VISION}block_count"), blocks),
        "width": (hidden, (shape(file, "v.class_embd") or (0,))[0]),
        "positions": ([hidden, grid**2 + 1], list(shape(file, POSITIONS))),
        "patches": ([patch, patch, 3, hidden], list(shape(file, "v.patch_embd.weight"))),
    }
    off = [f"{what} {set_} set, {found} stored" for what, (set_, found) in told.items() if set_ != found or not found]
    if kind != "mlp" and grid != GRID:
        off.append(f"a grid of {grid}, {GRID} needed")
    if lacking := [name for name in _needed(kind, blocks) if name not in file.tensors]:
        off.append(f"no {listed(lacking)}")
    if off:
        rows.wrong("counts", "; ".join(off), f"{_REFUSES}, ends, or computes nonsense: get it anew")
    else:
        rows.ok("counts", f"{blocks} layers, width {hidden}, {grid}×{grid} patches")


def _needed(kind: str, blocks: int) -> list[str]:
    """Tensors with a weight and a bias each; the convolutions of V1 have none."""
    parts = ("attn_q", "attn_k", "attn_v", "attn_out", "ln1", "ln2", "ffn_up", "ffn_down")
    both = ["v.pre_ln", *(f"v.blk.{index}.{part}" for index in range(blocks) for part in parts)]
    both += {
        "ldpv2": ["mm.model.mlp.0", "mm.model.mlp.2", "mm.model.peg.0"],
        "ldp": [
            "mm.model.mlp.1",
            "mm.model.mlp.3",
            *(f"mm.model.mb_block.{n}.block.{b}" for n in (1, 2) for b in _NORMS),
        ],
        "mlp": ["mm.0", "mm.2"],
    }[kind]
    return [f"{name}.{end}" for name in both for end in ("weight", "bias")]


def _layers(rows: Rows, file: GGUF, blocks: int) -> None:
    """LLaVA and MobileVLM read the state before the tower's last layer, which converters leave out of the file."""
    count = whole(file, f"{_VISION}block_count")
    # Our own exports hold just what is to run, whatever the checkpoint chose.
    depth = 0 if OURS in file.settings else _DEPTHS.get(whole(file, f"{_VISION}embedding_length"), 0)
    wanted = depth - 1 if depth and blocks in (depth - 1, depth) else blocks
    stored = file.settings.get(FEATURE_LAYER)
    chosen = values(file, FEATURE_LAYER)
    change = Change({FEATURE_LAYER: (wanted,)})
    if stored is not None and not (isinstance(stored, GGUFArray) and stored.code == _INT32):
        rows.wrong("layers", f"{FEATURE_LAYER} is no list of int32", _REFUSES, change)
    elif len(chosen) > 1 or max(chosen, default=0) > count:
        rows.wrong("layers", f"{FEATURE_LAYER} is {list(chosen)}", f"{_REFUSES}, or ends on the first picture", change)
    else:
        runs = chosen[0] if chosen and chosen[0] >= 0 else count - 1
        said = f"{runs} of {wanted} run" + ("" if chosen else f": no {FEATURE_LAYER}")
        if runs == wanted:
            rows.ok("layers", said)
        else:
            cost = "llama.cpp gives the decoder features it never learned to read: worse answers about every picture"
            rows.wrong("layers", said, cost, change)


def _feed_forward(rows: Rows, file: GGUF, blocks: int) -> None:
    hidden, ffn = whole(file, f"{_VISION}embedding_length"), whole(file, f"{_VISION}feed_forward_length")
    swapped: dict[str, str] = {}
    odd = []
    for index in range(blocks):
        up, down = (f"v.blk.{index}.ffn_{way}" for way in ("up", "down"))
        shapes = shape(file, f"{up}.weight"), shape(file, f"{down}.weight")
        if shapes == ((ffn, hidden), (hidden, ffn)) and ffn != hidden:
            for end in (".weight", ".bias"):
                swapped |= {a + end: b + end for a, b in ((up, down), (down, up)) if a + end in file.tensors}
        elif shapes != ((hidden, ffn), (ffn, hidden)):
            odd.append(f"{up} {list(shapes[0])}")
    if odd:
        rows.wrong("feed-forward", listed(odd), f"{_REFUSES}, or ends: get it anew")
    elif swapped:
        cost = "llama.cpp turns them back by their shapes; a tool that trusts the names computes nonsense or stops"
        rows.warning("feed-forward", "ffn_up and ffn_down are swapped", cost, Change(names=swapped))
    else:
        rows.ok("feed-forward", "ffn_up and ffn_down as named")


def _activation(rows: Rows, file: GGUF, kind: str) -> None:
    off = [key for key in ("clip.use_gelu", "clip.use_silu") if file.settings.get(key, False) is not False]
    if not off or OURS in file.settings:
        rows.ok("activation", listed(off) or "quick-GELU")
        return
    cost = "the published towers are quick-GELU: every layer computes something else"
    change = Change(dict.fromkeys(off, False))
    if kind == "mlp":  # LLaVA-1.5 was trained by others on other towers too
        rows.warning("activation", listed(off), f"{cost}, if this is one of them")
    else:
        rows.wrong("activation", listed(off), cost, change)


def _colours(rows: Rows, file: GGUF) -> None:
    mean, std = values(file, _MEAN), values(file, _STD)
    sound = all(len(v) == 3 and all(isinstance(x, float) and 0 < x < 1 for x in v) for v in (mean, std))
    if not sound:
        change = Change({_MEAN: MEAN, _STD: STD})
        rows.wrong("colours", "image_mean or image_std is missing", _REFUSES, change)
    elif OURS in file.settings or all(abs(a - b) < 1e-5 for a, b in zip((*mean, *std), (*MEAN, *STD), strict=True)):
        rows.ok("colours", "mean and deviation set")
    else:
        rows.warning("colours", f"mean {mean[0]:.3f} …: not CLIP's", "colours are off, if the tower is CLIP's")


def _class_token(rows: Rows, file: GGUF) -> None:
    """llama.cpp #25817: `build_inp` concatenates patches and class token in this order; the positions are not asked."""
    if file.settings.get(WORKAROUND) is True:
        found = "positions rolled, for builds of llama.cpp without #25844"
        cost = f"with #25844 every position is wrong, and other tools are misled; right everywhere: {_RIGHT}"
    else:
        found = "builds of llama.cpp without #25844 put it last"
        cost = (
            "there every patch gets its neighbour's position, and the class token stands for the last one: worse "
            f"answers, whatever the file; right everywhere: {_RIGHT}, then edge run"
        )
    rows.warning("class token", found, cost)


def _storage(rows: Rows, file: GGUF) -> None:
    wide = [tensor for name, tensor in file.tensors.items() if _wide(tensor) and name != POSITIONS]
    total = sum(tensor.bytes for tensor in file.tensors.values())
    saved = sum(tensor.bytes - _Q8_0 * prod(tensor.shape) for tensor in wide)
    matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) == 2]
    kinds = "/".join(sorted({tensor.kind for tensor in matrices}))
    if saved * 4 > sum(tensor.bytes for tensor in matrices):
        cost = f"{(total - saved) / 1e6:.1f} MB as q8_0; made anew by {_RIGHT} --format gguf"
        rows.warning("storage", f"{kinds}, {total / 1e6:.1f} MB", cost)
    else:
        rows.ok("storage", f"{kinds}, {total / 1e6:.1f} MB")


def _wide(tensor: GGUFTensor) -> bool:
    return not tensor.blocks and len(tensor.shape) == 2 and tensor.shape[0] % 32 == 0
