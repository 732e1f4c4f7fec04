"""Written ExecuTorch programs against torch on the weights that they hold, run by the engine as a session would."""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SPEC
from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
from executorch.exir._serialize._program import _get_extended_header
from small_models import small_projector, write

from edge import plugins
from edge.engines import open_part
from edge.errors import BundleError, CheckpointError, ContextError, EdgeError, EngineError
from edge.formats import executorch
from edge.spec import DecoderSpec, VLMSpec
from edge.types import Embeddings, OpenOptions, PartFiles, TensorSpec, Tokens
from edge.verify import distance
from exporters.formats import executorch as format
from exporters.formats.executorch import lower
from exporters.formats.executorch.linears import store
from exporters.models.attention import GrowingCache
from exporters.models.component import Component
from exporters.models.decoders import llama
from exporters.models.encoder import Encoder
from exporters.models.vision import clip

OPTIONS = OpenOptions(threads=1, context=48)
ENGINES = ("executorch", "executorch_native")
each_engine = pytest.mark.parametrize("engine", ENGINES)
CONFIG = dataclasses.replace(llama.tiny().config, context=48)
TOKENIZER = json.dumps({"model": {"vocab": {"a": 0, "b": CONFIG.vocab - 1}}, "added_tokens": []})


def randomized(module):
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        scale = 0.08 if parameter.ndim > 1 else 0.3
        parameter.data = parameter.data + scale * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def random_decoder(config=CONFIG):
    torch.manual_seed(0)
    return randomized(llama.Decoder(config))


def spec_of(c):
    return DecoderSpec(c.layers, c.heads, c.kv_heads, c.head_dim, c.hidden, c.vocab, c.context, c.rope_theta)


def source(decoder, image=SPEC.image, tokens=4, tokenizer=TOKENIZER):
    spec = VLMSpec(image, dataclasses.replace(SPEC.prompt, image_tokens=tokens, stop_ids=(2, 7)), decoder, None)
    return SimpleNamespace(spec=spec, tokenizer_json=lambda: tokenizer)


def written_decoder(folder, scheme, config=CONFIG, importance=None, **checkpoint):
    module = random_decoder(config)
    component = Component("decoder", lambda: llama.Decoder(config), {})
    written = write(
        format,
        component,
        module,
        scheme,
        folder,
        lambda done: None,
        importance,
        checkpoint=source(spec_of(config), **checkpoint),
    )
    part = PartFiles("executorch", scheme, ("decoder",), *written[:3], spec_of(config))
    return module, part


def written_encoder(folder, scheme, name="ldpnetv2", role="vision"):
    tower = dataclasses.replace(clip.tiny().config, image_size=56 if name != "ldpnetv2" else 336, layers=2)
    projector = plugins.load("exporters.models.projectors", name)
    sizes = small_projector(projector, tower, CONFIG.hidden)

    def build():
        return Encoder(clip.Tower(tower), projector.Projector(sizes))

    module, image = randomized(build()), dataclasses.replace(SPEC.image, size=tower.image_size)
    checkpoint = source(spec_of(CONFIG), image, projector.tokens(sizes))
    component = Component(role, build, {})
    written = write(format, component, module, scheme, folder, lambda done: None, checkpoint=checkpoint)
    return module, PartFiles("executorch", scheme, ("vision", "projector"), *written[:3])


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """fp32: what the engine adds is rounding only."""
    return written_decoder(tmp_path_factory.mktemp("exact"), "fp32")


@pytest.fixture(scope="module")
def sees(tmp_path_factory):
    return written_encoder(tmp_path_factory.mktemp("sees"), "fp32", "linear")


def reference(module, rows):
    c = module.config
    with torch.inference_mode():
        return module(rows[None], GrowingCache(c.heads, c.kv_heads, c.rope))[0, -1].numpy()


def prompt(module, count):
    ids = tuple(np.random.default_rng(count).integers(0, module.config.vocab, count).tolist())
    return ids, module.embed_tokens.weight[list(ids)]


def pixels(side, seed=3):
    return np.random.default_rng(seed).normal(size=(1, 3, side, side)).astype(np.float32)


@pytest.mark.parametrize("scheme", ["w8", "8da4w"])
def test_a_quantised_decoder_computes_what_torch_does_on_its_weights(scheme, tmp_path):
    config = dataclasses.replace(CONFIG, kv_heads=CONFIG.heads if scheme == "w8" else CONFIG.kv_heads)
    module, part = written_decoder(tmp_path, scheme, config)
    stored = module.layers[0].down_proj.weight
    assert stored.shape == (CONFIG.hidden, CONFIG.ffn)
    assert 0.001 < float((stored - random_decoder(config).layers[0].down_proj.weight).abs().max()) < 0.1
    ids, rows = prompt(module, 30)
    for engine in ENGINES:
        decoder = open_part(part, engine, OPTIONS)
        found = [decoder.extend([Tokens(ids[:20])]), *(decoder.extend([Tokens((i,))]) for i in ids[20:])]
        for end, logits in zip(range(20, 31), found, strict=True):
            error = distance(logits, reference(module, rows[:end]))
            assert error["cosine"] >= format.SCHEMES["decoder"][scheme]["cosine"], engine
    other = distance(found[0], reference(random_decoder(config), rows[:20]))
    assert other["cosine"] < distance(found[0], reference(module, rows[:20]))["cosine"]


@each_engine
@pytest.mark.parametrize("count", [1, 2, 46, 47, 48])
def test_a_prompt_of_any_length(engine, exact, count):
    module, part = exact
    decoder = open_part(part, engine, OPTIONS)
    ids, rows = prompt(module, count)
    np.testing.assert_allclose(decoder.extend([Tokens(ids)]), reference(module, rows), atol=1e-4)


@each_engine
def test_a_decoder_rewinds_and_ends_with_its_context(engine, exact):
    module, part = exact
    decoder = open_part(part, engine, OPTIONS)
    ids, rows = prompt(module, 48)
    decoder.extend([Tokens(ids[:40])])
    decoder.rewind(9)
    logits = decoder.extend([Tokens(ids[20:30])])
    np.testing.assert_allclose(logits, reference(module, torch.cat([rows[:9], rows[20:30]])), atol=1e-4)
    with pytest.raises(ContextError):
        decoder.extend([Tokens(ids[:30])])
    assert decoder.position == 19
    decoder.rewind(0)
    np.testing.assert_allclose(decoder.extend([Tokens(ids)]), reference(module, rows), atol=1e-4)


def test_a_snapshot_goes_on_in_another_decoder(exact):
    module, part = exact
    decoder, other = (open_part(part, "executorch_native", OPTIONS) for _ in range(2))
    ids, _ = prompt(module, 30)
    decoder.extend([Tokens(ids[:20])])
    kept = decoder.snapshot()
    config = module.config
    assert kept.nbytes == 20 * 2 * config.layers * config.kv_heads * config.head_dim * 4
    other.extend([Tokens(ids[5:15])])
    other.restore(kept)
    assert other.position == 20
    np.testing.assert_array_equal(other.extend([Tokens(ids[20:])]), decoder.extend([Tokens(ids[20:])]))
    for one in (decoder, other):
        one.rewind(7)
    np.testing.assert_array_equal(other.extend([Tokens(ids[20:])]), decoder.extend([Tokens(ids[20:])]))
    narrow = {name: array[..., :-1] for name, array in kept.arrays.items()}
    with pytest.raises(EngineError, match="the array is float32"):
        other.restore(dataclasses.replace(kept, arrays=narrow))
    assert other.position == 0


def test_a_decoder_with_torch_keeps_its_cache_out_of_reach(exact):
    assert open_part(exact[1], "executorch", OPTIONS).layout is None


@each_engine
def test_a_picture_stands_between_tokens(engine, exact):
    module, part = exact
    decoder = open_part(part, engine, OPTIONS)
    ids, rows = prompt(module, 30)
    picture = Embeddings(rows[10:20].numpy() * 2, "p")
    logits = decoder.extend([Tokens(ids[:10]), picture, Tokens(ids[20:])])
    np.testing.assert_allclose(logits, reference(module, torch.cat([rows[:10], 2 * rows[10:20], rows[20:]])), atol=1e-4)


@pytest.mark.parametrize(
    ("scheme", "projector"),
    [
        ("fp32", "ldpnetv2"),
        ("w8a8", "ldpnetv2"),
        ("w8a8", "ldpnet"),
        ("w8a8", "resampler"),
        ("fp32", "qformer"),
        ("fp32", "c_abstractor"),
        ("fp32", "d_abstractor"),
        ("fp32", "minigpt"),
        ("fp32", "pixel_shuffle_mlp"),
    ],
)
def test_a_vision_part_computes_what_torch_does_on_its_weights(scheme, projector, tmp_path):
    module, part = written_encoder(tmp_path, scheme, projector)
    values = pixels(part.inputs[0].shape[2])
    with torch.inference_mode():
        expected = module(torch.from_numpy(values)).numpy()
    assert expected.std() > 0.1
    for engine in ENGINES:
        rows = open_part(part, engine, OPTIONS).run({"pixel_values": values})["image_embeds"]
        error, tolerance = distance(rows, expected), format.SCHEMES["vision"][scheme]
        assert error["cosine"] >= tolerance["cosine"], engine
        assert error["max_abs"] <= tolerance.get("max_abs", 1.0), engine


def test_all_of_the_tower_is_one_piece_for_xnnpack(sees):
    method = executorch.read(sees[1].files[0]).methods["vision_encoder"]
    assert (method.delegates, method.operators) == (("XnnpackBackend",), ())


@pytest.mark.parametrize(("backend", "id"), [("coreml", "CoreML"), ("mps", "MPS"), ("vulkan", "Vulkan")])
def test_another_backend_takes_the_encoder(backend, id, tmp_path):
    """Written only: none of them runs on this machine, and our engine says so."""
    (scheme,) = format.SCHEMES[f"vision-{backend}"]
    _, part = written_encoder(tmp_path, scheme, "linear", f"vision-{backend}")
    assert part.files[0].name == f"vision-{backend}.pte"
    method = executorch.read(part.files[0]).methods["vision_encoder"]
    assert (method.delegates, method.operators) == ((f"{id}Backend",), ())
    port = TensorSpec("pixel_values", "float32", (1, 3, 56, 56)), TensorSpec("image_embeds", "float32", (1, 16, 64))
    for engine in ENGINES:
        with pytest.raises(EngineError, match=f"needs {id}Backend, which .*executorch .* as installed does not have"):
            open_part(dataclasses.replace(part, inputs=port[:1], outputs=port[1:]), engine, OPTIONS)


def test_a_layer_is_one_piece_between_two_looks_at_the_cache(exact):
    method = executorch.read(exact[1].files[0]).methods["text_decoder"]
    assert method.delegates == ("XnnpackBackend",) * (CONFIG.layers + 2)
    assert {name for name in method.operators if "llama" in name} == {
        "llama::update_cache.out",
        "llama::custom_sdpa.out",
    }


def test_only_what_keeps_something_has_an_arena_for_it(exact, sees, joined):
    """A runner allocates the arenas of each method: caches that one never looks at would lie there once more."""
    cache = 2 * CONFIG.layers * CONFIG.context * CONFIG.kv_heads * CONFIG.head_dim * 4
    for path in (exact[1].files[0], joined):
        plans = {plan.name: plan.non_const_buffer_sizes for plan in program_of(path).execution_plan}
        assert plans["text_decoder"][2:] == [cache]
        assert len(plans["token_embedding"]) == 2
        assert len(plans.get("vision_encoder", (0, 0))) == 2


def program_of(path):
    content = path.read_bytes()
    return _flatbuffer_to_program(content[: _get_extended_header(content).program_size])


def test_weights_of_a_program_do_not_outlive_it(tmp_path, monkeypatch):
    """torch's caches keep graphs of it, which once kept all its weights: a model's size twice over."""
    kept, writing = [], lower.write

    def write(path, methods, *others):
        for method in methods.values():
            kept.extend(weakref.ref(t) for t in method.module.state_dict(keep_vars=True).values() if t.numel() > 1000)
        return writing(path, methods, *others)

    monkeypatch.setattr("exporters.formats.executorch.lower.write", write)
    written_decoder(tmp_path, "8da4w", dataclasses.replace(CONFIG, layers=1))
    gc.collect()
    assert len(kept) > 8
    assert [weak() for weak in kept if weak() is not None] == []


@pytest.mark.parametrize("scheme", ["fp32", "w8", "8da4w"])
def test_the_reference_is_given_the_numbers_that_are_traced(scheme):
    stored = store("w", torch.randn(6, 64, generator=torch.Generator().manual_seed(2)), None, scheme, None)
    assert torch.equal(stored.dequantized(), stored.weight())


def test_wrong_weights_are_seen(exact, tmp_path):
    """The comparison of the tests above fails when one weight of the file is another's."""
    module, part = exact
    content = bytearray(part.files[0].read_bytes())
    weight = module.layers[1].down_proj.weight.numpy().tobytes()
    at = bytes(content).index(weight)
    content[at : at + len(weight)] = (2 * module.layers[1].down_proj.weight).numpy().tobytes()
    (tmp_path / "decoder.pte").write_bytes(content)
    changed = dataclasses.replace(part, files=(tmp_path / "decoder.pte",))
    ids, rows = prompt(module, 20)
    logits = open_part(changed, "executorch", OPTIONS).extend([Tokens(ids)])
    assert distance(logits, reference(module, rows))["cosine"] < 0.999


def test_importance_guides_the_rounding(tmp_path, monkeypatch):
    monkeypatch.setattr("exporters.formats.executorch.lower.write", lambda *_: None)
    name = "layers.0.down_proj.weight"
    importance = torch.zeros(CONFIG.ffn)
    importance[:8] = 1.0
    before, errors = random_decoder().state_dict()[name], []
    for given in ({}, {name: importance}):
        module, _ = written_decoder(tmp_path, "8da4w", importance=given)
        errors.append(float((module.state_dict()[name] - before)[:, :8].square().sum()))
    assert errors[1] < 0.9 * errors[0]


def test_four_bits_need_whole_blocks(tmp_path):
    with pytest.raises(EdgeError, match="80 wide, and 4-bit blocks of an ExecuTorch program are 32"):
        written_decoder(tmp_path, "8da4w", dataclasses.replace(CONFIG, ffn=80))


def test_a_tokenizer_that_is_larger_than_the_table_is_refused(tmp_path):
    larger = json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": CONFIG.vocab, "content": "b"}]})
    with pytest.raises(CheckpointError, match="the token 320, and the embedding table has 320 rows"):
        written_decoder(tmp_path, "fp32", tokenizer=larger)


@pytest.fixture(scope="module")
def joined(exact, sees, tmp_path_factory):
    path = tmp_path_factory.mktemp("joined") / format.JOINED
    format.join([sees[1].files[0], exact[1].files[0]], path)
    return path


def test_one_file_has_the_methods_of_both(exact, sees, joined):
    both = {**executorch.read(sees[1].files[0]).methods, **executorch.read(exact[1].files[0]).methods}
    assert executorch.read(joined).methods == both
    assert executorch.read(joined).constant("get_max_context_len") == CONFIG.context
    assert joined.stat().st_size < sum(part.files[0].stat().st_size for _, part in (exact, sees))


OPENED = {  # path -> what runs a method of all of them, loaded from one program
    "executorch": """
from executorch.extension.pybindings import _portable_lib as bindings
from runtimes import executorch as engine
engine._load_kernels()
bindings._unsafe_reset_threadpool(1)

def opened(path, names):
    program = bindings._load_program(path)
    methods = {name: program.load_method(name) for name in names}
    return lambda name, *arrays: methods[name].call([torch.from_numpy(a) for a in arrays])[0].numpy().copy()
""",
    "executorch_native": """
from edge_executorch import Program

def opened(path, names):
    program = Program(path, names, 1)
    return lambda name, *arrays: program.run(name, *arrays)[0]
""",
}
INTERLEAVED = """
path, side, hidden = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
generator = numpy.random.default_rng(1)
pixels, rows = (generator.normal(size=size).astype("float32") for size in ((1, 3, side, side), (1, 12, hidden)))
others = {"vision_encoder": pixels, "token_embedding": numpy.array([[3, 1, 4]])}

def decoded(between):
    "Logits after 8 rows and then one by one, with other methods of the same program run before each."
    run = opened(path, [*others, "text_decoder"])
    found, start = [], 0
    for length, names in zip((8, 1, 1, 1, 1), (between, *([between] * 4))):
        for name in names:
            run(name, others[name])
        piece = numpy.ascontiguousarray(rows[:, start:start + length])
        found.append(run("text_decoder", piece, numpy.array([start])))
        start += length
    return numpy.concatenate(found)

alone = decoded(())
assert alone.std() > 0.01
for count in (1, 2, 3):
    for names in itertools.product(others, repeat=count):
        print(float(abs(decoded(names) - alone).max()), *names)
"""


@each_engine
def test_methods_of_one_program_leave_each_other_s_memory_alone(engine, joined, sees):
    """In one memory for all, as a phone has it; the engine itself loads each half by itself."""
    side = str(sees[1].inputs[0].shape[2])
    code = "import itertools, sys\nimport numpy, torch\n" + OPENED[engine] + INTERLEAVED
    arguments = [sys.executable, "-c", code, str(joined), side, str(CONFIG.hidden)]
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert len(lines) == 2 + 4 + 8
    assert {line for line in map(tuple, lines) if float(line[0]) > 0} == set()


@each_engine
def test_the_engine_opens_both_halves_of_one_file(engine, exact, sees, joined):
    graph = open_part(dataclasses.replace(sees[1], files=(joined,)), engine, OPTIONS)
    decoder = open_part(dataclasses.replace(exact[1], files=(joined,)), engine, OPTIONS)
    ids, rows = prompt(exact[0], 12)
    values = pixels(sees[1].inputs[0].shape[2])
    with torch.inference_mode():
        expected = sees[0](torch.from_numpy(values)).numpy()
    decoder.extend([Tokens(ids[:11])])
    np.testing.assert_allclose(graph.run({"pixel_values": values})["image_embeds"], expected, atol=1e-4)
    np.testing.assert_allclose(decoder.extend([Tokens(ids[11:])]), reference(exact[0], rows), atol=1e-4)


@each_engine
def test_a_part_that_is_another_s_is_refused(engine, exact, sees):
    with pytest.raises(BundleError, match="has no method vision_encoder; it has enable_dynamic_shape, "):
        open_part(dataclasses.replace(sees[1], files=exact[1].files), engine, OPTIONS)
    longer = dataclasses.replace(exact[1].decoder, context=49)
    with pytest.raises(BundleError, match="built for a context of 48, and the manifest says 49"):
        open_part(dataclasses.replace(exact[1], decoder=longer), engine, OPTIONS)
    wider = dataclasses.replace(exact[1].decoder, vocab=321)
    with pytest.raises(BundleError, match=r"text_decoder of decoder\.pte is not what the manifest describes"):
        open_part(dataclasses.replace(exact[1], decoder=wider), engine, OPTIONS)
