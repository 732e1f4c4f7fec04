"""A format is one folder: a new one is exported, proven and documented by being there, and so is what opens it."""

from __future__ import annotations

import importlib
import json

import pytest

from edge import cli, plugins

FORMAT = '''
"""Modules as torch pickles them."""

import torch

from edge.errors import UsageError
from edge.types import TensorSpec
from exporters.formats import Finished, Written, float_specs

SCHEMES = {"vision": {"whole": {"max_abs": 0.0}}, "decoder": {"whole": {"cosine": 0.99999}}}
TOOLS = ("numpy",)
OPTIONS = {
    "lucky": {"default": False, "for": "pickles", "help": "A number more in the manifest."},
    "word": {"default": (), "for": "pickles", "help": "Written beside.", "metavar": "TEXT"},
}
SAMPLES = 2


def encoder(job, module):
    path = job.folder / "vision.pt"
    assert len(job.samples) == 1, "the golden picture, and no calibration"
    torch.save(module, path)
    with torch.inference_mode():
        rows = module(job.samples[0])
    shapes = {"pixel_values": module.view_shape}, {"image_embeds": tuple(rows.shape)}
    return Written((path,), *map(float_specs, shapes), options=dict(job.options))


def decoder(job, module):
    path = job.folder / "decoder.pt"
    torch.save(module, path)
    return Written((path,), details={"lucky": 7} if job.options.get("lucky") else {})


def bounds(job):
    return {}


def check(job):
    if "unlucky" in job.options.get("word", ()):
        raise UsageError("not that word", hint="another")


def size(job):
    return 4 * job.component.weights


def finish(parts, folder, options):
    path = folder / "words.txt"
    path.write_text(" ".join(options.get("word", ())))
    return Finished(tuple(parts), (path,))
'''
EVALUATOR = '''
"""Opens `pickled` parts on torch."""

import torch

from edge.decoders.base import BaseDecoder
from edge.decoders.function_graph import FunctionGraph
from exporters.models.attention import GrowingCache

ENGINE = {"formats": ("pickled",), "package": "torch"}


def version():
    return torch.__version__


@torch.inference_mode()
def open(part, options):
    module = torch.load(part.files[0], weights_only=False)
    if part.decoder is not None:
        return Decoder(module, options.context)
    return FunctionGraph(part, lambda feeds: {"image_embeds": run(module, torch.from_numpy(feeds["pixel_values"]))})


@torch.inference_mode()
def run(module, *given):
    return module(*given).numpy()


class Decoder(BaseDecoder):
    """Computes everything anew at each step."""

    def __init__(self, module, context):
        self.module, self.rows = module, torch.zeros(1, 0, module.config.hidden)
        super().__init__(self, context)
        self.vocab = module.config.vocab

    @property
    def hidden(self):
        return self.module.config.hidden

    def gather(self, ids, out):
        out[:] = self.module.embed_tokens.weight[list(ids)].numpy()

    def _run(self, embeddings, position):
        config = self.module.config
        self.rows = torch.cat([self.rows[:, :position], torch.from_numpy(embeddings.copy())], dim=1)
        return run(self.module, self.rows, GrowingCache(config.heads, config.kv_heads, config.rope))[0, -1]
'''
ADDED = {"exporters.formats": {"pickled/__init__.py": FORMAT}, "exporters.evaluators": {"pickled.py": EVALUATOR}}


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The two, as if they lay in their folders."""
    for package, files in ADDED.items():
        for name, text in files.items():
            path = tmp_path / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        found = importlib.import_module(package)
        monkeypatch.setattr(found, "__path__", [*found.__path__, str(tmp_path / package)])
        monkeypatch.setattr(found.__spec__, "submodule_search_locations", found.__path__)
        monkeypatch.delitem(importlib.sys.modules, f"{package}.pickled", raising=False)
    plugins.names.cache_clear()
    yield
    plugins.names.cache_clear()
    plugins.facts.cache_clear()


def export(exports, output, *more):
    """The exit code."""
    given = ["export", str(exports.checkpoint()), "-o", str(output), "--format", "pickled", *more]
    try:
        return cli.main(given)
    except SystemExit as done:
        return done.code


def test_a_format_is_one_folder(added, exports, tmp_path, capsys):
    assert export(exports, tmp_path / "out", "--lucky", "--word", "a", "--word", "b", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"]["ok"] and told["report"]["evaluated"] == ["pickled"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    vision, decoder = manifest["parts"]
    assert set(manifest["versions"]) == {"edge-vlm", "torch", "numpy"}
    assert {part["format"] for part in manifest["parts"]} == {"pickled"}
    assert vision["options"] == {"lucky": True, "word": ["a", "b"]}
    assert decoder["details"] == {"lucky": 7}
    assert (tmp_path / "out" / "words.txt").read_text() == "a b"


def test_what_it_refuses_is_refused_before_the_work(added, exports, tmp_path, capsys):
    assert export(exports, tmp_path / "out", "--word", "unlucky") == 2
    assert "not that word" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_its_options_are_the_commands(added, capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    shown = capsys.readouterr().out
    assert "Options of pickled" in shown and "--lucky" in shown and "TEXT" in shown


def test_without_it_nothing_is_left(exports, tmp_path, capsys):
    assert export(exports, tmp_path / "out", "--lucky") == 2
    assert "lucky" in capsys.readouterr().err
