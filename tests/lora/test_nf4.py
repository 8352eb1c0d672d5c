"""NF4: the published levels, the nearest by brute force, packing, and the gradient."""

import math

import pytest
import torch
from scipy.stats import norm
from tiny import CONFIG, close, moved, normal, seeded, weights
from torch import nn

from posttrain.lora.nf4 import (
    NF4Linear,
    bits_per_weight,
    dequantize,
    dequantize_scales,
    int4_levels,
    named_layers,
    nf4_levels,
    pack_codes,
    quantize,
    quantize_model,
    quantize_scales,
    unpack_codes,
)

# Dettmers et al. 2023, appendix E
PUBLISHED = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]
TARGETS = ("qkv", "out", "up", "down")


def linear(n_out=24, n_in=40, bias=True, dtype=torch.float32, seed=0):
    layer = nn.Linear(n_in, n_out, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(normal(n_out, n_in, seed=seed) * 0.1)
        if bias:
            layer.bias.copy_(normal(n_out, seed=seed + 1))
    return layer


# Levels


def test_the_levels_are_the_published_sixteen():
    close(nf4_levels(), torch.tensor(PUBLISHED), 1e-6)


def test_the_levels_are_quantiles_of_the_normal_at_even_distances_on_each_side():
    levels, last = nf4_levels().double(), norm.ppf(1 - (1 / 30 + 1 / 32) / 2)
    probabilities = norm.cdf(levels.numpy() * last)
    gaps = [b - a for a, b in zip(probabilities, probabilities[1:])]
    assert gaps[:7] == pytest.approx([gaps[0]] * 7, rel=1e-4) and gaps[
        7:
    ] == pytest.approx([gaps[-1]] * 8, rel=1e-4)
    assert levels[7] == 0 and levels[0] == -1 and levels[-1] == 1


def test_normal_weights_lose_less_on_them_than_on_even_levels():
    values = normal(512, 256).float()
    errors = [
        (dequantize(*quantize(values, levels), levels, values.shape) - values)
        .square()
        .mean()
        .sqrt()
        for levels in (nf4_levels(), int4_levels())
    ]
    assert errors[0] < 0.9 * errors[1]


# Blocks and codes


@pytest.mark.parametrize("shape", [(64,), (3, 64), (5, 7), (129,), (2, 3, 50)])
@pytest.mark.parametrize("levels", [nf4_levels(), int4_levels()], ids=["nf4", "int4"])
def test_every_weight_gets_the_nearest_level_of_its_block(shape, levels):
    values = normal(*shape).float()
    rebuilt = dequantize(*quantize(values, levels), levels, values.shape)
    assert rebuilt.shape == values.shape
    flat, found = values.flatten().tolist(), rebuilt.flatten().tolist()
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        largest = max(map(abs, block))
        for value, got in zip(block, found[start : start + 64]):
            assert (
                abs(got - value)
                <= min(abs(level * largest - value) for level in levels.tolist()) + 1e-6
            )


def test_a_blocks_largest_weight_is_kept_and_one_block_does_not_touch_the_next():
    values = torch.full((128,), 0.01)
    values[3], values[64:] = -2.0, values[64:] * 0.1
    rebuilt = dequantize(*quantize(values, nf4_levels()), nf4_levels(), values.shape)
    assert rebuilt[3] == -2.0 and (rebuilt[:3] == 0).all()
    close(rebuilt[64:], values[64:], 1e-9)


def test_zeros_stay_zeros_and_what_is_not_finite_is_refused():
    codes, scales = quantize(torch.zeros(70), nf4_levels())
    assert (dequantize(codes, scales, nf4_levels(), torch.Size([70])) == 0).all()
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="no nearest level"):
            quantize(torch.tensor([1.0, bad]), nf4_levels())


def test_two_codes_share_a_byte_and_come_back_in_order():
    codes = torch.randint(16, (9, 64), generator=seeded()).to(torch.uint8)
    packed = pack_codes(codes)
    assert packed.shape == (9, 32) and packed.dtype == torch.uint8
    assert packed[0, 0] == 16 * codes[0, 0] + codes[0, 1]
    assert torch.equal(unpack_codes(packed), codes)


# Scales


def test_scales_come_back_to_half_a_step_of_their_block_around_their_mean():
    scales = normal(700).float().abs() + 3
    packed = quantize_scales(scales)
    assert packed.codes.dtype == torch.int8 and packed.codes.shape == (3, 256)
    assert packed.mean == scales.mean()
    found = dequantize_scales(packed, 700)
    for block in range(3):
        rows = slice(256 * block, 256 * block + 256)
        step = (scales[rows] - scales.mean()).abs().max() / 127
        assert (found[rows] - scales[rows]).abs().max() <= step / 2 * 1.001
    # Less than the scales' own spread, by far: the mean does not use up the integers
    assert (found - scales).abs().max() < 0.02


def test_equal_scales_are_kept_and_none_falls_below_zero():
    close(
        dequantize_scales(quantize_scales(torch.full((5,), 0.7)), 5),
        torch.full((5,), 0.7),
        1e-7,
    )
    scales = torch.tensor([0.0, 1e-9, 5.0])
    assert (dequantize_scales(quantize_scales(scales), 3) >= 0).all()


# The layer


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_with_the_weight_that_it_rebuilds(bias):
    layer = linear(bias=bias)
    quantised, x = NF4Linear(layer), normal(5, 40).float()
    error = (quantised.weight - layer.weight).abs().max()
    assert 0 < error < 0.1
    with torch.no_grad():
        layer.weight.copy_(quantised.weight)
    close(quantised(x), layer(x), 1e-6)


def test_the_input_gets_the_rebuilt_weights_gradient_and_the_weight_gets_none():
    quantised, x = NF4Linear(linear()), normal(2, 5, 40).float().requires_grad_()
    pull = normal(2, 5, 24, seed=7).float()
    (quantised(x) * pull).sum().backward()
    close(x.grad, pull @ quantised.weight, 1e-6)
    assert (
        all(not buffer.requires_grad for buffer in quantised.buffers())
        and not quantised.weight.requires_grad
    )


def test_the_graph_holds_no_weight_in_full_precision():
    quantised, x, saved = (
        NF4Linear(linear(200, 300, False)),
        normal(1, 300).float().requires_grad_(),
        [],
    )
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        quantised(x)
    assert sum(saved) < 200 * 300


def test_a_weight_takes_4_127_bits():
    layer = NF4Linear(linear(1024, 1024, False))
    assert bits_per_weight(layer) == pytest.approx(
        4 + 8 / 64 + 32 / (64 * 256) + 32 / 1024**2, abs=1e-12
    )
    assert round(bits_per_weight(layer), 3) == 4.127


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_rebuilt_in_their_own(dtype):
    layer = linear(dtype=dtype)
    quantised = NF4Linear(layer)
    assert quantised.weight.dtype == quantised(normal(2, 40).to(dtype)).dtype == dtype
    close(quantised.weight.double(), NF4Linear(layer.float()).weight.double(), 5e-3)


def test_a_layers_state_can_be_saved_and_loaded():
    one, other = NF4Linear(linear()), NF4Linear(linear(seed=5))
    assert not torch.equal(one.weight, other.weight)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.weight, other.weight)


# A model


def test_the_targets_of_a_model_are_quantised_and_nothing_else():
    model = moved(dtype=torch.float32)
    before, tokens = weights(model), torch.arange(10)[None]
    logits = model(tokens)
    assert quantize_model(model, TARGETS) is model
    assert (
        sum(isinstance(module, NF4Linear) for module in model.modules())
        == 4 * CONFIG.n_layer
    )
    after = weights(model)
    assert {name for name in before if name not in after} == {
        f"blocks.0.{name}.weight"
        for name in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    }
    kept = [name for name in before if name in after]
    assert kept == ["embedding.weight", "head.weight"] and all(
        torch.equal(before[name], after[name]) for name in kept
    )
    assert 0 < (model(tokens) - logits).abs().max() < logits.abs().max()


def test_names_match_whole_parts_and_one_that_matches_nothing_is_refused():
    model = moved()
    assert [name for name, _ in named_layers(model, nn.Linear, ("mlp.up",))] == [
        "blocks.0.mlp.up"
    ]
    for wrong in ("kv", "ads", "attention"):
        with pytest.raises(
            ValueError, match=f"ends in '{wrong}': there are down, head, out, qkv, up"
        ):
            named_layers(model, nn.Linear, ("qkv", wrong))
