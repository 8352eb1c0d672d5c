"""Models as script files for the browser: how the weights are rounded, packed and
written.
"""

import base64
import json

import numpy
import pytest
import torch
from tiny import TOKENIZER, moved, seeded

from posttrain.cli import browser
from posttrain.cli.browser import (
    pack_bits,
    quantise,
    rounded,
    script,
    tensors_of,
    tokens_script,
    write_models,
)
from posttrain.gpt import GPT, GPTConfig
from posttrain.reward_model import RewardModel
from posttrain.tokenizer import SUBSTITUTES

SHAPE = GPTConfig(vocab_size=69, context=32, n_layer=2, n_head=1, width=64)


def model():
    """A model whose head and residual writers are not zero."""
    model = GPT(SHAPE, seeded())
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=seeded(1)))
    return model


@pytest.mark.parametrize("shape", [(3, 128), (1, 64), (5, 6), (1,), ()])
def test_rounding_moves_no_weight_by_more_than_half_a_scale(shape):
    weights = torch.randn(shape, generator=seeded())
    scales, numbers = quantise(weights)
    groups = weights.reshape(numbers.shape)
    assert numbers.size(1) == (
        64 if shape and shape[-1] % 64 == 0 else 1
    ) and scales.shape == (len(numbers), 1)
    assert (
        numbers.abs().max() == 2**19 - 1
    )  # the largest of each group uses the whole range
    assert (
        (scales * numbers - groups).abs() <= 0.501 * scales + 1e-7 * groups.abs()
    ).all()


def test_a_group_of_zeros_stays_zero():
    scales, numbers = quantise(torch.zeros(2, 64))
    assert (numbers == 0).all() and torch.isfinite(scales).all()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_packed_numbers_can_be_read_back(n):
    numbers = torch.tensor([-(2**19) + 1, 2**19 - 1, -1, 0, 15, 16, -16])[:n].to(
        torch.int32
    )
    data = pack_bits(numbers)
    assert len(data) == 2 * n + (n + 1) // 2
    assert unpacked(data, n).tolist() == numbers.tolist()


def unpacked(data, n):
    upper = numpy.frombuffer(data[: 2 * n], "<i2").astype(int)
    lower = numpy.frombuffer(data[2 * n :], "u1")
    return upper * 16 + [(lower[i // 2] >> 4 * (i % 2)) & 15 for i in range(n)]


def read_back(text, name):
    """What gpt.js makes of a script file."""
    assert text.startswith(f'models["{name}"] = ') and text.endswith(";\n")
    packed = json.loads(text.split(" = ", 1)[1].rstrip(";\n"))
    data, at, weights = base64.b64decode(packed["data"]), 0, {}
    for tensor, groups, size in packed["tensors"]:
        scales = numpy.frombuffer(data[at : at + 4 * groups], "<f4")
        length = 2 * groups * size + (groups * size + 1) // 2
        numbers = unpacked(
            data[at + 4 * groups : at + 4 * groups + length], groups * size
        )
        weights[tensor] = torch.tensor(numbers.reshape(groups, size) * scales[:, None])
        at += 4 * groups + length
    assert at == len(data)
    return packed["shape"], weights


def test_a_script_holds_the_shape_and_every_weight_rounded():
    policy = model()
    shape, weights = read_back(script("sft", policy), "sft")
    assert shape == dict(vocabulary=69, context=32, layers=2, heads=1, width=64)
    kept = rounded(policy).state_dict()
    assert weights.keys() == kept.keys()
    for name, weight in policy.state_dict().items():
        torch.testing.assert_close(
            weights[name].flatten().float(), kept[name].flatten()
        )
        assert (kept[name] - weight).abs().max() <= 1e-6 * weight.abs().max()


def test_a_reward_model_brings_its_head_zero_and_unit():
    judge = RewardModel(model(), seeded())
    judge.shift.fill_(0.25), judge.scale.fill_(3.0)
    _, weights = read_back(script("reward", judge), "reward")
    assert weights["shift"].item() == pytest.approx(0.25) and weights[
        "scale"
    ].item() == pytest.approx(3.0)
    torch.testing.assert_close(
        weights["score.weight"].flatten().float(),
        judge.head.weight[0].detach(),
        atol=1e-8,
        rtol=1e-5,
    )
    assert "score.bias" in weights and "head.weight" not in weights
    assert "embedding.weight" in weights and set(weights) == set(tensors_of(judge))


@pytest.mark.parametrize("change", ["rope", "qk_norm", "relu2", "bare"])
def test_another_block_than_the_books_is_refused(change):
    other = moved(
        0,
        torch.float32,
        GPTConfig(
            vocab_size=69,
            context=32,
            n_layer=1,
            n_head=1,
            width=64,
            zero_init=False,
            **{change: False},
        ),
    )
    with pytest.raises(ValueError, match="cannot run mine"):
        script("mine", other)


def test_the_page_is_told_the_tokens_and_the_substitutes():
    first, second = tokens_script().splitlines()
    assert (
        json.loads(first.removeprefix("const TOKENS = ").rstrip(";"))
        == TOKENIZER.tokens
    )
    assert (
        json.loads(second.removeprefix("const SUBSTITUTES = ").rstrip(";"))
        == SUBSTITUTES
    )


def test_a_file_per_model_is_written_and_one_for_the_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(
        browser,
        "STAGES",
        dict(
            base=lambda corpus: (model(), {}),
            reward=lambda corpus: (RewardModel(model()), {}),
        ),
    )
    write_models(None, tmp_path / "models")
    assert {path.name for path in (tmp_path / "models").iterdir()} == {
        "base.js",
        "reward.js",
        "tokens.js",
    }
    assert (tmp_path / "models" / "base.js").read_text() == script("base", model())
