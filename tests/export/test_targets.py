"""What a call of `edge export` means, decided from the formats' tables alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPOSITORY

from edge import devices, plugins
from edge.errors import UsageError
from edge.recipes import DEFAULT, RECIPES, Recipe, Target
from exporters import targets


def schemes(found):
    assert {target.format for target in found.targets.values()} == {"onnx"}
    return {role: target.scheme for role, target in found.targets.items()}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ((), {"vision": "w8a8", "decoder": "w4"}),
        (("fp32",), {"vision": "fp32", "decoder": "fp32"}),
        (("fp16",), {"vision": "fp16", "decoder": "fp16"}),
        (("w8",), {"vision": "w8a8", "decoder": "w8"}),  # only a decoder can be written so
        (("w8a8",), {"vision": "w8a8", "decoder": "w4"}),  # only a tower can
        (("vision=fp16",), {"vision": "fp16", "decoder": "w4"}),
        (("decoder=w8",), {"vision": "w8a8", "decoder": "w8"}),
        (("vision=fp16", "decoder=w8"), {"vision": "fp16", "decoder": "w8"}),
        (("fp32", "decoder=w4"), {"vision": "fp32", "decoder": "w4"}),
        (("decoder=w4", "fp32"), {"vision": "fp32", "decoder": "fp32"}),  # the last word counts
        (("w8", "w8a8", "w4"), {"vision": "w8a8", "decoder": "w4"}),
        (("decoder=fp32", "decoder=w8"), {"vision": "w8a8", "decoder": "w8"}),
    ],
)
def test_schemes(wanted, found):
    assert schemes(targets.resolve(None, wanted, None, None)) == found
    assert schemes(targets.resolve("onnx", wanted, None, None)) == found


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        ((None, ("w3",), None, None), "no part can be written as 'w3'", "vision=fp32|fp16|w8a8|w16a16; onnx: decoder="),
        ((None, ("",), None, None), "no part can be written as ''", "legal schemes"),
        ((None, ("vision=w4",), None, None), "onnx cannot write the vision as 'w4'", "vision=fp32|fp16|w8a8|w16a16"),
        ((None, ("vision=",), None, None), "onnx cannot write the vision as ''", "legal schemes"),
        ((None, ("=fp32",), None, None), "no role '' in --scheme =fp32", "vision, decoder"),
        ((None, ("projector=fp32",), None, None), "no role 'projector'", "vision, decoder"),
        ((None, ("fp32", "eye=fp32"), None, None), "no role 'eye' in --scheme eye=fp32", "vision, decoder"),
        ((None, ("vision=fp32=w4",), None, None), "no role 'vision=fp32'", "vision, decoder"),
        (("oonx", (), None, None), "no format 'oonx'", "coreml, executorch, gguf, onnx, tflite"),
        (("oonx", ("fp32",), None, "rpi5"), "no format 'oonx'", "coreml, executorch, gguf, onnx, tflite"),
        ((None, (), "fast", None), "no recipe 'fast'", "onnx-w8a8-w4, onnx-w8a8-w8, onnx-fp32"),
        ((None, (), None, "rpi3"), "no device 'rpi3'", "rpi4, rpi5"),
        ((None, (), "onnx-fp32", "rpi3"), "no device 'rpi3'", "rpi4, rpi5"),
    ],
)
def test_what_is_impossible_says_what_is_legal(call, message, hint):
    with pytest.raises(UsageError) as caught:
        targets.resolve(*call)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_name_of_a_recipe_stays_as_long_as_its_targets_do():
    assert targets.resolve(None, (), None, None) == RECIPES[DEFAULT]
    for name, recipe in RECIPES.items():
        assert targets.resolve(None, (), name, None) == recipe
        if {target.format for target in recipe.targets.values()} == {"onnx"}:
            assert targets.resolve("onnx", (), name, None) == recipe
    assert targets.resolve(None, ("w8",), "onnx-fp32", None).name == "custom"
    assert targets.resolve(None, ("fp32",), "onnx-fp32", None).name == "onnx-fp32"
    # The targets of another recipe, but nobody named it.
    assert targets.resolve(None, ("fp32",), None, None).name == "custom"


@pytest.mark.parametrize("device", [profile.id for profile in devices.profiles()])
def test_a_device_names_its_recipe(device):
    assert targets.resolve(None, (), None, device) == RECIPES[devices.profile(device).recipe]
    decoder = RECIPES[devices.profile(device).recipe].targets["decoder"]
    if decoder.format == "coreml":  # which has no fp32 at all
        half = Target("coreml", "fp16")
        assert targets.resolve(None, ("fp16",), None, device).targets == {"vision": half, "decoder": half}
        return
    # GGUF has no fp32: that part stays as it is.
    vision = Target(RECIPES[devices.profile(device).recipe].targets["vision"].format, "fp32")
    kept = decoder if decoder.format == "gguf" else vision
    changed = targets.resolve(None, ("fp32",), None, device).targets
    assert changed == {"vision": vision, "decoder": kept}


def test_a_recipe_that_was_asked_for_goes_before_the_device_s():
    assert targets.resolve(None, (), "onnx-fp32", "rpi5") == RECIPES["onnx-fp32"]


def test_a_format_is_looked_up_in_the_recipes_and_checked(monkeypatch):
    """A recipe of another format gives way to --format, and only to what that format can write."""
    other = Recipe("other", {"vision": Target("none", "fp16"), "decoder": Target("none", "w3")})
    monkeypatch.setattr(targets, "RECIPES", {"other": other, **RECIPES})
    assert targets.resolve("onnx", (), None, None) == RECIPES[DEFAULT]
    assert schemes(targets.resolve("onnx", ("decoder=w8",), "other", None)) == {"vision": "fp16", "decoder": "w8"}
    with pytest.raises(UsageError, match="onnx cannot write the decoder as 'w3'"):
        targets.resolve("onnx", (), "other", None)
    with pytest.raises(UsageError, match="no format 'none'"):
        targets.resolve(None, (), "other", None)


def test_targets_are_resolved_without_a_converter():
    code = (
        "from exporters import targets; targets.resolve('onnx', ('w8',), None, 'rpi5'); import sys; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "exporters.targets" in loaded
    assert [m for m in ("torch", "onnx_ir", "exporters.formats.onnx") if m in loaded] == []


UNUSED = {
    ("coreml", "ane"): (True, "--ane is for Core ML packages, and none is written", "add --format coreml"),
    ("coreml", "compile"): (True, "--compile is for Core ML packages, and none is written", "add --format coreml"),
    ("executorch", "split"): (
        True,
        "--split is for ExecuTorch programs, and none is written",
        "add --format executorch",
    ),
    ("executorch", "backend"): (
        ("mps",),
        "--backend is for ExecuTorch programs, and none is written",
        "add --format executorch",
    ),
    ("gguf", "gguf_only"): (True, "--gguf-only is for a GGUF decoder, and none is written", "add --format gguf"),
    ("gguf", "mtmd_position_workaround"): (
        True,
        "--mtmd-position-workaround is for an mmproj, and none is written",
        "add --format gguf",
    ),
    ("gguf", "tensor_type"): (
        ("attn=q8_0",),
        "--tensor-type is for a GGUF decoder, and none is written",
        "add --format gguf",
    ),
}


@pytest.mark.parametrize("format", plugins.names(targets.FORMATS))
def test_every_option_is_refused_where_nothing_makes_use_of_it(format):
    options = plugins.facts(targets.FORMATS, format)["OPTIONS"]
    assert {name for owner, name in UNUSED if owner == format} == set(options)
    for name, facts in options.items():
        value, message, hint = UNUSED[format, name]
        assert targets.resolve("onnx", (), None, None, {format: {name: facts["default"]}}) == RECIPES[DEFAULT]
        with pytest.raises(UsageError) as caught:
            targets.resolve("onnx", (), None, None, {format: {name: value}})
        assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_decoder_of_gguf_without_its_mmproj_has_no_use_for_the_workaround():
    options = {"gguf": {"mtmd_position_workaround": True}}
    assert "mmproj" in targets.resolve("gguf", (), None, None, options).targets
    with pytest.raises(UsageError, match="is for an mmproj, and none is written"):
        targets.resolve(None, (), "onnx-w8a8-gguf-q4_0", None, options)


def test_backends_add_their_roles():
    found = targets.resolve("executorch", (), None, None, {"executorch": {"backend": ("vulkan", "mps")}})
    added = {role: str(target) for role, target in found.targets.items() if role not in ("vision", "decoder")}
    assert added == {"vision-vulkan": "executorch fp32", "vision-mps": "executorch fp16"}
    assert found.name == "custom"
    with pytest.raises(UsageError, match="no backend 'qnn'") as caught:
        targets.resolve("executorch", (), None, None, {"executorch": {"backend": ("mps", "qnn")}})
    assert "coreml, mps, vulkan" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"), [({"ggml": {"x": 1}}, "no format 'ggml'"), ({"onnx": {"ane": True}}, "onnx has no option")]
)
def test_an_option_that_is_unknown_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        targets.resolve(None, (), None, None, options)
