"""The transformer against hand computations, brute force and a peer's attention."""

import math

import pytest
import torch
from torch.nn import functional as F

from posttrain.gpt import (
    GPT,
    Attention,
    GPTConfig,
    KVCache,
    ReluSquared,
    attention_maps,
    count_parameters,
    norm,
    rotate,
    rotation_table,
)


def small(**changes) -> GPT:
    config = GPTConfig(**{**dict(context=16, n_layer=2, n_head=2, width=16), **changes})
    model = GPT(config, torch.Generator().manual_seed(0)).double()
    # Move the weights that start at zero, so that every path carries a signal
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


CONFIGS = [
    {},
    dict(rope=False),
    dict(qk_norm=False),
    dict(relu2=False),
    dict(bare=False, zero_init=False),
]
CONFIGS.append(
    dict(rope=False, qk_norm=False, relu2=False, bare=False, zero_init=False)
)


@pytest.mark.parametrize("changes", CONFIGS)
def test_no_token_sees_the_future(changes):
    model = small(**changes)
    tokens = torch.randint(65, (2, 10))
    before = model(tokens)
    tokens[:, 6] = (tokens[:, 6] + 1) % 65
    after = model(tokens)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).any(-1).all()


@pytest.mark.parametrize("changes", CONFIGS)
def test_reading_token_by_token_through_the_cache_equals_reading_all_at_once(changes):
    model = small(**changes)
    tokens = torch.randint(65, (3, 12))
    cache = KVCache(model.config, 3, 12, torch.float64)
    steps = [
        model(tokens[:, :5], cache=cache),
        *(model(tokens[:, t : t + 1], cache=cache) for t in range(5, 12)),
    ]
    torch.testing.assert_close(
        torch.cat(steps, dim=1), model(tokens), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    "kept",
    [
        [True, False, False, True, True],
        [0, 3, 4],
        [4, 0],
        [False, False, True, False, False],
    ],
    ids=str,
)
@pytest.mark.parametrize("changes", CONFIGS)
def test_what_a_cache_keeps_is_read_on_as_if_there_had_been_no_other_rows(
    changes, kept
):
    model, kept = small(**changes), torch.tensor(kept)
    tokens = torch.randint(65, (5, 12), generator=torch.Generator().manual_seed(2))
    cache = KVCache(model.config, 5, 12, torch.float64)
    model(tokens[:, :5], cache=cache)
    model(tokens[:, 5:6], cache=cache)
    cache.keep(kept)
    assert cache.length == 6
    mine = tokens[kept]
    steps = [model(mine[:, t : t + 1], cache=cache) for t in range(6, 9)]
    torch.testing.assert_close(
        torch.cat(steps, dim=1), model(mine[:, :9])[:, 6:], rtol=0, atol=1e-10
    )
    # And once more: of these, the last
    cache.keep(torch.tensor([len(mine) - 1]))
    last = model(mine[-1:, 9:10], cache=cache)
    torch.testing.assert_close(last, model(mine[-1:, :10])[:, 9:], rtol=0, atol=1e-10)
    # The memory of the others is given back
    assert cache.keys_values.shape == (2, 2, 1, 2, 12, 8)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_attention_is_the_textbook_formula(qk_norm):
    config = GPTConfig(context=8, n_head=2, width=8, qk_norm=qk_norm)
    attention = Attention(config, 0).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    rotation = rotation_table(8, 4)[:5].double()
    # Loop over heads, queries and keys, as one would on paper
    q, k, v = attention.qkv(x)[0].split(8, dim=-1)
    outputs = torch.zeros(5, 8, dtype=torch.float64)
    for head in range(2):
        columns = slice(4 * head, 4 * head + 4)
        qs, ks = (norm(z[:, columns]) if qk_norm else z[:, columns] for z in (q, k))
        qs, ks = (rotate(z[None, :, None], rotation)[0, :, 0] for z in (qs, ks))
        for t in range(5):
            weights = torch.stack(
                [qs[t] @ ks[s] / math.sqrt(4) for s in range(t + 1)]
            ).softmax(0)
            outputs[t, columns] = sum(w * v[s, columns] for s, w in enumerate(weights))
    expected = attention.out(outputs)
    torch.testing.assert_close(
        attention(x, rotation, None, None)[0], expected, rtol=0, atol=1e-12
    )


def test_rotation_keeps_lengths_and_makes_scores_depend_on_distance_alone():
    table = rotation_table(32, 8).double()
    q, k = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    turn = lambda x, t: rotate(x.view(1, 1, 8), table[t : t + 1])[0, 0]  # noqa: E731
    assert torch.allclose(turn(q, 20).norm(), q.norm(), atol=1e-6)
    assert torch.allclose(turn(q, 9) @ turn(k, 4), turn(q, 25) @ turn(k, 20), atol=1e-5)
    assert not torch.allclose(
        turn(q, 9) @ turn(k, 4), turn(q, 9) @ turn(k, 5), atol=1e-3
    )


def test_rotation_turns_pair_j_by_t_theta_j():
    # Position 3, pair 1 of a head of 4: theta = 10000^(-1/2) = 0.01
    turned = rotate(torch.tensor([[[0.0, 0.0, 1.0, 0.0]]]), rotation_table(4, 4)[3:4])[
        0, 0
    ]
    assert turned.tolist() == pytest.approx(
        [0, 0, math.cos(0.03), math.sin(0.03)], abs=1e-7
    )


def test_relu_squared_has_the_gradient_it_says():
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    assert torch.equal(ReluSquared.apply(x), F.relu(x) ** 2)
    torch.autograd.gradcheck(ReluSquared.apply, x)


def test_norm_gives_mean_0_and_variance_1():
    y = norm(torch.randn(7, 64, dtype=torch.float64) * 3 + 5)
    assert torch.allclose(y.mean(-1), torch.zeros(7, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(
        y.var(-1, unbiased=False), torch.ones(7, dtype=torch.float64), atol=1e-4
    )


@pytest.mark.parametrize("changes", CONFIGS)
def test_a_block_adds_what_attention_and_mlp_make_of_a_normed_copy(changes):
    model = small(**changes)
    block, rotation = (
        model.blocks[1],
        model.rotation[:7].double() if model.config.rope else None,
    )

    def normed(x, layer):
        y = (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        return y if model.config.bare else y * layer.weight + layer.bias

    x = (
        torch.randn(
            2, 7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        * 3
        + 2
    )
    y = x + block.attention(normed(x, block.attention_norm), rotation, None, None)
    expected = y + block.mlp(normed(y, block.mlp_norm))
    torch.testing.assert_close(
        block(x, rotation, None, None), expected, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("changes", CONFIGS)
def test_the_mlp_is_two_layers_with_the_squared_relu_or_gpt2s_gelu_between(changes):
    mlp = small(**changes).blocks[0].mlp
    x = (
        torch.randn(
            2, 7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        * 3
    )
    h = mlp.up(x)
    gelu = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    expected = mlp.down(h.clamp(min=0) ** 2 if changes.get("relu2", True) else gelu)
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-12)


def spreads(config):
    """The root mean square of each weight of a new model, by name."""
    model = GPT(config, torch.Generator().manual_seed(0))
    return {
        name: parameter.square().mean().sqrt().item()
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("zero_init", [True, False])
def test_the_books_weights_keep_the_variance_unless_they_start_at_zero(zero_init):
    found = spreads(GPTConfig(n_layer=2, width=64, rope=False, zero_init=zero_init))
    assert len(found) == 3 + 2 * 4
    for name, spread in found.items():
        if zero_init and (
            name == "head.weight"
            or name.endswith(("attention.out.weight", "mlp.down.weight"))
        ):
            assert spread == 0
        else:
            inputs = 1 if "embedding" in name else 256 if "down" in name else 64
            assert spread == pytest.approx(inputs**-0.5, rel=0.05), name


def test_gpt2s_weights_start_small_and_those_into_the_stream_smaller_with_depth():
    for name, spread in spreads(GPTConfig.gpt2(n_layer=8, width=64)).items():
        if name.endswith("bias"):
            assert spread == 0
        elif "norm" in name:
            assert spread == 1
        else:
            writes = name.endswith(("attention.out.weight", "mlp.down.weight"))
            # 4 is the root of 2 x 8
            assert spread == pytest.approx(0.02 / 4 if writes else 0.02, rel=0.05), name


def test_zero_init_starts_uniform_and_every_block_as_the_identity():
    model = GPT(GPTConfig())
    tokens = torch.randint(65, (2, 9))
    assert torch.equal(model(tokens), torch.zeros(2, 9, 65))
    assert torch.equal(model.hidden(tokens), norm(norm(model.embedding(tokens))))


def test_gpt2_preset_ties_the_head_and_has_biases():
    model = GPT(GPTConfig.gpt2())
    assert model.head.weight is model.embedding.weight
    assert model.blocks[0].mlp.up.bias is not None
    assert (
        count_parameters(model)
        == 65 * 128 + 256 * 128 + 4 * (12 * 128**2 + 13 * 128) + 2 * 128
    )


def test_attention_maps_are_causal_distributions():
    maps = attention_maps(small(), torch.randint(65, (1, 7)))
    assert maps.shape == (2, 1, 2, 7, 7)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 1, 2, 7, dtype=torch.float64))
    assert torch.equal(maps, maps.tril())


def test_bad_shapes_and_overlong_texts_are_refused_by_name():
    with pytest.raises(ValueError, match="width 10 must split into 3 heads"):
        GPTConfig(width=10, n_head=3)
    with pytest.raises(ValueError, match="zero_init needs bare"):
        GPTConfig(bare=False)
    with pytest.raises(ValueError, match="17 tokens do not fit into the context of 16"):
        small()(torch.zeros(1, 17, dtype=torch.long))
    model = small()
    cache = KVCache(model.config, 1, 8, torch.float64)
    model(torch.zeros(1, 3, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="explicit `allowed` mask"):
        model(torch.zeros(1, 2, dtype=torch.long), cache=cache)
