"""Every decoder family in every format against transformers' own class: logits and greedy tokens."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from fakes import SPEC
from small_models import spec_of, write

from edge import plugins
from edge.decoders.kv_graph import kv_decoder
from edge.engines import open_part
from edge.errors import CheckpointError
from edge.spec import VLMSpec
from edge.types import OpenOptions, PartFiles, Tokens
from edge.verify import distance
from exporters.evaluators import mil
from exporters.models import decoders
from exporters.models.attention import GrowingCache
from exporters.models.component import Component

OPTIONS = OpenOptions(threads=1, context=256)
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
WIDE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}  # heads of which a part is rotated
SPECIAL = {"pad_token_id": 0, "eos_token_id": 2}
CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 48}
MODELS = {  # of transformers: its class, and what is said besides the sizes
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3, biases": ("Qwen3", {"head_dim": 32, "attention_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 48}),
    "phi3": ("Phi3", SPECIAL),
    "phi3, partly rotated": ("Phi3", {**SPECIAL, **WIDE, "partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    "stablelm": ("StableLm", {**WIDE, "use_qkv_bias": True}),
    "stablelm, no biases": ("StableLm", {**WIDE, "num_key_value_heads": 2}),
    "phi": ("Phi", {"hidden_size": 128}),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2", {"head_dim": 32, **CAPPED, "query_pre_attn_scalar": 8}),
}
# Of those whose greedy tokens are near ties with the usual one.
SEEDS = {"phi3": 5, "phi3, partly rotated": 3, "stablelm": 5, "phi": 8, "gemma": 3, "gemma2": 20}
COREML = {"coreml": False, "coreml, channels first": True}  # the latter is what --ane writes
ENGINES = {"onnx": "onnxruntime", "tflite": "litert", "executorch": "executorch_native"}
PROMPT, COUNT = (7, 3, 19, 250, 4, 4, 11), 32
TOKENIZER = json.dumps({"model": {"vocab": {"a": 0, "b": SIZES["vocab_size"] - 1}}, "added_tokens": []})


class Shaped(dict):
    """A state dict with what `Weights` adds to a mapping."""

    def shape(self, name):
        return tuple(self[name].shape)


def pair(name):
    """transformers' model of random numbers, and what we read of its weights and its config.json."""
    kind, more = MODELS[name]
    torch.manual_seed(SEEDS.get(name, 1))
    config = getattr(transformers, f"{kind}Config")(**SIZES | more)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)
    theirs.set_attn_implementation("eager")  # torch's own attention has no soft cap
    size = 0.3 * (SIZES["hidden_size"] / config.hidden_size) ** 0.5
    for place, parameter in theirs.named_parameters():  # no norms or biases all alike, no token that repeats itself
        parameter += (0.05 if "embed" in place else size) * torch.randn(parameter.shape)
    told = json.loads(theirs.config.to_json_string())
    family = decoders.find(told["model_type"])
    ours = family.from_config(told)
    component = Component("decoder", lambda: family.Decoder(ours), family.keys(ours))
    return theirs, component, component.load(Shaped(theirs.state_dict()))


@torch.inference_mode()
def answer(theirs):
    """Logits after the prompt, and the greedy tokens."""
    ids, seen = list(PROMPT), []
    for _ in range(COUNT):
        seen.append(theirs(torch.tensor([ids])).logits[0, -1])
        first, second = seen[-1].topk(2).values
        assert first - second > 0.005 * seen[-1].std(), "a near tie: another seed"
        ids.append(int(seen[-1].argmax()))
    return seen[0].numpy(), ids[len(PROMPT) :]


def replayed(decoder):
    logits = first = decoder.extend([Tokens(PROMPT)]).copy()
    tokens = []
    for _ in range(COUNT):
        tokens.append(int(logits.argmax()))
        logits = decoder.extend([Tokens((tokens[-1],))])
    return first, tokens


def opened(format, component, module, folder):
    config = module.config
    spec = VLMSpec(SPEC.image, replace(SPEC.prompt, stop_ids=(2, 7)), spec_of(config), None)
    source = SimpleNamespace(
        spec=spec, tokenizer_json=lambda: TOKENIZER, name="Tiny", license="cc0-1.0", sha256="0" * 64
    )
    name, coreml = format.partition(",")[0], format in COREML
    scheme, options = ("fp16", {"ane": COREML[format]}) if coreml else ("fp32", {})
    writer = plugins.load("exporters.formats", name)
    written = write(writer, component, module, scheme, folder, checkpoint=source, options=options)
    part = PartFiles(name, scheme, ("decoder",), written.files, written.inputs, written.outputs, spec.decoder)
    if coreml:
        return mil.evaluate(part, OPTIONS, "fp32")
    found = open_part(part, ENGINES[name], OPTIONS)
    return kv_decoder(found, part, spec.decoder, config.context) if name == "onnx" else found


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_a_family_is_what_transformers_computes(name):
    theirs, _, module = pair(name)
    expected, tokens = answer(theirs)
    cache = GrowingCache(module.config.heads, module.config.kv_heads, module.config.rope)
    logits = module(module.embed_tokens(torch.tensor([PROMPT])), cache)[0, -1]
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    found = []
    for _ in range(COUNT):
        found.append(int(logits.argmax()))
        logits = module(module.embed_tokens(torch.tensor([found[-1:]])), cache)[0, -1]
    assert found == tokens
    assert len(set(tokens)) > 4, "tokens that tell models apart"


def test_every_family_is_compared_with_transformers():
    families = {decoders.find(kind.lower()).KIND for kind, _ in MODELS.values()}
    assert families == set(plugins.names("exporters.models.decoders"))


# Variants that differ from another by a bias, a width or a tied head only: ExecuTorch takes seconds for each.
ALIKE = ("qwen2", "qwen3", "phi3, partly rotated", "stablelm, no biases")
WRITTEN = [
    (n, f) for n in MODELS if n != "llama" for f in (*ENGINES, *COREML) if (n in ALIKE, f) != (True, "executorch")
]


@pytest.mark.parametrize(("name", "format"), WRITTEN)
def test_a_part_answers_as_transformers_does(name, format, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    theirs, component, module = pair(name)
    if format in COREML:
        for place, parameter in theirs.named_parameters():
            apart = (
                1 if name.startswith("gemma") and "norm" in place else 0
            )  # from what is stored: a gain is 1 + w there
            parameter.copy_((apart + parameter).half().float() - apart)
        module = component.load(Shaped(theirs.state_dict()))
    expected, tokens = answer(theirs)
    found, said = replayed(opened(format, component, module, tmp_path))
    error = distance(found, expected)
    # Core ML's tables of rotations are half precision.
    assert error["max_abs"] < (5e-3 if format in COREML else 1e-3) and error["cosine"] > 0.999999, error
    assert said == tokens


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"use_sliding_window": True, "max_window_layers": 1}, "sliding_attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling 'dynamic'"),
        ({"rope_scaling": {"type": "default", "mrope_section": [4, 2, 2]}}, "mrope_section"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(kind, said, match):
    told = {**SIZES, "model_type": kind.lower(), "head_dim": 16, **said}
    with pytest.raises(CheckpointError, match=match):
        decoders.find(told["model_type"]).from_config(told).rope.inv_freq()


OTHERS = {  # what single families do not compute
    "mistral": [({"hidden_act": "gelu"}, "hidden_act 'gelu'"), ({"partial_rotary_factor": 0.5}, "partial_rotary")],
    "phi3": [
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8}}, "rope_scaling 'longrope'"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 8}}, "rope_scaling 'su'"),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor 0.2 rotates 3 features of a head of 16"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5"),
    ],
    "stablelm": [
        ({"qk_layernorm": True}, "qk_layernorm True"),
        ({"use_parallel_residual": True}, "use_parallel_residual True"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"model_type": "stablelm_epoch", "norm_eps": 1e-5, "layer_norm_eps": 1e-6}, "norm_eps 1e-05, and layer_norm"),
        ({"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}}, "rope parameters have"),
    ],
    "phi": [({"qk_layernorm": True}, "qk_layernorm"), ({"hidden_act": "gelu"}, "hidden_act 'gelu'")],
    "gemma2": [
        ({"hidden_activation": "silu"}, "hidden_act 'silu'"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar 0"),
    ],
    "gemma": [
        ({"hidden_act": "silu"}, "hidden_act 'silu'"),
        ({"hidden_activation": "gelu_fast"}, "hidden_act 'gelu_fast'"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
}


@pytest.mark.parametrize(("kind", "said", "match"), [(kind, *case) for kind, cases in OTHERS.items() for case in cases])
def test_what_a_family_does_not_compute_is_refused_by_name(kind, said, match):
    with pytest.raises(CheckpointError, match=match):
        decoders.find(kind).from_config({**SIZES, "head_dim": 16, **said}).rope.inv_freq()


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in MODELS.values()}))
def test_what_a_config_leaves_out_is_as_in_transformers(kind):
    family = decoders.find(kind.lower())
    theirs = getattr(transformers, f"{kind}Config")()
    ours = family.from_config({})
    width = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.layers, ours.hidden, ours.ffn) == (
        theirs.num_hidden_layers,
        theirs.hidden_size,
        theirs.intermediate_size,
    )
    assert (ours.heads, ours.kv_heads, ours.head_dim) == (theirs.num_attention_heads, theirs.num_key_value_heads, width)
    epsilon = theirs.rms_norm_eps if hasattr(theirs, "rms_norm_eps") else theirs.layer_norm_eps
    seen = min(theirs.max_position_embeddings, (kind in ("Mistral", "Gemma2") and theirs.sliding_window) or math.inf)
    assert (ours.vocab, ours.context, ours.eps) == (theirs.vocab_size, seen, epsilon)
    rope = theirs.rope_parameters
    assert (ours.tied, ours.rope_theta) == (theirs.tie_word_embeddings, rope["rope_theta"])
    assert ours.rope.width == int(width * rope.get("partial_rotary_factor", 1))
    assert ours == family.from_config(json.loads(theirs.to_json_string()))


@pytest.mark.parametrize("kind", ["mistral", "phi3", "gemma2"])
@pytest.mark.parametrize(("window", "context"), [(None, 64), (48, 48), (4096, 64)])
def test_positions_reach_as_far_as_the_window(kind, window, context):
    assert decoders.find(kind).from_config({**SIZES, "sliding_window": window}).context == context


@torch.inference_mode()
def test_beyond_its_window_the_model_is_another():
    config = transformers.MistralConfig(**SIZES, sliding_window=5)
    torch.manual_seed(1)
    theirs, ids = transformers.MistralForCausalLM(config).eval(), torch.tensor([PROMPT])
    narrow = theirs(ids).logits[0]
    theirs.config.sliding_window = None
    for layer in theirs.model.layers:
        layer.self_attn.config.sliding_window = None
    whole = theirs(ids).logits[0]
    torch.testing.assert_close(narrow[:5], whole[:5])  # as many positions as the window has
    assert not torch.allclose(narrow[5:], whole[5:], atol=1e-3)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "said",
    [{"use_sliding_window": False, "sliding_window": 8}, {"use_sliding_window": True, "max_window_layers": 2}],
)
def test_a_window_that_no_layer_has_is_none(kind, said):
    assert decoders.find(kind).from_config({**SIZES, **said}).layers == 2
