"""An `.mlpackage`: a directory of the program, its weights, and a list of both."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coremltools import proto
from coremltools.converters.mil.backend.mil.load import MILProtoExporter
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program
from coremltools.converters.mil.mil.types import symbolic

from exporters.formats.coreml import functions
from exporters.formats.coreml.weights import FILE, Weights
from exporters.mil.coremltools import TARGET

MODEL = "com.apple.CoreML/model.mlmodel"
WEIGHTS = "com.apple.CoreML/weights"
_NAMES = uuid.UUID("6f1d3d5e-3c0b-4f0e-9d0b-6b2b1f0a7c11")  # of the entries: the same export gives the same files


@dataclass(frozen=True)
class Metadata:
    """As Xcode shows it."""

    description: str
    author: str
    license: str
    version: str
    more: Mapping[str, str]


def weights_folder(package: Path) -> Path:
    folder = package / "Data" / WEIGHTS
    folder.mkdir(parents=True)
    return folder


def write(
    package: Path,
    written: Sequence[tuple[Function, functions.Description]],
    weights: Weights,
    metadata: Metadata,
) -> tuple[Path, ...]:
    """The package's files, its list first. The weight file is there already, in `weights_folder`."""
    weights.close()
    program, description = functions.program(written)
    _describe(description.metadata, metadata)
    exporter = _Exporter(program, weights)
    model = proto.Model_pb2.Model(specificationVersion=int(TARGET), description=description)
    model.mlProgram.CopyFrom(exporter.export())
    # The builder counts names and symbols in the process: the next package begins anew.
    mb.name_count.clear()
    symbolic.k_used_symbols.clear()
    file = package / "Data" / MODEL
    file.write_bytes(model.SerializeToString(deterministic=True))
    return _list(package), file, package / "Data" / WEIGHTS / FILE


class _Exporter(MILProtoExporter):  # type: ignore[misc]  # coremltools is not typed
    """coremltools' own, told where the weights lie already."""

    def __init__(self, program: Program, weights: Weights) -> None:
        super().__init__(program, "", int(TARGET))
        self.weight_id_to_file_value.update(weights.places)

    def get_blob_writer(self, weight_path: str) -> None:
        raise AssertionError(f"a constant of the program is not in {weight_path}")


def _describe(found: proto.Model_pb2.Metadata, metadata: Metadata) -> None:
    found.shortDescription = metadata.description
    found.author = metadata.author
    found.license = metadata.license
    found.versionString = metadata.version
    for key, value in metadata.more.items():
        found.userDefined[key] = value


def _list(package: Path) -> Path:
    entries = {
        _name(package, path): {"author": "com.apple.CoreML", "description": text, "name": Path(path).name, "path": path}
        for path, text in ((MODEL, "CoreML Model Specification"), (WEIGHTS, "CoreML Model Weights"))
    }
    listed = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": _name(package, MODEL),
    }
    file = package / "Manifest.json"
    file.write_text(json.dumps(listed, indent=4) + "\n", encoding="utf-8")
    return file


def _name(package: Path, path: str) -> str:
    return str(uuid.uuid5(_NAMES, f"{package.name}/{path}")).upper()
