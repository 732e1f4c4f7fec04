"""docs/bundle.md is enough to run a bundle: this reader was written from the page, and imports nothing of edge."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import REPOSITORY
from exported import Exports
from PIL import Image
from tokenizers import Tokenizer

CHECKPOINT = REPOSITORY / "exporters" / "demo" / "checkpoint"
PAGE = (REPOSITORY / "docs" / "bundle.md").read_text(encoding="utf-8")
TYPES = {"F32": "<f4", "I32": "<i4", "U8": "u1"}


class Reader:
    """Sections of the page stand before what was written from them."""

    def __init__(self, folder: Path) -> None:
        # "manifest.json", "Files"
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_bytes())
        assert self.manifest["schema"] == 2
        files = [file for part in self.manifest["parts"] for file in part["files"]]
        for entry in [*files, self.manifest["tokenizer"], self.manifest["golden"]]:
            name = entry["path"]
            assert not PurePosixPath(name).is_absolute() and not PureWindowsPath(name).anchor and ".." not in name
            content = (folder / name).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
        self.tokenizer = Tokenizer.from_file(str(folder / self.manifest["tokenizer"]["path"]))
        self.tokenizer.encode_special_tokens = True
        self.golden = self.safetensors(folder / self.manifest["golden"]["path"])

    # "Golden sample"

    def safetensors(self, path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            found[name] = np.frombuffer(content[start + first : start + last], TYPES[entry["dtype"]])
            found[name] = found[name].reshape(entry["shape"])
        return found

    # "From an image to pixel_values"

    def pixels(self, rgb: Any) -> Any:
        spec = self.manifest["image"]
        image, size = Image.fromarray(rgb), spec["size"]
        kernel = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[spec["resample"]]
        assert spec["fit"] == "pad"
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(spec["background"]))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        values = np.asarray(square.resize((size, size), kernel)) / 255.0
        values = (values - np.array(spec["mean"])) / np.array(spec["std"])
        return values.transpose(2, 0, 1)[None].astype(np.float32)

    # "Prompt"

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, question: str) -> list[list[int] | None]:
        spec = self.manifest["prompt"]
        before, _, after = spec["image"].partition("<image>")
        first, _, last = spec["user"].partition("{text}")
        start = spec["system"].replace("{text}", spec["default_system"]) + first + before
        return [[spec["bos_id"], *self.encode(start)], None, self.encode(after + question + last + spec["generation"])]

    # "ONNX", "Embedding table"

    def part(self, role: str) -> dict[str, Any]:
        (part,) = (part for part in self.manifest["parts"] if role in part["covers"])
        assert part["format"] == "onnx"
        return part

    def session(self, part: dict[str, Any]) -> ort.InferenceSession:
        return ort.InferenceSession(self.folder / part["files"][0]["path"], providers=["CPUExecutionProvider"])

    def see(self, pixels: Any) -> Any:
        part = self.part("vision")
        assert (part["inputs"][0]["name"], part["outputs"][0]["name"]) == ("pixel_values", "image_embeds")
        return self.session(part).run(["image_embeds"], {"pixel_values": pixels})[0]

    def rows(self, ids: list[int]) -> Any:
        table = np.load(self.folder / "embed_tokens.npy", mmap_mode="r")
        if table.dtype != np.int8:
            return table[ids].astype(np.float32)
        scales = np.load(self.folder / "embed_scales.npy", mmap_mode="r")[ids]
        return (table[ids].reshape(*scales.shape, -1) * scales[..., None]).reshape(len(ids), -1).astype(np.float32)

    def speak(self, rows: Any, count: int) -> tuple[Any, list[int]]:
        """Logits of the prompt's last position, and greedy tokens."""
        spec, session = self.manifest["decoder"], self.session(self.part("decoder"))
        length = len(rows) + count
        shape = (1, spec["kv_heads"], length, spec["head_dim"])
        tensors = {tensor["name"]: tensor for tensor in self.part("decoder")["inputs"]}
        kinds = {name: t["dtype"] for name, t in tensors.items() if name.startswith("past_key_values.")}
        cache = {name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, kind)) for name, kind in kinds.items()}
        first, tokens, position = None, [], 0
        for _ in range(count):
            binding = session.io_binding()
            position += len(rows)
            binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(rows[None]))
            binding.bind_cpu_input("attention_mask", np.ones((1, position), np.int64))
            for name, value in cache.items():
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
            binding.bind_output("logits")
            session.run_with_iobinding(binding)
            logits = binding.get_outputs()[-1].numpy()[0, -1]
            first = logits if first is None else first
            tokens.append(int(logits.argmax()))
            rows = self.rows(tokens[-1:])
        return first, tokens


@pytest.fixture(scope="module", params=["fp32", "default"])
def reader(exports: Exports, request: pytest.FixtureRequest) -> Reader:
    schemes = ("fp32",) if request.param == "fp32" else ()
    return Reader(exports.bundle(checkpoint=CHECKPOINT, schemes=schemes))


def test_an_image_becomes_the_very_numbers(reader: Reader) -> None:
    np.testing.assert_array_equal(reader.pixels(reader.golden["picture"]), reader.golden["pixel_values"])


def test_a_question_becomes_the_very_ids(reader: Reader) -> None:
    golden = reader.manifest["prompt"]["golden"]
    assert reader.prompt(golden["question"]) == golden["segments"]


def test_the_image_is_seen(reader: Reader) -> None:
    found, part = reader.see(reader.golden["pixel_values"]), reader.part("vision")
    held(found, reader.golden["image_embeds.stored"], part["tolerance"])


def test_the_golden_tokens_come_out(reader: Reader) -> None:
    segments = reader.manifest["prompt"]["golden"]["segments"]
    prompt = [reader.golden["image_embeds"][0] if ids is None else reader.rows(ids) for ids in segments]
    expected = reader.golden["tokens.stored"].tolist()
    logits, tokens = reader.speak(np.concatenate(prompt), len(expected))
    tolerance = reader.part("decoder")["tolerance"]
    held(logits, reader.golden["logits.stored"], tolerance)
    assert tokens == expected


def held(found: Any, reference: Any, tolerance: dict[str, float]) -> None:
    a, b = found.ravel().astype(np.float64), reference.ravel().astype(np.float64)
    measured = {"max_abs": abs(a - b).max(), "cosine": a @ b / math.sqrt((a @ a) * (b @ b))}
    assert found.shape == reference.shape
    assert measured["max_abs"] <= tolerance.get("max_abs", math.inf)
    assert measured["cosine"] >= tolerance["cosine"]


def named(schema: Any) -> set[str]:
    """Every property of a JSON schema, however deep."""
    if isinstance(schema, list):
        return set().union(*map(named, schema))
    if not isinstance(schema, dict):
        return set()
    own = set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
    return own.union(*map(named, schema.values()))


def test_the_page_names_every_field_of_the_schema() -> None:
    schema = json.loads((REPOSITORY / "edge" / "bundle" / "manifest.schema.json").read_text())
    missing = [name for name in sorted(named(schema)) if f"`{name}`" not in PAGE]
    assert missing == []
