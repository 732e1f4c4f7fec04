"""What a plan makes of a card: which parts it computes, what stays on the CPU, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from card_fakes import ADA, with_card
from test_plan import device, manifest, part

from edge.bundle.manifest import Manifest
from edge.devices import DeviceProfile, profile
from edge.engines import EngineInfo, installed_engines
from edge.errors import EngineError, ProviderError, UsageError
from edge.planning import providers
from edge.planning.fit import fit
from edge.planning.plan import Plan, plan

CUDA = {"cuda": ("vision w16a16", "decoder w4a16"), "tensorrt": ("vision w16a16",)}
ORT = EngineInfo("onnxruntime", ("onnx",), "onnxruntime", True, "1", None, providers=CUDA)
LLAMA = EngineInfo(
    "llamacpp", ("gguf",), "llama", True, "1", None, providers={"cuda": ()}, splits=True, caches=("f16", "q8_0")
)
OTHER = EngineInfo("litert", ("tflite",), "litert", True, "1", None)
HALF = manifest(part("vision", "projector", scheme="w16a16"), part("decoder", scheme="w4a16"))
INT8 = manifest(part("vision", "projector", scheme="w8a8"), part("decoder", scheme="w4"))
MIXED = manifest(part("vision", "projector", scheme="w8a8"), part("decoder", format="gguf", scheme="q4_0"))
THERE = with_card(device(8 << 30))


def able(**why: str) -> Any:
    """Of all engines; a provider that is not named can be used."""
    return lambda engine: {"cuda": "", "tensorrt": "", **why}


def made(bundle: Manifest, machine: DeviceProfile = THERE, refusals: Any = None, **options: Any) -> Plan:
    return plan(bundle, machine, (ORT, LLAMA, OTHER), refusals=refusals or able(), **options)


def computing(found: Plan) -> list[str]:
    return [choice.provider for choice in found.choices]


def never(engine: str) -> Mapping[str, str]:
    raise AssertionError(f"{engine} was asked")


@pytest.mark.parametrize(
    ("text", "found"), [(None, ()), ("", ()), ("cuda", ("cuda",)), ("CUDA, cpu", ("cuda", "cpu")), ("cpu", ("cpu",))]
)
def test_providers_as_they_are_written(text: str | None, found: tuple[str, ...]) -> None:
    assert providers.parse(text) == found


@pytest.mark.parametrize("text", ["metal", "cuda,tensorrt", "cpu,cpu", "cpu,cuda", "cuda,cpu,cpu", ","])
def test_what_is_no_order_of_providers(text: str) -> None:
    with pytest.raises(UsageError):
        providers.parse(text)


def test_without_a_card_no_library_is_asked_and_nothing_is_said() -> None:
    found = made(HALF, device(8 << 30), never)
    assert (computing(found), found.notes, found.on_card) == (["cpu", "cpu"], (), False)


def test_a_card_that_is_there_is_used() -> None:
    found = made(HALF)
    assert (computing(found), found.notes, found.gpu_layers) == (["cuda", "cuda"], (), None)
    assert [one["provider"] for one in found.to_json()["parts"]] == ["cuda", "cuda"]
    assert found.peak_bytes > made(HALF, provider=("cpu",)).peak_bytes, "CUDA's own libraries count"


def test_the_processor_is_used_where_it_is_asked_for() -> None:
    found = made(MIXED, refusals=never, provider=("cpu",))
    assert (computing(found), found.gpu_layers, found.notes) == (["cpu", "cpu"], 0, ())


def test_tensorrt_has_cuda_beside_it() -> None:
    assert computing(made(HALF, provider=("tensorrt",))) == ["tensorrt", "cuda"]
    without = able(tensorrt="no libnvinfer.so.10")
    assert computing(made(HALF, refusals=without, provider=("tensorrt", "cpu"))) == ["cuda", "cuda"]


def test_what_a_card_has_no_kernels_for_stays_and_is_told() -> None:
    found = made(MIXED)
    assert computing(found) == ["cpu", "cuda"]
    assert found.notes == ("the vision (w8a8) on the CPU: onnxruntime has no kernels for it on cuda",)
    assert computing(made(MIXED, provider=("cuda",))) == ["cpu", "cuda"]
    with pytest.raises(ProviderError, match="cuda computes no part") as caught:
        made(INT8, provider=("cuda",))
    assert "the decoder (w4)" in caught.value.message
    assert "onnx-w16a16-w4a16" in str(caught.value.hint)
    assert len(made(INT8).notes) == 2


def test_a_library_that_cannot_use_the_card_is_never_passed_over_in_silence() -> None:
    built = able(cuda="it was built without: pip install more", tensorrt="as well")
    with pytest.raises(ProviderError, match="onnxruntime cannot use cuda: it was built without: pip install more"):
        made(HALF, refusals=built, provider=("cuda",))
    found = made(HALF, refusals=built)
    assert computing(found) == ["cpu", "cpu"]
    assert found.notes[0] == "the vision (w16a16) on the CPU: it was built without: pip install more"
    assert made(HALF, refusals=built, provider=("cuda", "cpu")).notes == found.notes


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (with_card(device(8 << 30), None), "there is no NVIDIA driver on this machine"),
        (with_card(device(8 << 30), None, "the driver sees no card"), "the driver sees no card"),
        (with_card(device(8 << 30), replace(ADA, closed="its compute mode is Prohibited")), "Ada is busy"),
    ],
)
def test_a_card_that_cannot_be_used_is_named(machine: DeviceProfile, said: str) -> None:
    with pytest.raises(ProviderError, match=said) as caught:
        made(HALF, machine, never, provider=("cuda",))
    assert "--provider cpu" in str(caught.value.hint)
    found = made(HALF, machine, never, provider=("cuda", "cpu"))
    assert computing(found) == ["cpu", "cpu"]
    assert said in found.notes[0]


def test_a_driver_that_does_not_start_is_told_though_nobody_asked() -> None:
    assert made(HALF, with_card(device(8 << 30), None, "it sleeps"), never).notes == ("on the CPU: it sleeps",)
    assert made(HALF, with_card(device(8 << 30), None), never).notes == ()


LARGE = manifest(
    part("vision", "projector", scheme="w16a16", size=7 * 10**9), part("decoder", scheme="w4a16", size=7 * 10**9)
)


def test_a_card_that_is_too_small_is_refused_before_anything_is_loaded() -> None:
    small = with_card(device(32 << 30), replace(ADA, others=("python3 (77)",)))
    with pytest.raises(EngineError, match="too little memory") as caught:
        made(LARGE, small, provider=("cuda",), context=1024)
    assert "6,000 MB are free of 8,000 MB on Ada, where python3 (77) computes too" in caught.value.message
    assert caught.value.hint
    found = made(LARGE, small)
    assert computing(found) == ["cpu", "cpu"]
    assert "too little memory" in found.notes[0]


def test_a_jetsons_memory_is_the_systems() -> None:
    assert computing(made(LARGE, with_card(device(32 << 30)), context=1024)) == ["cuda", "cuda"]


# layers of a decoder that is split


def gguf(size: int) -> Manifest:
    return manifest(
        part("vision", "projector", scheme="w8a8"), part("decoder", format="gguf", scheme="q4_0", size=size)
    )


def test_all_layers_where_they_fit() -> None:
    layers = MIXED.spec.decoder.layers
    assert made(MIXED).gpu_layers == layers + 1, "the head counts"
    assert made(gguf(10**9), with_card(device(32 << 30), ADA)).gpu_layers == layers + 1


def test_as_many_as_a_card_holds() -> None:
    machine = with_card(device(32 << 30), replace(ADA, free_bytes=3 * 10**9))
    found = made(gguf(6 * 10**9), machine)
    whole = MIXED.spec.decoder.layers + 1
    assert found.gpu_layers is not None
    assert 0 < found.gpu_layers < whole
    assert f"{found.gpu_layers} of the decoder's {whole} layers on the card: no more fit" in found.notes
    with pytest.raises(ProviderError, match=f"{whole} layers are more than fit: {found.gpu_layers} do") as caught:
        made(gguf(6 * 10**9), machine, gpu_layers=whole)
    assert f"--gpu-layers {found.gpu_layers}" in str(caught.value.hint)


def test_a_card_that_holds_not_one_layer() -> None:
    machine = with_card(device(32 << 30), replace(ADA, free_bytes=460_000_000, others=("python3 (77)",)))
    with pytest.raises(ProviderError, match="not one layer of the decoder fits") as caught:
        made(gguf(6 * 10**9), machine, provider=("cuda",))
    assert "where python3 (77) computes too" in caught.value.message
    found = made(gguf(6 * 10**9), machine)
    assert (computing(found), found.gpu_layers) == (["cpu", "cpu"], 0)
    assert any(note.startswith("0 of the decoder's") for note in found.notes)


def test_fewer_where_they_are_asked_for() -> None:
    found = made(MIXED, gpu_layers=1)
    assert (found.gpu_layers, len(found.notes)) == (1, 1)
    assert computing(made(MIXED, gpu_layers=0)) == ["cpu", "cpu"]


def test_layers_of_what_is_not_split() -> None:
    with pytest.raises(UsageError, match="onnxruntime computes all layers"):
        made(HALF, gpu_layers=3)


def test_without_a_card_of_nvidias_the_library_decides() -> None:
    assert made(MIXED, device(8 << 30), never).gpu_layers is None
    assert made(MIXED, device(8 << 30), never, gpu_layers=2).gpu_layers == 2


@pytest.mark.parametrize(("room", "found"), [(None, 25), (450_000_000, 0), (0, 0), (950_000_000, 12), (10**10, 25)])
def test_layers_by_hand(room: int | None, found: int) -> None:
    """24 layers and the head, of 40 MB each."""
    assert providers.layers_that_fit(room, 900_000_000, 100_000_000, 25) == found


# a device that is not this one


@pytest.mark.parametrize("name", ["jetson_orin_nano", "jetson_orin_nx", "jetson_agx_orin", "jetson_orin_nano_super"])
def test_a_jetson_is_predicted_on_its_card(name: str) -> None:
    found = fit(HALF, profile(name))
    assert computing(found.plan) == ["cuda", "cuda"]
    assert all("graphics processor" in row.assumes for row in found.rows if row.name in ("vision", "prompt", "decode"))


def test_what_the_engines_declare_has_a_scheme_of_theirs() -> None:
    found = {engine.name: engine for engine in installed_engines() if engine.providers}
    assert set(found) == {"llamacpp", "onnxruntime"}
    assert found["onnxruntime"].computes("cuda", "decoder", "w4a16")
    assert not found["onnxruntime"].computes("cuda", "decoder", "w4"), "GroupQueryAttention has no kernel for fp32"
    assert not found["onnxruntime"].computes("tensorrt", "decoder", "w4a16")
    assert found["llamacpp"].computes("cuda", "decoder", "q4_k_m")
