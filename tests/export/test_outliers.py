"""Models with outliers, as trained ones have them: exported by default, or refused with a scheme that works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exported import Exports
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge import plugins
from edge.bundle.manifest import Bundle
from edge.errors import ParityError
from edge.verify import Report
from exporters import standin, targets
from exporters.export import ExportRequest, export
from exporters.standin.command import plant
from exporters.standin.random_weights import Shape

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


@pytest.mark.parametrize("format", ["onnx", "tflite", "executorch"])
def test_layers_that_nothing_can_be_folded_into_are_widened(
    changed: Callable[..., Path], format: str, tmp_path: Path
) -> None:
    """What is behind a GELU has no norm before it, nor anything linear."""

    def lit(weights: dict[str, Tensor]) -> None:
        for layer in range(3):
            weights[f"{LAYERS}{layer}.mlp.fc1.bias"][5] = 3000.0
            weights[f"{LAYERS}{layer}.mlp.fc2.weight"][:, 5] /= 3000.0

    checkpoint = changed(lit)
    assert cosines(exported(checkpoint, tmp_path / "out", format))["vision"] > 0.9995
    widened = Bundle.open(tmp_path / "out").manifest.part("vision").options["widened"]
    assert {f"tower.layers.{layer}.mlp.fc2.weight" for layer in range(3)} <= set(widened)
    assert len(widened) < 12


def test_a_loss_that_is_not_allowed_is_refused_with_its_layers(plain: Path, tmp_path: Path) -> None:
    request = ExportRequest(str(plain), tmp_path / "out", threads=1, max_loss=1e-3)
    with pytest.raises(ParityError, match=r"quantising costs the decoder 0\.0\d+ .*the worst of 3") as refused:
        export(request, lambda stage, done: None)
    assert str(refused.value).count(" of its output; its largest input channel is ") == 3
    assert "--scheme decoder=" in str(refused.value.hint) and "--max-loss" in str(refused.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_an_importance_that_was_written_guides_the_next_export_as_it_did_this_one(
    plain: Path, exports: Exports, tmp_path: Path
) -> None:
    """It is of the checkpoint's own weights: that of equalised ones would be divided by the scales a second time."""
    plant(plain, tmp_path / "planted", outlying=(100, 4))
    asked = ExportRequest(str(tmp_path / "planted"), tmp_path / "first", recipe="gguf-q4_0", threads=1)
    export(replace(asked, calib=exports.calibration), lambda stage, done: None)
    matrix = tmp_path / "first" / "imatrix.gguf"
    export(replace(asked, output=tmp_path / "second", calib=exports.calibration, imatrix=matrix), lambda *_: None)
    first, second = (Bundle.open(tmp_path / name).manifest.part("decoder").files for name in ("first", "second"))
    assert first == second  # bytes and sha256
