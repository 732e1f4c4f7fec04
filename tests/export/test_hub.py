"""Checkpoints on the hub, without a network: the cache, and the errors."""

from __future__ import annotations

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

from edge.errors import CheckpointError
from exporters import standin
from exporters.sources import hub
from exporters.sources.checkpoint import open_checkpoint

NAME = "mtgv/MobileVLM_V2-1.7B"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (NAME, True),
        ("a/b", True),
        ("a", False),
        ("a/b/c", False),
        ("./a", False),
        ("../a", False),
        ("/a/b", False),
        ("a/", False),
        ("a b/c", False),
        ("C:\\a/b", False),
        ("~/a", False),
        ("", False),
    ],
)
def test_what_looks_like_a_name(text, name):
    assert hub.is_name(text) is name


def test_offline_and_not_in_the_cache(offline):
    with pytest.raises(CheckpointError, match="the hub cannot be asked") as caught:
        open_checkpoint(NAME)
    assert NAME in caught.value.message
    assert f"hf download {NAME} --local-dir DIR" in caught.value.hint


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_offline_and_in_the_cache(offline, format):
    repository = offline / "models--mtgv--MobileVLM_V2-1.7B"
    commit = "0123456789abcdef0123456789abcdef01234567"
    standin.write(repository / "snapshots" / commit, standin.SHAPES["tiny"], format=format, dtype=torch.bfloat16)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = open_checkpoint(NAME)
    assert found.name == "MobileVLM_V2-1.7B"
    assert found.weights.dtype("model.norm.weight") == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "match", "hint"),
    [
        (errors.GatedRepoError, "accept its licence", f"https://huggingface.co/{NAME}"),
        (errors.RepositoryNotFoundError, "no such model on the hub", "HF_TOKEN"),
        (errors.HfHubHTTPError, "cannot be asked", "hf download"),
        (OSError, "cannot be asked", "hf download"),
        (errors.HFValidationError, "cannot be asked", "hf download"),
    ],
)
def test_errors(monkeypatch, kind, match, hint):
    def fail(name, **options):
        raise kind.__new__(kind, "server said no\nat length")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=match) as caught:
        hub.fetch(NAME)
    assert hint in caught.value.hint
    assert "at length" not in caught.value.message


def test_only_what_is_needed_is_asked_for(monkeypatch, tmp_path):
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match="has no weights"):
        hub.fetch(NAME)
    assert [patterns[-1] for _, patterns in asked] == ["model*.safetensors", "pytorch_model*.bin"]
    (tmp_path / "model.safetensors").touch()
    assert hub.fetch(NAME) == tmp_path
    assert len(asked) == 3  # the pickles were not asked for again
