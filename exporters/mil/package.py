"""Open an `.mlpackage`: its list, its program, its weights. What is not a sound package of ours is refused here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coremltools import proto
from google.protobuf.message import DecodeError

from edge.errors import BundleError
from exporters.mil.blob import Blob

STATES = 9  # of iOS 18 and macOS 15: the first specification with states and with several functions
NEWEST = 9  # what this reads
_MOST = 1 << 28  # bytes of a program: its weights lie elsewhere
_AGAIN = "copy or export the bundle again"


@dataclass(frozen=True)
class Package:
    path: Path
    description: Any  # proto.Model_pb2.ModelDescription
    program: Any  # proto.MIL_pb2.Program
    weights: Blob | None

    def function(self, name: str) -> Any:
        """Its description (proto.Model_pb2.FunctionDescription)."""
        return next(f for f in self.description.functions if f.name == name)


def read(path: Path) -> Package:
    """Raises BundleError on whatever is not an ML program of a specification that is known, with its weights."""
    model, weights = _listed(path)
    try:
        if model.stat().st_size > _MOST:
            raise BundleError(f"{path.name}: a program of {model.stat().st_size} bytes", hint=_AGAIN)
        spec = proto.Model_pb2.Model.FromString(model.read_bytes())
    except (OSError, DecodeError) as error:
        raise BundleError(f"{path.name}: its program cannot be read: {error}", hint=_AGAIN) from error
    if spec.specificationVersion > NEWEST:
        raise BundleError(
            f"{path.name} is of specification {spec.specificationVersion}; this edge-vlm reads up to {NEWEST}",
            hint="pip install -U edge-vlm",
        )
    if spec.specificationVersion < STATES:
        raise BundleError(
            f"{path.name} is of specification {spec.specificationVersion}, which knows neither states nor functions",
            hint="export again: iOS 18 and macOS 15 (specification 9) are the least that a decoder with memory needs",
        )
    if spec.WhichOneof("Type") != "mlProgram" or not spec.description.functions:
        raise BundleError(f"{path.name} holds no ML program of several functions", hint=_AGAIN)
    names = {function.name for function in spec.description.functions}
    if names != set(spec.mlProgram.functions) or spec.description.defaultFunctionName not in names:
        raise BundleError(f"{path.name} describes functions that it does not hold", hint=_AGAIN)
    return Package(path, spec.description, spec.mlProgram, None if weights is None else Blob(weights))


def _listed(path: Path) -> tuple[Path, Path | None]:
    """Where the program lies, and the weights."""
    try:
        listed = json.loads((path / "Manifest.json").read_bytes())
        entries = {key: entry["path"] for key, entry in listed["itemInfoEntries"].items()}
        model = entries.pop(listed["rootModelIdentifier"])
        folders = [Path(folder) for folder in entries.values()]
        model = Path(model)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path.name} is no Core ML package: {error!r}", hint=_AGAIN) from error
    root = (path / "Data").resolve()
    for place in (model, *folders):
        if not (root / place).resolve().is_relative_to(root):
            raise BundleError(
                f"{path.name} lists a file outside itself: {str(place)!r}", hint="do not use this package"
            )
    weights = [root / folder / "weight.bin" for folder in folders if folder.name == "weights"]
    return root / model, weights[0] if weights else None
