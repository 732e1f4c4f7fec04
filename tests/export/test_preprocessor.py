"""preprocessor_config.json: pixels are those of transformers' image processor, or the field is refused by name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge.errors import CheckpointError
from edge.inputs.image import pixels
from edge.spec import ImageSpec
from exporters.sources import preprocessor
from exporters.sources.preprocessor import CLIP, DEFAULTS, FILES, IRRELEVANT, LLAVA, PROCESSORS, SIGLIP, TYPES

SIZE = 48  # of the vision encoder
# As openai/clip-vit-large-patch14-336 has it, which LLaVA-1.5 and MobileVLM see through.
PUBLISHED = {
    "crop_size": 336,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}
FULL = {
    **PUBLISHED,
    "crop_size": {"height": 336, "width": 336},
    "size": {"shortest_edge": 336},
    "do_convert_rgb": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_processor_type": "CLIPImageProcessor",
    "processor_class": "CLIPProcessor",
    "_valid_processor_keys": ["images", "do_resize"],
    "data_format": "channels_first",
    "default_to_square": False,
    "do_pad": None,
    "pad_size": None,
    "device": None,
}
FITTING = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}


def spec(told, fit="crop", size=SIZE, file=FILES[0]) -> ImageSpec:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / file).write_text(json.dumps(told if file == FILES[0] else {"image_processor": told}))
        return preprocessor.find([Path(folder)], size, fit)


def read(told, fit) -> ImageSpec | CheckpointError:
    try:
        return spec(told, fit)
    except CheckpointError as error:
        return error


def image(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [image(61, 47), image(38, 83), image(SIZE, SIZE), image(90, 50)]


def upstream_class(kind: str):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    known = {"Llava": LlavaImageProcessorPil, "Siglip": SiglipImageProcessorPil}
    return next((cls for name, cls in known.items() if kind.startswith(name)), CLIPImageProcessorPil)


def upstream(told, fit: str, picture: Image.Image) -> np.ndarray:
    """LLaVA's process_images: the image is padded to a square, or not; then the processor takes it."""
    kind = told.get("image_processor_type") or told.get("feature_extractor_type") or CLIP
    # transformers 5 fails on a null for these; those before it take the default.
    nullable = ("size", "crop_size", "image_mean", "image_std")
    processor = upstream_class(kind)(**{k: v for k, v in told.items() if v is not None or k not in nullable})
    if fit == "pad" and picture.width != picture.height:
        mean = processor.image_mean
        mean = mean if isinstance(mean, list | tuple) else [mean] * 3
        side = max(picture.size)
        square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in mean))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    return np.asarray(processor(picture, return_tensors="np")["pixel_values"], dtype=np.float32)


def assert_same_pixels(told, fit) -> None:
    found = spec(told, fit)
    # The manifest takes it: no number is negative, infinite or NaN.
    assert all(0 <= number < float("inf") for number in (*found.mean, *found.std))
    for picture in IMAGES:
        expected = upstream(told, fit, picture)
        ours = pixels(picture, found)
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5 * max(1.0, float(np.abs(expected).max())))


# What is published


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("told", [PUBLISHED, FULL, {}, {"size": None, "crop_size": None}])
def test_published_values_are_to_the_bit_what_they_were(told, fit):
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    assert spec(told, fit, size=336) == ImageSpec(336, fit, (122, 116, 104), "bicubic", mean, std)
    assert spec(told, fit, size=336, file=FILES[1]) == spec(told, fit, size=336)


def test_without_a_file_the_published_values_stand(tmp_path):
    assert preprocessor.find([tmp_path, tmp_path / "nowhere"], 336, "pad") == spec(PUBLISHED, "pad", size=336)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_defaults_are_those_of_transformers(kind):
    processor = upstream_class(kind)()
    for name, value in PROCESSORS[kind].items():
        if name not in {"use_square_size", "data_format", "do_pad"}:
            told = getattr(processor, name)
            told = dict(told) if isinstance(value, dict) else told
            expected = list(value) if isinstance(value, tuple) else value
            assert (list(told) if isinstance(value, tuple) else told) == (expected or (told and expected)), name
    assert not processor.do_pad
    # Every setting that the processor knows is one that is read, or one that changes no pixel.
    assert set(processor._valid_kwargs_names) <= {*DEFAULTS, *IRRELEVANT}


# What is honoured

HONOURED = [
    {},
    {"size": SIZE, "crop_size": SIZE},
    {"size": SIZE, "crop_size": [SIZE, SIZE]},
    {"do_rescale": False},
    {"do_rescale": False, "image_mean": [122.77, 116.75, 104.09], "image_std": [68.5, 66.63, 70.32]},
    {"do_normalize": False},
    {"do_normalize": False, "do_rescale": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1, 1, 1]},
    {"rescale_factor": 0.0039, "image_mean": 0.5, "image_std": 0.25},
    {"rescale_factor": 1},
    {"do_rescale": False, "rescale_factor": 0.5},
    {"image_mean": [0.5, 0.25, 0.1], "image_std": [0.5, 0.5, 1], "resample": 2},
    {"resample": 1},
    {"image_mean": [0, 0, 0], "image_std": None},
    {"do_normalize": None},
    {"do_rescale": None, "rescale_factor": None},
    {"do_pad": True},
    {"do_pad": True, "pad_size": SIZE},
    {"pad_size": {"height": 99, "width": 99}},
    {"do_convert_rgb": False, "do_reduce_labels": False, "do_thumbnail": False, "tiles": None},
]


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("told", HONOURED, ids=str)
def test_what_is_honoured_gives_the_processors_pixels(told, fit):
    assert_same_pixels(FITTING | told, fit)


@pytest.mark.parametrize(
    "told",
    [
        {"size": {"height": SIZE, "width": SIZE}},
        {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False},
        {"size": [SIZE, SIZE], "do_center_crop": False},
        {"size": SIZE, "default_to_square": True},
        {"do_center_crop": False, "crop_size": {"height": 7, "width": 9}},
    ],
    ids=str,
)
def test_a_padded_square_may_be_resized_by_both_edges(told):
    assert_same_pixels(FITTING | told, "pad")
    if told.keys() == {"do_center_crop", "crop_size"}:
        with pytest.raises(CheckpointError, match="has do_center_crop False"):
            spec(FITTING | told, "crop")
    else:  # an image that was not padded is stretched
        assert spec(FITTING | told, "crop").fit == "stretch"
        assert_same_pixels(FITTING | told, "crop")


STRETCHED = {"image_processor_type": SIGLIP, "size": {"height": SIZE, "width": SIZE}}


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("kind", [SIGLIP, f"{SIGLIP}Fast", f"{SIGLIP}Pil"])
@pytest.mark.parametrize(
    "told",
    [
        {},
        {"do_convert_rgb": None, "rescale_factor": 1 / 255, "processor_class": "SiglipProcessor"},
        {"resample": 2, "image_mean": [0.48, 0.46, 0.41]},
        {"do_center_crop": True, "crop_size": SIZE},
        {"do_center_crop": None, "do_pad": False},
    ],
    ids=str,
)
def test_siglip_stretches_an_image_to_its_square(told, kind, fit):
    told = STRETCHED | {"image_processor_type": kind} | told
    assert spec(told, fit).fit == {"pad": "pad", "crop": "stretch"}[fit]
    assert_same_pixels(told, fit)


def test_siglip_s_processor_is_published_with_these_values():
    """As google/siglip-so400m-patch14-384 has it."""
    told = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 384, "width": 384},
    }
    half = (0.5, 0.5, 0.5)
    assert spec(told, size=384) == ImageSpec(384, "stretch", (127, 127, 127), "bicubic", half, half)


@pytest.mark.parametrize(("fit", "found"), [("pad", "pad"), ("crop", "stretch")])
def test_without_a_file_the_vision_encoder_s_own_processor_stands(tmp_path, fit, found):
    half = (0.5, 0.5, 0.5)
    expected = ImageSpec(SIZE, found, (127, 127, 127), "bicubic", half, half)
    assert preprocessor.find([tmp_path], SIZE, fit, SIGLIP) == expected
    (tmp_path / FILES[0]).write_text(json.dumps({"size": {"height": SIZE, "width": SIZE}}))
    assert preprocessor.find([tmp_path], SIZE, fit, SIGLIP) == expected


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize(
    "told", [{}, {"image_mean": [0.5, 0.25, 0.1]}, {"do_center_crop": False, "do_pad": True}], ids=str
)
def test_llava_s_processor_may_pad_by_itself(told, pads, fit):
    told = FITTING | {"image_processor_type": LLAVA, "do_pad": pads} | told
    assert spec(told, fit).fit == ("pad" if told["do_pad"] else fit)
    assert_same_pixels(told, fit)


# What is refused


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"size": {"shortest_edge": 55}}, r"has size \{'shortest_edge': 55\}: not 48"),
        ({"size": 55}, "has size 55"),
        ({"size": {"height": 48, "width": 55}}, "has size"),
        ({"size": {"shortest_edge": 48, "longest_edge": 99}}, "has size"),
        ({"size": {"longest_edge": 48}}, "has size"),
        ({"size": "48"}, "has size '48'"),
        ({"size": True}, "has size True"),
        ({"size": 48.0}, "has size 48.0"),
        ({"size": None}, r"has size \{'shortest_edge': 224\}"),  # the default, where only crop_size is told
        ({"crop_size": 44}, "has crop_size 44: not 48"),
        ({"crop_size": {"height": 48, "width": 44}}, "has crop_size"),
        ({"crop_size": {"shortest_edge": 48}}, "has crop_size"),
        ({"crop_size": None}, r"has crop_size \{'height': 224"),
        ({"do_resize": False}, "has do_resize False"),
        ({"do_resize": None}, "has do_resize None"),
        ({"do_resize": "no"}, "has do_resize 'no'"),
        ({"do_normalize": 0}, "has do_normalize 0"),
        ({"do_pad": True, "pad_size": 50}, "has pad_size 50"),
        ({"use_square_size": True}, "has use_square_size True"),
        ({"resample": 0}, "has resample 0"),
        ({"resample": 4}, "has resample 4"),
        ({"resample": True}, "has resample True"),
        ({"resample": "bicubic"}, "has resample 'bicubic'"),
        ({"resample": [3]}, r"has resample \[3\]"),
        ({"resample": None}, "has resample None"),
        ({"rescale_factor": None}, "has rescale_factor None"),
        ({"rescale_factor": 0}, "has rescale_factor 0"),
        ({"rescale_factor": -1}, "has rescale_factor -1"),
        ({"rescale_factor": "1/255"}, "has rescale_factor '1/255'"),
        ({"image_mean": [0.5]}, r"has image_mean \[0.5\]"),
        ({"image_mean": [-0.5, 0, 0]}, "has image_mean"),
        ({"image_mean": [float("nan"), 0, 0]}, "has image_mean"),
        ({"image_mean": ["0.5", 0, 0]}, "has image_mean"),
        ({"image_mean": [10**400, 0, 0]}, "has image_mean"),
        ({"image_std": [0.5, 0, 1]}, "has image_std"),
        ({"image_std": [float("inf"), 1, 1]}, "has image_std"),
        ({"image_std": "junk"}, "has image_std 'junk'"),
        ({"image_processor_type": "ViTImageProcessor"}, "has image_processor_type 'ViTImageProcessor'"),
        ({"image_processor_type": SIGLIP, "size": None, "crop_size": 55}, "has size .*224"),
        ({"image_processor_type": SIGLIP, "size": {"height": 48, "width": 55}}, "has size"),
        ({"image_processor_type": SIGLIP, "do_center_crop": True, "crop_size": None}, "has crop_size None"),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, "has feature_extractor_type"),
        ({"image_processor_type": ["CLIPImageProcessor"]}, "has image_processor_type"),
        ({"data_format": "channels_last"}, "has data_format 'channels_last'"),
        ({"do_thumbnail": True}, "has do_thumbnail True"),
        ({"crop_pct": 0.875}, "has crop_pct 0.875"),
        ({"auto_map": {"AutoImageProcessor": "own.Processor"}}, "has auto_map"),
        ({"image_grid_pinpoints": [[336, 672]]}, "has image_grid_pinpoints"),
    ],
    ids=str,
)
def test_what_is_refused_is_named(told, match, fit):
    for file in FILES:
        with pytest.raises(CheckpointError, match=f"^{file} {match}") as caught:
            spec(FITTING | told, fit, file=file)
        assert caught.value.hint


def test_files_that_disagree_are_named(tmp_path):
    for name in ("tower", "checkpoint"):
        (tmp_path / name).mkdir()
    folders = [tmp_path / "tower", tmp_path / "checkpoint"]
    (folders[0] / FILES[0]).write_text(json.dumps(FITTING))
    (folders[1] / FILES[1]).write_text(json.dumps({"image_processor": FITTING | {"do_convert_rgb": True}}))
    assert preprocessor.find(folders, SIZE, "pad") == spec(FITTING, "pad")
    for file, wrap in ((FILES[0], False), (FILES[1], True)):
        other = FITTING | {"resample": 2}
        (folders[1] / file).write_text(json.dumps({"image_processor": other} if wrap else other))
        with pytest.raises(CheckpointError, match=r"disagree.*bicubic.*bilinear") as caught:
            preprocessor.find(folders, SIZE, "pad")
        assert str(folders[0] / FILES[0]) in caught.value.message
        assert str(folders[1] / file) in caught.value.message
        (folders[1] / file).unlink()
    (folders[1] / FILES[1]).write_text(json.dumps({"processor_class": "LlavaProcessor", "patch_size": 14}))
    assert preprocessor.find(folders, SIZE, "pad") == spec(FITTING, "pad")
    (folders[1] / FILES[1]).write_text(json.dumps({"image_processor": 3}))
    with pytest.raises(CheckpointError, match="image_processor is 3"):
        preprocessor.find(folders, SIZE, "pad")


# Any settings

number = st.floats(0, 2, allow_subnormal=False) | st.integers(0, 300)
edge = st.sampled_from([SIZE, SIZE, SIZE, SIZE + 7, 30])
three = st.lists(number, min_size=3, max_size=3) | number
any_size = (
    edge
    | st.builds(lambda e: {"shortest_edge": e}, edge)
    | st.builds(lambda h, w: {"height": h, "width": w}, edge, edge)
    | st.builds(lambda h, w: [h, w], edge, edge)
)
SETTINGS = {
    "image_processor_type": st.sampled_from([CLIP, LLAVA, SIGLIP]),
    "size": any_size,
    "crop_size": any_size,
    "default_to_square": st.booleans(),
    "do_resize": st.sampled_from([True, True, True, False]),
    "do_center_crop": st.booleans(),
    "do_rescale": st.booleans(),
    "do_normalize": st.booleans(),
    "do_convert_rgb": st.booleans(),
    "do_pad": st.booleans(),
    "pad_size": any_size,
    "rescale_factor": st.floats(1e-4, 2, allow_subnormal=False) | st.just(1 / 255),
    "resample": st.sampled_from([0, 1, 2, 3, 3, 3]),
    "image_mean": three,
    "image_std": three,
    "image_seq_length": st.integers(1, 600),
    "disable_grouping": st.booleans(),
}


@settings(max_examples=300, deadline=None)
@given(
    told=st.fixed_dictionaries({}, optional={name: st.none() | value for name, value in SETTINGS.items()}),
    fit=st.sampled_from(["pad", "crop"]),
    fitting=st.booleans(),
)
def test_any_settings_give_the_processors_pixels_or_are_refused_by_name(told, fit, fitting):
    told = told | (FITTING if fitting else {})
    found = read(told, fit)
    if isinstance(found, CheckpointError):
        assert any(f"has {name} " in found.message for name in DEFAULTS)
        return
    if told.get("size") is None and told.get("crop_size") is None:
        # The defaults are another vision encoder's.
        told = told | (STRETCHED if told.get("image_processor_type") == SIGLIP else FITTING)
    assert found.size == SIZE
    with np.errstate(all="ignore"):
        assert_same_pixels(told, fit)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(told=st.dictionaries(st.sampled_from([*TYPES, *DEFAULTS, *IRRELEVANT, "unknown"]), json_values, max_size=4))
def test_only_a_checkpoint_error_escapes(told):
    found = read(FITTING | told, "crop")
    if isinstance(found, CheckpointError):
        assert found.hint
        return
    assert all(0 <= number < float("inf") for number in (*found.mean, *found.std))
