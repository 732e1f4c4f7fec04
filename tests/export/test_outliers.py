"""A vision encoder with outlier channels, as trained ones have: its refusal names a scheme that works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from edge.errors import ParityError
from exporters import standin
from exporters.export import ExportRequest, export
from exporters.random_weights import Shape

CHANNELS = {7: 30.0, 100: -20.0}  # of the residual stream -> what each is shifted by


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = standin.SHAPES["tiny"]
    tower = replace(tiny.tower, image_size=56, hidden=256, heads=4, layers=4, ffn=512)
    folder = tmp_path_factory.mktemp("outliers") / "checkpoint"
    standin.write(folder, Shape(tower, tiny.decoder), projector="mlp2x_gelu")
    weights = load_file(folder / "model.safetensors")
    bias = weights["model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc2.bias"]
    for channel, value in CHANNELS.items():
        bias[channel] = value
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("format", "wide"), [("onnx", "fp16"), ("tflite", "fp32"), ("executorch", "fp32")])
def test_a_refused_encoder_names_a_scheme_that_works(checkpoint: Path, format: str, wide: str, tmp_path: Path) -> None:
    def exported(*schemes: str) -> bool:
        request = ExportRequest(str(checkpoint), tmp_path / "out", format=format, schemes=schemes, threads=1)
        return export(request, lambda stage, done: None).report.ok

    with pytest.raises(ParityError, match="the exported vision is not the same model") as refused:
        exported()
    assert f"--scheme vision={wide} " in str(refused.value.hint)
    assert list(tmp_path.iterdir()) == []
    assert exported(f"vision={wide}")
