"""Models with outliers, as trained ones have them: exported by default, or refused with a scheme that works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge import plugins
from edge.errors import ParityError
from edge.verify import Report
from exporters import standin, targets
from exporters.export import ExportRequest, export
from exporters.random_weights import Shape
from exporters.standin.command import plant

TINY = standin.SHAPES["tiny"]
SHAPE = Shape(replace(TINY.tower, image_size=56, hidden=256, heads=4, layers=4, ffn=512), TINY.decoder)
LAYERS = "model.vision_tower.vision_tower.vision_model.encoder.layers."


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outliers") / "plain"
    standin.write(folder, SHAPE, projector="mlp2x_gelu", dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def changed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A copy with other weights."""

    def change(edit: Callable[[dict[str, Tensor]], None]) -> Path:
        folder = tmp_path_factory.mktemp("outliers") / "changed"
        folder.mkdir()
        for file in plain.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors")
        return folder

    return change


def exported(checkpoint: Path, folder: Path, format: str, *schemes: str) -> Report:
    request = ExportRequest(str(checkpoint), folder, format=format, schemes=schemes, threads=1)
    return export(request, lambda stage, done: None).report


def cosines(report: Report) -> dict[str, float]:
    return {row.stage: row.error["cosine"] for row in report.rows if row.against == "fp32" and "cosine" in row.error}


@pytest.mark.parametrize("format", plugins.names(targets.FORMATS))
def test_outliers_of_norms_and_linear_layers_cost_next_to_nothing(plain: Path, format: str, tmp_path: Path) -> None:
    """Left as it is, this encoder comes to 0.953 to 0.999, its decoder to 0 to 0.58; without outliers to 0.9999 and, of
    random numbers in four bits, 0.944."""
    plant(plain, tmp_path / "planted", outlying=(1000, 4))
    found = cosines(exported(tmp_path / "planted", tmp_path / "bundle", format))
    assert found["vision"] > 0.9998 and found["prefill"] > 0.93


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_constant_in_the_residual_stream_costs_nothing(
    plain: Path, changed: Callable[..., Path], format: str, tmp_path: Path
) -> None:
    def shifted(weights: dict[str, Tensor]) -> None:
        weights[LAYERS + "0.mlp.fc2.bias"][[7, 100]] = torch.tensor([30.0, -20.0])

    assert cosines(exported(changed(shifted), tmp_path / "out", format))["vision"] > 0.9995


@pytest.mark.parametrize(("format", "wide"), [("onnx", "fp16"), ("tflite", "fp32"), ("executorch", "fp32")])
def test_a_refused_encoder_names_a_scheme_that_works(
    changed: Callable[..., Path], format: str, wide: str, tmp_path: Path
) -> None:
    """What is behind a GELU has no norm before it, nor anything linear."""

    def lit(weights: dict[str, Tensor]) -> None:
        for layer in range(3):
            weights[f"{LAYERS}{layer}.mlp.fc1.bias"][5] = 3000.0
            weights[f"{LAYERS}{layer}.mlp.fc2.weight"][:, 5] /= 3000.0

    checkpoint = changed(lit)
    with pytest.raises(ParityError, match="the exported vision is not the same model") as refused:
        exported(checkpoint, tmp_path / "out", format)
    assert f"--scheme vision={wide} " in str(refused.value.hint)
    assert list(tmp_path.iterdir()) == []
    assert exported(checkpoint, tmp_path / "out", format, f"vision={wide}").ok
