"""IPO, SimPO, KTO and ORPO against plain floats, closed forms and many digits."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from tiny import close, normal

from posttrain.dpo import dpo_loss
from posttrain.preference_losses import (
    ipo_loss,
    kto_loss,
    log_odds,
    orpo_loss,
    simpo_loss,
)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def four(seed=0):
    """Summed log-probs of six pairs: chosen and rejected, policy and reference."""
    return [-20 + 5 * normal(6, seed=4 * seed + i) for i in range(4)]


def means(seed=0):
    """Log-probabilities per token of six pairs, all below 0: chosen and rejected."""
    return [-normal(6, seed=2 * seed + i).abs() - 0.05 for i in range(2)]


def tensor(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def number(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


# IPO


def test_ipo_is_the_squared_distance_of_the_gap_from_half_of_one_over_beta():
    pairs = list(zip(*(side.tolist() for side in four())))
    for beta in (0.1, 0.5, 2.0):
        expected = [
            ((c - rc) - (r - rr) - 1 / (2 * beta)) ** 2 for c, r, rc, rr in pairs
        ]
        close(ipo_loss(*four(), beta), sum(expected) / 6, 1e-10)
    close(ipo_loss(*four()), ipo_loss(*four(), 0.1))


def test_ipo_by_hand():
    # Gaps of 5, 0 and 7 nats, where beta 0.1 asks for 5
    assert ipo_loss(tensor(-3), tensor(-9), tensor(-4), tensor(-5), 0.1).item() == 0
    assert ipo_loss(
        tensor(-3), tensor(-9), tensor(-3), tensor(-9), 0.1
    ).item() == pytest.approx(25)
    assert ipo_loss(
        tensor(-3, -3), tensor(-9, -9), tensor(-3, -5), tensor(-9, -4), 0.1
    ).item() == pytest.approx((25 + 4) / 2)


def test_ipos_gradient_pulls_the_gap_to_its_target_from_both_sides():
    chosen, rejected, *reference = four()
    chosen, rejected = chosen.requires_grad_(), rejected.requires_grad_()
    ipo_loss(chosen, rejected, *reference, 0.1).backward()
    gap = (chosen - reference[0] - rejected + reference[1]).detach()
    close(chosen.grad, 2 * (gap - 5) / 6)
    close(rejected.grad, -2 * (gap - 5) / 6)
    assert (chosen.grad > 0).any() and (chosen.grad < 0).any()


def test_what_ipo_sees_is_the_gap_between_log_ratios_alone():
    chosen, rejected, reference_chosen, reference_rejected = four()
    loss = ipo_loss(chosen, rejected, reference_chosen, reference_rejected, 0.2)
    close(
        ipo_loss(chosen + 3, rejected + 3, reference_chosen, reference_rejected, 0.2),
        loss,
        1e-10,
    )
    close(
        ipo_loss(chosen + 3, rejected, reference_chosen + 3, reference_rejected, 0.2),
        loss,
        1e-10,
    )
    close(
        ipo_loss(chosen, rejected - 2, reference_chosen, reference_rejected - 2, 0.2),
        loss,
        1e-10,
    )
    # A swapped pair has the gap of the other sign
    gap = (chosen - reference_chosen) - (rejected - reference_rejected)
    swapped = ipo_loss(rejected, chosen, reference_rejected, reference_chosen, 0.2)
    close(swapped, (-gap - 2.5).square().mean(), 1e-10)


# SimPO


def test_simpo_is_the_surprise_at_the_gap_less_gamma():
    chosen, rejected = means()
    for beta, gamma in ((2.0, 1.0), (2.5, 0.3), (10.0, 3.0)):
        expected = [
            -math.log(sigmoid(beta * (c - r) - gamma))
            for c, r in zip(chosen.tolist(), rejected.tolist())
        ]
        close(simpo_loss(chosen, rejected, beta, gamma), sum(expected) / 6)
    close(simpo_loss(chosen, rejected), simpo_loss(chosen, rejected, 2.0, 1.0))


def test_simpo_by_hand():
    # Even at gamma / beta
    assert simpo_loss(tensor(-1.0), tensor(-1.5), 2.0, 1.0).item() == pytest.approx(
        math.log(2)
    )
    assert simpo_loss(tensor(-1.0), tensor(-1.0), 2.0, 1.0).item() == pytest.approx(
        math.log(1 + math.e)
    )
    assert simpo_loss(tensor(-1.0), tensor(-2.0), 2.0, 1.0).item() == pytest.approx(
        math.log(1 + math.exp(-1))
    )


def test_simpos_gradient_is_the_closed_form():
    chosen, rejected = (side.requires_grad_() for side in means())
    simpo_loss(chosen, rejected, 2.5, 0.7).backward()
    push = 2.5 * (0.7 - 2.5 * (chosen - rejected)).sigmoid().detach() / 6
    close(chosen.grad, -push)
    close(rejected.grad, push)


def test_simpo_without_gamma_is_dpo_without_a_reference():
    chosen, rejected = means()
    nothing = torch.zeros_like(chosen)
    close(
        simpo_loss(chosen, rejected, 2.0, 0.0),
        dpo_loss(chosen, rejected, nothing, nothing, 2.0),
    )


# KTO


def test_kto_is_each_answers_shortfall_from_the_baseline_averaged_over_all():
    chosen, rejected = normal(6) * 20, normal(6, seed=1) * 20
    for beta, z in ((0.1, 3.0), (0.5, 0.0), (0.1, 0.25), (0.1, 60.0)):
        gains = [1 - sigmoid(beta * (r - z)) for r in chosen.tolist()]
        losses = [1 - sigmoid(beta * (z - r)) for r in rejected.tolist()]
        close(kto_loss(chosen, rejected, number(z), beta), sum(gains + losses) / 12)
    close(
        kto_loss(chosen, rejected, number(3.0)),
        kto_loss(chosen, rejected, number(3.0), 0.1),
    )


def test_kto_by_hand():
    nothing = torch.zeros(2, dtype=torch.float64)
    assert kto_loss(nothing, nothing, number(0.0)).item() == 0.5
    # A chosen answer 10 nats over the baseline of 2, a rejected one 10 under it: both
    # lose sigmoid(-1)
    assert kto_loss(
        tensor(12.0), tensor(-8.0), number(2.0), 0.1
    ).item() == pytest.approx(sigmoid(-1))
    # Both at 2 nats over it: the gain and the loss make 1 together
    assert kto_loss(tensor(4.0), tensor(4.0), number(2.0), 0.7).item() == pytest.approx(
        0.5
    )


def test_a_baseline_below_0_counts_as_0_and_no_other_is_changed():
    chosen, rejected = normal(6) * 20, normal(6, seed=1) * 20
    zero = kto_loss(chosen, rejected, number(0.0))
    assert kto_loss(chosen, rejected, number(-7.0)).item() == zero.item()
    assert kto_loss(chosen, rejected, number(0.01)).item() != zero.item()
    assert (
        kto_loss(chosen, rejected, number(40.0)).item()
        != kto_loss(chosen, rejected, number(50.0)).item()
    )


def test_ktos_gradient_is_the_closed_form_and_none_goes_through_the_baseline():
    chosen, rejected = (normal(6, seed=i).mul(20).requires_grad_() for i in range(2))
    # A baseline that depends on the ratios themselves
    baseline = chosen.mean() - rejected.mean() + 20
    assert baseline > 0
    kto_loss(chosen, rejected, baseline, 0.1).backward()
    a, b = ((0.1 * (side - baseline)).sigmoid().detach() for side in (chosen, rejected))
    close(chosen.grad, -0.1 * a * (1 - a) / 12)
    close(rejected.grad, 0.1 * b * (1 - b) / 12)


def test_kto_judges_each_answer_by_itself():
    chosen, rejected = normal(6) * 20, normal(6, seed=1) * 20
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    close(
        kto_loss(chosen[order], rejected, number(2.0)),
        kto_loss(chosen, rejected, number(2.0)),
    )


# ORPO


@pytest.mark.parametrize(
    "logprob", [-1e-12, -1e-9, -1e-6, -1e-3, -0.1, -math.log(2), -2.0, -30.0, -500.0]
)
def test_log_odds_have_all_their_digits_from_near_certainty_to_near_impossibility(
    logprob,
):
    with localcontext() as context:
        context.prec = 250
        p = Decimal(logprob).exp()
        exact = float((p / (1 - p)).ln())
        slope = float(1 / (1 - p))
    x = tensor(logprob).requires_grad_()
    found = log_odds(x)
    found.backward()
    assert found.item() == pytest.approx(exact, rel=1e-13, abs=1e-15)
    assert x.grad.item() == pytest.approx(slope, rel=1e-12)
    if logprob < -1e-7:
        single = torch.tensor([logprob], requires_grad=True)
        with localcontext() as context:
            context.prec = 250
            p = Decimal(single.item()).exp()
            exact = float((p / (1 - p)).ln())
        value = log_odds(single)
        value.backward()
        assert (
            value.item() == pytest.approx(exact, rel=1e-5, abs=1e-6)
            and torch.isfinite(single.grad).all()
        )


def test_log_odds_of_what_happens_and_of_what_does_not_add_up_to_0():
    p = normal(4, 5).sigmoid()
    assert log_odds(p.log()).shape == (4, 5)
    close(log_odds(p.log()), -log_odds((1 - p).log()), 1e-9)
    close(log_odds(tensor(0.8).log()), [math.log(4)])


def test_orpo_is_the_chosen_answers_surprise_and_that_at_the_odds_ratio():
    chosen, rejected = means()
    for weight in (0.1, 1.0, 0.0):
        expected = []
        for c, r in zip(chosen.tolist(), rejected.tolist()):
            p, q = math.exp(c), math.exp(r)
            ratio = (p / (1 - p)) / (q / (1 - q))
            expected.append(-c - weight * math.log(sigmoid(math.log(ratio))))
        close(orpo_loss(chosen, rejected, weight), sum(expected) / 6, 1e-10)
    close(orpo_loss(chosen, rejected), orpo_loss(chosen, rejected, 0.1))


def test_orpo_by_hand():
    half, fifth = tensor(math.log(0.5)), tensor(math.log(0.2))
    assert orpo_loss(half, half, 0.3).item() == pytest.approx(
        math.log(2) + 0.3 * math.log(2)
    )
    # Odds of 1 and of 1/4: the ratio is 4, its sigmoid 4/5
    assert orpo_loss(half, fifth, 1.0).item() == pytest.approx(
        math.log(2) + math.log(5 / 4)
    )
    assert orpo_loss(fifth, half, 1.0).item() == pytest.approx(
        math.log(5) + math.log(5)
    )


def test_orpos_gradient_is_the_closed_form():
    chosen, rejected = (side.requires_grad_() for side in means())
    orpo_loss(chosen, rejected, 0.4).backward()
    p, q = chosen.detach().exp(), rejected.detach().exp()
    wrong = 1 / (1 + p / (1 - p) * (1 - q) / q)  # 1 - sigmoid of the log odds ratio
    close(chosen.grad, (-1 - 0.4 * wrong / (1 - p)) / 6)
    close(rejected.grad, 0.4 * wrong / (1 - q) / 6)


# All of them


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [ipo_loss, simpo_loss, kto_loss, orpo_loss])
def test_no_loss_and_no_gradient_overflows_where_the_answers_are_far_apart(loss, dtype):
    chosen, rejected = (
        tensor(*side, dtype=dtype).requires_grad_()
        for side in ((-2000.0, -1e-6), (-1e-6, -2000.0))
    )
    reference = tensor(-50.0, -50.0, dtype=dtype)
    rest = {ipo_loss: [reference, reference], kto_loss: [number(1.0, dtype=dtype)]}.get(
        loss, []
    )
    value = loss(chosen, rejected, *rest)
    value.backward()
    assert value.shape == () and torch.isfinite(value)
    assert torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()
    if loss in (simpo_loss, orpo_loss):
        # The pair that is wrong by 2000 nats is pushed with full force, and the one
        # that is right not at all
        assert chosen.grad[0] < -0.04 and abs(rejected.grad[1].item()) < 1e-12


@pytest.mark.parametrize(
    ("loss", "sides"),
    [(ipo_loss, 4), (simpo_loss, 2), (kto_loss, 2), (orpo_loss, 2)],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_batchs_loss_is_the_mean_of_its_pairs_losses(loss, sides):
    rows = (four() if sides == 4 else means())[:sides]
    rest = [number(0.3)] if loss is kto_loss else []
    alone = [loss(*(side[i : i + 1] for side in rows), *rest).item() for i in range(6)]
    close(loss(*rows, *rest), sum(alone) / 6, 1e-10)
