"""The dialect of llama.cpp's file pairs: a decoder and its "mmproj", of MobileVLM and LLaVA-1.5.

What the files do not tell is taken as the published models have it: pictures are padded to a square and resized
bicubically, the prompt is Vicuna's where no template says another, and of a whole tower the last layer is not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError, UsageError
from edge.spec import ImageSpec, PromptSpec, VLMSpec
from exporters.checkpoints import buildable, decoder_spec, image_spec, shortened, vision_spec
from exporters.gguf import mmproj as mmprojs
from exporters.gguf import names, vocabulary
from exporters.gguf.decoder import FACTORS, ROTATED
from exporters.gguf.names import MMPROJ, POSITIONS, WORKAROUND
from exporters.gguf.reading import AGAIN, Source, decimal
from exporters.models import decoders, source
from exporters.models.component import Component
from exporters.models.decoders import DecoderConfig, Family, family
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import clip
from exporters.models.vision.clip import TowerConfig
from exporters.sources import chat_template
from exporters.sources.checkpoint import Checkpoint, check, check_numbers
from exporters.sources.published import MEAN, STD, prompt
from exporters.sources.weights import Stored, Weights

SUFFIXES = (".gguf",)
DEPTHS = {768: 12, 1024: 24, 1280: 32}  # layers of the published towers, by width
VISION = "clip.vision."
_MOST = 1 << 24  # of any size: more is damage
# Computed by nobody: what the rotation is made of, and what follows the layer that is read.
_UNUSED = r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd(?:\.weight)?|v\.post_ln\..*"


def read(path: Path, *, vision_tower: Path | None, mmproj: Path | None, context: int | None) -> Checkpoint:
    """Raises CheckpointError on what is missing or not understood, UsageError on a call that cannot be."""
    if mmproj is None or vision_tower:
        raise UsageError(
            f"{path.name} holds a decoder only" if mmproj is None else "--vision-tower does not go with a GGUF file",
            hint=f"--mmproj FILE, which holds the vision tower and the projector of {path.name}"
            + ("; or --vision CKPT, a checkpoint whose vision part goes with it" if mmproj is None else ""),
        )
    text, seen = Source.open(path), Source.open(mmproj)
    decoder, tower = _decoder(text, _require(text, seen)), _tower(seen)
    projector, image_tokens = _projector(seen, tower, decoder.hidden)
    decoder = replace(decoder, context=shortened(context, decoder.context, image_tokens))
    components = {"vision": _tower_component(tower), "projector": projector, "decoder": _decoder_component(decoder)}
    stored = _decoder_weights(text, decoder) | _encoder_weights(seen, tower, (components["vision"], projector))
    weights = Weights(stored, (path, mmproj))
    beyond = "|".join(str(index) for index in range(tower.run_layers, tower.layers)) or "-"
    check(components.values(), weights, re.compile(rf"{_UNUSED}|v\.blk\.(?:{beyond})\..*"))
    return Checkpoint(
        name=_name(text),
        license=str(text.get("general.license", "unknown")),
        spec=VLMSpec(
            image=_image(seen, tower.image_size),
            prompt=_prompt(text, image_tokens, decoder.vocab),
            decoder=decoder_spec(decoder),
            vision=vision_spec(tower),
        ),
        components=components,
        weights=weights,
        folder=path.parent,
        sentencepiece=vocabulary.read(text, decoder.vocab),
        templates=chat_template.of_gguf(text),
        origins={key: told for key in ("general.name", "general.base_model.0.name") if (told := text.get(key))}
        | {"its file": path.stem},
        published=str(seen.get("clip.projector_type")).startswith("ldp"),
        special=vocabulary.special_ids(text),
        notes=vocabulary.notes(text),
    )


def _require(text: Source, seen: Source) -> Family:
    """That of the decoder, where these are the right two files. Raises CheckpointError."""
    kinds = text.head.architecture, seen.head.architecture
    if kinds[0] == MMPROJ and decoders.of_architecture(kinds[1]):
        raise CheckpointError(
            f"{text.path.name} is the mmproj, and {seen.path.name} the decoder",
            hint=f"edge export {seen.path} --mmproj {text.path}",
        )
    if (found := decoders.of_architecture(kinds[0])) is None:
        known = ", ".join(names.decoders())
        raise CheckpointError(f"{text.path.name} holds a {kinds[0]!r}, which is not read", hint=f"known: {known}")
    if kinds[1] != MMPROJ:
        raise CheckpointError(
            f"{seen.path.name} holds a {kinds[1]!r}, and no vision tower",
            hint="--mmproj FILE: its name usually begins with mmproj",
        )
    return found


def _decoder(file: Source, of: Family) -> DecoderConfig:
    own = partial(_setting, file, f"{of.ARCHITECTURE}.")
    try:
        vocab = file.shape("token_embd.weight")[0]
        config = of.from_gguf(own, file.head.tensors, vocab, _scaling(file, own))
        _check_sizes(config, file)
        turned = own(ROTATED, config.head_dim), own("attention.value_length", config.head_dim)
        whole = buildable(config) and turned == (config.rope.width, config.head_dim)
    except (IndexError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{file.path.name} does not describe a decoder: {error!r}", hint=AGAIN) from error
    if not whole:
        raise CheckpointError(f"the decoder of {file.path.name} cannot be built: {config}", hint="is it damaged?")
    return config


def _setting(file: Source, prefix: str, key: str, default: Any = None) -> Any:
    found = file.get(prefix + key, default)
    if found is None:
        raise CheckpointError(f"{file.path.name} does not set {prefix}{key}", hint=AGAIN)
    return found


def _check_sizes(config: DecoderConfig | TowerConfig, file: Source) -> None:
    """Before anything is built of these sizes. Raises ValueError."""
    check_numbers(config)
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "layers" and value > len(file.head.tensors):
            raise ValueError(f"{field.name} is {value}")


def _scaling(file: Source, own: Any) -> Mapping[str, Any] | None:
    """How positions are scaled, as `exporters.models.attention.Rope` has it."""
    kind = own("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise CheckpointError(f"{file.path.name} scales positions by {kind!r}", hint="known: none, linear")
    if shape := file.shape(FACTORS):
        if len(shape) != 1 or shape[0] > _MOST:
            raise ValueError(f"{FACTORS} is {list(shape)}")
        factors = file.stored(FACTORS).read()
        if not bool(factors.isfinite().all()):
            raise ValueError(f"{FACTORS} holds NaN or infinity")
        return {"rope_type": "factors", "factors": factors.tolist()}
    return {"rope_type": "linear", "factor": own("rope.scaling.factor")} if kind == "linear" else None


def _tower(file: Source) -> TowerConfig:
    own = partial(_setting, file, VISION)
    if file.get("clip.has_vision_encoder") is not True or file.get("clip.use_silu"):
        raise CheckpointError(
            f"{file.path.name} holds no CLIP vision tower", hint="an mmproj of MobileVLM or LLaVA-1.5"
        )
    if own("image_grid_pinpoints", False) or own("mm_patch_merge_type", "flat") != "flat":
        raise CheckpointError(
            f"{file.path.name} cuts pictures into tiles, which is not supported",
            hint="give the mmproj of LLaVA-1.5, not 1.6",
        )
    blocks = {int(m[1]) for name in file.head.tensors if (m := re.match(r"v\.blk\.(\d{1,4})\.", name))}
    try:
        run = _run_layers(file, own, len(blocks))
        config = TowerConfig(
            image_size=own("image_size"),
            patch_size=own("patch_size"),
            hidden=own("embedding_length"),
            layers=max(run, 1 + max(blocks, default=0)),
            heads=own("attention.head_count"),
            ffn=own("feed_forward_length"),
            eps=own("attention.layer_norm_epsilon"),
            activation="gelu" if file.get("clip.use_gelu") else "quick_gelu",
            select_layer=run,
        )
        _check_sizes(config, file)
        whole = config.hidden % config.heads == 0 and config.grid > 0
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{file.path.name} does not describe a vision tower: {error!r}", hint=AGAIN) from error
    if not whole:
        raise CheckpointError(f"the vision tower of {file.path.name} cannot be built: {config}", hint="is it damaged?")
    return config


def _run_layers(file: Source, own: Any, present: int) -> int:
    """As `feature_layer` says. Without it: those that are there, for converters left the last one out; but one less of
    a tower that is whole."""
    chosen = file.get(f"{VISION}feature_layer")
    if chosen is not None:
        if not isinstance(chosen, list) or len(chosen) != 1 or not 1 <= chosen[0] <= present:
            raise CheckpointError(
                f"{file.path.name} takes the features of the layers {chosen}, of {present}", hint="one layer is read"
            )
        return int(chosen[0])
    run = min(own("block_count"), present)
    return int(run) - (run == DEPTHS.get(own("embedding_length")))


def _projector(file: Source, tower: TowerConfig, hidden: int) -> tuple[Component, int]:
    """And the rows that it makes of a picture."""
    kind = file.get("clip.projector_type", file.get(f"{VISION}projector_type", "mlp"))  # the oldest files tell none
    found = next(((module, theirs) for module, name, theirs in mmprojs.KNOWN if name == kind), None)
    if found is None:
        raise CheckpointError(
            f"{file.path.name} has a projector of the type {kind!r}, which is not read",
            hint="known: " + ", ".join(name for _, name, _ in mmprojs.KNOWN),
        )
    module, theirs = found
    config = ProjectorConfig(inputs=tower.hidden, hidden=hidden, grid=tower.grid, depth=mmprojs.DEPTH)
    component = Component("projector", partial(module.Projector, config), {})
    keys = {name: source.Source((mmprojs.projector_name(name, theirs),)) for name in component.skeleton().state_dict()}
    shape = file.shape(next(own.names[0] for name, own in keys.items() if name.endswith(".weight")))
    if len(shape) == 2 and shape[0] != hidden:
        raise CheckpointError(
            f"the two files do not belong together: {file.path.name} is for a decoder {shape[0]} wide, and this one is "
            f"{hidden} wide",
            hint="take both from the same model",
        )
    return replace(component, keys=keys), module.tokens(config)


def _tower_component(config: TowerConfig) -> Component:
    component = Component("vision", partial(clip.Tower, config), {})
    names = component.skeleton().state_dict()
    keys = {name: source.Source((mmprojs.tower_name(name, clip.GGUF_NAMES),)) for name in names}
    return replace(component, keys=keys)


def _decoder_component(config: DecoderConfig) -> Component:
    of = family(config)
    keys = {
        name: source.Source(tuple(piece.name for piece in pieces)) for name, pieces in of.gguf_tensors(config).items()
    }
    if config.tied:
        keys["lm_head.weight"] = keys["embed_tokens.weight"]
    return Component("decoder", partial(of.Decoder, config), keys)


def _decoder_weights(file: Source, config: DecoderConfig) -> dict[str, Stored]:
    heads = {piece.name: piece.heads for pieces in family(config).gguf_tensors(config).values() for piece in pieces}
    return {name: file.stored(name, heads=heads.get(name, 0)) for name in file.head.tensors}


def _encoder_weights(file: Source, tower: TowerConfig, components: Iterable[Component]) -> dict[str, Stored]:
    """By the right names. The legacy converter's feed-forward layers bear each other's; and it leaves axes out."""
    shapes = {
        c.keys[name].names[0]: tuple(t.shape) for c in components for name, t in c.skeleton().state_dict().items()
    }
    swapped = (tower.hidden, tower.ffn) if tower.hidden != tower.ffn else ()
    found = {}
    for name in file.head.tensors:
        layer = re.fullmatch(r"(v\.blk\.\d+\.ffn_)(up|down)(\..*)", name)
        if layer and file.shape(f"{layer[1]}up.weight") == swapped:
            right = layer[1] + {"up": "down", "down": "up"}[layer[2]] + layer[3]
        else:
            right = name
        rolled = name == POSITIONS and file.get(WORKAROUND) is True
        found[right] = file.stored(name, shapes.get(right), rolled=rolled)
    return found


def _image(file: Source, size: int) -> ImageSpec:
    mean, std = _three(file, "image_mean", MEAN), _three(file, "image_std", STD)
    return image_spec(size, "pad", "bicubic", mean, std)


def _three(file: Source, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    try:
        red, green, blue = (decimal(part) for part in file.get(VISION + name, default))
        if all(part == decimal(known) for part, known in zip((red, green, blue), default, strict=True)):
            return default  # with the digits that float32 has lost
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file.path.name} has a damaged {VISION}{name}", hint=AGAIN) from error
    return red, green, blue


def _prompt(file: Source, image_tokens: int, vocab: int) -> PromptSpec:
    return prompt(image_tokens, vocabulary.bos_id(file, vocab), vocabulary.stop_ids(file, vocab))


def _name(file: Source) -> str:
    """As the file says, if that can be a part of a file's name; else the file's own."""
    told = str(file.get("general.name", ""))
    return told if re.fullmatch(r"\w[\w .+-]{0,99}", told) else re.sub(r"[^\w.+-]", "-", file.path.stem)
