"""Rounding with errors handed on (GPTQ): against a reference written from the papers, and in a decoder."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import random_decoder

from edge.errors import CheckpointError
from exporters.models.attention import GrowingCache
from exporters.models.decoders import llama, qwen3
from exporters.models.layers import Linear
from exporters.quantization import gptq, integers

CONFIG = llama.tiny().config


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows, columns, seed=0, shared=6):
    """Correlated, and some columns much larger than others, as a decoder's are."""
    mixed = made(rows, shared, seed=seed) @ made(shared, columns, seed=seed + 1) + 0.3 * made(
        rows, columns, seed=seed + 2
    )
    return mixed * made(columns, seed=seed + 3).exp()


def sequences(*lengths, seed=0):
    return [made(1, length, CONFIG.hidden, seed=seed + i) for i, length in enumerate(lengths)]


def rounded(decoder, given, grid="float32", left=None):
    return gptq.round_decoder(decoder, given, grid, lambda done: None, left)


def linears(decoder):
    """The weights that are rounded."""
    return {
        f"{name}.weight": layer.weight
        for name, layer in decoder.named_modules()
        if isinstance(layer, Linear) and name != "lm_head"
    }


def logits(decoder, rows):
    config = decoder.config
    with torch.inference_mode():
        return decoder(rows, GrowingCache(config.heads, config.kv_heads, config.rope), everywhere=True)[0]


# one weight


def factored(x):
    """The factor of the Hessian of inputs `[R, K]`, and the order of its columns."""
    order = x.square().sum(0).argsort()
    return gptq.factor((x.T @ x)[order][:, order], len(x)), order


def damped(x):
    """As documented: 3 % of each column's own energy and 15 % of the columns for each row; columns that are hardly lit
    counted as 1e-4 of the mean."""
    hessian = x.double().T @ x.double()
    own = hessian.diagonal().clone()
    hessian.diagonal().copy_((1.03 + 0.15 * x.shape[1] / len(x)) * own.clamp(min=float(own.mean()) * 1e-4))
    return hessian


def brute_force(weight, x, scales, order):
    """Optimal brain quantisation in a fixed order: quantise one column, give the others the least-squares correction,
    strike the column out of the inverse Hessian; no Cholesky factor, no blocks."""
    inverse = torch.linalg.inv(damped(x))
    rest, stored = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    open_ = torch.ones(weight.shape[1], dtype=torch.bool)
    for column in order.tolist():
        scale = scales[:, column // 32].double()
        stored[:, column] = (rest[:, column] / scale).round().clamp(-8, 7) * scale
        error = (rest[:, column] - stored[:, column]) / inverse[column, column]
        open_[column] = False
        rest[:, open_] -= error[:, None] * inverse[column, open_]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return stored


@pytest.mark.parametrize(("columns", "rows"), [(32, 50), (96, 400), (160, 90)])  # 160: in two pieces, and rank 90
def test_the_integers_are_those_of_the_plain_algorithm(columns, rows):
    weight, x = made(24, columns, seed=7), inputs(rows, columns)
    scales = integers.blockwise(weight, 4).scales
    lower, order = factored(x)
    found = gptq.propagate(weight, scales, lower, order)
    expected = brute_force(weight, x, scales, order.flip(0))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(integers.blockwise(found, 4, scales=scales).dequantized(), found)


@pytest.mark.parametrize("rows", [24, 80])  # fewer than columns, and more
def test_a_weight_follows_what_rounding_changed_of_its_inputs(rows):
    """The least-squares weight that gives on the inputs as they are what the original gives on the exact ones."""
    weight, x = made(rows, 64), inputs(300, 64)
    exact = x + 0.02 * x @ made(64, 64, seed=9) + 0.02 * made(300, 64, seed=10)
    found = gptq.follow(weight, (exact - x).T @ x, *factored(x))
    ridge = damped(x) - x.double().T @ x.double()
    wanted = weight.double() @ (exact.double().T @ x.double() + ridge)
    made_of_it = x.double() @ (wanted @ torch.linalg.inv(damped(x))).T
    torch.testing.assert_close(x.double() @ found.double().T, made_of_it, rtol=1e-4, atol=1e-3)

    def off(candidate):
        return float((x @ candidate.T - exact @ weight.T).square().sum())

    assert off(found) < 0.5 * off(weight)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.integers(1, 200),
    st.integers(1, 12),
    st.sampled_from(gptq.Grid.__args__),
)
def test_the_output_is_no_further_off_than_by_rounding_to_nearest(seed, blocks, rows, shared, grid):
    weight, x = made(32, 32 * blocks, seed=seed), inputs(rows, 32 * blocks, seed + 1, shared)
    square = x.square().sum(0)
    scales = gptq.scales_on(weight, grid, square)
    found = gptq.propagate(weight, scales, *factored(x))
    nearest = integers.blockwise(weight, 4, scales=scales).dequantized()

    def off(candidate):
        return float(((candidate - weight) @ x.T).double().square().sum())

    assert off(found) <= off(nearest)


@pytest.mark.parametrize("x", [torch.zeros(5, 64), inputs(1, 64), inputs(2, 64).repeat(30, 1), 1e12 * inputs(9, 64)])
def test_inputs_of_low_rank(x):
    """One row, the same rows again, nothing at all: damping makes a factor of any of them."""
    hessian = x.T @ x
    lower = gptq.factor(hessian, len(x))
    assert lower.isfinite().all()
    assert torch.equal(lower, lower.tril())
    if hessian.any():
        whole = damped(x)
        torch.testing.assert_close(lower.double() @ lower.double().T, whole, rtol=1e-5, atol=1e-6 * float(whole.max()))


def test_a_hessian_that_is_none_is_damped_until_it_is_one():
    """Sums in float32 may be off by more than the damping makes up for."""
    hessian = torch.full((64, 64), -1.0)
    hessian.fill_diagonal_(1.0)
    assert torch.linalg.eigvalsh(hessian)[0] < -60
    assert gptq.factor(hessian, 64).isfinite().all()


def test_columns_that_calibration_never_lit_are_rounded_to_nearest():
    weight, x = made(16, 64), inputs(200, 64)
    x[:, ::3] = 0
    scales = integers.blockwise(weight, 4).scales
    found = gptq.propagate(weight, scales, *factored(x))
    nearest = integers.blockwise(weight, 4, scales=scales)
    assert torch.equal(found[:, ::3], nearest.dequantized()[:, ::3])
    assert not torch.equal(found, nearest.dequantized())


@pytest.mark.parametrize("grid", gptq.Grid.__args__)
def test_scales_are_those_that_a_format_keeps(grid):
    weight = made(64, 64) * made(64, 1, seed=1).mul(4).exp()
    scales = gptq.scales_on(weight, grid, torch.ones(64))
    if grid != "float32":
        assert torch.equal(scales.half().float(), scales)
    if grid == "positive":
        assert torch.equal(scales.bfloat16().float(), scales)
    assert bool((scales > 0).all()) == (grid == "positive")


# a decoder


@pytest.mark.parametrize("make", [llama.tiny, qwen3.tiny])
def test_a_decoder_is_nearer_to_its_own_than_by_the_search(make):
    exact, found, searched = (make().eval().requires_grad_(False) for _ in range(3))
    basis = made(10, CONFIG.hidden, seed=30)  # what is asked is like what was calibrated with
    *calibration, other = (made(1, length, 10, seed=length) @ basis for length in (60, 50, 70, 40))
    scales = rounded(found, calibration)
    for name, weight in linears(searched).items():
        weight.copy_(integers.blockwise(weight, 4).dequantized())
        assert torch.equal(
            integers.blockwise(linears(found)[name], 4, scales=scales[name]).dequantized(), linears(found)[name]
        )
    assert scales.keys() == linears(found).keys()
    untouched = {name for name, p in exact.named_parameters() if torch.equal(p, found.get_parameter(name))}
    assert untouched == {name for name, _ in exact.named_parameters()} - scales.keys()

    def off(decoder, rows):
        return float((logits(decoder, rows) - logits(exact, rows)).square().mean())

    for rows in (*calibration, other):
        assert off(found, rows) < 0.8 * off(searched, rows)


@pytest.fixture
def seen(monkeypatch):
    """By weight: the inputs that its rounding was given, as rounded so far and exact."""
    found, products = {}, gptq._products

    def watched(name, as_rounded, exact):
        found[name] = as_rounded.clone(), exact.clone()
        return products(name, as_rounded, exact)

    monkeypatch.setattr(gptq, "_products", watched)
    return found


def test_each_weight_is_rounded_for_the_inputs_that_it_will_have(seen):
    """And beside them for those of the checkpoint, without the rows that pad shorter sequences."""
    exact, found = random_decoder(CONFIG), random_decoder(CONFIG)
    calibration = sequences(9, 20, 13)
    rounded(found, calibration)
    for side, decoder in enumerate((found, exact)):
        for name in linears(decoder):
            caught = []
            layer = decoder.get_submodule(name.removesuffix(".weight"))
            handle = layer.register_forward_pre_hook(lambda _, given, caught=caught: caught.append(given[0][0]))
            for rows in calibration:
                logits(decoder, rows)
            handle.remove()
            torch.testing.assert_close(seen[name][side], torch.cat(caught), rtol=1e-4, atol=1e-4)


def test_one_hessian_is_alive_at_a_time(monkeypatch):
    alive, products = [], gptq._products

    def watched(name, *given):
        assert not [one for one in alive if one() is not None], f"at {name} another weight's is still there"
        found = products(name, *given)
        alive.extend(map(weakref.ref, found))
        return found

    monkeypatch.setattr(gptq, "_products", watched)
    rounded(random_decoder(CONFIG), sequences(8, 8))
    assert len(alive) == 2 * len(linears(random_decoder(CONFIG)))


def test_no_more_sequences_are_taken_than_there_is_room_for(seen, monkeypatch):
    monkeypatch.setattr(gptq, "_ROOM", 1)
    decoder = random_decoder(CONFIG)
    rows = 2 * (2 * CONFIG.hidden + 4 * CONFIG.ffn) * 4  # bytes of a position
    half = sum(p.numel() for p in decoder.parameters()) * 4 // 2
    rounded(decoder, sequences(*[20] * 50))
    assert {len(inputs) for inputs, _ in seen.values()} == {20 * (half // (20 * rows))}
    rounded(decoder, sequences(half // rows + 100))
    assert {len(inputs) for inputs, _ in seen.values()} == {half // rows + 100}


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_inputs_that_are_not_finite_are_refused_by_the_weights_name(poison):
    decoder = random_decoder(CONFIG)
    decoder.layers[1].post_attention_layernorm.weight[3] = poison
    with pytest.raises(CheckpointError, match=r"multiplies with layers\.1\.gate_up_proj\.weight is NaN or infinite"):
        rounded(decoder, sequences(5))


def test_rows_that_are_stored_otherwise_are_not_rounded():
    found, whole = random_decoder(CONFIG), random_decoder(CONFIG)
    name = "layers.0.qkv_proj.weight"
    left = torch.arange(len(linears(found)[name])) >= 96
    rounded(found, sequences(30, 30), left={name: left})
    rounded(whole, sequences(30, 30))
    mine, theirs = linears(found)[name], linears(whole)[name]
    assert torch.equal(mine[~left], theirs[~left])
    assert torch.equal(mine[left], linears(random_decoder(CONFIG))[name][left])  # nothing before it was rounded
