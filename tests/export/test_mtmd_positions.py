"""What llama.cpp's multimodal library makes of an mmproj, with and without the position workaround, against the
definition of the tower in numpy: class token first, as the model has it, and last, as builds without #25844 have it."""

from __future__ import annotations

import ctypes

import gguf
import llama_cpp as lib
import numpy as np
import pytest
import torch
from llama_cpp import mtmd_cpp as mtmd
from small_models import write

from edge.formats.gguf import read
from exporters import pipeline
from exporters.formats import gguf as format
from exporters.gguf import doctor, quantizer
from exporters.gguf.fault import Change
from exporters.gguf.names import FEATURE_LAYER, POSITIONS, WORKAROUND
from exporters.gguf.rewrite import rewrite
from exporters.models.component import Component
from exporters.models.encoder import Encoder
from exporters.models.projectors import ProjectorConfig, find
from exporters.models.vision import clip
from exporters.models.vision.clip import TowerConfig
from exporters.sources.checkpoint import open_checkpoint

TOWER = TowerConfig(image_size=336, patch_size=14, hidden=64, layers=4, heads=2, ffn=96)
PATCHES = TOWER.grid**2
EXACT, FAR = 0.9999, 0.95  # the library multiplies in float16; another computation


@pytest.fixture(scope="module")
def checkpoint(exports):
    return open_checkpoint(str(exports.checkpoint()))


@pytest.fixture(scope="module")
def encoders(checkpoint):
    """By projector. Positions are as large as what they are added to, as in a trained tower: a wrong one is to show."""
    found = {}
    for kind in ("mlp2x_gelu", "ldpnetv2"):
        torch.manual_seed(3)
        module, depth = find(kind)
        hidden = checkpoint.spec.decoder.hidden
        sizes = ProjectorConfig(inputs=TOWER.hidden, hidden=hidden, grid=TOWER.grid, depth=depth)
        encoder = Encoder(clip.Tower(TOWER), module.Projector(sizes))
        for name, parameter in encoder.named_parameters():
            scale = 1.0 if "position" in name else 0.15
            parameter.data = (torch.randn(parameter.shape) * scale + ("norm" in name)).half().float()
        found[kind] = encoder.eval().requires_grad_(False)
    return found


@pytest.fixture(scope="module")
def picture():
    """RGB of the tower's own size: nothing is resized."""
    smooth = np.random.default_rng(5).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    return np.kron(smooth, np.ones((14, 14, 1), np.uint8))


def pixels(picture, checkpoint):
    image = checkpoint.spec.image
    return ((picture / 255 - image.mean) / image.std).transpose(2, 0, 1)  # [3, H, W]


def tower(state, chw, *, last=False, positions=None, layers=TOWER.run_layers):
    """Features `[PATCHES, hidden]` of the rows after the first, float64; `last` puts the class token behind."""
    w = {name.removeprefix("tower."): t.double().numpy() for name, t in state.items() if name.startswith("tower.")}
    size, grid = TOWER.patch_size, TOWER.grid
    cut = chw.reshape(3, grid, size, grid, size).transpose(1, 3, 0, 2, 4).reshape(PATCHES, -1)
    patches = cut @ w["embeddings.patch_embedding.weight"].reshape(TOWER.hidden, -1).T
    cls = w["embeddings.class_embedding"][None]
    x = np.concatenate([patches, cls] if last else [cls, patches])
    x = x + (w["embeddings.position_embedding.weight"] if positions is None else positions)
    x = norm(x, w, "pre_layrnorm")
    for n in range(layers):
        own = {name.removeprefix(f"layers.{n}."): v for name, v in w.items() if name.startswith(f"layers.{n}.")}
        h = norm(x, own, "layer_norm1")
        q, k, v = (linear(h, own, f"self_attn.{p}_proj").reshape(len(x), TOWER.heads, -1).swapaxes(0, 1) for p in "qkv")
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True)) @ v
        x = x + linear(mixed.swapaxes(0, 1).reshape(x.shape), own, "self_attn.out_proj")
        up = linear(norm(x, own, "layer_norm2"), own, "mlp.fc1")
        x = x + linear(up / (1 + np.exp(-1.702 * up)), own, "mlp.fc2")
    return x[1:]


def norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + TOWER.eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def projected(encoder, features):
    return encoder.projector(torch.from_numpy(features).float()[None])[0].numpy()


def cosine(a, b):
    """Of what differs from row to row: all rows have much in common."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def written(checkpoint, encoder, folder, workaround):
    component = Component("mmproj", lambda: encoder, {})
    options = {"checkpoint": checkpoint, "options": {"mtmd_position_workaround": workaround}}
    (path,), *_ = write(format, component, encoder, "f16", folder, lambda done: None, **options)
    return path


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory):
    """The pair's decoder, which the library asks for its width."""
    component = pipeline.components(checkpoint)[1]
    folder = tmp_path_factory.mktemp("decoder")
    module = component.load(checkpoint.weights)
    (path,), *_ = write(format, component, module, "f16", folder, lambda done: None, checkpoint=checkpoint)
    with quantizer._listening(lib):
        loaded = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        yield loaded
        lib.llama_model_free(loaded)


SILENT = lib.llama_log_callback(lambda level, text, data: None)


def encoded(model, mmproj, picture):
    """The library's rows for a picture."""
    mtmd.mtmd_log_set(SILENT, None)
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.print_timings, params.warmup, params.n_threads = False, False, False, 1
    context = mtmd.mtmd_init_from_file(str(mmproj).encode(), model, params)
    assert context
    height, width, _ = picture.shape
    data = np.ascontiguousarray(picture)
    bitmap = mtmd.mtmd_bitmap_init(width, height, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
    chunks = mtmd.mtmd_input_chunks_init()
    try:
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0
        found = [mtmd.mtmd_input_chunks_get(chunks, n) for n in range(mtmd.mtmd_input_chunks_size(chunks))]
        (chunk,) = (c for c in found if mtmd.mtmd_input_chunk_get_type(c) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE)
        assert mtmd.mtmd_encode_chunk(context, chunk) == 0
        shape = mtmd.mtmd_input_chunk_get_n_tokens(chunk), lib.llama_model_n_embd(model)
        return np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), shape).copy()
    finally:
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        mtmd.mtmd_free(context)


def test_the_definition_is_what_torch_computes(encoders, picture, checkpoint):
    for encoder in encoders.values():
        chw = pixels(picture, checkpoint)
        features = encoder.tower(torch.from_numpy(chw).float()[None])[0].numpy()
        np.testing.assert_allclose(tower(encoder.state_dict(), chw), features, atol=2e-3)


def test_the_wrong_build_is_right_but_for_one_patch(encoders, picture, checkpoint):
    """Exactly: attention does not ask in which order its rows lie."""
    state, chw = encoders["ldpnetv2"].state_dict(), pixels(picture, checkpoint)
    right = tower(state, chw)
    positions = state["tower.embeddings.position_embedding.weight"].double().numpy()
    rolled = tower(state, chw, last=True, positions=np.roll(positions, -1, axis=0))
    np.testing.assert_allclose(rolled[:-1], right[1:], atol=1e-9)
    wrong = tower(state, chw, last=True)
    assert cosine(wrong[:-1], right[1:]) < FAR
    assert cosine(wrong, right) < FAR


@pytest.mark.parametrize("kind", ["mlp2x_gelu", "ldpnetv2"])
def test_the_library_computes_one_of_the_two(checkpoint, encoders, kind, model, picture, tmp_path):
    """The build that is installed puts the class token last, or first; the workaround is right on the former only."""
    encoder, chw = encoders[kind], pixels(picture, checkpoint)
    state = encoder.state_dict()
    positions = np.roll(state["tower.embeddings.position_embedding.weight"].double().numpy(), -1, axis=0)
    definitions = {
        (last, where is not None): projected(encoder, tower(state, chw, last=last, positions=where))
        for last in (False, True)
        for where in (None, positions)
    }
    (tmp_path / "plain").mkdir()
    plain = encoded(model, written(checkpoint, encoder, tmp_path / "plain", False), picture)
    rolled = encoded(model, written(checkpoint, encoder, tmp_path, True), picture)
    (last,) = (last for last in (False, True) if cosine(plain, definitions[last, False]) > EXACT)
    assert cosine(plain, definitions[not last, False]) < FAR
    assert cosine(rolled, definitions[last, True]) > EXACT
    right = definitions[False, False]
    if kind == "mlp2x_gelu" and last:  # a row a patch: nothing mixes the shifted ones
        assert cosine(rolled[:-1], right[1:]) > EXACT
        assert cosine(plain[:-1], right[1:]) < FAR
    if not last:
        assert cosine(rolled, right) < FAR


def test_a_layer_too_few_without_the_setting(checkpoint, encoders, model, picture, tmp_path, monkeypatch):
    """What the doctor says about a file without it."""
    add_array = gguf.GGUFWriter.add_array

    def without(self, key, value):
        if key != "clip.vision.feature_layer":
            add_array(self, key, value)

    monkeypatch.setattr(gguf.GGUFWriter, "add_array", without)
    encoder, chw = encoders["mlp2x_gelu"], pixels(picture, checkpoint)
    found = encoded(model, written(checkpoint, encoder, tmp_path, False), picture)
    state, few = encoder.state_dict(), TOWER.run_layers - 1
    fewer = [projected(encoder, tower(state, chw, last=last, layers=few)) for last in (False, True)]
    whole = [projected(encoder, tower(state, chw, last=last)) for last in (False, True)]
    assert max(cosine(found, rows) for rows in fewer) > EXACT
    assert max(cosine(found, rows) for rows in whole) < FAR


def test_a_repaired_file_gives_the_same_rows(checkpoint, encoders, model, picture, tmp_path):
    """Swapped tensors are turned back by the library itself; a layer too few is not."""
    sound = written(checkpoint, encoders["ldpnetv2"], tmp_path, False)
    names = {}
    for layer in range(TOWER.run_layers):
        for end in ("weight", "bias"):
            up, down = (f"v.blk.{layer}.ffn_{way}.{end}" for way in ("up", "down"))
            names |= {up: down, down: up}
    rewrite(read(sound), tmp_path / "swapped.gguf", Change(names=names))
    rewrite(read(tmp_path / "swapped.gguf"), tmp_path / "mmproj.gguf", Change({FEATURE_LAYER: (1,)}))
    doctor.repair([tmp_path / "mmproj.gguf"], tmp_path / "out", False)
    rows = encoded(model, sound, picture)
    np.testing.assert_array_equal(encoded(model, tmp_path / "swapped.gguf", picture), rows)
    assert cosine(encoded(model, tmp_path / "mmproj.gguf", picture), rows) < FAR
    np.testing.assert_array_equal(encoded(model, tmp_path / "out" / "mmproj.gguf", picture), rows)
    doctor.repair([tmp_path / "mmproj.gguf"], tmp_path / "rolled", True)
    by_export = written(checkpoint, encoders["ldpnetv2"], tmp_path / "out", True)
    rolled = encoded(model, tmp_path / "rolled" / "mmproj.gguf", picture)
    np.testing.assert_array_equal(rolled, encoded(model, by_export, picture))


def test_the_file_says_so_and_the_module_does_not_change(checkpoint, encoders, tmp_path):
    encoder = encoders["ldpnetv2"]
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    (tmp_path / "plain").mkdir()
    plain = gguf.GGUFReader(written(checkpoint, encoder, tmp_path / "plain", False))
    rolled = gguf.GGUFReader(written(checkpoint, encoder, tmp_path, True))
    assert WORKAROUND not in plain.fields and rolled.fields[WORKAROUND].contents() is True
    for one, other in zip(plain.tensors, rolled.tensors, strict=True):
        expected = np.roll(one.data, -1, axis=0) if one.name == POSITIONS else one.data
        np.testing.assert_array_equal(expected, other.data, err_msg=one.name)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
