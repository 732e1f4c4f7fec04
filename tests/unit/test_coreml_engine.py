"""The Core ML engine against a stand-in of the part of coremltools that it calls. It was never run on a Mac."""

from __future__ import annotations

import importlib
import json
import platform
import sys
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from fakes import DECODER, embedding_files, picture

from edge import plugins
from edge.decoders.stateful import StatefulDecoder
from edge.engines import installed_engines
from edge.errors import EngineError, UsageError
from edge.inference.session import load
from edge.planning.placement import Placed
from edge.types import OpenOptions, PartFiles, TensorSpec, Tokens


class ComputeUnit(Enum):
    ALL, CPU_AND_GPU, CPU_ONLY, CPU_AND_NE = range(4)


class MLModel:
    """As coremltools 9 declares it: `MLModel(model, …, compute_units=, …, function_name=)`."""

    made: ClassVar[list[MLModel]] = []
    broken = False

    def __init__(self, model, is_temp_package=False, mil_program=None, skip_model_load=False, compute_units=None,
                 weights_dir=None, function_name=None, optimization_hints=None):  # fmt: skip
        if self.broken:
            raise RuntimeError("compiler error:\nsecond line")
        self.path, self.units, self.function = model, compute_units, function_name
        self.asked = []
        MLModel.made.append(self)

    def make_state(self):
        return SimpleNamespace(owner=self)

    def predict(self, data, state=None):
        if any(np.isnan(array).any() for array in data.values()):
            raise RuntimeError("not a number")
        self.asked.append((data, state))
        if self.function is None:
            return {"image_embeds": data["pixel_values"].mean() + np.zeros((1, 4, 32), np.float32)}
        return {"logits": np.full((1, 1, DECODER.vocab), float(state is not None), np.float16)}


class MLNeuralEngineComputeDevice:
    pass


class MLGPUComputeDevice:
    pass


class MLComputePlan:
    """As coremltools 9 declares it: of a compiled model, the devices of each operation; constants have none."""

    USAGES: ClassVar = {"conv": [MLNeuralEngineComputeDevice, MLGPUComputeDevice], "cast": [MLGPUComputeDevice]}

    def __init__(self, path, units):
        assert path.endswith("Vision.mlmodelc") and units is ComputeUnit.ALL
        kinds = ("const", "conv", "cast")
        listed = [
            SimpleNamespace(operator_name=kind, outputs=[SimpleNamespace(name=f"{kind}_0", type=None)])
            for kind in kinds
        ]
        block = SimpleNamespace(operations=listed)
        program = SimpleNamespace(functions={"encode": SimpleNamespace(inputs=[], block=block)})
        self.model_structure = SimpleNamespace(program=program)

    @classmethod
    def load_from_path(cls, path, compute_units=ComputeUnit.ALL):
        return cls(path, compute_units)

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        if operation.operator_name not in self.USAGES:
            return None
        able = [device() for device in self.USAGES[operation.operator_name]]
        return SimpleNamespace(preferred_compute_device=able[0], supported_compute_devices=able)


def compile_model(model, destination_path=None):
    if "Decoder" in model:
        raise RuntimeError("no compiler")
    return destination_path


@pytest.fixture
def engine(monkeypatch):
    """`runtimes.coreml` as a Mac with coremltools would import it."""
    fake = ModuleType("coremltools")
    fake.__version__ = "9.0"
    fake.ComputeUnit = ComputeUnit
    fake.models = SimpleNamespace(
        MLModel=MLModel,
        utils=SimpleNamespace(compile_model=compile_model),
        compute_plan=SimpleNamespace(MLComputePlan=MLComputePlan),
    )
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    monkeypatch.delitem(sys.modules, "runtimes.coreml", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.2", ("", "", ""), "arm64"))
    monkeypatch.setattr(MLModel, "made", [])
    yield importlib.import_module("runtimes.coreml")
    sys.modules.pop("runtimes.coreml", None)


def vision_part(folder):
    inputs = (TensorSpec("pixel_values", "float32", (1, 3, 28, 28)),)
    outputs = (TensorSpec("image_embeds", "float32", (1, 4, 32)),)
    return PartFiles("coreml", "w8", ("vision",), (folder / "Vision.mlpackage" / "Manifest.json",), inputs, outputs)


def decoder_part(folder):
    files = (folder / "Decoder.mlpackage" / "Manifest.json", *embedding_files(folder, DECODER))
    return PartFiles("coreml", "w4", ("decoder",), files, (), (), DECODER)


def test_a_graph_is_the_package_s_default_function(engine, tmp_path):
    graph = engine.open(vision_part(tmp_path), OpenOptions(1, 8, units="ane"))
    (model,) = MLModel.made
    assert (model.path, model.units, model.function) == (
        str(tmp_path / "Vision.mlpackage"),
        ComputeUnit.CPU_AND_NE,
        None,
    )
    assert [t.name for t in (*graph.inputs, *graph.outputs)] == ["pixel_values", "image_embeds"]
    pixels = np.full((1, 3, 28, 28), 2, np.float32)
    assert graph.run({"pixel_values": pixels})["image_embeds"].max() == 2
    mine = np.empty((1, 4, 32), np.float32)
    assert graph.run({"pixel_values": pixels}, {"image_embeds": mine})["image_embeds"] is mine
    assert mine.min() == 2
    with pytest.raises(EngineError, match="Core ML failed: not a number"):
        graph.run({"pixel_values": pixels * np.nan})


def test_a_decoder_s_functions_share_one_state(engine, tmp_path):
    decoder = engine.open(decoder_part(tmp_path), OpenOptions(1, 8))
    assert isinstance(decoder, StatefulDecoder)
    prefill, decode = MLModel.made
    assert (prefill.function, decode.function) == ("prefill", "decode")
    assert prefill.units == decode.units == ComputeUnit.ALL
    assert decoder.extend([Tokens((1, 2)), picture(1)]).max() == 1
    decoder.extend([Tokens((3,))])
    ((feeds, state),) = prefill.asked
    assert decode.asked[0][1] is state and state.owner is prefill
    assert {name: (array.dtype, array.shape) for name, array in feeds.items()} == {
        "inputs_embeds": (np.float32, (1, 6, 32)),
        "causal_mask": (np.float32, (1, 1, 6, 6)),
    }


def test_the_plan_of_the_system_is_told_op_by_op(engine, tmp_path):
    assert list(engine.placement(vision_part(tmp_path))) == [
        Placed("encode", "conv", "conv_0", "ane"),
        Placed("encode", "cast", "cast_0", "gpu", "can run on gpu"),
    ]
    with pytest.raises(EngineError, match=r"Core ML cannot plan Decoder.mlpackage: no compiler"):
        list(engine.placement(decoder_part(tmp_path)))


@pytest.mark.parametrize("units", ["all", "cpu", "gpu", "ane"])
def test_compute_units(engine, units, tmp_path):
    engine.open(vision_part(tmp_path), OpenOptions(1, 8, units=units))
    names = {"all": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}
    assert MLModel.made[0].units.name == names[units]


def test_a_package_that_core_ml_refuses(engine, monkeypatch, tmp_path):
    monkeypatch.setattr(MLModel, "broken", True)
    with pytest.raises(EngineError, match=r"cannot open Vision.mlpackage: compiler error:\n") as caught:
        engine.open(vision_part(tmp_path), OpenOptions(1, 8))
    assert f"edge verify {tmp_path}" in caught.value.hint


@pytest.mark.parametrize(("system", "release"), [("linux", ""), ("darwin", "14.7.1")])
def test_other_systems_are_refused_and_told_what_to_do(engine, monkeypatch, system, release, tmp_path):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "mac_ver", lambda: (release, ("", "", ""), ""))
    with pytest.raises(EngineError, match="macOS 15 and iOS 18 only") as caught:
        engine.open(vision_part(tmp_path), OpenOptions(1, 8))
    assert f"edge verify {tmp_path}" in caught.value.hint


def test_it_is_what_its_facts_say(engine):
    assert engine.version() == "9.0"
    assert plugins.facts("runtimes", "coreml")["ENGINE"] == engine.ENGINE


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac is no other system")
def test_a_plan_elsewhere_refuses_and_points_to_the_proof(make_bundle):
    bundle = make_bundle()
    manifest = json.loads((bundle.path / "manifest.json").read_bytes())
    for part in manifest["parts"]:
        part["format"] = "coreml"
    (bundle.path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(EngineError, match=r"coreml: Core ML runs on macOS 15 .* edge verify proves") as caught:
        load(bundle.path)
    assert "pip install" not in caught.value.hint


def test_compute_units_that_do_not_exist(make_bundle):
    with pytest.raises(UsageError, match="no compute units 'tpu'"):
        load(make_bundle().path, units="tpu")


def test_an_evaluator_comes_after_every_engine_and_only_when_it_is_asked_for(make_bundle):
    names = [info.name for info in installed_engines()]
    assert "mil" not in names
    behind = installed_engines(evaluators=True)
    assert [info.name for info in behind] == [*names, "mil"]
    assert (behind[-1].formats, behind[-1].install) == (("coreml",), "pip install 'edge-vlm[export]'")
