"""Pre-training: batches, the loss, the optimiser and the loop, against hand
computations.
"""

import math
from dataclasses import replace

import pytest
import torch

from posttrain.gpt import GPT, GPTConfig
from posttrain.lab.pretraining_trials import ladder
from posttrain.optim import POLAR_EXPRESS, Muon, adamw, orthogonalise
from posttrain.pretrain import (
    PretrainConfig,
    build_optimizers,
    learning_rate_scale,
    next_token_loss,
    pretrain,
    random_batch,
    validation_loss,
)

TINY = PretrainConfig(
    GPTConfig(context=16, n_layer=1, n_head=1, width=16),
    steps=30,
    sequence_length=16,
    evaluations=3,
)


def data(length=4000):
    return torch.randint(65, (length,), generator=torch.Generator().manual_seed(0))


def test_targets_are_the_inputs_one_token_on():
    numbers = torch.arange(1000)
    inputs, targets = random_batch(numbers, 50, 7, torch.Generator().manual_seed(0))
    assert inputs.shape == targets.shape == (50, 7)
    assert torch.equal(targets, inputs + 1)


def test_batches_reach_the_first_and_the_last_token():
    starts = torch.cat(
        [
            random_batch(torch.arange(10), 99, 8, torch.Generator().manual_seed(s))[0][
                :, 0
            ]
            for s in range(9)
        ]
    )
    assert set(starts.tolist()) == {0, 1}


def test_loss_is_the_mean_negative_log_probability():
    model = GPT(replace(TINY.model, zero_init=False))
    inputs, targets = random_batch(data(), 3, 16, torch.Generator().manual_seed(0))
    probabilities = model(inputs).softmax(-1).detach()
    expected = (
        -sum(
            math.log(probabilities[b, t, targets[b, t]])
            for b in range(3)
            for t in range(16)
        )
        / 48
    )
    assert next_token_loss(model, inputs, targets).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_validation_loss_covers_the_split_in_windows_that_do_not_overlap():
    model, text = GPT(replace(TINY.model, zero_init=False)), data(16 * 40 + 5)
    windows = [text[i : i + 17] for i in range(0, 16 * 40, 16)]
    expected = (
        sum(next_token_loss(model, w[None, :-1], w[None, 1:]).item() for w in windows)
        / 40
    )
    assert validation_loss(model, text) == pytest.approx(expected, rel=1e-5)
    assert validation_loss(GPT(TINY.model), text) == pytest.approx(
        math.log(65), rel=1e-6
    )


def test_orthogonalise_moves_singular_values_to_1_and_keeps_their_vectors():
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    for wide in (matrices, matrices.mT):
        result = orthogonalise(wide, steps=5)
        exact = u @ v if wide is matrices else (u @ v).mT
        assert (torch.linalg.svdvals(result) - 1).abs().max() < 0.35
        similarity = (result * exact).sum((-2, -1)) / (
            result.norm(dim=(-2, -1)) * exact.norm(dim=(-2, -1))
        )
        assert similarity.min() > 0.98


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_orthogonalise_puts_the_singular_values_through_its_polynomials(steps):
    matrices = torch.randn(
        3, 24, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    s = s / (1.01 * matrices.square().sum((1, 2)).sqrt()[:, None])
    for a, b, c in POLAR_EXPRESS[:steps]:
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(
        orthogonalise(matrices, steps), u * s[:, None] @ v, rtol=0, atol=1e-6
    )


def test_muon_steps_along_the_orthogonalised_nesterov_momentum():
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(
        torch.randn(24, 8, generator=generator)
    )  # query, key and value of width 8
    optimizer, before = Muon([weight], lr=0.1, momentum=0.9), weight.detach().clone()
    average = torch.zeros(24, 8)
    for _ in range(3):
        gradient = torch.randn(24, 8, generator=generator)
        weight.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        direction = 0.1 * gradient + 0.9 * average
        before = before - 0.1 * orthogonalise(direction.view(3, 8, 8)).view(24, 8)
        torch.testing.assert_close(weight.detach(), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("in_one_kernel", (True, False))
def test_adamw_is_in_one_kernel_or_as_it_is_without(in_one_kernel, monkeypatch):
    """PyTorch 2.2, the last one for Intel Macs, refuses on a CPU, once it has marked
    the groups.
    """
    whole = torch.optim.AdamW

    class Refusing(whole):
        def __init__(self, groups, fused=None, **options):
            super().__init__(groups, fused=fused, **options)
            if fused and not in_one_kernel:
                for group in groups:
                    group["fused"] = True
                raise RuntimeError(
                    "`fused=True` requires all the params to be of supported devices"
                )

    monkeypatch.setattr(torch.optim, "AdamW", Refusing)
    weights = [torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
    optimizers = (
        adamw([dict(params=weights[:1], lr=0.1)], lr=0.5, weight_decay=0.0),
        whole([weights[1]], lr=0.1, weight_decay=0.0),
    )
    if not in_one_kernel:
        assert not optimizers[0].param_groups[0]["fused"]
    for _ in range(3):
        for weight, optimizer in zip(weights, optimizers):
            weight.grad = torch.tensor([0.3, -0.1])
            optimizer.step()
    assert torch.allclose(*weights, atol=1e-6) and weights[0][0] != 1


def test_muon_scales_a_tall_matrix_by_the_root_of_its_aspect():
    weight = torch.nn.Parameter(torch.zeros(32, 8))
    weight.grad = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1.0, steps=5).step()
    assert torch.linalg.svdvals(weight.detach()).mean().item() == pytest.approx(
        2.0, rel=0.1
    )


@pytest.mark.parametrize("name", list(ladder()))
@pytest.mark.parametrize("muon", [True, False])
def test_every_parameter_is_trained_by_exactly_one_optimiser(name, muon):
    config = replace(ladder()[name], muon=muon)
    model = GPT(config.model)
    optimizers = build_optimizers(model, config)
    trained = [
        id(p)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert sorted(trained) == sorted({id(p) for p in model.parameters()})
    assert isinstance(optimizers[0], Muon) == muon


def test_the_ladder_adds_one_change_at_a_time_and_ends_at_the_books_model():
    configs = list(ladder().values())
    assert configs[0].model == GPTConfig.gpt2()
    assert configs[-1].model == PretrainConfig().model and configs[-1].muon
    for before, after in zip(configs[:-1], configs[1:-1]):
        assert (
            sum(
                vars(before.model)[switch] != vars(after.model)[switch]
                for switch in vars(after.model)
            )
            == 1
        )


def test_learning_rate_rises_stays_and_falls_to_nearly_nothing():
    config = PretrainConfig(steps=100, warmup=0.1, cooldown=0.5)
    scales = [learning_rate_scale(step, config) for step in range(100)]
    assert scales[0] == pytest.approx(0.1) and scales[9:51] == [1.0] * 42
    assert scales[75] == pytest.approx(0.5) and scales[99] == pytest.approx(0.02)


def test_training_twice_gives_the_same_bits_and_another_seed_others():
    runs = [
        pretrain(config, data(), data(2000))
        for config in (TINY, TINY, replace(TINY, seed=1))
    ]
    weights = [
        torch.cat([p.flatten() for p in model.parameters()]) for model, _ in runs
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert runs[0][1]["train"] == runs[1][1]["train"]


def test_training_learns_a_text_that_can_be_learned_and_its_history_adds_up():
    text = torch.arange(4000) % 13
    model, history = pretrain(replace(TINY, steps=150), text, text[:500])
    assert history["final_validation"] < 0.1
    assert history["step"] == [50, 100, 150]
    assert history["tokens"] == [50 * 64, 100 * 64, 150 * 64]
    assert history["seconds"] == sorted(history["seconds"])


def test_the_end_is_measured_on_the_whole_split_unless_the_last_entry_will_do():
    text = torch.arange(30_000) % 65
    text[20_000:] = (
        # The last third is another text, and the entries' 16,384 characters are spread
        # over all
        0
    )
    runs = [
        pretrain(replace(TINY, whole_split=whole), text, text)[1]
        for whole in (True, False)
    ]
    assert runs[0]["validation"] == runs[1]["validation"]
    assert (
        runs[1]["final_validation"]
        == runs[1]["validation"][-1]
        != runs[0]["final_validation"]
    )


def test_training_stops_once_the_loss_is_low_enough():
    text = torch.arange(4000) % 13
    _, history = pretrain(
        replace(TINY, steps=300, evaluations=30), text, text[:500], stop_at=1.0
    )
    assert history["validation"][-1] <= 1.0 and history["step"][-1] < 300
