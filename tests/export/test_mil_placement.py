"""Which operations the neural engine is said to take: each reason on a program that has it."""

from __future__ import annotations

import mil_fakes
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol

from exporters.mil import package, placement
from exporters.mil.program import Program


def placed(tmp_path, build, shape):
    program = Program(package.read(mil_fakes.write(tmp_path, main=mil_fakes.function(build, {"x": shape}))))
    return [(op.operation, op.processor, op.why) for op in placement.placed("main", program.function("main"))]


@pytest.mark.parametrize(
    ("build", "shape", "expected"),
    [
        (lambda x: mb.relu(x=x), (1, 64, 1, 64), [("relu", "ane", "")]),
        (lambda x: mb.relu(x=x), (1, 64), [("relu", "ane", "")]),
        (lambda x: mb.relu(x=x), (64, 1), [("relu", "ane", "a last axis of 1 is padded to 32")]),
        (lambda x: mb.relu(x=x), (1, 16384), [("relu", "ane", "")]),
        (lambda x: mb.relu(x=x), (1, 16385), [("relu", "gpu or cpu", "an axis longer than 16384")]),
        (lambda x: mb.relu(x=x), (1, 1, 1, 1, 1, 64), [("relu", "gpu or cpu", "more than 5 axes")]),
        (
            lambda x: mb.relu(x=mb.cast(x=x, dtype="fp32")),
            (1, 64),
            [("cast", "gpu or cpu", "not half precision"), ("relu", "gpu or cpu", "not half precision")],
        ),
    ],
)
def test_each_reason(build, shape, expected, tmp_path):
    assert placed(tmp_path, build, shape) == expected


def test_a_shape_that_is_not_known_and_constants_that_do_not_count(tmp_path):
    def build(x):
        weight = np.ones((40000, 64), np.float16)  # longer than an axis may be, but nothing is computed on it
        return mb.reduce_max(x=mb.linear(x=x, weight=weight, bias=np.zeros(40000, np.float16)), axes=[-1])

    kinds = placed(tmp_path, build, (get_new_symbol(), 64))
    assert kinds == [(name, "gpu or cpu", "shape not known beforehand") for name in ("linear", "reduce_max")]


def test_the_count_is_that_of_the_operations(tmp_path):
    def build(x):
        return mb.add(x=mb.relu(x=x), y=mb.cast(x=mb.cast(x=x, dtype="fp32"), dtype="fp16"))

    program = Program(package.read(mil_fakes.write(tmp_path, main=mil_fakes.function(build, {"x": (1, 64)}))))
    counted = placement.counted("main", program.function("main"))
    assert counted == {"ane": 2, "gpu_or_cpu": {"not half precision": 2}}
