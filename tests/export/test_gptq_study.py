"""The study of GPTQ measures what it says."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import REPOSITORY

from edge.inputs.calibration import PROMPTS
from edge.recipes import GPTQ, SEARCH, Target
from exporters.demo import gptq_study as study
from exporters.demo.agreement import CHECKPOINT
from exporters.pipeline import components
from exporters.sources.checkpoint import open_checkpoint
from exporters.standin.command import plant

COUNT = 16
FOUR = Target("gguf", "q4_0")


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(str(CHECKPOINT))


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """Some of the demo's."""
    folder, own = tmp_path_factory.mktemp("calibration"), REPOSITORY / "calib_data"
    lines = [json.loads(line) for line in (own / PROMPTS).read_text(encoding="utf-8").splitlines()[:COUNT]]
    some = "\n".join(json.dumps({**line, "image": str(own / line["image"])}) for line in lines)
    (folder / PROMPTS).write_text(some, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def found(checkpoint, calibration):
    ways = [study.Way(FOUR, SEARCH), study.Way(FOUR, GPTQ)]
    return study.compare(checkpoint, calibration, ways, COUNT)


def test_rows_are_of_equal_bytes_and_gptq_is_nearer(found):
    searched, handed_on = found.values()
    assert searched.bytes == handed_on.bytes
    assert searched.bits == handed_on.bits == 4.5
    assert handed_on.positions.tolist() == searched.positions.tolist()
    assert 0 < handed_on.mean_kl(0) < searched.mean_kl(0)


def test_the_table_compares_with_the_one_that_is_named(found):
    peer, other = found
    rows = study.table(found, peer).splitlines()
    assert peer in rows[0] and rows[2].count("1.00 (1.00 – 1.00)") == 2
    assert rows[3].startswith(f"| {other} | {found[other].bytes} | 4.50 |")
    assert f"{found[other].mean_kl(0) / found[peer].mean_kl(0):.2f} (" in rows[3]


def test_outliers_are_equalised_as_by_an_export(calibration, tmp_path):
    plant(CHECKPOINT, tmp_path / "planted", outlying=(100.0, 4))
    planted = open_checkpoint(str(tmp_path / "planted"))
    encoder, decoder = (component.load(planted.weights) for component in components(planted))
    given = study.Calibration.of(planted, encoder, decoder, calibration, 2)
    before = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    for way, changes in ((study.Way(FOUR, GPTQ, equalised=False), False), (study.Way(FOUR, GPTQ), True)):
        given.equalised(decoder, way)
        same = [torch.equal(before[name], parameter) for name, parameter in decoder.named_parameters()]
        assert all(same) != changes
