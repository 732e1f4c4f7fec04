"""Bundle and manifest: a directory of `manifest.json`, parts, `tokenizer.json` and a golden sample."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edge.bundle import manifest_file, schema1
from edge.errors import BundleError
from edge.spec import MOST, VLMSpec
from edge.types import PartFiles, TensorSpec

SCHEMA = 2
_STREAMS = sys.platform == "win32"  # where `name:stream` is another content of the file
MOST_TEXT = 1 << 12  # letters of a name, a licence or a recipe
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
OLDEST_SCHEMA = 1  # a reader accepts its own and the one before
MANIFEST = "manifest.json"
ROLES = ("vision", "projector", "decoder")
NUMBERS = (".data", ".npy")  # how files end that hold numbers only: no native code parses them
ADOPTED = "adopted"  # of a part's options
MEASURES = ("max_abs", "cosine", "tokens")  # what a tolerance bounds; tokens only where a decoder is


@dataclass(frozen=True)
class File:
    path: str  # relative to the bundle, with forward slashes
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """One written artifact that covers one or more adjacent roles.

    `tolerance` bounds the distance to torch on the same stored weights: `max_abs` from above; `cosine` and `tokens`,
    the share of equal greedy tokens, from below. `error` holds what the export measured, against them and fp32.
    `options` holds what the export was told of this part beyond its scheme, by the options' names.
    `bytes`, where files hold other parts too: how many of them are this one's.
    """

    covers: tuple[str, ...]
    format: str
    scheme: str
    files: tuple[File, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerance: Mapping[str, float] = field(default_factory=dict)
    error: Mapping[str, float] = field(default_factory=dict)
    weights: int | None = None  # of its modules; None: schema 1. An embedding table that is the head too counts twice
    options: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)  # what only its format has, for apps that open it
    bytes: int | None = None

    @property
    def adopted(self) -> bool:
        """Whether it is a file as somebody published it: kept byte for byte, and not proven."""
        return self.options.get(ADOPTED) is True

    @property
    def size(self) -> int:
        """Bytes of its files, or what of them is its own."""
        return sum(file.bytes for file in self.files) if self.bytes is None else self.bytes


@dataclass(frozen=True)
class Manifest:
    name: str
    source: Mapping[str, str]  # name, sha256 of the checkpoint's content; never a path
    license: str
    recipe: str
    spec: VLMSpec
    # question, segments: token ids around the picture (None stands for it); views, where it is divided: how many, the
    # embeddings of all, and their segments
    golden_prompt: Mapping[str, Any]
    parts: tuple[Part, ...]
    tokenizer: File
    golden: File
    versions: Mapping[str, str]
    companions: tuple[File, ...] = ()  # for other people's tools: no part, and nothing here opens them
    schema: int = SCHEMA  # of the file that it was read from

    def part(self, role: str) -> Part:
        for part in self.parts:
            if role in part.covers:
                return part
        raise BundleError(f"the bundle has no part for the role {role!r}", hint="export the bundle again")

    @property
    def sees(self) -> bool:
        """Whether it has what turns a picture into rows. Without, it answers questions about none."""
        return any("vision" in part.covers or "projector" in part.covers for part in self.parts)

    def own(self) -> tuple[File, ...]:
        """All but what is there for other people's tools."""
        parts = dict.fromkeys(file for part in self.parts for file in part.files)  # several may lie in one
        return (*parts, self.tokenizer, self.golden)

    def files(self) -> tuple[File, ...]:
        return (*self.own(), *self.companions)

    def to_json(self) -> dict[str, Any]:
        """In this version's schema. One that was read from an older one lacks what that does not tell."""
        spec = self.spec.to_json()
        return {
            "schema": SCHEMA,
            "name": self.name,
            "source": dict(self.source),
            "license": self.license,
            "recipe": self.recipe,
            "image": spec["image"],
            "prompt": {**spec["prompt"], "golden": dict(self.golden_prompt)},
            **({"vision": spec["vision"]} if spec["vision"] else {}),
            "decoder": spec["decoder"],
            "parts": [_part_json(part) for part in self.parts],
            "tokenizer": asdict(self.tokenizer),
            "golden": asdict(self.golden),
            "companions": [asdict(file) for file in self.companions],
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Raises BundleError on whatever is not a manifest that this reader knows."""
        if not isinstance(data, dict) or type(data.get("schema")) is not int:
            raise BundleError("manifest.json carries no schema number", hint="is this a bundle?")
        if not OLDEST_SCHEMA <= data["schema"] <= SCHEMA:
            raise BundleError(
                f"manifest.json has schema {data['schema']}; this edge-vlm reads {OLDEST_SCHEMA} and {SCHEMA}",
                hint="pip install -U edge-vlm" if data["schema"] > SCHEMA else "export the bundle again",
            )
        if data["schema"] == 1:
            data = schema1.upgraded(data)
        try:
            return cls(
                schema=data["schema"],
                name=_text(data, "name"),
                source=_texts(data["source"]),
                license=_text(data, "license"),
                recipe=_text(data, "recipe"),
                spec=VLMSpec.from_json(data),
                golden_prompt=_golden_prompt(data["prompt"]["golden"]),
                parts=tuple(_part(p, data["schema"]) for p in data["parts"]),
                tokenizer=_file(data["tokenizer"]),
                golden=_file(data["golden"]),
                versions=_texts(data["versions"]),
                companions=tuple(_file(f) for f in data.get("companions", ())),
            )
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise BundleError(f"manifest.json is damaged: {error!r}", hint="export the bundle again") from error


def _text(data: Mapping[str, Any], name: str) -> str:
    if len(text := str(data[name])) > MOST_TEXT:
        raise ValueError(f"{name} has {len(text):,} letters, at most {MOST_TEXT:,} are read")
    return text


def _file(data: Mapping[str, Any]) -> File:
    path = str(data["path"])
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    # A manifest is untrusted: a file of a bundle lies inside it, whatever system reads it.
    if not path or posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts + windows.parts:
        raise BundleError(f"manifest.json names a file outside the bundle: {path!r}", hint="do not use this bundle")
    if _CONTROL.search(path) or (_STREAMS and ":" in path):
        raise BundleError(f"manifest.json names no file that can be: {path!r}", hint="do not use this bundle")
    if (size := int(data["bytes"])) < 0:
        raise ValueError(f"{path} has {size} bytes")
    return File(path, size, str(data["sha256"]))


def _texts(data: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in data.items()}


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in data.items()}


def _tolerance(data: Mapping[str, Any], covers: tuple[str, ...]) -> dict[str, float]:
    known = MEASURES if "decoder" in covers else MEASURES[:2]
    if unknown := [measure for measure in data if measure not in known]:
        raise BundleError(
            f"manifest.json bounds the {'+'.join(covers)} by {', '.join(map(repr, unknown))}",
            hint="pip install -U edge-vlm: this one measures " + ", ".join(known),
        )
    return _numbers(data)


def _golden_prompt(data: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"question": str(data["question"]), "segments": _segments(data)}
    if (views := data.get("views")) is not None:
        counts = {name: _count(views, name, MOST) for name in ("count", "image_tokens")}
        found["views"] = {**counts, "segments": _segments(views)}
    return found


def _segments(data: Mapping[str, Any]) -> list[list[int] | None]:
    return [None if ids is None else [int(i) for i in ids] for ids in data["segments"]]


def _tensor(data: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else str(d) for d in data["shape"])
    return TensorSpec(str(data["name"]), str(data["dtype"]), shape)


def _part_json(part: Part) -> dict[str, Any]:
    optional = {"weights": part.weights, "options": part.options, "details": part.details, "bytes": part.bytes}
    return {key: value for key, value in asdict(part).items() if key not in optional or optional[key]}


def _count(data: Mapping[str, Any], name: str, most: int) -> int:
    if type(count := data[name]) is not int or not 1 <= count <= most:
        raise BundleError(f"manifest.json has {name} {count!r}", hint="export the bundle again")
    return count


def _part(data: Mapping[str, Any], schema: int) -> Part:
    covers = tuple(data["covers"])
    if not covers or any(role not in ROLES for role in covers):
        raise BundleError(f"manifest.json has a part that covers {list(covers)}", hint="roles: " + ", ".join(ROLES))
    files = tuple(_file(f) for f in data["files"])
    if not files:
        raise BundleError(f"manifest.json has a part without files: {'+'.join(covers)}", hint="export the bundle again")
    options = dict(data.get("options", {}))
    if schema == 1 and data.get("tensor_types"):
        options["tensor_type"] = [str(word) for word in data["tensor_types"]]
    return Part(
        covers=covers,
        format=str(data["format"]),
        scheme=str(data["scheme"]),
        files=files,
        inputs=tuple(_tensor(t) for t in data["inputs"]),
        outputs=tuple(_tensor(t) for t in data["outputs"]),
        tolerance=_tolerance(data["tolerance"], covers),
        error=_numbers(data["error"]),
        weights=None if schema == 1 else _count(data, "weights", 2**63 - 1),
        options=options,
        details=dict(data.get("details", {})),
        bytes=_count(data, "bytes", sum(file.bytes for file in files)) if "bytes" in data else None,
    )


@dataclass(frozen=True)
class Bundle:
    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and validate the manifest, and see that every file is there with its size. `check` reads them whole.

        A file that lies outside, as links of the hub's cache lead to, is hashed here, before anything else reads it.
        """
        root = Path(path)
        file = root / MANIFEST
        if not file.is_file():
            what = (
                "has no manifest.json" if root.is_dir() else "is not a directory" if root.exists() else "does not exist"
            )
            raise BundleError(
                f"no bundle at {str(path)!r}: it {what}", hint="edge export CHECKPOINT -o BUNDLE makes one"
            )
        try:
            data = manifest_file.read(file)
        except OSError as error:
            raise BundleError(f"cannot read {file}: {error.strerror}", hint="check who may read it") from error
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{file} is not JSON: {error}", hint="export the bundle again") from error
        bundle = cls(root, Manifest.from_json(data))
        for entry in bundle.manifest.files():
            try:
                bundle._sized(entry)
                bundle._check_link(entry)
            except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
                raise BundleError(f"cannot look at {entry.path!r}: {error}", hint="do not use this bundle") from error
        return bundle

    def file(self, entry: File) -> Path:
        return self.path / entry.path

    def files(self, part: Part) -> PartFiles:
        return PartFiles(
            format=part.format,
            scheme=part.scheme,
            covers=part.covers,
            files=tuple(self.file(f) for f in part.files),
            inputs=part.inputs,
            outputs=part.outputs,
            decoder=self.manifest.spec.decoder if "decoder" in part.covers else None,
            adopted=part.adopted,
        )

    def check(self) -> None:
        """Hash every file. Raises BundleError on the first that is not what was exported."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            for entry, digest in zip(
                self.manifest.files(), pool.map(lambda f: sha256(self.file(f)), self.manifest.files()), strict=True
            ):
                require(entry, digest)

    def _sized(self, entry: File) -> None:
        path = self.file(entry)
        if not path.is_file():
            raise BundleError(f"the bundle lacks {entry.path}", hint="copy or export the bundle again")
        if (size := path.stat().st_size) != entry.bytes:
            raise BundleError(
                f"{entry.path} has {size} bytes, expected {entry.bytes}", hint="copy or export the bundle again"
            )

    def _check_link(self, entry: File) -> None:
        """A link may lead outside to what the manifest describes, and to nothing else: a bundle from elsewhere must not
        have a user's own files opened by an engine, shown, or copied to another machine."""
        from edge.bundle import checksums

        if self.file(entry).resolve().is_relative_to(self.path.resolve()):
            return
        try:
            checksums.check(self, (entry,))
        except BundleError as error:
            raise BundleError(
                f"{entry.path} links to a place outside the bundle, and not to the file that was exported",
                hint="do not use this bundle; one of the hub's cache can be downloaded again",
            ) from error


def require(entry: File, digest: str) -> None:
    """Raises BundleError where a file's sha256 is not what the manifest says."""
    if digest != entry.sha256:
        raise BundleError(
            f"{entry.path} is not the file that was exported: sha256 {digest[:12]}…, expected {entry.sha256[:12]}…",
            hint="copy or export the bundle again",
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(root: Path, path: Path) -> File:
    """The manifest's entry of a written file."""
    return File(path.relative_to(root).as_posix(), path.stat().st_size, sha256(path))


def write_manifest(root: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False) + "\n"
    (root / MANIFEST).write_text(text, encoding="utf-8")
