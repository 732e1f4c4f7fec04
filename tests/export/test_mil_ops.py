"""The evaluator's operations, each in a program that coremltools wrote, against values made by hand."""

from __future__ import annotations

import math

import mil_fakes
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types

from edge.errors import EngineError
from exporters.mil import arithmetic, compressed, package, shaping
from exporters.mil.program import SUPPORTED, Program

X = np.array([[1.0, -2.0, 3.0], [0.5, 0.25, -4.0]], np.float16)
G = np.arange(2 * 4 * 4, dtype=np.float16).reshape(1, 2, 4, 4)  # [B, C, H, W]
EIN = np.array([[1, 2], [2, 0], [3, 4]], np.float16).reshape(1, 3, 1, 2)  # [B, C, 1, Q]
SMALL = np.float16(0.001)


def half(*values):
    return np.array(values, np.float16)


def computed(tmp_path, build, x, precision="fp16"):
    path = mil_fakes.write(tmp_path, main=mil_fakes.function(build, {"x": x.shape}))
    outputs = Program(package.read(path), precision).run("main", {"x": torch.from_numpy(x.copy())})
    return [value.numpy() for value in outputs.values()]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def each(function, x=X):
    return np.vectorize(function)(x.astype(np.float64))


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


# operation -> how it is built, what it is fed, what it gives
CASES = {
    "add": (lambda x: mb.add(x=x, y=half(1, 2, 3)), X, [[2, 0, 6], [1.5, 2.25, -1]]),
    "sub": (lambda x: mb.sub(x=x, y=half(1, 2, 3)), X, [[0, -4, 0], [-0.5, -1.75, -7]]),
    "mul": (lambda x: mb.mul(x=x, y=np.float16(2)), X, [[2, -4, 6], [1, 0.5, -8]]),
    "real_div": (lambda x: mb.real_div(x=x, y=half(1, 2, 4)), X, [[1, -1, 0.75], [0.5, 0.125, -1]]),
    "maximum": (lambda x: mb.maximum(x=x, y=np.float16(0.5)), X, [[1, 0.5, 3], [0.5, 0.5, 0.5]]),
    "minimum": (lambda x: mb.minimum(x=x, y=np.float16(0.5)), X, [[0.5, -2, 0.5], [0.5, 0.25, -4]]),
    "pow": (lambda x: mb.pow(x=x, y=np.float16(2)), X, [[1, 4, 9], [0.25, 0.0625, 16]]),
    "abs": (lambda x: mb.abs(x=x), X, [[1, 2, 3], [0.5, 0.25, 4]]),
    "sqrt": (lambda x: mb.sqrt(x=mb.abs(x=x)), X, [[1, 1.4142, 1.7321], [0.70711, 0.5, 2]]),
    "rsqrt": (lambda x: mb.rsqrt(x=mb.abs(x=x), epsilon=np.float16(0)), X, each(lambda v: abs(v) ** -0.5)),
    "exp": (lambda x: mb.exp(x=x), X, each(math.exp)),
    "tanh": (lambda x: mb.tanh(x=x), X, each(math.tanh)),
    "relu": (lambda x: mb.relu(x=x), X, [[1, 0, 3], [0.5, 0.25, 0]]),
    "sigmoid": (lambda x: mb.sigmoid(x=x), X, each(sigmoid)),
    "sigmoid_hard": (
        lambda x: mb.sigmoid_hard(x=x, alpha=np.float16(0.25), beta=np.float16(0.5)),
        X,
        [[0.75, 0, 1], [0.625, 0.5625, 0]],
    ),
    "silu": (lambda x: mb.silu(x=x), X, each(lambda v: v * sigmoid(v))),
    "gelu": (lambda x: mb.gelu(x=x), X, each(gelu)),
    "gelu, quick": (
        lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        X,
        each(lambda v: v * sigmoid(1.702 * v)),
    ),
    "softmax": (lambda x: mb.softmax(x=x, axis=0), X, [[0.62246, 0.0953, 0.99909], [0.37754, 0.9047, 0.00091]]),
    "reduce_mean": (lambda x: mb.reduce_mean(x=x, axes=[-1], keep_dims=True), X, [[2 / 3], [-13 / 12]]),
    "reduce_sum": (lambda x: mb.reduce_sum(x=x, axes=[0]), X, [1.5, -1.75, -1]),
    "reduce_max": (lambda x: mb.reduce_max(x=x, axes=[1]), X, [3, 0.5]),
    "einsum": (
        lambda x: mb.einsum(values=(mb.reshape(x=x, shape=[1, 2, 1, 3]), EIN), equation="bkhc,bchq->bkhq"),
        X,
        [[[[1 - 4 + 9, 2 + 12]], [[0.5 + 0.5 - 12, 1 - 16]]]],
    ),
    "layer_norm, along the channels": (
        lambda x: mb.layer_norm(
            x=mb.reshape(x=x, shape=[1, 3, 1, 1]), axes=[1], gamma=half(1, 2, 1), beta=half(0, 0, 1), epsilon=SMALL
        ),
        half(1, 2, 3).reshape(1, 3),
        [[[[-1.22383]], [[0]], [[2.22383]]]],
    ),
    "conv, a product": (
        lambda x: mb.conv(x=x, weight=np.array([[[[1]], [[2]]], [[[0]], [[-1]]]], np.float16), bias=half(1, 0)),
        G,
        np.stack([G[0, 0] + 2 * G[0, 1] + 1, -G[0, 1]])[None],
    ),
    "layer_norm": (
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=half(1, 2, 1), beta=half(0, 0, 1), epsilon=np.float16(0.001)),
        half(1, 2, 3).reshape(1, 3),
        [[-1.22383, 0, 2.22383]],
    ),
    "linear": (
        lambda x: mb.linear(x=x, weight=half(1, 0, 1, 0, 2, 0).reshape(2, 3), bias=half(10, 20)),
        X,
        [[14, 16], [6.5, 20.5]],
    ),
    "matmul": (
        lambda x: mb.matmul(x=x, y=half(1, 0, 1, 0, 2, 0).reshape(2, 3), transpose_y=True),
        X,
        [[4, -4], [-3.5, 0.5]],
    ),
    "conv": (
        lambda x: mb.conv(
            x=x,
            weight=np.ones((2, 1, 3, 3), np.float16),
            bias=half(0, 100),
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            groups=2,
        ),
        G,
        # Sums of the 3 x 3 around (0, 0), (0, 2), (2, 0), (2, 2): beyond the edge is nothing.
        [[[[10, 24], [51, 90]], [[174, 220], [247, 334]]]],
    ),
    "avg_pool": (
        lambda x: mb.avg_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
        G,
        [[[[2.5, 4.5], [10.5, 12.5]], [[18.5, 20.5], [26.5, 28.5]]]],
    ),
    "scaled_dot_product_attention": (
        # Two keys that are equal, a third that is masked: the mean of the first two values.
        lambda x: mb.scaled_dot_product_attention(
            query=x,
            key=np.ones((1, 1, 3, 4), np.float16),
            value=np.arange(6, dtype=np.float16).reshape(1, 1, 3, 2),
            attn_mask=half(0, 0, -10000).reshape(1, 1, 1, 3),
        ),
        np.ones((1, 1, 2, 4), np.float16),
        [[[[1, 2], [1, 2]]]],
    ),
    "reshape": (lambda x: mb.reshape(x=x, shape=[3, -1]), X, X.reshape(3, 2)),
    "transpose": (lambda x: mb.transpose(x=x, perm=[1, 0]), X, X.T),
    "expand_dims": (lambda x: mb.expand_dims(x=x, axes=[0, -1]), X, X[None, ..., None]),
    "squeeze": (lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[1]), axes=[1]), X, X),
    "concat": (lambda x: mb.concat(values=[x, half(7, 8).reshape(2, 1)], axis=1), X, np.c_[X, [7, 8]]),
    "split": (lambda x: list(mb.split(x=x, split_sizes=[1, 2], axis=1)), X, [X[:, :1], X[:, 1:]]),
    "split, equal": (lambda x: list(mb.split(x=x, num_splits=3, axis=-1)), X, [X[:, :1], X[:, 1:2], X[:, 2:]]),
    "tile": (lambda x: mb.tile(x=x, reps=[2, 1]), X, np.r_[X, X]),
    "identity": (lambda x: mb.identity(x=x), X, X),
    "shape": (lambda x: mb.shape(x=x), G, [1, 2, 4, 4]),
    "gather": (lambda x: mb.gather(x=x, indices=np.int32([[2, 0]]), axis=1), X, X[:, [[2, 0]]]),
    "select": (
        lambda x: mb.select(cond=np.array([True, False, True]), a=x, b=mb.mul(x=x, y=np.float16(0))),
        X,
        [[1, 0, 3], [0.5, 0, -4]],
    ),
    "equal": (lambda x: mb.equal(x=x, y=np.float16(0.5)), X, X == 0.5),
    "cast": (lambda x: mb.cast(x=x, dtype="int32"), X, [[1, -2, 3], [0, 0, -4]]),
    "slice_by_size": (lambda x: mb.slice_by_size(x=x, begin=[0, 1], size=[1, -1]), X, X[:1, 1:]),
    "slice_by_index": (
        lambda x: mb.slice_by_index(x=x, begin=[-1, 0], end=[0, 3], stride=[1, 2], end_mask=[True, False]),
        X,
        [[0.5, -4]],
    ),
    "slice_by_index, squeezed": (
        lambda x: mb.slice_by_index(
            x=x, begin=[1, 0], end=[0, 0], begin_mask=[False, True], end_mask=[False, True], squeeze_mask=[True, False]
        ),
        X,
        X[1],
    ),
    "slice_update": (
        lambda x: [mb.slice_update(x=x, update=half(9, 9).reshape(1, 2), begin=[1, 1], end=[2, 3]), mb.identity(x=x)],
        X,
        [[[1, -2, 3], [0.5, 9, 9]], X],  # what was given is as it was
    ),
    "constexpr_blockwise_shift_scale": (
        lambda x: mb.mul(
            x=x,
            y=mb.constexpr_blockwise_shift_scale(
                data=np.array([[1, 2, 3, -4], [7, -8, 0, 1], [-1, 5, 6, 2]], types.np_int4_dtype),
                scale=half(0.5, 2).reshape(1, 2),
                offset=half(1, 0).reshape(1, 2),
            ),
        ),
        np.ones((3, 4), np.float16),
        [[0, 0.5, 6, -8], [3, -4.5, 0, 2], [-1, 2, 12, 4]],
    ),
    "constexpr_lut_to_dense": (
        # The first example of coremltools' own documentation.
        lambda x: mb.mul(
            x=x,
            y=mb.constexpr_lut_to_dense(
                indices=np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], types.np_uint2_dtype).reshape(6, 2),
                lut=half(1, 5, 9, 13, 2, 10, 18, 26).reshape(2, 1, 4, 1),
            ),
        ),
        np.ones((6, 2), np.float16),
        [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]],
    ),
    "constexpr_sparse_to_dense": (
        lambda x: mb.mul(
            x=x,
            y=mb.constexpr_sparse_to_dense(
                nonzero_data=half(3, 4, 5), mask=np.array([[1, 0, 1, 0, 0], [0, 0, 0, 1, 0]], types.np_uint1_dtype)
            ),
        ),
        np.ones((2, 5), np.float16),
        [[3, 0, 4, 0, 0], [0, 0, 0, 5, 0]],
    ),
}


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", CASES)
def test_an_operation(name, precision, tmp_path):
    build, x, expected = CASES[name]
    if precision == "fp32":
        x = x.astype(np.float32)
    path = mil_fakes.write(tmp_path, main=mil_fakes.function(build, {"x": x.shape}))
    feeds = {"x": torch.from_numpy(x.astype(np.float16))}
    outputs = list(Program(package.read(path), precision).run("main", feeds).values())
    for found, want in zip(outputs, expected if len(outputs) > 1 else [expected], strict=True):
        assert found.shape == np.shape(want)
        np.testing.assert_allclose(found.numpy().astype(np.float64), np.array(want, np.float64), rtol=1e-3, atol=2e-3)


def test_every_operation_has_a_case():
    stateful = {"const", "read_state", "write_state"}  # below
    assert {name.partition(",")[0] for name in CASES} | stateful == SUPPORTED
    assert set(arithmetic.TABLE) | set(shaping.TABLE) | set(compressed.TABLE) < SUPPORTED


def test_half_precision_rounds_each_result_and_single_precision_does_not(tmp_path):
    def build(x):
        return mb.sub(x=mb.add(x=x, y=np.float16(2048)), y=np.float16(2048))

    (rounded,) = computed(tmp_path / "half", build, half(1, 0.5, 3))
    np.testing.assert_array_equal(rounded, [1 - 1, 0, 4])  # above 2048 halves go by two, ties to even
    (whole,) = computed(tmp_path / "single", build, half(1, 0.5, 3), "fp32")
    np.testing.assert_array_equal(whole, [1, 0.5, 3])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x: mb.mul(x=x, y=x, name="square"), r"mul 'square': square overflows half precision: 9e\+04"),
        (lambda x: mb.cast(x=mb.cast(x=x, dtype="fp32"), dtype="fp16", name="back"), None),
        (lambda x: mb.sqrt(x=mb.mul(x=x, y=np.float16(-1)), name="root"), "sqrt 'root': root is not a number"),
        (lambda x: mb.real_div(x=x, y=np.float16(0), name="ratio"), "ratio overflows half precision: inf"),
    ],
)
def test_what_does_not_fit_half_precision_is_told_by_its_name(build, message, tmp_path):
    if message is None:
        assert computed(tmp_path, build, half(300))[0] == 300
        return
    with pytest.raises(EngineError, match=message):
        computed(tmp_path, build, half(300))


def test_what_was_only_moved_to_an_output_is_looked_at_too(tmp_path):
    with pytest.raises(EngineError, match="is not a number"):
        computed(tmp_path, lambda x: mb.reshape(x=x, shape=(1, -1)), half(1, float("nan")))


def counting(state, x):
    """Adds to a state, and gives what it was before and after."""
    before = mb.read_state(input=state)
    after = mb.coreml_update_state(state=state, value=mb.add(x=before, y=x))
    return [mb.identity(x=before), mb.identity(x=after)]


def updating(state, x):
    """Writes one place of a state, in the way that the evaluator does without a copy; then another."""
    first = mb.slice_update(x=mb.read_state(input=state), update=x, begin=[0], end=[1])
    kept = mb.coreml_update_state(state=state, value=first)
    early = mb.slice_by_index(x=kept, begin=[0], end=[3])
    second = mb.slice_update(x=mb.read_state(input=state), update=mb.mul(x=x, y=np.float16(2)), begin=[0], end=[1])
    late = mb.coreml_update_state(state=state, value=second)
    return [early, mb.slice_by_index(x=late, begin=[0], end=[3])]


def forgetting(state, x):
    """Changes what it read of a state, and does not write it back."""
    changed = mb.slice_update(x=mb.read_state(input=state), update=x, begin=[0], end=[1])
    return [changed, mb.identity(x=mb.read_state(input=state))]


def test_states_are_shared_by_functions_and_lie_apart_from_values(tmp_path):
    functions = {
        name: mil_fakes.function(build, {"x": (1,)}, {"state": (3,)})
        for name, build in (("count", counting), ("update", updating), ("forget", forgetting))
    }
    program = Program(package.read(mil_fakes.write(tmp_path, **functions)))
    states = program.states("count")
    assert {name: (s.dtype, s.tolist()) for name, s in states.items()} == {"state": (torch.float16, [0, 0, 0])}

    def run(name, value):
        return [v.tolist() for v in program.run(name, {"x": torch.tensor([value]).half()}, states).values()]

    assert run("count", 2.0) == [[0, 0, 0], [2, 2, 2]]
    assert run("update", 7.0) == [[7, 2, 2], [14, 2, 2]]
    assert run("forget", 1.0) == [[1, 2, 2], [14, 2, 2]]
    assert run("count", 1.0) == [[14, 2, 2], [15, 3, 3]]
    assert program.states("update")["state"].tolist() == [0, 0, 0]  # new ones


def test_a_run_is_refused_that_does_not_fit(tmp_path):
    made = mil_fakes.function(lambda x: mb.identity(x=x), {"x": (2,)})
    program = Program(package.read(mil_fakes.write(tmp_path, main=made)))
    with pytest.raises(EngineError, match="main takes x, and was fed y"):
        program.run("main", {"y": torch.zeros(2).half()})
    with pytest.raises(EngineError, match=r"x is torch.float16 \[3\]"):
        program.run("main", {"x": torch.zeros(3).half()})
    with pytest.raises(EngineError, match=r"x is torch\.float32"):
        program.run("main", {"x": torch.zeros(2)})
    with pytest.raises(EngineError, match="has no function 'decode'"):
        program.run("decode", {})


def test_an_operation_that_is_not_known_is_named(tmp_path):
    made = mil_fakes.function(lambda x: mb.cumsum(x=mb.erf(x=x), axis=0), {"x": (2,)})
    program = Program(package.read(mil_fakes.write(tmp_path, main=made)))
    with pytest.raises(EngineError, match="does not know: cumsum, erf"):
        program.run("main", {"x": torch.zeros(2).half()})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x: mb.conv(x=x, weight=np.ones((1, 2, 3, 3), np.float16), pad_type="same"), "padding 'same'"),
        (lambda x: mb.layer_norm(x=x, axes=[1, 2]), "over several axes"),
        (lambda x: mb.slice_by_index(x=x, begin=[0, 0, 3, 0], end=[1, 2, 0, 4], stride=[1, 1, -1, 1]), "backwards"),
        (lambda x: mb.avg_pool(x=x, kernel_sizes=[2, 2], pad_type="same"), "avg_pool with the padding"),
        (lambda x: mb.concat(values=[x, x], axis=1, interleave=True), "interleaves"),
    ],
)
def test_a_form_of_an_operation_that_is_not_known_is_named(build, message, tmp_path):
    with pytest.raises(EngineError, match=message):
        computed(tmp_path, build, G)
