"""Decoder families are alternatives: each is found by the listing, and nothing outside their folder knows one."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edge import plugins
from edge.errors import CheckpointError
from exporters.gguf import names
from exporters.models import decoders
from exporters.models.attention import GrowingCache

REPOSITORY = Path(__file__).parents[2]
FAMILIES = plugins.names("exporters.models.decoders")


def load(name):
    return plugins.load("exporters.models.decoders", name)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_what_others_ask_of_it(name):
    module = load(name)
    assert name == module.KIND
    assert module.ARCHITECTURE in names.decoders()
    reader = decoders.of_architecture(module.ARCHITECTURE)
    assert reader is module or reader.KIND == module.ARCHITECTURE
    for model_type in module.MODEL_TYPES:
        assert decoders.find(model_type) is module
    config = module.tiny().config
    assert decoders.family(config) is module
    assert decoders.family(dataclasses.replace(config, context=99)) is module
    assert config.rope.head_dim == config.head_dim
    asked = {word for word in dir(decoders.DecoderConfig) if not word.startswith("_")}
    assert asked and not [word for word in asked if not hasattr(config, word)]


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_of_files_and_checkpoints_are_those_of_the_module(name):
    module = load(name)
    decoder = module.tiny()
    config, state = decoder.config, decoder.state_dict()
    assert module.keys(config).keys() == state.keys()
    tensors = module.gguf_tensors(config)
    assert state.keys() - tensors.keys() == ({"lm_head.weight"} if config.tied else set())
    for parameter, pieces in tensors.items():
        assert sum(piece.rows for piece in pieces) == len(state[parameter])
    written = [piece.name for pieces in tensors.values() for piece in pieces]
    assert len(written) == len(set(written))


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_cached_is_uncached(name):
    decoder = load(name).tiny().eval()
    config = decoder.config
    embeds = torch.randn(1, 7, config.hidden, generator=torch.Generator().manual_seed(3))
    cache = GrowingCache(config.heads, config.kv_heads, config.rope)
    for piece in (embeds[:, :4], embeds[:, 4:5], embeds[:, 5:]):
        logits = decoder(piece, cache)
    whole = decoder(embeds, GrowingCache(config.heads, config.kv_heads, config.rope))
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)


def test_no_two_families_claim_the_same():
    entries = [entry for name in FAMILIES for entry in load(name).MODEL_TYPES]
    assert len(entries) == len(set(entries))


def test_what_several_write_is_read_by_the_family_of_that_name():
    written = [load(name).ARCHITECTURE for name in FAMILIES]
    assert all(written.count(name) == 1 or name in FAMILIES for name in written)
    assert len(set(names.decoders())) == len(names.decoders())


def test_an_unknown_family_is_refused_by_name():
    with pytest.raises(CheckpointError, match="no decoder for the model_type 'gpt_neox'") as error:
        decoders.find("gpt_neox")
    for name in FAMILIES:
        assert load(name).MODEL_TYPES[0] in error.value.hint
    assert decoders.of_architecture("gptneox") is None


USES = """
import sys
from pathlib import Path
from exporters.gguf import decoder, names
from exporters.models import decoders
from exporters.models.component import Component

family = decoders.find("parrot")
assert Path(family.__file__).parent == Path(decoders.__file__).parent
assert decoders.of_architecture("parrot") is family
assert "parrot" in names.decoders()
config = family.tiny().config
component = Component("decoder", lambda: family.Decoder(config), family.keys(config))
assert decoders.family(component.skeleton().config) is family
assert {entry.name for entry in decoder.entries(family.tiny(), {})} >= {"token_embd.weight", "blk.0.attn_q.weight"}
"""


def test_a_new_family_is_one_file(tmp_path):
    for package in ("edge", "exporters"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "demo"))
    folder = tmp_path / "exporters" / "models" / "decoders"
    source = (folder / "llama.py").read_text(encoding="utf-8")
    for fact, told in (("KIND", '"parrot"'), ("MODEL_TYPES", '("parrot",)'), ("ARCHITECTURE", '"parrot"')):
        source, count = re.subn(rf"^{fact} = .*$", f"{fact} = {told}", source, flags=re.MULTILINE)
        assert count == 1
    (folder / "parrot.py").write_text(source, encoding="utf-8")
    call = [sys.executable, "-c", USES]
    done = subprocess.run(call, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
