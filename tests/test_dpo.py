"""DPO: the loss, implicit rewards and the loop, against closed forms, autograd and one
token at a time.
"""

import copy
import math
import types
from dataclasses import replace

import pytest
import torch
from tiny import (
    CONFIG,
    END,
    PAD,
    TOKENIZER,
    close,
    moved,
    normal,
    pair,
    same,
    seeded,
    weights,
)

from posttrain import dpo as module
from posttrain.batches import epochs
from posttrain.dpo import (
    DPOConfig,
    dpo_batches,
    dpo_loss,
    dpo_steps,
    implicit_rewards,
    mismatched_kl,
    pair_logprobs,
    pair_loss,
    pair_report,
    preference_loss,
)
from posttrain.logprobs import pack
from posttrain.preference_pairs import encode_pairs

WRITTEN = [
    pair("a", "Who?", "I am.", "You"),
    pair("b", "Where is he?", "At sea, my lord.", "At"),
    pair("c", "Why", "No.", "No, no, no"),
    pair("d", "Say", "Ay.", "Aye"),
    pair("e", "", "Sir, I know it not.", "Know? Nay"),
]
PAIRS = encode_pairs(WRITTEN, TOKENIZER, 64)
LOSSES = ("dpo", "ipo", "simpo", "kto", "orpo")
PLAIN = dict(beta=0.1, label_smoothing=0.0, nll_weight=0.0)
TINY = DPOConfig(steps=3, batch_size=2, lr=0.004, **PLAIN)


def walked(model, prompt, answer, temperature=1.0):
    """The log-probability of an answer: one forward pass per token, over the text
    before it.
    """
    total = 0.0
    for t, token in enumerate(answer):
        total = (
            total
            + (
                model(torch.tensor([prompt + answer[:t]]))[0, -1] / temperature
            ).log_softmax(-1)[token]
        )
    return total


def walked_pairs(model, pairs, temperature=1.0):
    """Log-probabilities (2, N) of pairs, chosen above rejected, each read by itself."""
    return torch.stack(
        [
            torch.stack(
                [walked(model, each[0], each[side], temperature) for each in pairs]
            )
            for side in (1, 2)
        ]
    )


def two_models(dtype=torch.float64, config=CONFIG):
    """A policy that has moved away from its reference, and the reference."""
    reference = moved(dtype=dtype, config=config)
    policy = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=seeded(9), dtype=dtype
            )
    return policy, reference


def sums(seed=0):
    """Log-probabilities of six pairs: the policy's chosen and rejected, then the
    reference's.
    """
    return [-20 + 5 * normal(6, seed=4 * seed + i) for i in range(4)]


def softplus(x):
    return math.log(1 + math.exp(x))


def ratio_gaps(chosen, rejected, reference_chosen, reference_rejected):
    return ((chosen - reference_chosen) - (rejected - reference_rejected)).tolist()


# The loss


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_loss_is_the_mean_surprise_at_beta_times_the_gap_of_the_log_ratios(beta):
    expected = [softplus(-beta * gap) for gap in ratio_gaps(*sums())]
    close(dpo_loss(*sums(), beta), sum(expected) / 6)
    close(dpo_loss(*sums()), dpo_loss(*sums(), 0.1, 0.0))


def test_the_loss_by_hand():
    side = torch.tensor([-4.0, -4.0], dtype=torch.float64)
    # Log-ratios of +1 and -2 nats, and of 0 and 0
    loss = dpo_loss(
        side,
        side - 3,
        side - torch.tensor([1.0, 0.0]),
        side - 3 + torch.tensor([2.0, 0.0]),
        0.5,
    )
    close(loss, (math.log(1 + math.exp(-1.5)) + math.log(2)) / 2)


def test_a_policy_that_is_its_reference_loses_exactly_ln_2():
    chosen, rejected, *_ = sums()
    for beta in (0.01, 0.1, 5.0):
        for wrong in (0.0, 0.2, torch.linspace(0, 0.4, 6, dtype=torch.float64)):
            close(
                dpo_loss(chosen, rejected, chosen, rejected, beta, wrong),
                math.log(2),
                1e-15,
            )


def test_the_losss_gradient_is_the_closed_form():
    chosen, rejected, *reference = sums()
    chosen, rejected = chosen.requires_grad_(), rejected.requires_grad_()
    dpo_loss(chosen, rejected, *reference, 0.3).backward()
    h = 0.3 * torch.tensor(
        ratio_gaps(chosen.detach(), rejected.detach(), *reference), dtype=torch.float64
    )
    close(chosen.grad, -0.3 * (-h).sigmoid() / 6)
    close(rejected.grad, 0.3 * (-h).sigmoid() / 6)


def test_smoothing_mixes_the_surprise_at_the_label_with_that_at_its_opposite():
    gaps = ratio_gaps(*sums())
    for wrong in (0.0, 0.1, 0.3):
        expected = [
            (1 - wrong) * softplus(-0.2 * gap) + wrong * softplus(0.2 * gap)
            for gap in gaps
        ]
        close(dpo_loss(*sums(), 0.2, wrong), sum(expected) / 6)


def test_smoothing_may_be_a_number_of_each_pairs_own():
    gaps, own = ratio_gaps(*sums()), [0.0, 0.1, 0.2, 0.3, 0.4, 0.49]
    expected = [
        (1 - wrong) * softplus(-0.2 * gap) + wrong * softplus(0.2 * gap)
        for gap, wrong in zip(gaps, own)
    ]
    close(
        dpo_loss(*sums(), 0.2, torch.tensor(own, dtype=torch.float64)),
        sum(expected) / 6,
    )
    close(
        dpo_loss(*sums(), 0.2, torch.full((6,), 0.3, dtype=torch.float64)),
        dpo_loss(*sums(), 0.2, 0.3),
    )


def test_a_smoothed_loss_is_content_where_its_confidence_is_that_of_the_label():
    nothing = torch.zeros(1, dtype=torch.float64)
    h = torch.tensor(
        [math.log(0.8 / 0.2)], dtype=torch.float64, requires_grad=True
    )  # sigmoid(h) = 0.8
    dpo_loss(h, nothing, nothing, nothing, 1.0, 0.2).backward()
    close(h.grad, [0.0])
    sure = (h.detach() + 1).requires_grad_()
    dpo_loss(sure, nothing, nothing, nothing, 1.0, 0.2).backward()
    assert sure.grad > 0  # too sure: the gap is to shrink


def test_the_same_constant_on_both_log_ratios_changes_nothing():
    chosen, rejected, reference_chosen, reference_rejected = sums()
    for wrong in (0.0, 0.2):
        loss = dpo_loss(*sums(), 0.3, wrong)
        close(
            dpo_loss(
                chosen + 3,
                rejected + 3,
                reference_chosen,
                reference_rejected,
                0.3,
                wrong,
            ),
            loss,
        )
        close(
            dpo_loss(
                chosen,
                rejected,
                reference_chosen - 3,
                reference_rejected - 3,
                0.3,
                wrong,
            ),
            loss,
        )
        # And what chosen answers' log-probabilities share with the reference's cancels
        close(
            dpo_loss(
                chosen - 7,
                rejected,
                reference_chosen - 7,
                reference_rejected,
                0.3,
                wrong,
            ),
            loss,
        )
    other = dpo_loss(chosen + 3, rejected, reference_chosen, reference_rejected, 0.3)
    assert other < dpo_loss(*sums(), 0.3) - 0.1


def test_a_swapped_pair_costs_the_surprise_at_the_opposite_margin():
    chosen, rejected, reference_chosen, reference_rejected = sums()
    swapped = dpo_loss(rejected, chosen, reference_rejected, reference_chosen, 0.3)
    close(swapped, sum(softplus(0.3 * gap) for gap in ratio_gaps(*sums())) / 6)
    close(swapped - dpo_loss(*sums(), 0.3), 0.3 * sum(ratio_gaps(*sums())) / 6)


@pytest.mark.parametrize("wrong", [0.0, 0.1])
@pytest.mark.parametrize("gap", [4000.0, -4000.0])
def test_huge_gaps_stay_finite(gap, wrong):
    chosen = torch.tensor([gap], requires_grad=True)
    nothing = torch.zeros(1)
    loss = dpo_loss(chosen, nothing, nothing, nothing, 1.0, wrong)
    loss.backward()
    assert loss.item() == pytest.approx(4000 * (wrong if gap > 0 else 1 - wrong))
    assert chosen.grad.item() == pytest.approx(wrong if gap > 0 else wrong - 1)


# Implicit rewards


def test_implicit_rewards_are_beta_times_the_log_ratio_without_a_gradient():
    logprobs, reference = normal(2, 5).requires_grad_(), normal(2, 5, seed=1)
    for beta in (0.1, 3.0):
        found = implicit_rewards(logprobs, reference, beta)
        expected = [
            [beta * (p - q) for p, q in zip(*rows)]
            for rows in zip(logprobs.tolist(), reference.tolist())
        ]
        close(found, expected)
        assert not found.requires_grad
    assert not implicit_rewards(
        normal(3), normal(3, seed=1).requires_grad_(), 0.1
    ).requires_grad


def test_the_loss_is_the_reward_models_loss_of_implicit_rewards():
    chosen, rejected, *reference = sums()
    one, other = (
        implicit_rewards(x, y, 0.3) for x, y in zip((chosen, rejected), reference)
    )
    close(dpo_loss(*sums(), 0.3), -(one - other).sigmoid().log().mean())


def test_the_report_by_hand():
    logprobs = torch.tensor(
        [[-10.0, -20.0, -30.0, -8.0], [-12.0, -18.0, -33.0, -9.0]]
    ).requires_grad_()
    reference = torch.tensor([[-11.0, -21.0, -30.0, -8.0], [-11.0, -21.0, -34.0, -9.0]])
    # Log-ratios: chosen 1, 1, 0, 0; rejected -1, 3, 1, 0: margins 2, -2, -1, and a tie,
    # which is no win
    assert pair_report(logprobs, reference, 0.5) == dict(
        chosen_reward=0.25,
        rejected_reward=0.375,
        margin=-0.125,
        accuracy=0.25,
        chosen_logprob=-17.0,
        rejected_logprob=-18.0,
    )
    assert all(
        type(value) is float for value in pair_report(logprobs, reference, 0.5).values()
    )


def test_swapping_the_pairs_swaps_the_rewards_and_turns_the_margins_sign():
    policy, reference = two_models()
    swapped = [(prompt, rejected, chosen) for prompt, chosen, rejected in PAIRS]
    one, other = (
        pair_report(*(pair_logprobs(m, rows, PAD) for m in (policy, reference)), 0.1)
        for rows in (PAIRS, swapped)
    )
    assert abs(one["margin"]) > 0.01 and other["margin"] == pytest.approx(
        -one["margin"], abs=1e-12
    )
    assert other["accuracy"] == pytest.approx(1 - one["accuracy"])
    for name in ("reward", "logprob"):
        assert other[f"chosen_{name}"] == pytest.approx(
            one[f"rejected_{name}"], abs=1e-10
        )


# Log-probabilities of pairs


def test_a_pairs_log_probs_are_sums_over_each_answer_and_its_end_read_one_by_one():
    model = moved()
    found = pair_logprobs(model, PAIRS, PAD)
    assert found.shape == (2, 5) and not found.requires_grad
    close(found, walked_pairs(model, PAIRS), 1e-10)
    close(pair_logprobs(model, PAIRS, PAD, 0.6), walked_pairs(model, PAIRS, 0.6), 1e-10)
    assert all(answer[-1] == END for _, *answers in PAIRS for answer in answers)


def test_one_pass_over_both_answers_is_two_passes_over_one_each():
    model, prompts = moved(), [prompt for prompt, _, _ in PAIRS]
    passes = []
    hook = model.register_forward_pre_hook(
        lambda _, inputs: passes.append(len(inputs[0]))
    )
    together = pair_logprobs(model, PAIRS, PAD)
    hook.remove()
    assert passes == [10]
    for side, found in zip((1, 2), together):
        tokens, mask = pack(prompts, [each[side] for each in PAIRS], PAD)
        logprobs = (
            model(tokens)[:, :-1]
            .log_softmax(-1)
            .gather(-1, tokens[:, 1:, None])
            .squeeze(-1)
        )
        close(found, (logprobs * mask[:, 1:]).sum(-1), 1e-10)


def test_a_pairs_log_probs_do_not_depend_on_its_neighbours():
    model = moved()
    together = pair_logprobs(model, PAIRS, PAD)
    for i in range(5):
        close(together[:, [i]], pair_logprobs(model, PAIRS[i : i + 1], PAD), 1e-10)
    close(
        pair_logprobs(model, PAIRS[:3], END), together[:, :3], 1e-10
    )  # the padding does not matter


def test_ktos_baseline_pairs_each_prompt_with_the_next_ones_chosen_answer():
    policy, reference = two_models()
    found = mismatched_kl(policy, reference, PAIRS, PAD)
    ratios = []
    for i, (prompt, _, _) in enumerate(PAIRS):
        _, answer, _ = PAIRS[(i + 1) % 5]
        ratios.append(
            walked(policy, prompt, answer).item()
            - walked(reference, prompt, answer).item()
        )
    assert found.shape == () and not found.requires_grad and abs(sum(ratios)) > 0.1
    close(found, sum(ratios) / 5, 1e-10)
    assert mismatched_kl(policy, policy, PAIRS, PAD).item() == 0
    close(mismatched_kl(reference, policy, PAIRS, PAD), -found)


# The configured loss


def by_hand(logprobs, reference, lengths, config, baseline):
    """The configured loss, pair by pair in plain floats."""
    terms = []
    for c, r, rc, rr, n, m in zip(
        *logprobs.tolist(), *reference.tolist(), *lengths.tolist()
    ):
        gap, wrong, mean_gap = c - rc - (r - rr), config.label_smoothing, c / n - r / m
        p, q = math.exp(c / n), math.exp(r / m)
        z = max(0.0, baseline)
        terms.append(
            dict(
                dpo=(1 - wrong) * softplus(-config.beta * gap)
                + wrong * softplus(config.beta * gap),
                ipo=(gap - 0.5 / config.beta) ** 2,
                simpo=softplus(config.gamma - config.beta * mean_gap),
                kto=(
                    2
                    - 1 / (1 + math.exp(config.beta * (z - c + rc)))
                    - 1 / (1 + math.exp(config.beta * (r - rr - z)))
                )
                / 2,
                orpo=-c / n
                + config.odds_weight * math.log(1 + q * (1 - p) / (p * (1 - q))),
            )[config.loss]
            - config.nll_weight * c / n
        )
    return sum(terms) / len(terms)


SETTINGS = [
    dict(),
    dict(beta=0.5),
    dict(label_smoothing=0.2),
    dict(nll_weight=0.3),
    dict(loss="ipo"),
    dict(loss="ipo", beta=0.3),
    dict(loss="simpo"),
    dict(loss="simpo", beta=2.0, gamma=0.4),
    dict(loss="kto"),
    dict(loss="kto", beta=0.4),
    dict(loss="orpo"),
    dict(loss="orpo", odds_weight=0.6),
    dict(loss="ipo", nll_weight=1.0),
    dict(loss="kto", nll_weight=0.2),
]


@pytest.mark.parametrize("baseline", [2.0, -3.0])
@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_each_loss_sees_sums_or_means_as_its_paper_says(changes, baseline):
    config = replace(TINY, **changes)
    logprobs, reference = (torch.stack(sums()[i : i + 2]) for i in (0, 2))
    lengths = torch.tensor([[5, 9, 4, 20, 7, 1], [8, 3, 12, 6, 10, 2]])
    found = preference_loss(
        logprobs,
        reference,
        lengths,
        config,
        torch.tensor(baseline, dtype=torch.float64),
    )
    assert found.shape == ()
    close(found, by_hand(logprobs, reference, lengths, config, baseline), 1e-10)


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_losses_without_a_reference_do_not_see_it(loss):
    logprobs, lengths = torch.stack(sums()[:2]), torch.full((2, 6), 7)
    one, other = (
        preference_loss(logprobs, some, lengths, DPOConfig(loss=loss))
        for some in (normal(2, 6), normal(2, 6, seed=1))
    )
    assert one == other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(loss="ppo"),
            "loss is 'ppo': use one of .*'dpo', 'ipo', 'simpo', 'kto', 'orpo'",
        ),
        (dict(beta=0.0), "beta is 0.0: use a number above 0"),
        (dict(beta=-0.1), "beta is -0.1"),
        (dict(label_smoothing=0.5), "label_smoothing is 0.5"),
        (dict(label_smoothing=-0.1), "label_smoothing is -0.1"),
        (dict(nll_weight=-0.1), "nll_weight is -0.1: use at least 0"),
        (dict(odds_weight=-0.1), "odds_weight is -0.1: use at least 0"),
        (dict(steps=0), "steps is 0: use at least 1"),
        (dict(batch_size=0), "batch_size is 0: use at least 1"),
        (dict(loss="kto", batch_size=1), "batch_size is 1: use at least 2"),
        (dict(lr=-1e-4), "lr is -0.0001: use at least 0"),
        (dict(micro_batch_size=-1), "micro_batch_size is -1: use at least 0"),
        (
            dict(loss="kto", micro_batch_size=1),
            "KTO's baseline needs the whole batch in one pass",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(TINY, **changes)
    for loss in LOSSES:
        assert DPOConfig(
            loss=loss,
            label_smoothing=0.49,
            steps=1,
            batch_size=2 if loss == "kto" else 1,
        )


# The loop


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_at_the_start_the_loss_is_ln_2_and_all_rewards_are_0(beta, label_smoothing):
    policy, reference = moved(), moved()
    assert same(weights(policy), reference)
    config = replace(TINY, beta=beta, label_smoothing=label_smoothing)
    first, second, _ = dpo_steps(policy, reference, PAIRS, config)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-12)
    for name in ("chosen_reward", "rejected_reward", "margin"):
        assert abs(first[name]) < 1e-12
    assert abs(second["margin"]) > 1e-3


@pytest.mark.parametrize(("loss", "start"), [("ipo", 25.0), ("kto", 0.5)])
def test_at_the_start_the_losses_beside_it_are_where_their_formulas_say(loss, start):
    first = next(dpo_steps(moved(), moved(), PAIRS, replace(TINY, loss=loss)))
    assert first["loss"] == pytest.approx(start, abs=1e-10)


def test_the_gradient_of_the_weights_is_the_closed_form():
    """-beta sigmoid(-h) (grad log pi(chosen) - grad log pi(rejected)), each from passes
    of its own.
    """
    policy, reference = two_models()
    parameters, beta, expected = list(policy.parameters()), 0.5, 0.0
    known = walked_pairs(reference, PAIRS).detach()
    for i, (prompt, chosen, rejected) in enumerate(PAIRS):
        a, b = (walked(policy, prompt, answer) for answer in (chosen, rejected))
        h = beta * ((a - known[0, i]) - (b - known[1, i])).item()
        pull = beta / (1 + math.exp(h)) / 5
        up, down = (torch.autograd.grad(x, parameters) for x in (a, b))
        expected = [
            -pull * (g - k) + e
            for g, k, e in zip(up, down, expected or [0.0] * len(parameters))
        ]
    found = {}
    for i, parameter in enumerate(parameters):
        parameter.register_hook(
            lambda gradient, i=i: found.update({i: gradient.clone()})
        )
    next(dpo_steps(policy, reference, PAIRS, replace(TINY, batch_size=5, beta=beta)))
    assert (
        len(found) == len(parameters)
        and max(gradient.abs().max() for gradient in found.values()) > 0.1
    )
    for i, wanted in enumerate(expected):
        close(found[i], wanted, 1e-10)


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_the_loss_of_pairs_is_each_answers_own_and_only_kto_asks_again(changes):
    config, (policy, reference) = replace(TINY, **changes), two_models()
    known = pair_logprobs(reference, PAIRS, PAD)
    loss, logprobs = pair_loss(
        policy, reference if config.loss == "kto" else None, PAIRS, known, config, PAD
    )
    lengths = torch.tensor([[len(each[side]) for each in PAIRS] for side in (1, 2)])
    expected, baseline = (
        walked_pairs(policy, PAIRS),
        mismatched_kl(policy, reference, PAIRS, PAD).item(),
    )
    close(logprobs, expected, 1e-10)
    close(loss, by_hand(expected, known, lengths, config, baseline), 1e-8)
    assert loss.requires_grad and loss.shape == ()


def trained_by_hand(config):
    """Three steps of a policy, every text read by itself and the reference asked anew:
    the policy, and what was seen.
    """
    (policy, reference), seen, generator = two_models(), [], seeded(config.seed)
    optimizer = torch.optim.Adam(policy.parameters())
    batches = epochs(5, 2, generator)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = config.lr * (3 - step) / 3
        batch = [PAIRS[i] for i in next(batches)]
        logprobs = walked_pairs(policy, batch)
        lengths = torch.tensor([[len(each[side]) for each in batch] for side in (1, 2)])
        with torch.no_grad():
            online = walked_pairs(reference, batch)
            mismatched = [
                walked(m, batch[i][0], batch[1 - i][1])
                for m in (policy, reference)
                for i in range(2)
            ]
        baseline = (mismatched[0] + mismatched[1] - mismatched[2] - mismatched[3]) / 2
        loss = preference_loss(logprobs, online, lengths, config, baseline)
        nll = -(logprobs[0] / lengths[0]).mean().item()
        noted = dict(loss=loss.item(), nll=nll)
        seen.append(noted | pair_report(logprobs, online, config.beta))
        policy.zero_grad()
        loss.backward()
        optimizer.step()
    return policy, seen


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_each_step_is_the_optimisers_with_the_reference_asked_anew(changes):
    config, (policy, reference) = replace(TINY, **changes), two_models()
    found = list(dpo_steps(policy, reference, PAIRS, config))
    by_hand, expected = trained_by_hand(config)
    assert [list(noted) for noted in found] == [list(noted) for noted in expected]
    for noted, wanted in zip(found, expected):
        assert noted == pytest.approx(wanted, abs=1e-7)
    for (name, one), other in zip(policy.named_parameters(), by_hand.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7, msg=name)


def test_smoothing_settles_a_pair_at_the_lead_that_the_settings_name():
    """log((1 - e) / e) / beta nats: there the loss is least, without a gradient."""
    config = replace(TINY, beta=0.3, label_smoothing=0.1)
    lead = math.log(0.9 / 0.1) / 0.3
    found = []
    for off in (-0.5, 0.0, 0.5):
        chosen = torch.tensor([lead + off], dtype=torch.float64, requires_grad=True)
        zero = torch.zeros(1, dtype=torch.float64)
        loss = preference_loss(
            torch.stack([chosen, zero]), torch.zeros(2, 1), torch.ones(2, 1), config
        )
        loss.backward()
        found.append((loss.item(), chosen.grad.item()))
    assert found[1][0] < min(found[0][0], found[2][0])
    assert found[0][1] < 0 < found[2][1] and abs(found[1][1]) < 1e-12


def followed(pairs=PAIRS, **changes):
    """Run the loop: what it yielded, each step's rates, each batch, the optimisers and
    the policy.
    """
    optimizers, rates, batches = [], [], []
    build, part = torch.optim.Adam, module.pair_part

    def note_optimizers(*args, **options):
        optimizers.append(build(*args, **options))
        return optimizers[-1]

    def note_batch(some, *rest):
        batches.append(some)
        return part(some, *rest)

    policy, reference = two_models(torch.float32)
    noted = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", note_optimizers)
        patch.setattr(module, "pair_part", note_batch)
        for each in dpo_steps(policy, reference, pairs, replace(TINY, **changes)):
            noted.append(each)
            rates += [group["lr"] for group in optimizers[0].param_groups]
    assert len(optimizers) == 1
    return types.SimpleNamespace(
        noted=noted,
        rates=rates,
        batches=batches,
        optimizer=optimizers[0],
        policy=policy,
    )


def test_the_rate_falls_in_a_straight_line_to_zero():
    run = followed(steps=4, lr=0.008)
    assert run.rates == pytest.approx([0.008, 0.006, 0.004, 0.002])
    assert len(run.noted) == 4


def test_the_optimiser_is_adam_over_every_weight_of_the_policy_once():
    run = followed()
    (group,) = run.optimizer.param_groups
    taken = [id(p) for p in group["params"]]
    assert len(taken) == len({*taken}) and {*taken} == {
        id(p) for p in run.policy.parameters()
    }
    assert type(run.optimizer) is torch.optim.Adam and group["weight_decay"] == 0.0


def test_every_pair_is_seen_once_before_any_is_seen_again_in_an_order_of_the_seeds():
    first, again, other = (
        followed(pairs=PAIRS[:4], steps=6, seed=seed).batches for seed in (0, 0, 1)
    )
    epoch = [first[i] + first[i + 1] for i in (0, 2, 4)]
    assert all(len(batch) == 2 for batch in first) and all(
        sorted(each) == sorted(PAIRS[:4]) for each in epoch
    )
    assert epoch[0] != epoch[1] or epoch[1] != epoch[2]
    assert first == again != other


def test_a_batch_holds_no_more_pairs_than_there_are():
    assert [sorted(batch) for batch in followed(batch_size=50).batches] == [
        sorted(PAIRS)
    ] * 3


@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_policy_changes_and_the_reference_is_asked_once(loss):
    policy, reference = two_models(torch.float32)
    before, start, passes = weights(reference), weights(policy), []
    hooks = [
        m.register_forward_pre_hook(
            lambda m, inputs: passes.append((m, len(inputs[0])))
        )
        for m in (policy, reference)
    ]
    list(dpo_steps(policy, reference, PAIRS, replace(TINY, loss=loss)))
    assert same(before, reference) and all(
        p.grad is None for p in reference.parameters()
    )
    after = policy.state_dict()
    assert all(
        not torch.equal(start[name], after[name])
        for name, _ in policy.named_parameters()
    )
    # The reference reads a pair when it comes for the first time, as the fifth does in
    # the third batch; the policy both sides of a batch in one pass; KTO's baseline asks
    # both
    kto = [(policy, 2), (reference, 2)] if loss == "kto" else []
    steps = [[(reference, rows), (policy, 4), *kto] for rows in (4, 4, 2)]
    assert passes == sum(steps, [])
    for hook in hooks:
        hook.remove()


def test_what_is_yielded_was_so_before_the_step_and_is_plain_numbers():
    policy, reference = two_models()
    known = pair_logprobs(reference, PAIRS, PAD)
    before = pair_report(pair_logprobs(policy, PAIRS, PAD), known, 0.1)
    steps = dpo_steps(policy, reference, PAIRS, replace(TINY, batch_size=5))
    first = next(steps)
    assert all(type(value) is float for value in first.values())
    assert list(first) == ["loss", "nll", *before] and before == pytest.approx(
        {n: first[n] for n in before}, abs=1e-10
    )
    after = pair_report(pair_logprobs(policy, PAIRS, PAD), known, 0.1)
    second = next(steps)
    assert (
        after == pytest.approx({n: second[n] for n in after}, abs=1e-10)
        and after["margin"] > before["margin"] + 0.01
    )


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo", "orpo"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_of_a_batch_add_up_to_the_batch_in_what_is_learnt_and_noted(loss, size):
    runs = []
    for micro in (0, size):
        policy, reference = two_models()
        config = replace(
            TINY, loss=loss, batch_size=5, micro_batch_size=micro, nll_weight=0.1
        )
        runs.append(
            (
                list(dpo_steps(policy, reference, PAIRS, config)),
                weights(policy),
            )
        )
    for noted, wanted in zip(runs[0][0], runs[1][0]):
        assert noted == pytest.approx(wanted, abs=1e-8)
    for name, weight in runs[0][1].items():
        close(weight, runs[1][1][name], 1e-8)


def test_a_pass_reads_no_more_pairs_than_a_part_and_the_reference_as_many_at_once():
    (policy, reference), passes = two_models(torch.float32), []
    for model, name in ((policy, "policy"), (reference, "reference")):
        model.register_forward_pre_hook(
            lambda _, inputs, name=name: passes.append((name, len(inputs[0])))
        )
    list(
        dpo_steps(
            policy,
            reference,
            PAIRS,
            replace(TINY, steps=2, batch_size=5, micro_batch_size=2),
        )
    )
    assert passes == [
        ("reference", 4),
        ("reference", 4),
        ("reference", 2),
        *[("policy", 4), ("policy", 4), ("policy", 2)] * 2,
    ]


def test_what_the_reference_said_once_is_what_it_would_say_of_all_pairs_at_once():
    asked, (_, reference) = [], two_models()
    part = module.pair_part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module,
            "pair_part",
            lambda some, share, reference, said, *rest: (
                asked.append((some, said)) or part(some, share, reference, said, *rest)
            ),
        )
        list(dpo_batches(reference, PAIRS, replace(TINY, steps=6), PAD))
    known = pair_logprobs(reference, PAIRS, PAD)
    for some, said in asked:
        close(said, known[:, [PAIRS.index(each) for each in some]], 1e-10)
    assert len(asked) == 6


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_seed_gives_the_same_run_whatever_the_global_randomness(loss):
    def run(seed):
        (policy, reference), state = two_models(torch.float32), torch.get_rng_state()
        noted = list(
            dpo_steps(
                policy,
                reference,
                PAIRS,
                replace(TINY, loss=loss, seed=seed),
            )
        )
        assert torch.equal(torch.get_rng_state(), state)
        return noted, weights(policy)

    torch.manual_seed(1)
    first, one = run(0)
    torch.manual_seed(2)
    second, other = run(0)
    assert first == second and all(torch.equal(one[name], other[name]) for name in one)
    assert run(1)[0] != first


@pytest.mark.parametrize("loss", LOSSES)
def test_training_learns_to_prefer_the_chosen_answers(loss):
    policy, reference = moved(dtype=torch.float32), moved(dtype=torch.float32)
    config = replace(TINY, loss=loss, steps=20, batch_size=5, odds_weight=2.0)
    noted = list(dpo_steps(policy, reference, PAIRS, config))
    assert noted[-1]["accuracy"] >= 0.8 and noted[-1]["margin"] > 0.2
    assert noted[-1]["loss"] < 0.9 * noted[0]["loss"]
    if loss == "ipo":
        assert noted[-1]["margin"] == pytest.approx(
            0.5, abs=0.2
        )  # beta times the gap it asks for


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_before_it_spoils_the_weights(
    monkeypatch, broken
):
    plain = module.preference_loss

    def break_second(*args):
        calls.append(1)
        return plain(*args) * (broken if len(calls) == 2 else 1.0)

    calls = []
    monkeypatch.setattr(module, "preference_loss", break_second)
    policy, reference = two_models(torch.float32)
    steps = dpo_steps(policy, reference, PAIRS, TINY)
    next(steps)
    before = weights(policy)
    with pytest.raises(
        ValueError, match=f"the loss of step 1 is {broken}: lower the rate"
    ):
        next(steps)
    assert same(before, policy)


def test_weights_that_are_no_numbers_stop_the_run():
    policy, reference = two_models(torch.float32)
    with torch.no_grad():
        policy.head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss of step 0 is nan"):
        next(dpo_steps(policy, reference, PAIRS, TINY))


def test_ktos_baseline_cuts_another_pairs_answer_to_the_context():
    long = [pair("a", "x" * 50, "I am.", "You"), pair("b", "Why", "No." * 15, "Nay")]
    pairs = encode_pairs(long, TOKENIZER, 64)
    policy, reference = two_models()
    asked = [pairs[0][0], pairs[1][0]]
    cut = [pairs[1][1][: 64 - len(asked[0])], pairs[0][1]]
    ratios = []
    for prompt, answer in zip(asked, cut):
        tokens = torch.tensor([prompt + answer])
        one, other = (
            model(tokens)
            .log_softmax(-1)[0, len(prompt) - 1 : -1]
            .gather(1, torch.tensor(answer)[:, None])
            .sum()
            for model in (policy, reference)
        )
        ratios.append(one - other)
    close(mismatched_kl(policy, reference, pairs, PAD), sum(ratios) / 2, 1e-10)
