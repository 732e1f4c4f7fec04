"""What a call of `edge export` means, role by role."""

from __future__ import annotations

import pytest

from edge.errors import UsageError
from exporters import targets

W8A8, FP32 = "onnx w8a8", "onnx fp32"
CALLS = {
    "nothing": ((None, [], None, None), "onnx-w8a8-w4", {"vision": W8A8, "decoder": "onnx w4"}),
    "onnx fp32": (("onnx", ["fp32"], None, None), "onnx-fp32", {"vision": FP32, "decoder": "onnx fp32"}),
    "onnx w8": (("onnx", ["w8"], None, None), "onnx-w8a8-w8", {"vision": W8A8, "decoder": "onnx w8"}),
    "onnx fp16": (("onnx", ["fp16"], None, None), "custom", {"vision": "onnx fp16", "decoder": "onnx fp16"}),
    "gguf": (("gguf", [], None, None), "gguf-q4_0", {"vision": W8A8, "decoder": "gguf q4_0", "mmproj": "gguf q8_0"}),
    "gguf, a recipe of its own": (
        ("gguf", ["Q4_K_M"], None, None),
        "gguf-q4_k_m",
        {"vision": W8A8, "decoder": "gguf q4_k_m", "mmproj": "gguf q8_0"},
    ),
    "gguf wide": (
        ("gguf", ["F16"], None, None),
        "gguf-f16",
        {"vision": FP32, "decoder": "gguf f16", "mmproj": "gguf f16"},
    ),
    "gguf bf16": (
        ("gguf", ["bf16"], None, None),
        "gguf-bf16",
        {"vision": FP32, "decoder": "gguf bf16", "mmproj": "gguf f16"},
    ),
    "gguf, as others spell it": (
        ("gguf", ["Q5_K_M"], None, None),
        "custom",
        {"vision": W8A8, "decoder": "gguf q5_k_m", "mmproj": "gguf q8_0"},
    ),
    "gguf, role by role": (
        ("gguf", ["decoder=Q8_0", "mmproj=F16"], None, None),
        "custom",
        {"vision": W8A8, "decoder": "gguf q8_0", "mmproj": "gguf f16"},
    ),
    "mixed": ((None, [], "onnx-w8a8-gguf-q4_0", None), "onnx-w8a8-gguf-q4_0", {"vision": W8A8, "decoder": "gguf q4_0"}),
    "mixed, wider": (
        (None, ["q8_0"], "onnx-w8a8-gguf-q4_0", None),
        "custom",
        {"vision": W8A8, "decoder": "gguf q8_0"},
    ),
}


@pytest.mark.parametrize(("call", "name", "expected"), CALLS.values(), ids=CALLS.keys())
def test_a_call_means(call, name, expected):
    recipe = targets.resolve(*call)
    assert {role: str(target) for role, target in recipe.targets.items()} == expected
    assert recipe.name == name


PAIRS = {
    "the usual": (("gguf", [], None, None), {"decoder": "gguf q4_0", "mmproj": "gguf q8_0"}),
    "wide": (("gguf", ["f16"], None, None), {"decoder": "gguf f16", "mmproj": "gguf f16"}),
    "mixed": ((None, ["mmproj=f16"], "onnx-w8a8-gguf-q4_k_m", None), {"decoder": "gguf q4_k_m", "mmproj": "gguf f16"}),
}


@pytest.mark.parametrize(("call", "expected"), PAIRS.values(), ids=PAIRS.keys())
def test_the_pair_only(call, expected):
    recipe = targets.resolve(*call, {"gguf": {"gguf_only": True}})
    assert {role: str(target) for role, target in recipe.targets.items()} == expected
    assert recipe.name == "custom"


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        ((None, [], None, None), "--gguf-only is for a GGUF decoder, and none is written", "--format gguf"),
        (("gguf", ["vision=fp16"], None, None), "no role 'vision'", "decoder, mmproj"),
        (("gguf", ["w8a8"], None, None), "no part can be written as 'w8a8'", "decoder=f16"),
    ],
)
def test_what_a_pair_cannot_be(call, message, hint):
    with pytest.raises(UsageError) as caught:
        targets.resolve(*call, {"gguf": {"gguf_only": True}})
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        ((None, ["q4_0"], None, None), "q4_0", "onnx: vision=fp32"),
        (("gguf", ["q4"], None, None), "'q4'", "decoder=f16|bf16|q8_0"),
        (("gguf", ["mmproj=q4_0"], None, None), "cannot write the mmproj as 'q4_0'", "mmproj=f16|q8_0"),
        (("gguf", ["tower=f16"], None, None), "no role 'tower'", "vision, decoder, mmproj"),
        (("ggml", [], None, None), "no format 'ggml'", "gguf"),
        ((None, [], "best", None), "no recipe 'best'", "gguf-q4_0"),
        ((None, [], None, "toaster"), "no device 'toaster'", "rpi5"),
    ],
)
def test_an_impossible_call_is_told_what_is_legal(call, message, hint):
    with pytest.raises(UsageError) as caught:
        targets.resolve(*call)
    assert message in caught.value.message
    assert hint in caught.value.hint
