"""What one uploads to a hub: the bundle itself, and a card that a manifest's words cannot break."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from commands import call

from edge.bundle import hub_folder
from edge.bundle.manifest import Bundle
from edge.errors import BundleError, UsageError


def test_the_folder_is_the_bundle_and_its_card(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = make_bundle()
    said = call("package", bundle.path, "--hub", tmp_path / "upload")
    assert said.code == 0
    uploaded = Bundle.open(tmp_path / "upload")
    uploaded.check()
    assert uploaded.manifest == bundle.manifest
    more = {p.name for p in uploaded.path.iterdir()} - {p.name for p in bundle.path.iterdir()}
    assert more == {"README.md", ".gitattributes"}
    assert (uploaded.path / "README.md").read_text(encoding="utf-8") == hub_folder.card(bundle.manifest)


def test_the_card_says_what_was_proven(make_bundle: Callable[..., Bundle]) -> None:
    manifest = make_bundle().manifest
    vision, decoder = manifest.parts
    vision = replace(
        vision,
        error={"vision.stored.cosine": 0.99999, "vision.stored.max_abs": 0.025, "vision.fp32.loss": 4e-5},
        tolerance={"cosine": 0.9999},
    )
    decoder = replace(decoder, error={"tokens.fp32.tokens": 1.0}, tolerance={})
    text = hub_folder.card(replace(manifest, parts=(vision, decoder), license="Apache-2.0"))
    assert "license: apache-2.0\n" in text
    rows = [line for line in text.splitlines() if line.startswith(("| vision", "| decoder"))]
    assert [re.split(r" \| ", row.strip("| "))[4:] for row in rows] == [
        ["image embeddings", "the weights as stored", "0.025", "0.99999", "", "cosine ≥ 0.9999"],
        ["greedy answer", "the checkpoint in fp32", "", "", "1"],
    ]


def test_words_of_a_manifest_mark_nothing_up(make_bundle: Callable[..., Bundle]) -> None:
    evil = 'x\n---\n# <script>alert(1)</script> [a](http://b) | `c` "quoted"'
    text = hub_folder.card(replace(make_bundle().manifest, name=evil, license=evil))
    head, body = text.split("\n---\n", 1)
    assert 'license: other\nlicense_name: "x\\n---\\n# ' in head
    title = next(line for line in body.splitlines() if line.startswith("# "))
    assert title == r"# x \-\-\- \# &lt;script\>alert\(1\)&lt;/script\> \[a\]\(http\://b\) \| \`c\` " + '"quoted"'


def test_large_files_go_to_the_hubs_store(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    assert hub_folder.package(bundle, tmp_path / "small") > 0
    assert (tmp_path / "small" / ".gitattributes").read_text() == ""
    monkeypatch.setattr(hub_folder, "_SMALL", 0)
    hub_folder.package(bundle, tmp_path / "large")
    lines = (tmp_path / "large" / ".gitattributes").read_text().splitlines()
    assert len(lines) == len({file.path for file in bundle.manifest.files()})
    assert '"vision.onnx" filter=lfs diff=lfs merge=lfs -text' in lines


def test_what_is_there_and_what_is_damaged_are_left_alone(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = make_bundle()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        hub_folder.package(bundle, tmp_path / "mine")
    (bundle.path / "vision.onnx").write_bytes(b"vision graqh")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        hub_folder.package(bundle, tmp_path / "upload")
    assert not (tmp_path / "upload").exists()


def test_one_place_at_a_time(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = make_bundle()
    for options in ((), ("--hub", tmp_path / "a", "--zip", tmp_path / "b.zip")):
        said = call("package", bundle.path, *options)
        assert said.code == 2
        assert "one place at a time" in said.err
