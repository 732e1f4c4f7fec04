"""How the checkpoints of a family are laid out: the names of their tensors, and the files beside the weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from edge.errors import UsageError
from exporters.gguf import bpe
from exporters.models import projectors
from exporters.models.decoders import DecoderConfig
from exporters.models.vision import VisionConfig, siglip
from exporters.standin.sentence_pieces import TEXT, sentence_pieces

if TYPE_CHECKING:
    from exporters.standin.random_weights import Shape

_PIECES = 400  # that TEXT is made of; the others of a vocabulary stand in no text
SIGLIP = "siglip-so400m-patch14-384"
_ROLES, _SAID = "{% for m in messages %}", "{% for c in m['content'] %}"
SMOLVLM_TEMPLATE = (  # written after what its processor renders
    "<|im_start|>" + _ROLES + "{{ m['role'].capitalize() + (':' if m['content'][0]['type'] == 'image' else ': ') }}"
    + _SAID + "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{{ '<end_of_utterance>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)  # fmt: skip
CHATML = (
    _ROLES + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Layout:
    """What stands before the names of each component's tensors, and what writes the files beside the weights."""

    family: str  # of whose checkpoints it is
    decoder: str
    projector: str
    encoder: str
    files: Callable[[Path, Shape, str, torch.dtype], None]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of config.json, that the projector reads


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def decoder_fields(decoder: DecoderConfig, dtype: torch.dtype) -> dict[str, Any]:
    """As config.json of Llama and its kin has them."""
    return {
        "hidden_act": "silu",
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.ffn,
        "max_position_embeddings": decoder.context,
        "num_attention_heads": decoder.heads,
        "num_hidden_layers": decoder.layers,
        "num_key_value_heads": decoder.kv_heads,
        "rms_norm_eps": decoder.eps,
        "rope_theta": decoder.rope.theta,
        "tie_word_embeddings": decoder.tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": decoder.vocab,
    }


def _seen(encoder: VisionConfig, kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": encoder.hidden,
        "intermediate_size": cast("Any", encoder).ffn,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
    }


def _smolvlm(folder: Path, shape: Shape, projector: str, dtype: torch.dtype) -> None:
    """Raises UsageError on another projector than pixel shuffle."""
    if projector != "pixel_shuffle":
        raise UsageError(f"SmolVLM has no projector {projector!r}", hint="leave --projector out")
    encoder, decoder = shape.tower, shape.decoder
    around = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    grids = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    made = byte_level("smollm", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *around, *grids])
    write_json(
        folder / "config.json",
        {
            "architectures": ["SmolVLMForConditionalGeneration"],
            "model_type": "smolvlm",
            "image_token_id": made.token_to_id("<image>"),
            "scale_factor": 4,
            "tie_word_embeddings": decoder.tied,
            "text_config": {"model_type": "llama", "head_dim": decoder.head_dim, **decoder_fields(decoder, dtype)},
            "vision_config": _seen(encoder, "smolvlm_vision"),
        },
    )
    sizes = {"size": {"longest_edge": 4 * encoder.image_size}, "max_image_size": {"longest_edge": encoder.image_size}}
    kind = {"image_processor_type": "SmolVLMImageProcessor", "do_image_splitting": True}
    write_json(folder / "preprocessor_config.json", {**kind, **sizes})
    _tokenized(folder, made, "<end_of_utterance>", SMOLVLM_TEMPLATE, bos="<|im_start|>")


def _nanollava(folder: Path, shape: Shape, projector: str, dtype: torch.dtype) -> None:
    encoder, decoder = shape.tower, shape.decoder
    made = byte_level("qwen2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    config: dict[str, Any] = {"architectures": ["LlavaQwen2ForCausalLM"], "model_type": "llava-qwen2"}
    config |= decoder_fields(decoder, dtype) | mm_fields(f"google/{SIGLIP}", encoder, projector)
    write_json(folder / "config.json", config)
    write_json(folder / SIGLIP / "config.json", _seen(encoder, "siglip_vision_model"))
    square = {"height": encoder.image_size, "width": encoder.image_size}
    write_json(folder / SIGLIP / "preprocessor_config.json", {"image_processor_type": siglip.PROCESSOR, "size": square})
    _tokenized(folder, made, "<|im_end|>", CHATML)


def mm_fields(tower: str, encoder: VisionConfig, projector: str) -> dict[str, Any]:
    """LLaVA's own keys, with the projector's."""
    return {
        "mm_vision_tower": tower,
        "mm_projector_type": projector,
        "mm_hidden_size": encoder.hidden,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        **projectors.settings(projectors.find(projector)[0]),
    }


def _llava_of(model_type: str, architecture: str) -> Callable[[Path, Shape, str, torch.dtype], None]:
    def write(folder: Path, shape: Shape, projector: str, dtype: torch.dtype) -> None:
        config = {
            "architectures": [architecture],
            "model_type": model_type,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **decoder_fields(shape.decoder, dtype),
            "vision_tower_type": "clip",
            **mm_fields("openai/clip-vit-large-patch14-336", shape.tower, projector),
        }
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
        (folder / "tokenizer.model").write_bytes(sentence_pieces(shape.decoder.vocab))

    return write


def byte_level(pre: str, special: list[str]) -> tokenizers.Tokenizer:
    """A small byte-level BPE that cuts texts as `pre` does, one of llama.cpp's names."""
    pattern = next(pattern for (pattern, _), name in bpe.PRE.items() if name == pre)
    made = tokenizers.Tokenizer(models.BPE())
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "Digits")
    first = (
        pre_tokenizers.Digits(individual_digits=True)
        if pattern == "Digits"
        else pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    )
    made.pre_tokenizer = pre_tokenizers.Sequence([first, own])  # type: ignore[assignment]
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_PIECES, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXT.splitlines(), trainer)
    made.add_special_tokens(special)
    return made


def _tokenized(folder: Path, made: tokenizers.Tokenizer, end: str, template: str, bos: str | None = None) -> None:
    made.save(str(folder / "tokenizer.json"))
    told = {"eos_token": end, "bos_token": bos, "add_bos_token": False, "chat_template": template}
    write_json(folder / "tokenizer_config.json", told)
    write_json(folder / "generation_config.json", {"eos_token_id": made.token_to_id(end)})


_OWN = ("model.", "model.mm_projector.", "model.vision_tower.vision_tower.vision_model.")
MOBILEVLM = Layout("MobileVLM", *_OWN, files=_llava_of("mobilevlm", "MobileLlamaForCausalLM"))
LLAVA = Layout("LLaVA-1.5", *_OWN, files=_llava_of("llava_llama", "LlavaLlamaForCausalLM"))
NANOLLAVA = Layout("nanoLLaVA", *_OWN, files=_nanollava)
SMOLVLM = Layout(
    "SmolVLM",
    "model.text_model.",
    "model.connector.modality_projection.",
    "model.vision_model.",
    _smolvlm,
    {"scale_factor": 4},
)
