"""Written Core ML packages against torch on the weights that they hold, computed by the evaluator from their files."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SPEC
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.models import MLModel
from small_models import logits_after, random_decoder, randomized, small_projector, spec_of, write

from edge import plugins
from edge.errors import ContextError, EdgeError, EngineError
from edge.spec import VLMSpec
from edge.types import Embeddings, OpenOptions, PartFiles, Tokens
from edge.verify import distance
from exporters.evaluators import mil
from exporters.formats import coreml
from exporters.mil import package
from exporters.mil.program import SUPPORTED, Program
from exporters.models.component import Component
from exporters.models.decoders import llama
from exporters.models.encoder import Encoder
from exporters.models.layers import Linear
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import clip

OPTIONS = OpenOptions(threads=1, context=48)
TINY = dataclasses.replace(llama.tiny().config, context=48)
STEPS = 12


def source(image=SPEC.image, tokens=4, decoder=None):
    spec = VLMSpec(image, dataclasses.replace(SPEC.prompt, image_tokens=tokens), decoder or SPEC.decoder, None)
    return SimpleNamespace(name="Tiny Model", license="cc0-1.0", sha256="0" * 64, spec=spec)


def write_decoder(folder, scheme, config=TINY, module=None, samples=(), ane=False):
    module = module or random_decoder(config)
    component = Component("decoder", lambda: llama.Decoder(config), {})
    written = write(
        coreml,
        component,
        module,
        scheme,
        folder,
        lambda done: None,
        checkpoint=source(decoder=spec_of(config)),
        samples=samples,
        options={"ane": ane},
    )
    part = PartFiles("coreml", scheme, ("decoder",), written.files, written.inputs, written.outputs, spec_of(config))
    return module, part, written


def write_encoder(folder, scheme, name="ldpnetv2", module=None, samples=(), ane=False):
    tower = dataclasses.replace(clip.tiny().config, image_size=56 if name != "ldpnetv2" else 336)
    projector = plugins.load("exporters.models.projectors", name)
    sizes = small_projector(projector, tower, 64)

    def build():
        return Encoder(clip.Tower(tower), projector.Projector(sizes))

    module = module or randomized(build())
    image = dataclasses.replace(SPEC.image, size=tower.image_size)
    decoder = dataclasses.replace(SPEC.decoder, hidden=64)
    checkpoint = source(image, projector.tokens(sizes), decoder)
    written = write(
        coreml,
        Component("vision", build, {}),
        module,
        scheme,
        folder,
        lambda done: None,
        checkpoint=checkpoint,
        samples=samples,
        options={"ane": ane},
    )
    part = PartFiles("coreml", scheme, ("vision", "projector"), written.files, written.inputs, written.outputs)
    return module, part, written


def pixels(side, seed=8):
    return np.random.default_rng(seed).normal(size=(1, 3, side, side)).astype(np.float32)


# the decoder


CONFIGS = {
    "gqa": TINY,
    "mha, biases": dataclasses.replace(TINY, kv_heads=4, attention_bias=True, mlp_bias=True),
    "widths that no block divides": dataclasses.replace(TINY, hidden=72, ffn=100, heads=3, kv_heads=1),
    "theta and scaling": dataclasses.replace(
        TINY, rope_theta=50000.0, rope_scaling={"rope_type": "linear", "factor": 2.0}
    ),
}


@pytest.mark.parametrize("ane", [False, True], ids=["rows", "channels first"])
@pytest.mark.parametrize(
    ("scheme", "config"),
    [*((scheme, "gqa") for scheme in coreml.SCHEMES["decoder"]), *(("w4", name) for name in list(CONFIGS)[1:])],
)
def test_a_decoder_computes_its_reference_over_a_prompt_and_steps(scheme, config, ane, tmp_path):
    """A prompt with a picture's rows, then one token after another: the states are shared by both functions."""
    module, part, _ = write_decoder(tmp_path, scheme, CONFIGS[config], ane=ane)
    generator = torch.Generator().manual_seed(6)
    picture = torch.randn(1, 5, module.config.hidden, generator=generator)
    ids = torch.randint(0, 320, (1, STEPS), generator=generator)
    rows = module.embed_tokens(ids)
    expected = logits_after(module, [torch.cat([rows[:, :3], picture], dim=1), *rows[:, 3:].split(1, dim=1)])
    for precision, largest, cosine in (("fp32", 1e-3, 0.999999), ("fp16", 0.05, 0.9999)):
        decoder = mil.evaluate(part, OPTIONS, precision)
        found = [decoder.extend([Tokens(tuple(ids[0, :3].tolist())), Embeddings(picture[0].numpy(), "picture")])]
        found += [decoder.extend([Tokens((token,))]) for token in ids[0, 3:].tolist()]
        assert decoder.position == STEPS + 5
        for have, want in zip(found, expected, strict=True):
            error = distance(have, want)
            assert error["max_abs"] <= largest and error["cosine"] >= cosine, (precision, error)


def test_a_memory_is_rewound_extended_by_several_and_ends_with_the_context(tmp_path):
    module, part, _ = write_decoder(tmp_path, "fp16")
    ids = tuple(int(i) for i in np.random.default_rng(7).integers(0, 320, TINY.context))
    rows = module.embed_tokens(torch.tensor([ids]))
    expected = logits_after(module, [rows[:, :20], rows[:, 20:27], rows[:, 27:]])
    decoder = mil.open(part, OPTIONS)
    decoder.extend([Tokens(ids[:25])])
    decoder.extend([Tokens(ids[:9])])
    decoder.rewind(20)
    for piece, want in ((ids[20:27], expected[1]), (ids[27:], expected[2])):
        assert distance(decoder.extend([Tokens(piece)]), want)["cosine"] > 0.9999
    with pytest.raises(ContextError, match="needs 49 positions, and the context holds 48"):
        decoder.extend([Tokens((1,))])
    # Not only we refuse: the program itself has no room.
    feeds = {"inputs_embeds": torch.zeros(1, 49, 64), "causal_mask": torch.zeros(1, 1, 49, 49)}
    program = Program(package.read(mil.root(part)))
    states = program.states("prefill")
    with pytest.raises(EngineError, match=r"slice of 0 to 49 does not lie in axis 2"):
        program.run("prefill", feeds, states)


def test_the_rounding_follows_what_matters(tmp_path):
    """The error of columns that calibration lit counts more."""
    errors = []
    for name, importance in (("plain", {}), ("guided", {"lm_head.weight": torch.tensor([1000.0] * 8 + [0.01] * 56)})):
        module = random_decoder(TINY)
        before = module.lm_head.weight.clone()
        (tmp_path / name).mkdir()
        write(
            coreml,
            Component("decoder", lambda: llama.Decoder(TINY), {}),
            module,
            "w4",
            tmp_path / name,
            lambda done: None,
            importance,
            checkpoint=source(),
        )
        errors.append(float((module.lm_head.weight - before)[:, :8].square().mean()))
    assert errors[1] < 0.7 * errors[0]


# the encoder


@pytest.mark.parametrize("ane", [False, True], ids=["rows", "channels first"])
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        *(("ldpnet", scheme) for scheme in coreml.SCHEMES["vision"]),
        *((name, "w8") for name in plugins.names("exporters.models.projectors") if name != "ldpnet"),
    ],
)
def test_an_encoder_computes_its_reference_from_pixels_and_from_a_picture(name, scheme, ane, tmp_path):
    module, part, _ = write_encoder(tmp_path, scheme, name, ane=ane)
    side = module.tower_config.image_size
    picture = np.random.default_rng(1).integers(0, 256, (1, 3, side, side)).astype(np.float32)
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (SPEC.image.mean, SPEC.image.std))
    values = (picture / 255 - mean) / std
    with torch.inference_mode():
        expected = module(torch.from_numpy(values)).numpy()
    for precision, cosine in (("fp32", 0.999999), ("fp16", 0.9999)):
        graph = mil.evaluate(part, OPTIONS, precision)
        found = graph.run({"pixel_values": values})["image_embeds"]
        assert found.dtype == np.float32
        assert distance(found, expected)["cosine"] >= cosine, precision
    program = Program(package.read(mil.root(part)))
    folded = program.run("encode_image", {"image": torch.from_numpy(picture)})["image_embeds"].numpy()
    assert distance(folded, expected)["cosine"] >= 0.9999


def test_a_grid_that_the_pool_does_not_divide(tmp_path):
    """LDPv2 pools any grid to 12 x 12."""
    projector = plugins.load("exporters.models.projectors", "ldpnetv2")
    tower = dataclasses.replace(clip.tiny().config, image_size=14 * 16)

    def build():
        return Encoder(clip.Tower(tower), projector.Projector(ProjectorConfig(inputs=32, hidden=64, grid=16)))

    module = randomized(build())
    image = dataclasses.replace(SPEC.image, size=224)
    checkpoint = source(image, 144, dataclasses.replace(SPEC.decoder, hidden=64))
    written = write(
        coreml, Component("vision", build, {}), module, "fp16", tmp_path, lambda done: None, checkpoint=checkpoint
    )
    graph = mil.evaluate(PartFiles("coreml", "fp16", ("vision",), *written[:3]), OPTIONS, "fp32")
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels(224))).numpy()
    assert distance(graph.run({"pixel_values": pixels(224)})["image_embeds"], expected)["cosine"] > 0.99999


def test_a_product_of_few_rows_stays_in_half_precision(tmp_path):
    """Its scales would be fewer than the weight file takes."""
    config = dataclasses.replace(TINY, hidden=8, heads=1, kv_heads=1, head_dim=8, ffn=4, vocab=9)
    for scheme in coreml.SCHEMES["decoder"]:
        module, part, written = write_decoder(tmp_path / scheme, scheme, config)
        assert written.details["weights"]["fp16"] >= 7, scheme
        rows = module.embed_tokens.weight[[1, 5, 8]]
        found = mil.evaluate(part, OPTIONS, "fp32").extend([Tokens((1, 5, 8))])
        assert distance(found, logits_after(module, [rows[None]])[0])["cosine"] > 0.999999, scheme


# half precision


def test_what_overflows_half_precision_is_found_by_the_evaluator_and_avoided_by_samples(tmp_path):
    def heavy():
        module = random_decoder(TINY)
        module.layers[0].post_attention_layernorm.weight.data *= 300
        module.layers[0].down_proj.weight.data *= 30  # a layer's sum then lies beyond 65504, and no weight does
        return module

    rows = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(2))
    prompt = [Embeddings(rows[0].numpy(), "rows")]
    _, part, written = write_decoder(tmp_path / "blind", "w8", module=heavy())
    assert written.details["fp32"] == {}
    with pytest.raises(EngineError, match=r"mul '(mul_\d+)': \1 overflows half precision: \S+, and it ends"):
        mil.open(part, OPTIONS).extend(prompt)
    assert mil.evaluate(part, OPTIONS, "fp32").extend(prompt).shape == (320,)

    module, part, written = write_decoder(tmp_path / "seen", "w8", module=heavy(), samples=[rows])
    wide = written.details["fp32"]
    assert wide and all(value > 16376 for value in wide.values())
    found = mil.open(part, OPTIONS).extend(prompt)
    assert distance(found, logits_after(module, [rows])[0])["cosine"] > 0.9999


def test_an_encoder_that_overflows_is_computed_in_fp32_too(tmp_path):
    module, _, _ = write_encoder(tmp_path / "first", "fp16", "linear")
    module.tower.layers[0].layer_norm2.weight.data *= 300
    module.tower.layers[0].mlp.fc2.weight.data *= 3000
    module, part, written = write_encoder(
        tmp_path / "second", "pal4", "linear", module=module, samples=[torch.from_numpy(pixels(56))]
    )
    assert written.details["fp32"]
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels(56))).numpy()
    graph = mil.open(part, OPTIONS)
    assert distance(graph.run({"pixel_values": pixels(56)})["image_embeds"], expected)["cosine"] > 0.9999


def test_a_weight_beyond_half_precision_is_refused(tmp_path):
    module = random_decoder(TINY)
    module.layers[1].o_proj.weight.data[3, 4] = 1e8
    for scheme in coreml.SCHEMES["decoder"]:
        with pytest.raises(EdgeError, match=r"layers.1.o_proj.weight.*half precision"):
            write_decoder(tmp_path / scheme, scheme, module=copy.deepcopy(module))


# what others see


def test_coremltools_reads_what_is_written_and_finds_it_sound(tmp_path):
    _, part, _ = write_decoder(tmp_path, "w4")
    path = part.files[0].parent
    model = MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    assert spec.specificationVersion == 9
    # Its types are inferred anew, and a constant that did not fit would be told here.
    program = load(spec, 9, str(path / "Data/com.apple.CoreML/weights"))
    assert set(program.functions) == {"prefill", "decode"}
    kinds = {op.op_type for function in program.functions.values() for op in function.operations}
    assert kinds - {"coreml_update_state"} <= SUPPORTED  # which is written as write_state and read_state
    stored = [op for op in program.functions["decode"].operations if op.op_type == "constexpr_blockwise_shift_scale"]
    module = random_decoder(TINY)
    assert len(stored) == 4 * TINY.layers + 1
    head = stored[-1].materialized_val_inference()
    assert head.dtype == np.float16
    assert distance(head.astype(np.float32), module.lm_head.weight.numpy())["cosine"] > 0.99


def test_a_package_tells_what_xcode_shows_and_the_part_what_an_app_needs(tmp_path):
    _, part, written = write_decoder(tmp_path, "w4")
    description = package.read(part.files[0].parent).description
    assert description.metadata.shortDescription == "Tiny Model: the decoder, w4"
    assert (description.metadata.author, description.metadata.license) == ("edge-vlm", "cc0-1.0")
    prefill = description.functions[0]
    assert (prefill.name, description.defaultFunctionName) == ("prefill", "prefill")
    assert all(f.shortDescription for f in (*prefill.input, *prefill.output, *prefill.state))
    ranges = {f.name: f.type.multiArrayType.shapeRange.sizeRanges for f in prefill.input}
    assert [(r.lowerBound, r.upperBound) for r in ranges["inputs_embeds"]] == [(1, 1), (1, 48), (64, 64)]
    details = json.loads(json.dumps(written.details))
    assert details["minimum"] == {"ios": "18.0", "macos": "15.0"}
    assert list(details["functions"]) == ["prefill", "decode"]
    assert details["functions"]["prefill"]["inputs"] == [
        {"name": "inputs_embeds", "dtype": "float32", "shape": [1, [1, 48], 64]},
        {"name": "causal_mask", "dtype": "float32", "shape": [1, 1, [1, 48], [1, 48]]},
    ]
    assert details["functions"]["decode"]["inputs"][1]["shape"] == [1, 1, 1, [1, 48]]
    assert details["functions"]["decode"]["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [1, 1, 320]}]
    shape = [TINY.layers, 1, TINY.kv_heads, 48, TINY.head_dim]
    assert [(s["name"], s["shape"]) for s in details["states"]] == [("key_cache", shape), ("value_cache", shape)]
    assert details["weights"] == {"w4": 4 * TINY.layers + 1}
    assert {t.name: t.shape for t in written.inputs} == {
        "inputs_embeds": (1, "sequence_length", 64),
        "causal_mask": (1, 1, "sequence_length", "total_sequence_length"),
    }
    placed = details["predicted_placement"]["decode"]
    assert placed["ane"] > 0 and set(placed["gpu_or_cpu"]) == {"not half precision", "shape not known beforehand"}


def test_every_value_of_a_function_has_a_name_of_its_own(tmp_path):
    for part in (write_decoder(tmp_path, "w4")[1], write_encoder(tmp_path, "fp16")[1]):
        for function in package.read(mil.root(part)).program.functions.values():
            operations = function.block_specializations[function.opset].operations
            names = [output.name for op in operations for output in op.outputs] + [f.name for f in function.inputs]
            assert len(names) == len(set(names)) > 50


def test_a_picture_s_function_takes_an_image(tmp_path):
    _, part, written = write_encoder(tmp_path, "w8", "linear")
    assert written.details["functions"]["encode_image"] == {
        "inputs": [{"name": "image", "image": "RGB", "shape": [56, 56]}],
        "outputs": [{"name": "image_embeds", "dtype": "float32", "shape": [1, 16, 64]}],
    }
    found = package.read(part.files[0].parent).function("encode_image").input[0].type.imageType
    assert (found.width, found.height, found.colorSpace) == (56, 56, 20)


def test_the_functions_share_their_weights_and_the_same_export_is_the_same_file(tmp_path):
    sizes = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        _, part, _ = write_decoder(tmp_path / name, "w8")
        sizes.append([path.read_bytes() for path in part.files])
    assert sizes[0] == sizes[1]
    numbers = sum(p.numel() for n, p in llama.tiny().named_parameters() if "embed" not in n)
    assert len(sizes[0][2]) < 1.6 * numbers  # once, and each array padded to 64 bytes


def test_no_operation_of_a_package_is_unknown_to_the_evaluator(tmp_path):
    kinds = Counter()
    for name in plugins.names("exporters.models.projectors"):
        _, part, _ = write_encoder(tmp_path / name, "pal4", name)
        program = Program(package.read(mil.root(part)))
        for function in ("encode", "encode_image"):
            kinds.update(op.type for op in program.function(function).operations)
    assert kinds["constexpr_lut_to_dense"] and set(kinds) <= SUPPORTED


def test_a_product_of_other_than_rows_is_no_convolution(tmp_path):
    class Pooled(Encoder):
        def __init__(self, *parts):
            super().__init__(*parts)
            self.last = Linear(64, 64)

        def forward(self, pixel_values):
            return self.last(super().forward(pixel_values).mean([1]))

    def build():
        return Pooled(clip.tiny(), plugins.load("exporters.models.projectors", "linear").tiny())

    checkpoint = source(dataclasses.replace(SPEC.image, size=56))
    options = {"checkpoint": checkpoint, "options": {"ane": True}}
    with pytest.raises(EdgeError, match=r"last.weight multiplies 2 axes") as caught:
        write(coreml, Component("vision", build, {}), randomized(build()), "w8", tmp_path, lambda done: None, **options)
    assert "--ane" in caught.value.hint


def test_a_rule_that_is_missing_is_named(tmp_path):
    class Odd(Encoder):
        def forward(self, pixel_values):
            return torch.fft.rfft(super().forward(pixel_values)).real

    tower = clip.tiny()
    projector = plugins.load("exporters.models.projectors", "linear").tiny()
    component = Component("vision", lambda: Odd(tower, projector), {})
    checkpoint = source(dataclasses.replace(SPEC.image, size=56))
    with pytest.raises(EdgeError, match="there is no rule for 'fft_rfft'"):
        write(coreml, component, Odd(tower, projector), "fp16", tmp_path, lambda done: None, checkpoint=checkpoint)
