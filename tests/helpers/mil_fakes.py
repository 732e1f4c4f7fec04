"""Small Core ML packages, written by coremltools itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import coremltools as ct
from coremltools import proto
from coremltools.converters.mil.backend.mil.load import MILProtoExporter
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types

from exporters.formats.coreml import package

NONE: Mapping[str, tuple] = MappingProxyType({})


def function(
    build: Callable, shapes: Mapping[str, tuple], states: Mapping[str, tuple] = MappingProxyType({}), dtype=types.fp16
):
    """`build` takes the inputs by name and gives one variable, or a list of them."""
    inputs = {name: mb.placeholder(list(shape), dtype=types.fp16) for name, shape in shapes.items()}
    inputs |= {name: mb.state_tensor_placeholder(list(shape), dtype=types.fp16) for name, shape in states.items()}
    with Function(inputs, ct.target.iOS18) as made:
        found = build(**made.inputs)
        made.set_outputs(found if isinstance(found, list) else [found])
    return made


def write(folder: Path, version: int = 9, **functions: Function) -> Path:
    """A package of these functions, the first of them the default."""
    path = folder / "Made.mlpackage"
    weights = package.weights_folder(path)
    program = Program()
    program.default_function_name = next(iter(functions))
    for name, made in functions.items():
        program.add_function(name, made)
    described = [proto.Model_pb2.FunctionDescription(name=name) for name in functions]
    spec = proto.Model_pb2.Model(
        specificationVersion=version,
        description=proto.Model_pb2.ModelDescription(
            functions=described, defaultFunctionName=program.default_function_name
        ),
    )
    spec.mlProgram.CopyFrom(MILProtoExporter(program, str(weights), 9).export())
    if not (weights / "weight.bin").is_file():  # every constant was small
        (weights / "weight.bin").write_bytes(bytes([0] * 4 + [2] + [0] * 59))
    (path / "Data" / package.MODEL).write_bytes(spec.SerializeToString())
    package._list(path)
    return path
