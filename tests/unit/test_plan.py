from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import SPEC

from edge import engines as rooms
from edge.bundle.manifest import File, Manifest, Part
from edge.devices import DeviceProfile, profile
from edge.engines import EngineInfo, installed_engines, made_for, open_part, opening, refusals
from edge.errors import BundleError, EngineError, UsageError
from edge.planning.memory import memory
from edge.planning.plan import Choice, needed, plan
from edge.types import OpenOptions, PartFiles


def part(*covers: str, format: str = "onnx", scheme: str = "w4", size: int = 100) -> Part:
    return Part(covers, format, scheme, (File(f"{covers[0]}.{format}", size, "0" * 64),), (), ())


def manifest(*parts: Part, context: int = 1024) -> Manifest:
    return Manifest(
        name="tiny",
        source={},
        license="",
        recipe="",
        spec=replace(SPEC, decoder=replace(SPEC.decoder, context=context)),
        golden_prompt={},
        parts=parts or (part("vision", "projector"), part("decoder")),
        tokenizer=File("tokenizer.json", 1, ""),
        golden=File("golden.safetensors", 1, ""),
        versions={},
    )


def device(memory: int = 1 << 30, **preferred: tuple[str, ...]) -> DeviceProfile:
    return DeviceProfile("d", "D", memory, 3, (), preferred, "recipe")


def engine(name: str, *formats: str, installed: bool = True, reason: str | None = None) -> EngineInfo:
    return EngineInfo(name, formats, f"py{name}", installed, "1.0" if installed else None, reason)


ORT = engine("onnxruntime", "onnx")
LLAMA = engine("llamacpp", "gguf")
OTHER = engine("other", "onnx", "gguf")
NULL = engine("null")


def chosen(*args: object, **options: object) -> list[tuple[tuple[str, ...], str, str]]:
    made = plan(*args, **options)  # type: ignore[arg-type]
    return [(c.part.covers, c.part.format, c.engine) for c in made.choices]


def test_the_plain_case() -> None:
    made = plan(manifest(), device(), (NULL, ORT))
    assert made.choices == (
        Choice(part("vision", "projector"), "onnxruntime"),
        Choice(part("decoder"), "onnxruntime"),
    )
    assert (made.threads, made.context) == (3, 1024)
    assert made.to_json() == {
        "parts": [
            {
                "covers": ["vision", "projector"],
                "format": "onnx",
                "scheme": "w4",
                "engine": "onnxruntime",
                "provider": "cpu",
            },
            {"covers": ["decoder"], "format": "onnx", "scheme": "w4", "engine": "onnxruntime", "provider": "cpu"},
        ],
        "threads": 3,
        "context": 1024,
        "cache": None,
        "one_at_a_time": False,
        "peak_bytes": made.peak_bytes,
        "given_up": [],
        "isa": None,
        "gpu_layers": None,
        "image_bytes": made.image_bytes,
        "notes": [],
    }


def test_mixed_engines_and_a_projector_of_its_own() -> None:
    mixed = manifest(part("vision"), part("projector"), part("decoder", format="gguf"))
    assert chosen(mixed, device(), (LLAMA, NULL, ORT)) == [
        (("vision",), "onnx", "onnxruntime"),
        (("projector",), "onnx", "onnxruntime"),
        (("decoder",), "gguf", "llamacpp"),
    ]


def test_the_device_prefers() -> None:
    both = manifest(part("vision", "projector"), part("decoder"), part("decoder", format="gguf"))
    engines = (ORT, LLAMA, OTHER)
    assert chosen(both, device(decoder=("llamacpp", "onnxruntime")), engines)[1] == (("decoder",), "gguf", "llamacpp")
    assert chosen(both, device(decoder=("onnxruntime", "llamacpp")), engines)[1] == (
        ("decoder",),
        "onnx",
        "onnxruntime",
    )
    assert chosen(both, device(decoder=("other",)), engines)[1] == (("decoder",), "onnx", "other")
    gone = replace(LLAMA, installed=False)
    assert chosen(both, device(decoder=("llamacpp", "onnxruntime")), (gone, ORT))[1][2] == "onnxruntime"


def test_a_named_engine_goes_before() -> None:
    mixed = manifest(part("vision", "projector"), part("decoder", format="gguf"))
    engines = (LLAMA, NULL, ORT, OTHER)
    assert [c[2] for c in chosen(mixed, device(), engines)] == ["onnxruntime", "llamacpp"]
    assert [c[2] for c in chosen(mixed, device(), engines, engine="other")] == ["other", "other"]
    assert [c[2] for c in chosen(mixed, device(), engines, engine="null")] == ["null", "null"]
    assert [c[2] for c in chosen(mixed, device(), engines, engine="llamacpp")] == ["onnxruntime", "llamacpp"]


def test_an_engine_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="no engine 'tpu'") as caught:
        plan(manifest(), device(), (ORT, NULL), engine="tpu")
    assert "onnxruntime, null" in str(caught.value.hint)


def test_a_named_engine_that_opens_nothing() -> None:
    with pytest.raises(EngineError) as caught:
        plan(manifest(), device(), (ORT, LLAMA), engine="llamacpp")
    assert caught.value.message == "llamacpp opens no part of tiny (onnx)\n  llamacpp: opens gguf"


def test_a_refusal_names_every_candidate_and_its_reason() -> None:
    engines = (
        NULL,
        replace(ORT, installed=False),
        engine("coreml", "coreml", "onnx", installed=False, reason="macOS only"),
        LLAMA,
    )
    with pytest.raises(EngineError) as caught:
        plan(manifest(), device(), engines)
    assert caught.value.message == (
        "no engine opens the vision of tiny (onnx)\n"
        "  onnxruntime: pyonnxruntime is not installed: pip install 'edge-vlm[onnxruntime]'\n"
        "  coreml: macOS only: pip install 'edge-vlm[coreml]'\n"
        "  llamacpp: opens gguf"
    )
    assert "pip install 'edge-vlm[onnxruntime]'" in str(caught.value.hint)


def test_what_to_install_is_what_the_device_likes_best() -> None:
    engines = [replace(info, installed=False) for info in (ORT, OTHER)]
    with pytest.raises(EngineError) as caught:
        plan(manifest(), device(vision=("other", "onnxruntime")), engines)
    assert "pip install 'edge-vlm[other]'" in str(caught.value.hint)
    assert caught.value.message.index("other:") < caught.value.message.index("onnxruntime:")


def test_a_refusal_when_nothing_can_be_installed() -> None:
    with pytest.raises(EngineError, match="no engine opens the decoder of tiny") as caught:
        plan(manifest(part("vision", "projector"), part("decoder", format="tflite")), device(), (ORT, LLAMA))
    assert "--format" in str(caught.value.hint)


def test_a_bundle_that_is_a_decoder_only() -> None:
    assert chosen(manifest(part("decoder", format="gguf")), device(), (ORT, LLAMA)) == [
        (("decoder",), "gguf", "llamacpp")
    ]
    with pytest.raises(BundleError, match="no part for the role 'vision'"):  # half of an eye is none
        plan(manifest(part("projector"), part("decoder")), device(), (ORT,))


def test_a_bundle_without_a_decoder() -> None:
    with pytest.raises(BundleError, match="'decoder'"):
        plan(manifest(part("vision", "projector")), device(), (ORT,))


# threads, context and memory


def test_what_was_asked_for() -> None:
    made = plan(manifest(), device(), (ORT,), threads=7, context=300)
    assert (made.threads, made.context) == (7, 300)


@pytest.mark.parametrize("options", [{"threads": -1}, {"context": -1}, {"context": 1025}])
def test_what_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        plan(manifest(), device(), (ORT,), **options)  # type: ignore[arg-type]


def takes(of: Manifest, context: int, cache: Any = None, apart: bool = False, engines: Any = (ORT,)) -> int:
    choices = plan(of, device(), engines).choices
    return memory(needed(of, choices, engines), context, cache, apart).peak


@pytest.mark.parametrize(
    ("room", "asked", "context"),
    [(1024, 0, 1024), (1023, 0, 768), (256, 0, 256), (300, 300, 300), (1024, 1024, 1024), (1000, 512, 512)],
)
def test_the_context_that_fits(room: int, asked: int, context: int) -> None:
    apart = not asked and room < 1024  # a shorter context is the last resort
    made = plan(manifest(), device(takes(manifest(), room, apart=apart)), (ORT,), context=asked)
    assert (made.context, made.one_at_a_time) == (context, apart)
    assert made.given_up == (
        ("vision encoder and decoder open one at a time", f"a context of {context}, not 1024") if apart else ()
    )
    assert made.peak_bytes <= takes(manifest(), room, apart=apart)


def test_a_short_context_fits_whole_or_not_at_all() -> None:
    short = manifest(context=64)
    enough = takes(short, 64, apart=True)
    assert plan(short, device(enough), (ORT,)).context == 64
    with pytest.raises(EngineError, match="too little memory"):
        plan(short, device(enough - 1), (ORT,))


def test_what_is_given_up_first_costs_least() -> None:
    keeps = replace(LLAMA, caches=("f16", "q8_0"))
    mixed = manifest(part("vision", "projector", size=1_000_000), part("decoder", format="gguf", size=4_000_000))
    engines = (ORT, keeps)

    def ways(room: int, **options: Any) -> tuple[Any, ...]:
        made = plan(mixed, device(room), engines, **options)
        return made.cache, made.one_at_a_time, made.context

    whole, eight = (takes(mixed, 1024, kind, engines=engines) for kind in (None, "q8_0"))
    apart, both = (takes(mixed, 1024, kind, True, engines=engines) for kind in (None, "q8_0"))
    assert whole > eight > apart > both
    assert ways(whole) == (None, False, 1024)
    assert ways(whole - 1) == ("q8_0", False, 1024)
    assert ways(eight - 1) == (None, True, 1024)
    assert ways(apart - 1) == ("q8_0", True, 1024)
    assert ways(both - 1) == ("q8_0", True, 768)
    assert ways(eight, cache="f16") == ("f16", True, 1024), "what was asked for is not given up"
    assert plan(mixed, device(whole - 1), engines).given_up == ("KV cache in q8_0",)


def test_too_little_memory_for_what_was_asked() -> None:
    large = manifest(part("vision", "projector", size=300_000_000), part("decoder", size=900_000_000), context=1 << 20)
    room = takes(large, 1000, apart=True)
    with pytest.raises(EngineError) as caught:
        plan(large, device(room), (ORT,), context=1 << 20)
    assert caught.value.message.startswith(
        f"too little memory: tiny takes {takes(large, 1 << 20) / 1e6:,.0f} MB at a context of 1048576, "
        f"and {room / 1e6:,.0f} MB are there\n  vision 300 MB, decoder 900 MB, KV cache 268 MB, "
    )
    assert "context of 768" in str(caught.value.hint)


def test_too_little_memory_for_the_weights() -> None:
    large = manifest(part("vision", "projector", scheme="w8a8", size=10_000_000), part("decoder", size=900_000_000))
    with pytest.raises(
        EngineError, match=r"at the least, with vision encoder and decoder open one at a time, and 860 MB are there"
    ) as caught:
        plan(large, device(860_000_000), (ORT,))
    command = "edge export CHECKPOINT -o OUT --recipe onnx-w8a8-gguf-q4_0 --scheme decoder=q3_k_m"
    assert command in str(caught.value.hint)
    with pytest.raises(EngineError) as caught:
        plan(large, device(300_000_000), (ORT,))
    assert "no scheme" in str(caught.value.hint)


# fewer instruction sets than the processor has


def test_an_engine_is_held_to_less_where_it_can_be() -> None:
    narrow = replace(LLAMA, narrows=True)
    here = replace(device(), isa=("neon", "dotprod", "fp16"))
    both = manifest(part("vision", "projector"), part("decoder", format="gguf"))
    made = plan(both, here, (ORT, narrow), isa="dotprod")
    assert (made.isa, made.free) == (("neon", "dotprod"), ("onnxruntime",))
    assert made.to_json()["isa"] == ["neon", "dotprod"]
    without = plan(both, here, (ORT, narrow))
    assert (without.isa, without.free) == (None, ())


def test_no_engine_can_be_held_to_less() -> None:
    with pytest.raises(EngineError, match=r"^onnxruntime cannot be held to neon: ") as caught:
        plan(manifest(), replace(device(), isa=("neon",)), (ORT,), isa="neon")
    assert "--isa" in str(caught.value.hint)
    narrow = replace(ORT, narrows=True)
    with pytest.raises(UsageError, match="no instruction set 'avx2'"):
        plan(manifest(), replace(device(), isa=("neon",)), (narrow,), isa="avx2")


# the engines of this machine


def test_the_engines_of_the_listing() -> None:
    found = {info.name: info for info in installed_engines()}
    assert found["null"].formats == ()
    assert found["null"].installed
    assert found["onnxruntime"].formats == ("onnx",)
    assert found["onnxruntime"].package == "onnxruntime"
    assert found["onnxruntime"].install == "pip install 'edge-vlm[onnxruntime]'"


@pytest.mark.parametrize("source", ["", "FORMATS = ('onnx',)", "ENGINE = dict(formats=('onnx',), package='x')"])
def test_an_engine_that_declares_nothing_readable_is_named(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "__init__.py").write_text("")
    (tmp_path / "zoo" / "owl.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(rooms, "PACKAGE", "zoo")
    rooms.plugins.names.cache_clear()
    rooms.plugins.facts.cache_clear()
    with pytest.raises(EngineError, match=r"zoo.owl declares no ENGINE"):
        installed_engines()


def test_what_opens_a_format_and_why_the_others_do_not() -> None:
    gone, elsewhere = replace(ORT, name="gone", installed=False), replace(ORT, name="mac", unfit="macOS only")
    engines = (NULL, gone, LLAMA, elsewhere, OTHER, ORT)
    assert made_for("onnx", engines) == (gone, elsewhere, OTHER, ORT)
    assert opening("onnx", engines) == (OTHER, ORT)
    assert opening("onnx", engines, asked="null") == (NULL, OTHER, ORT)
    assert opening("tflite", engines) == made_for("tflite", engines) == ()
    assert refusals(("onnx",), engines) == {
        "gone": "pyonnxruntime is not installed: pip install 'edge-vlm[gone]'",
        "llamacpp": "opens gguf",
        "mac": "macOS only",
    }
    assert refusals(("onnx", "gguf"), (LLAMA, OTHER)) == {}


def test_bytes_in_memory_for_one_in_the_file() -> None:
    wide = replace(ORT, resident={"w8a8": 1.05, "": 1.35})
    assert [wide.held(scheme) for scheme in ("w8a8", "w4")] == [1.05, 1.35]
    assert ORT.held("w4") == 1.0


def test_an_engine_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "find_spec", lambda name: None)
    monkeypatch.setattr(metadata, "version", missing)
    (found,) = (info for info in installed_engines() if info.name == "onnxruntime")
    assert (found.installed, found.version) == (False, None)
    assert found.refusal(("onnx",)) == "onnxruntime is not installed: pip install 'edge-vlm[onnxruntime]'"


def test_a_library_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "find_spec", lambda name: object() if name == "onnxruntime" else None)
    monkeypatch.setattr(metadata, "version", missing)
    found = {info.name: info for info in installed_engines()}["onnxruntime"]
    assert (found.installed, found.version, found.refusal(("onnx",))) == (True, None, None)


def missing(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def test_an_engine_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(package: str, name: str) -> object:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(rooms.plugins, "load", broken)
    with pytest.raises(EngineError, match="the engine onnxruntime does not load: libgomp") as caught:
        open_part(PartFiles("onnx", "fp32", ("decoder",), (), (), ()), "onnxruntime", OpenOptions(threads=1, context=8))
    assert "pip install 'edge-vlm[onnxruntime]'" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["linux-x86", "linux-arm64", "rpi4", "rpi5", "rpi_zero_2w"])
def test_executorch_without_torch_goes_before_the_one_with_it(name: str) -> None:
    engines = [replace(info, installed=True, unfit=None) for info in installed_engines()]
    both = manifest(part("vision", "projector", format="executorch"), part("decoder", format="executorch"))
    here = replace(profile(name), memory_bytes=1 << 32)
    assert {engine for *_, engine in chosen(both, here, engines)} == {"executorch_native"}
    engines = [replace(info, installed=info.name != "executorch_native") for info in engines]
    assert {engine for *_, engine in chosen(both, here, engines)} == {"executorch"}


def test_what_no_index_has_is_built() -> None:
    info = replace(engine("made", "made", installed=False), wheel="make wheel-made")
    with pytest.raises(EngineError, match="pymade is not installed: make wheel-made") as caught:
        plan(manifest(part("decoder", format="made")), device(), (info,))
    assert "make wheel-made" in str(caught.value.hint)
