"""What the run side lets llama.cpp open is what the families of decoders write."""

from __future__ import annotations

import json

from conftest import REPOSITORY

from edge import plugins


def test_the_list_is_that_of_the_families() -> None:
    written = {
        plugins.facts("exporters.models.decoders", name)["ARCHITECTURE"]
        for name in plugins.names("exporters.models.decoders")
    }
    assert set(json.loads((REPOSITORY / "edge" / "formats" / "gguf_architectures.json").read_bytes())) == written
