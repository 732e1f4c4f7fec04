"""GGUF files against the definitions of their layout, and against the weights they were made from."""

from __future__ import annotations

import dataclasses
import sys

import gguf
import jinja2
import llama_cpp as lib
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from PIL import Image
from sentencepiece import SentencePieceProcessor
from small_models import write

from edge import plugins
from edge.bundle.manifest import sha256
from edge.errors import CheckpointError, EdgeError, UsageError
from edge.inputs.calibration import Record
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.recipes import Recipe
from edge.types import Embeddings, Tokens
from edge.verify import distance
from exporters import pipeline, preview, standin
from exporters.formats import gguf as format
from exporters.gguf import imatrix, packing, quantizer, template
from exporters.gguf.entries import Entry
from exporters.models.attention import Rope, rotate
from exporters.models.component import Component
from exporters.models.decoders import llama
from exporters.models.encoder import Encoder
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import clip
from exporters.models.vision.clip import TowerConfig
from exporters.order import Order
from exporters.sources.checkpoint import open_checkpoint
from exporters.standin.random_weights import Shape
from exporters.targets import resolve

TOWER = TowerConfig(image_size=336, patch_size=14, hidden=64, layers=3, heads=1, ffn=96)
DECODER = llama.Config(layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, head_dim=64, vocab=512, context=1024)
# The largest difference of a stored weight, as a share of the largest weight of its tensor.
ROUNDING = {"f16": 0.0, "bf16": 2**-8, "q8_0": 1 / 200, "q6_k": 1 / 25, "q5_k_m": 1 / 12, "q5_k_s": 1 / 12}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "Tiny VLM"
    standin.write(folder, Shape(TOWER, DECODER))
    return open_checkpoint(str(folder))


def component_of(checkpoint, role):
    vision, decoder = pipeline.components(checkpoint)
    return decoder if role == "decoder" else dataclasses.replace(vision, role=role)


def written(checkpoint, folder, scheme, role="decoder", importance=None):
    folder.mkdir(exist_ok=True)
    component = component_of(checkpoint, role)
    module = component.load(checkpoint.weights)
    seen = []
    files, *_ = write(format, component, module, scheme, folder, seen.append, importance, checkpoint=checkpoint)
    assert seen == sorted(seen) and seen[-1] == 1.0
    return module, gguf.GGUFReader(files[0]), files[0]


def tensors_of(reader):
    return {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}


def fields_of(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


def by_definition(config, state):
    """ggml's names and rows, from the module's state, row by row."""
    found = {
        "token_embd.weight": state["embed_tokens.weight"],
        "output_norm.weight": state["norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    queries, keys, half = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.head_dim // 2
    for i in range(config.layers):
        qkv, gate_up = state[f"layers.{i}.qkv_proj.weight"], state[f"layers.{i}.gate_up_proj.weight"]

        def paired(rows):  # row 2j of a head is its row j, row 2j + 1 its row j + half
            order = [
                h * 2 * half + j + side * half
                for h in range(len(rows) // (2 * half))
                for j in range(half)
                for side in (0, 1)
            ]
            return rows[order]

        found |= {
            f"blk.{i}.attn_norm.weight": state[f"layers.{i}.input_layernorm.weight"],
            f"blk.{i}.ffn_norm.weight": state[f"layers.{i}.post_attention_layernorm.weight"],
            f"blk.{i}.attn_q.weight": paired(qkv[:queries]),
            f"blk.{i}.attn_k.weight": paired(qkv[queries : queries + keys]),
            f"blk.{i}.attn_v.weight": qkv[queries + keys :],
            f"blk.{i}.attn_output.weight": state[f"layers.{i}.o_proj.weight"],
            f"blk.{i}.ffn_gate.weight": gate_up[: config.ffn],
            f"blk.{i}.ffn_up.weight": gate_up[config.ffn :],
            f"blk.{i}.ffn_down.weight": state[f"layers.{i}.down_proj.weight"],
        }
    return found


@pytest.mark.parametrize("scheme", format.SCHEMES["decoder"])
def test_the_module_holds_what_the_file_says(checkpoint, scheme, tmp_path):
    before = component_of(checkpoint, "decoder").load(checkpoint.weights).state_dict()
    module, reader, path = written(checkpoint, tmp_path, scheme)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] == [f"Tiny-VLM-{scheme.upper()}.gguf"]
    found, expected = tensors_of(reader), by_definition(DECODER, module.state_dict())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    for name, tensor in by_definition(DECODER, before).items():
        error = np.abs(found[name] - tensor.numpy()).max() / tensor.abs().max().item()
        assert error <= (0 if tensor.ndim == 1 else ROUNDING.get(scheme, 1 / 4)), name


def test_metadata(checkpoint, tmp_path):
    _, reader, _ = written(checkpoint, tmp_path, "q4_0")
    fields = fields_of(reader)
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Tiny VLM",
        "general.license": "cc0-1.0",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_0,
        "general.quantization_version": 2,
        "edge_vlm.source.sha256": checkpoint.sha256,
        "llama.block_count": 2,
        "llama.context_length": 1024,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 64,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 512,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert len(fields["tokenizer.ggml.tokens"]) == 512


def test_vocabulary(checkpoint, tmp_path):
    fields = fields_of(written(checkpoint, tmp_path, "f16")[1])
    theirs = SentencePieceProcessor(model_file=str(checkpoint.folder / "tokenizer.model"))
    count = theirs.get_piece_size()
    assert fields["tokenizer.ggml.tokens"][:count] == [theirs.id_to_piece(i) for i in range(count)]
    np.testing.assert_array_equal(
        np.array(fields["tokenizer.ggml.scores"][:count], np.float32),
        np.array([theirs.get_score(i) for i in range(count)], np.float32),
    )
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
        for i in range(count)
    ]
    assert fields["tokenizer.ggml.token_type"][:count] == kinds


def test_rows_beyond_the_vocabulary_and_added_tokens_have_a_text(tmp_path):
    folder = tmp_path / "checkpoint"
    standin.write(folder, Shape(TOWER, DECODER))
    (folder / "tokenizer.model").write_bytes(standin.sentence_pieces(500))
    (folder / "added_tokens.json").write_text('{"<pad>": 500}')
    fields = fields_of(written(open_checkpoint(str(folder)), tmp_path, "f16")[1])
    assert fields["tokenizer.ggml.tokens"][500:503] == ["<pad>", "[PAD501]", "[PAD502]"]
    assert fields["tokenizer.ggml.token_type"][499:503] == [1, 4, 5, 5]  # no role makes it special


def test_a_checkpoint_without_scores_is_refused(checkpoint, tmp_path):
    for file in checkpoint.folder.iterdir():
        if file.name != "tokenizer.model":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text(checkpoint.tokenizer_json())
    with pytest.raises(CheckpointError, match=r"no tokenizer\.model"):
        written(open_checkpoint(str(tmp_path)), tmp_path, "f16")


def test_rotating_neighbours_of_stored_rows_is_rotating_halves_of_ours():
    """The scores of attention are the same, which is what the order of rows is for."""
    heads, dim = 3, 8
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    q, k = (torch.randn(heads * dim, 16, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
    cos, sin = Rope(dim, 100.0).tables(5)

    def split(weight):
        return (x @ weight.T).view(5, heads, dim).transpose(0, 1)

    def neighbours(y):
        a, b = y[..., 0::2], y[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)

    ours = rotate(split(q), cos, sin) @ rotate(split(k), cos, sin).transpose(1, 2)
    stored_q, stored_k = (Entry("", weight, heads).stored() for weight in (q, k))
    theirs = neighbours(split(stored_q)) @ neighbours(split(stored_k)).transpose(1, 2)
    torch.testing.assert_close(theirs, ours)
    back = torch.empty_like(q)
    Entry("", back, heads).take(stored_q)
    assert torch.equal(back, q)


CONFIGS = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tied": True},
    "widths that no block divides": {"hidden": 72, "ffn": 100, "heads": 3, "kv_heads": 1, "head_dim": 24},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("scheme", format.PACKED)
def test_unusual_decoders(checkpoint, changes, scheme, tmp_path):
    config = dataclasses.replace(DECODER, **changes)
    torch.manual_seed(3)
    module = llama.Decoder(config).eval().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    component = Component("decoder", lambda: llama.Decoder(config), {})
    files, *_ = write(format, component, module, scheme, tmp_path, lambda done: None, checkpoint=checkpoint)
    found = tensors_of(gguf.GGUFReader(files[0]))
    assert ("output.weight" in found) != config.tied
    if config.tied:
        assert torch.equal(module.lm_head.weight, module.embed_tokens.weight)
    else:
        np.testing.assert_array_equal(found["output.weight"], module.lm_head.weight)
    if config.attention_bias:
        bias = before["layers.1.qkv_proj.bias"]
        np.testing.assert_array_equal(found["blk.1.attn_v.bias"], bias[-128:])
        np.testing.assert_array_equal(found["blk.1.attn_q.bias"][:2], bias[[0, 32]])
        np.testing.assert_array_equal(found["blk.1.ffn_up.bias"], before["layers.1.gate_up_proj.bias"][512:])
    np.testing.assert_array_equal(found["blk.0.ffn_down.weight"], module.layers[0].down_proj.weight)
    torch.testing.assert_close(
        module.layers[0].down_proj.weight, before["layers.0.down_proj.weight"], atol=0.02, rtol=0
    )


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=["linear", "llama3"],
)
def test_scaled_positions(checkpoint, scaling, tmp_path):
    config = dataclasses.replace(DECODER, rope_scaling=scaling)
    module = llama.Decoder(config).eval().requires_grad_(False)
    component = Component("decoder", lambda: llama.Decoder(config), {})
    files, *_ = write(format, component, module, "f16", tmp_path, lambda done: None, checkpoint=checkpoint)
    factors = tensors_of(gguf.GGUFReader(files[0]))["rope_freqs.weight"]
    frequencies = 10000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(frequencies / factors, config.rope.inv_freq(), rtol=1e-5)
    assert factors.max() == pytest.approx(scaling["factor"])


def test_four_bit_tables_are_wider_than_the_rest(checkpoint, tmp_path):
    kinds = {t.name: t.tensor_type for t in written(checkpoint, tmp_path, "q4_0")[1].tensors}
    assert kinds["blk.1.ffn_down.weight"] == kinds["blk.0.attn_q.weight"] == Kind.Q4_0
    assert kinds["token_embd.weight"] == kinds["output.weight"] == Kind.Q6_K
    assert kinds["blk.0.attn_norm.weight"] == Kind.F32


@pytest.mark.parametrize("scheme", ["q4_0", "q4_k_s", "iq4_xs"])
def test_importance_guides_four_bits(checkpoint, scheme, tmp_path):
    """Columns that are said to matter are kept better, at no byte more."""
    matter = torch.zeros(256)
    matter[:64:2] = 1.0
    original = component_of(checkpoint, "decoder").load(checkpoint.weights).layers[1].qkv_proj.weight

    def error(importance):
        module, _, path = written(checkpoint, tmp_path, scheme, importance=importance)
        difference = (module.layers[1].qkv_proj.weight - original)[:, matter > 0]
        return difference.square().mean().item(), path.stat().st_size

    (without, size), (guided, same) = error(None), error({"layers.1.qkv_proj.weight": matter})
    assert guided < 0.9 * without
    assert size == same


def matrix_of(config):
    made = {ours: torch.rand(columns) for ours, _, columns in imatrix._names(config)}
    assert made.keys() == {name for name in llama.keys(config) if name.endswith("_proj.weight") or "lm_head" in name}
    return made


def test_an_importance_matrix_is_kept(tmp_path):
    matters = matrix_of(DECODER)
    imatrix.write(tmp_path / "imatrix.gguf", matters, DECODER, 7)
    found = imatrix.read(tmp_path / "imatrix.gguf", DECODER)
    assert found.keys() == matters.keys()
    assert all(torch.equal(found[name], row) for name, row in matters.items())
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    fields, rows = fields_of(reader), tensors_of(reader)
    assert (fields["general.type"], fields["imatrix.chunk_count"]) == ("imatrix", 7)
    np.testing.assert_array_equal(rows["blk.1.attn_v.weight.in_sum2"][0], matters["layers.1.qkv_proj.weight"])
    np.testing.assert_array_equal(rows["blk.0.ffn_up.weight.in_sum2"][0], matters["layers.0.gate_up_proj.weight"])


def test_another_models_importance_matrix_is_refused(tmp_path):
    path = tmp_path / "imatrix.gguf"
    imatrix.write(path, matrix_of(DECODER), DECODER, 7)
    with pytest.raises(UsageError, match=r"another model: .* has 256 columns, not 128"):
        imatrix.read(path, dataclasses.replace(DECODER, hidden=128))
    for content in (b"", b"GGUF", b"no importance matrix" * 9, path.read_bytes()[:3000]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="no importance matrix"):
            imatrix.read(path, DECODER)
    with pytest.raises(UsageError, match="no importance matrix"):
        imatrix.read(tmp_path / "missing", DECODER)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["output.weight.in_sum2", "blk.0.attn_k.weight.in_sum2", "blk.1.ffn_down.weight.counts"]
)
def test_an_importance_matrix_that_is_not_finite_is_refused(tmp_path, name, value):
    """It would choose the rounding of weights by comparisons that a NaN loses."""
    imatrix.write(tmp_path / "imatrix.gguf", matrix_of(DECODER), DECODER, 7)
    path = spoilt(tmp_path / "imatrix.gguf", name, np.float32(value))
    with pytest.raises(UsageError, match=f"holds NaN or infinity.*: {name}") as caught:
        imatrix.read(path, DECODER)
    assert "--calib DIR" in caught.value.hint


def spoilt(path, name, value):
    """The file with another first number of a tensor."""
    found = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    with path.open("r+b") as file:
        file.seek(found.data_offset)
        file.write(value.tobytes())
    return path


def test_sums_are_shared_among_what_was_counted(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "imatrix")
    writer.add_tensor("output.weight.in_sum2", np.full((1, 256), 12, np.float32))
    writer.add_tensor("output.weight.counts", np.full((1, 1), 4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = imatrix.read(tmp_path / "theirs.gguf", DECODER)
    assert list(found) == ["lm_head.weight"]
    assert (found["lm_head.weight"] == 3).all()


def test_a_kept_matrix_makes_the_same_bundle(checkpoint, tmp_path):
    to = resolve(None, [], "onnx-w8a8-gguf-q4_0", None).targets
    picture = np.random.default_rng(9).integers(0, 256, (40, 60, 3), np.uint8)
    folders = [tmp_path / name for name in ("first", "second", "plain")]
    for folder in folders:
        folder.mkdir()
    Image.fromarray(picture).save(tmp_path / "picture.png")
    records = [Record(tmp_path / "picture.png", "Who?", "Nobody.")]
    order = Order(checkpoint, to, {}, picture, "Who?")
    measured = dataclasses.replace(order, calibration=records)
    kept = dataclasses.replace(order, importance=folders[0] / "imatrix.gguf")
    first, second, plain = (
        pipeline.build(asked, folder, lambda stage, done: None)
        for asked, folder in zip((measured, kept, order), folders, strict=True)
    )
    assert [file.path for file in first.companions] == ["imatrix.gguf"]
    assert second.companions == plain.companions == ()
    assert first.parts[1].files == second.parts[1].files
    assert first.parts[1].files[0].sha256 != plain.parts[1].files[0].sha256


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q6_K])
def test_packed_blocks_are_what_ggml_reads(kind):
    weight = torch.randn(6, 512, generator=torch.Generator().manual_seed(4))
    weight[2, :256] = 0
    weight[3] *= 1e-3
    found = gguf.dequantize(packing.pack(weight, kind), kind)
    assert (found[2, :256] == 0).all()
    bits = {Kind.Q4_0: 4, Kind.Q6_K: 6}[kind]
    peak = weight.view(6, -1, 16).abs().amax(-1).repeat_interleave(16, 1).numpy() + 1e-9
    error = np.abs(found - weight.numpy()) / peak
    if kind == Kind.Q6_K:
        assert error.max() < 1.5 / 2 ** (bits - 1)
    assert np.sqrt((error**2).mean()) < 0.6 / 2 ** (bits - 1)


def rendered(spec, messages, generate=True, end="</s>"):
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    return environment.from_string(template.jinja(spec, lambda i: end)).render(
        messages=messages, add_generation_prompt=generate
    )


def ids_of(text, spec, tokenizer):
    """As llama.cpp reads a rendered prompt: pieces between marks and special tokens, each on its own."""
    found, ids = [], [spec.bos_id]
    for number, piece in enumerate(text.split(template.MEDIA)):
        if number:
            found += [ids, None]
            ids = []
        for part, chunk in enumerate(piece.split("</s>")):
            ids += [2] if part else []
            ids += tokenizer.encode(chunk) if chunk else []
    return [*found, ids]


M = template.MEDIA
PICTURE = Embeddings(np.zeros((1, 4), np.float32), "picture")
CONVERSATIONS = {
    "a picture": ([{"role": "user", "content": M + "What is this?"}], [Turn.about("What is this?", (PICTURE,))], None),
    "as upstream writes it": ([{"role": "user", "content": M + "\nWho?"}], [Turn.about("Who?", (PICTURE,))], None),
    "two pictures": ([{"role": "user", "content": M + M + "Same?"}], [Turn.about("Same?", (PICTURE, PICTURE))], None),
    "no picture": (
        [{"role": "user", "content": "Hello {{ x }} 'a' \"b\""}],
        [Turn.about("Hello {{ x }} 'a' \"b\"")],
        None,
    ),
    "a system": (
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": M + "Why?"}],
        [Turn.about("Why?", (PICTURE,))],
        "Be short.",
    ),
    "no system": ([{"role": "system", "content": ""}, {"role": "user", "content": "Why?"}], [Turn.about("Why?")], ""),
    "turns": (
        [
            {"role": "user", "content": M + "What is this?"},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "Which colour?"},
        ],
        [Turn.about("What is this?", (PICTURE,), "A cat."), Turn.about("Which colour?")],
        None,
    ),
}


@pytest.mark.parametrize(("messages", "turns", "system"), CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_the_template_is_the_prompt(checkpoint, messages, turns, system, tmp_path):
    (tmp_path / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json")
    spec = checkpoint.spec.prompt
    expected = [list(s.ids) if isinstance(s, Tokens) else None for s in segments(spec, tokenizer, turns, system)]
    found = [ids for ids in ids_of(rendered(spec, messages), spec, tokenizer) if ids != []]
    assert found == expected


def test_llama_cpp_takes_the_template_for_none_of_its_own(checkpoint):
    """It guesses by such words where it is not told to render Jinja, and would write another prompt."""
    text = template.jinja(checkpoint.spec.prompt, lambda i: "</s>")
    assert "USER: " not in text and "ASSISTANT: " not in text


def test_the_template_stands_in_the_file(checkpoint, tmp_path):
    fields = fields_of(written(checkpoint, tmp_path, "f16")[1])
    assert fields["tokenizer.chat_template"] == template.jinja(checkpoint.spec.prompt, lambda i: "</s>")
    assert rendered(checkpoint.spec.prompt, [{"role": "user", "content": M + "Who?"}]) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the user's questions. USER: {M}\nWho? ASSISTANT:"
    )


TEXTS = (
    "USER: What is in this picture? ASSISTANT:",
    " two  spaces   and three",
    "\nline\n\nbreaks\t",
    "Füße, 東京, 🙂 – bytes where there is no piece",
    "<image> and </s> are text",
    "",
)


def test_llama_cpp_cuts_texts_as_we_do(checkpoint, tmp_path):
    (tmp_path / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json")
    path = written(checkpoint, tmp_path, "f16")[2]
    params = lib.llama_model_default_params()
    params.vocab_only = True
    with quantizer._listening(lib):
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        vocab = lib.llama_model_get_vocab(model)

        def ids(text, special):
            buffer, raw = (lib.llama_token * 512)(), text.encode()
            return list(buffer[: lib.llama_tokenize(vocab, raw, len(raw), buffer, 512, special, special)])

        try:
            for text in TEXTS:
                assert ids(text, False) == list(tokenizer.encode(text)), text
            messages, turns, _ = CONVERSATIONS["turns"]
            pieces = rendered(checkpoint.spec.prompt, messages).split(M)
            expected = segments(checkpoint.spec.prompt, tokenizer, turns)
            assert ids(pieces[0], True) == list(expected[0].ids)
            assert ids(pieces[1], True)[1:] == list(expected[2].ids)
            assert lib.llama_model_chat_template(model, None).decode() == template.jinja(
                checkpoint.spec.prompt, lambda i: "</s>"
            )
        finally:
            lib.llama_model_free(model)


# mmproj name of a tensor -> ours.
SAMPLES = {
    "v.class_embd": "tower.embeddings.class_embedding",
    "v.patch_embd.weight": "tower.embeddings.patch_embedding.weight",
    "v.position_embd.weight": "tower.embeddings.position_embedding.weight",
    "v.pre_ln.bias": "tower.pre_layrnorm.bias",
    "v.blk.1.attn_q.weight": "tower.layers.1.self_attn.q_proj.weight",
    "v.blk.1.attn_out.bias": "tower.layers.1.self_attn.out_proj.bias",
    "v.blk.0.ln2.weight": "tower.layers.0.layer_norm2.weight",
    "v.blk.0.ffn_up.weight": "tower.layers.0.mlp.fc1.weight",
    "v.blk.0.ffn_down.weight": "tower.layers.0.mlp.fc2.weight",
}
PROJECTORS = {
    "ldpnetv2": ("ldpv2", {"mm.model.mlp.2.weight": "mlp.mlp.2.weight", "mm.model.peg.0.weight": "peg.peg.0.weight"}),
    "ldpnet": (
        "ldp",
        {
            "mm.model.mlp.3.bias": "model.mlp.3.bias",
            "mm.model.mb_block.1.block.0.0.weight": "model.mb_block.1.block.0.0.weight",
            "mm.model.mb_block.2.block.1.fc1.weight": "model.mb_block.2.block.1.fc1.weight",
            "mm.model.mb_block.2.block.2.1.bias": "model.mb_block.2.block.2.1.bias",
        },
    ),
    "mlp": ("mlp", {"mm.0.weight": "0.weight", "mm.2.bias": "2.bias"}),
}


def encoder_of(name, tower=TOWER, depth=2):
    torch.manual_seed(7)
    sizes = ProjectorConfig(inputs=tower.hidden, hidden=64, grid=tower.grid, depth=depth)
    module = Encoder(clip.Tower(tower), plugins.load("exporters.models.projectors", name).Projector(sizes))
    for parameter in module.parameters():
        parameter.data = (torch.randn(parameter.shape) * 0.125).half().float()
    return module.eval().requires_grad_(False)


def written_mmproj(checkpoint, module, scheme, folder):
    component = Component("mmproj", lambda: module, {})
    files, *_ = write(format, component, module, scheme, folder, lambda done: None, checkpoint=checkpoint)
    assert files[0].name == f"mmproj-Tiny-VLM-{scheme.upper()}.gguf"
    return gguf.GGUFReader(files[0])


@pytest.mark.parametrize("scheme", format.SCHEMES["mmproj"])
@pytest.mark.parametrize("name", PROJECTORS)
def test_mmproj(checkpoint, name, scheme, tmp_path):
    module = encoder_of(name)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    reader = written_mmproj(checkpoint, module, scheme, tmp_path)
    kind, samples = PROJECTORS[name]
    found, after = tensors_of(reader), module.state_dict()
    assert len(found) == len(after)
    for theirs, ours in (SAMPLES | {k: f"projector.{v}" for k, v in samples.items()}).items():
        np.testing.assert_array_equal(found[theirs].ravel(), after[ours].ravel(), err_msg=theirs)
        assert found[theirs].shape == tuple(d for d in after[ours].shape if d != 1 or after[ours].ndim < 4)
    error = max(float((after[key] - before[key]).abs().max()) for key in before)
    assert error == 0 if scheme == "f16" else 0 < error < 0.125 * 5 / 200
    kinds = {t.name: t.tensor_type for t in reader.tensors}
    assert kinds["v.blk.0.ffn_up.weight"] == (Kind.F16 if scheme == "f16" else Kind.Q8_0)
    assert kinds["v.position_embd.weight"] == kinds["v.patch_embd.weight"] == Kind.F16
    fields = fields_of(reader)
    expected = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.projector_type": kind,
        "clip.has_vision_encoder": True,
        "clip.has_llava_projector": True,
        "clip.use_gelu": False,
        "clip.vision.image_size": 336,
        "clip.vision.patch_size": 14,
        "clip.vision.embedding_length": 64,
        "clip.vision.feed_forward_length": 96,
        "clip.vision.attention.head_count": 1,
        "clip.vision.projection_dim": 256,
        "clip.vision.block_count": 2,
        "clip.vision.feature_layer": [2],
    }
    assert {key: fields[key] for key in expected} == expected
    np.testing.assert_allclose(fields["clip.vision.image_mean"], checkpoint.spec.image.mean)
    np.testing.assert_allclose(fields["clip.vision.image_std"], checkpoint.spec.image.std)


REFUSED = {
    "one linear layer": ("linear", TOWER, 1),
    "a deeper MLP": ("mlp", TOWER, 3),
    "an MLP of one": ("mlp", TOWER, 1),
    "another grid": ("ldpnetv2", dataclasses.replace(TOWER, image_size=224), 2),
    "another grid of the first LDP": ("ldpnet", dataclasses.replace(TOWER, image_size=224), 2),
    "a class token": ("mlp", dataclasses.replace(TOWER, select_feature="cls_patch"), 2),
}
NAMED = {
    "one linear layer": "the projector linear of depth 1",
    "a deeper MLP": "the projector mlp of depth 3",
    "an MLP of one": "the projector mlp of depth 1",
    "another grid": "the projector ldpv2 on a grid of 16x16 patches, as images of 224 in patches of 14",
    "another grid of the first LDP": "the projector ldp on a grid of 16x16 patches",
    "a class token": "a class token's row .*'cls_patch'",
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_encoder_that_the_loader_would_compute_wrongly_is_refused(checkpoint, case, tmp_path):
    name, tower, depth = REFUSED[case]
    with pytest.raises(EdgeError, match=f"llama.cpp, which does not compute {NAMED[case]}") as caught:
        written_mmproj(checkpoint, encoder_of(name, tower, depth), "f16", tmp_path)
    assert "--recipe onnx-w8a8-gguf-q4_0" in caught.value.hint


def test_such_an_encoder_is_refused_before_the_work(checkpoint, tmp_path):
    def build_encoder(role):
        tower = dataclasses.replace(TOWER, image_size=224)
        return encoder_of("ldpnetv2", tower).tower if role == "vision" else encoder_of("ldpnetv2", tower).projector

    others = {role: Component(role, lambda role=role: build_encoder(role), {}) for role in ("vision", "projector")}
    small = dataclasses.replace(checkpoint, components={**checkpoint.components, **others})
    stages = []
    picture = np.zeros((40, 60, 3), np.uint8)
    order = Order(small, resolve("gguf", [], None, None).targets, {}, picture, "Who?")
    with pytest.raises(EdgeError, match="on a grid of 16x16"):
        pipeline.build(order, tmp_path, lambda stage, done: stages.append(stage))
    assert stages == []


def test_a_missing_quantiser_is_told_before_the_work(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(EdgeError, match="quantiser cannot be had") as caught:
        written(checkpoint, tmp_path, "q4_k_m")
    assert "edge-vlm[llamacpp]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_the_quantiser_refuses_is_told(checkpoint, tmp_path, capfd):
    (tmp_path / "broken").write_bytes(b"GGUF?")
    with pytest.raises(EdgeError, match="MOSTLY_Q4_K_M"):
        quantizer.quantize(tmp_path / "broken", tmp_path / "out", gguf.LlamaFileType.MOSTLY_Q4_K_M, [], {})
    assert capfd.readouterr() == ("", "")


def test_a_bundle_of_two_formats(checkpoint, tmp_path):
    """Each role in its own, the mmproj beside the parts and made of unrounded weights."""
    to = resolve("gguf", [], None, None).targets
    picture = np.random.default_rng(9).integers(0, 256, (40, 60, 3), np.uint8)
    stages = []
    order = Order(checkpoint, to, {}, picture, "Who?")
    built = pipeline.build(order, tmp_path, lambda stage, done: stages.append(stage))
    assert [(part.covers, part.format, part.scheme) for part in built.parts] == [
        (("vision", "projector"), "onnx", "w8a8"),
        (("decoder",), "gguf", "q4_0"),
    ]
    assert [file.path for file in built.parts[1].files] == ["Tiny-VLM-Q4_0.gguf"]
    assert [file.path for file in built.companions] == ["mmproj-Tiny-VLM-Q8_0.gguf"]
    for file in built.companions:
        assert (file.bytes, file.sha256) == ((tmp_path / file.path).stat().st_size, sha256(tmp_path / file.path))
    assert list(dict.fromkeys(stages)) == ["vision: onnx w8a8", "decoder: gguf q4_0", "mmproj: gguf q8_0"]
    plain = written(checkpoint, tmp_path / "again", "q8_0", "mmproj")[2]
    assert plain.read_bytes() == (tmp_path / "mmproj-Tiny-VLM-Q8_0.gguf").read_bytes()
    cosine = distance(built.golden.stored.logits, built.golden.fp32.logits)["cosine"]
    assert 0.9 < cosine < 0.99999  # the reference is of the rounded weights
    foreseen = preview.manifest(checkpoint, Recipe("custom", to))
    assert [(part.covers, part.format, part.scheme) for part in foreseen.parts] == [
        (part.covers, part.format, part.scheme) for part in built.parts
    ]
    assert [file.path for file in foreseen.companions] == ["mmproj.gguf"]
