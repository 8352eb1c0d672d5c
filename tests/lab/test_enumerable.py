"""The world of 64 words: its exact numbers against loops and closed forms, PPO and DPO
against its optimum.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from tiny import close, normal, same, seeded, weights

from posttrain import ppo
from posttrain.dpo import dpo_loss
from posttrain.gpt import GPT, GPTConfig
from posttrain.lab.enumerable import (
    LETTERS,
    SMALL_PPO,
    START,
    WORDS,
    Pairs,
    TabularPolicy,
    TabularValue,
    V,
    World,
    all_responses,
    build_world,
    distribution,
    dpo_rounds,
    dpo_run,
    draw_pairs,
    exact_kl,
    measure,
    objective,
    optimum,
    ppo_run,
    prefix_rows,
    roll_out,
    sample_words,
    total_variation,
    within,
)
from posttrain.lab.ppo_variants import NoValues, variant
from posttrain.logprobs import get_response_log_probs
from posttrain.ppo import Models

WORLD, BETA = build_world(), 0.5
REFERENCE, BEST = distribution(WORLD.reference).detach(), optimum(WORLD, BETA)
COVERED = torch.tensor([word[0] != "a" for word in WORDS])
BETAS = [0.25, 0.5, 2.0]


def policy(seed=0, spread=1.0):
    return TabularPolicy(spread * normal(21, V, seed=seed))


def some_distribution(seed=0):
    return normal(64, seed=seed).softmax(-1)


def pair_loss(model, pairs, beta):
    """The package's DPO loss of pairs of words."""
    logprobs = get_response_log_probs(model, *all_responses())
    chosen, rejected, wrong = pairs
    known = REFERENCE.log()
    return dpo_loss(
        logprobs[chosen],
        logprobs[rejected],
        known[chosen],
        known[rejected],
        beta,
        wrong,
    )


def all_pairs():
    """Every pair of different words, both ways round, with the exact chance that the
    first loses.
    """
    first, second = torch.tensor(list(itertools.permutations(range(64), 2))).T
    return Pairs(
        first, second, (WORLD.rewards[second] - WORLD.rewards[first]).sigmoid()
    )


# The words and the tables


def test_the_responses_are_the_64_words_after_a_start_token_in_order():
    tokens, mask = all_responses()
    assert (
        ["".join(LETTERS[i] for i in row) for row in tokens[:, 1:].tolist()]
        == WORDS
        == sorted(set(WORDS))
    )
    assert (len(WORDS), WORDS[0], WORDS[1], WORDS[-1]) == (64, "aaa", "aab", "ddd")
    assert tokens.dtype == torch.int64 and (tokens[:, 0] == START).all()
    assert (
        mask.dtype == torch.bool and mask.tolist() == [[False, True, True, True]] * 64
    )


def test_each_prefix_has_its_own_row_and_whole_words_share_an_unread_one():
    tokens, _ = all_responses()
    seen = {}
    for word, row in zip(WORDS, prefix_rows(tokens).tolist()):
        for t in range(4):
            assert seen.setdefault(word[:t], row[t]) == row[t]
    assert sorted({row for prefix, row in seen.items() if len(prefix) < 3}) == list(
        range(21)
    )
    assert len([prefix for prefix in seen if len(prefix) < 3]) == 21
    assert {row for prefix, row in seen.items() if len(prefix) == 3} == {21}
    assert (policy()(tokens)[:, 3] == 0).all() and (TabularValue()(tokens) == 0).all()


def test_a_words_probability_is_the_product_of_its_letters_conditionals():
    model = policy(3)
    conditionals = model.logits.detach().softmax(-1)
    rows = (
        {"": 0}
        | {word[:1]: 1 + i // 16 for i, word in enumerate(WORDS)}
        | {w[:2]: 5 + i // 4 for i, w in enumerate(WORDS)}
    )
    expected = [
        math.prod(
            float(conditionals[rows[w[:t]], LETTERS.index(w[t])]) for t in range(3)
        )
        for w in WORDS
    ]
    found = distribution(model)
    close(found, torch.tensor(expected, dtype=torch.float64))
    close(found.sum(), 1.0)


def test_the_log_probs_of_some_words_are_those_of_the_distribution():
    model, (tokens, mask) = policy(1), all_responses()
    order = torch.randperm(64, generator=seeded())[:20]
    close(
        get_response_log_probs(model, tokens[order], mask[order]),
        distribution(model).log()[order],
    )


def test_a_table_can_be_made_for_any_distribution():
    for seed in range(3):
        close(
            distribution(TabularPolicy.of(some_distribution(seed))),
            some_distribution(seed),
        )
    close(distribution(TabularPolicy.of(BEST)), BEST)


def test_the_reward_counts_letters_a_and_twice_what_is_repeated():
    known = dict(zip(WORDS, WORLD.rewards.tolist()))
    by_hand = dict(
        aba=2, ada=2, aaa=-1, aab=0, abb=-1, bbb=-4, bcd=0, bab=1, baa=0, ccd=-2
    )
    assert {word: known[word] for word in by_hand} == by_hand


def test_the_reference_knows_every_word_and_the_optimum_is_one_to_two_nats_away():
    assert REFERENCE.min() > 1e-3
    assert 1 < exact_kl(BEST, REFERENCE) < 2
    assert torch.equal(build_world(7).reference.logits, build_world(7).reference.logits)
    assert not torch.equal(
        build_world(7).reference.logits, build_world(8).reference.logits
    )


def test_a_shy_reference_differs_in_the_mass_of_words_that_begin_with_a_alone():
    shy = distribution(build_world(shyness=3.0).reference)
    odds, shy_odds = (p[~COVERED].sum() / p[COVERED].sum() for p in (REFERENCE, shy))
    close(shy_odds / odds, math.exp(-3))
    for words in (COVERED, ~COVERED):
        close(within(shy, words), within(REFERENCE, words))


# Exact numbers


@pytest.mark.parametrize("beta", BETAS)
def test_log_ratios_of_the_optimum_are_the_reward_less_a_constant_over_beta(beta):
    best = optimum(WORLD, beta)
    partition = sum(
        float(p) * math.exp(float(r) / beta) for p, r in zip(REFERENCE, WORLD.rewards)
    )
    close(best.sum(), 1.0)
    close(
        best.log() - REFERENCE.log(),
        (WORLD.rewards - beta * math.log(partition)) / beta,
        1e-10,
    )
    close(objective(WORLD, best, beta), beta * math.log(partition), 1e-10)


@pytest.mark.parametrize("beta", BETAS)
def test_any_policy_falls_short_of_the_optimum_by_beta_times_its_kl_to_it(beta):
    best = optimum(WORLD, beta)
    for p in (some_distribution(1), REFERENCE, TabularPolicy.of(best * 0.9 + 0.1 / 64)):
        p = distribution(p).detach() if isinstance(p, TabularPolicy) else p
        shortfall = objective(WORLD, best, beta) - objective(WORLD, p, beta)
        assert shortfall > 0
        close(shortfall, beta * exact_kl(p, best), 1e-10)


@pytest.mark.parametrize("beta", BETAS)
def test_the_objectives_gradient_is_zero_at_the_optimum_and_there_alone(beta):
    at_best, at_reference = (
        TabularPolicy.of(optimum(WORLD, beta)),
        TabularPolicy.of(REFERENCE),
    )
    for model in (at_best, at_reference):
        objective(WORLD, distribution(model), beta).backward()
    assert (
        at_best.logits.grad.abs().max()
        < 1e-12
        < 1e-2
        < at_reference.logits.grad.abs().max()
    )


def test_total_variation_is_a_distance_and_an_events_largest_difference():
    p, q, r = (some_distribution(seed) for seed in range(3))
    d = total_variation
    assert d(p, p) == 0 and d(p, q) == d(q, p) > 0 and d(p, r) <= d(p, q) + d(q, r)
    close(d(p, q), float((p - q)[p > q].sum()))
    one, other = torch.eye(64, dtype=torch.float64)[:2]
    assert d(one, other) == 1
    few = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]], dtype=torch.float64)
    events = (
        torch.tensor(event) for event in itertools.product([False, True], repeat=3)
    )
    close(d(*few), float(max((few[0] - few[1])[event].sum() for event in events)))


def test_kl_by_hand_with_words_that_never_come():
    half, all_one = (
        torch.tensor([0.5, 0.5, 0.0]).double(),
        torch.tensor([1.0, 0.0, 0.0]).double(),
    )
    close(exact_kl(all_one, half), math.log(2))
    assert exact_kl(half, half) == 0 and exact_kl(half, all_one) == math.inf


def test_within_is_the_conditional_distribution():
    found = within(REFERENCE, COVERED)
    close(found.sum(), 1.0)
    assert (found[~COVERED] == 0).all()
    close(
        found[COVERED] / REFERENCE[COVERED],
        (1 / REFERENCE[COVERED].sum()).expand(48),
        1e-12,
    )


def test_what_is_measured_at_the_reference_and_at_the_optimum():
    start, end = (measure(WORLD, TabularPolicy.of(p), BETA) for p in (REFERENCE, BEST))
    assert start["tv"] == pytest.approx(float(total_variation(REFERENCE, BEST)))
    assert start["objective"] == pytest.approx(float((REFERENCE * WORLD.rewards).sum()))
    assert (start["kl"], end["tv"]) == pytest.approx((0, 0), abs=1e-12)
    assert end["kl"] == pytest.approx(float(exact_kl(BEST, REFERENCE)))


# PPO


def test_words_come_as_often_as_their_probability():
    words, n = sample_words(policy(2), 20_000, seeded()), 20_000
    assert (
        words.shape == (n, 4)
        and (words[:, 0] == START).all()
        and (words[:, 1:] < V).all()
    )
    places = (words[:, 1:] * torch.tensor([16, 4, 1])).sum(-1)
    expected = n * distribution(policy(2)).detach()
    chi_squared = (
        (torch.bincount(places, minlength=64) - expected).square() / expected
    ).sum()
    assert chi_squared < 110  # 63 degrees of freedom: exceeded once in 4,000 times


def test_a_rollout_tells_each_words_reward_and_both_policies_log_probs():
    tokens, _ = all_responses()
    model = policy(4)
    world = replace(WORLD, rewards=normal(64, seed=8))
    models = Models(model, NoValues(), world.reference, None)
    rollout = roll_out(models, world, tokens)
    assert (
        torch.equal(rollout.scores, world.rewards)
        and rollout.actions.all()
        and rollout.ended.all()
    )
    close(rollout.logprobs.sum(-1), distribution(model).log())
    close(rollout.reference_logprobs.sum(-1), REFERENCE.log())
    assert rollout.values.shape == (64, 3) and (rollout.values == 0).all()


def expected_gradient(model, config, value_model=None, name="not whitened"):
    """The gradient of PPO's first loss, in expectation over all words."""
    tokens, _ = all_responses()
    chosen, value_model = variant(name), value_model or NoValues()
    models = Models(model, value_model, WORLD.reference, None)
    rollout = roll_out(models, WORLD, tokens)
    advantages, returns = chosen.estimate(rollout, config, config.beta)
    total = 0.0
    for i, probability in enumerate(distribution(model).detach()):
        row = torch.tensor([i])
        part = ppo.pick(rollout, row)
        losses = chosen.losses(models, part, advantages[row], returns[row], config)
        total = total + probability * losses["total"]
    return torch.autograd.grad(total, model.logits)[0]


def objective_gradient(model, beta):
    return torch.autograd.grad(
        objective(WORLD, distribution(model), beta), model.logits
    )[0]


@pytest.mark.parametrize("values", [0.0, 1.0])
@pytest.mark.parametrize("beta", BETAS)
def test_ppos_expected_first_gradient_is_the_objectives_per_letter(beta, values):
    config, value_model, model = (
        replace(SMALL_PPO, beta=beta, gae_lambda=1.0),
        TabularValue(),
        policy(5),
    )
    value_model.values.data = values * normal(21, seed=9)
    close(
        expected_gradient(model, config, value_model),
        -objective_gradient(model, beta) / 3,
        1e-12,
    )


def test_in_the_loss_k1_pulls_nowhere_and_k2_misses_effects_on_later_letters():
    model, config = policy(5), replace(SMALL_PPO, beta=BETA, gae_lambda=1.0)
    rewards_alone = (
        -torch.autograd.grad((distribution(model) * WORLD.rewards).sum(), model.logits)[
            0
        ]
        / 3
    )
    close(expected_gradient(model, config, name="k1 in the loss"), rewards_alone, 1e-12)
    wanted = -objective_gradient(model, BETA) / 3
    found = expected_gradient(model, config, name="k2 in the loss")
    close(found[5:], wanted[5:], 1e-12)  # at the last letter there is nothing later
    assert (found[:5] - wanted[:5]).abs().max() > 1e-3


def test_at_the_optimum_every_advantage_is_zero_and_no_word_is_a_surprise():
    tokens, _ = all_responses()
    # What is still to come after a prefix: beta log E[exp(r / beta)] under the
    # reference
    ratio = (REFERENCE * (WORLD.rewards / BETA).exp()).view(4, 4, 4)
    prior = REFERENCE.view(4, 4, 4)
    expected = [BETA * (ratio.sum() / prior.sum()).log()]
    expected += [*(BETA * (ratio.sum((1, 2)) / prior.sum((1, 2))).log())]
    expected += [*(BETA * (ratio.sum(2) / prior.sum(2)).log()).flatten()]
    value_model = TabularValue()
    value_model.values.data = torch.stack(expected)
    models = Models(TabularPolicy.of(BEST), value_model, WORLD.reference, None)
    rollout = roll_out(models, WORLD, tokens)
    for gae_lambda in (0.0, 0.95, 1.0):
        config = replace(SMALL_PPO, gae_lambda=gae_lambda)
        advantages, _ = variant("not whitened").estimate(rollout, config, BETA)
        assert advantages.abs().max() < 1e-12
    advantages, _ = variant("k3 in the reward").estimate(rollout, SMALL_PPO, BETA)
    assert advantages.abs().max() > 0.1


def test_ppo_reaches_the_optimum():
    before = weights(WORLD.reference)
    trained, history = ppo_run(WORLD, BETA, 0)
    assert same(before, WORLD.reference)
    assert [entry["words"] for entry in history] == [256 * i for i in range(101)]
    assert history[0]["kl"] == pytest.approx(0, abs=1e-12) and history[0]["tv"] > 0.5
    assert history[-1]["tv"] <= 0.02
    assert history[-1] == dict(words=25_600) | measure(WORLD, trained, BETA)


def test_without_the_penalty_in_the_reward_ppo_ends_far_away():
    _, history = ppo_run(WORLD, BETA, 0, iterations=60, variant="k1 in the loss")
    assert history[-1]["tv"] > 0.5 and history[-1]["kl"] > 3


@pytest.mark.parametrize(
    "changes", [{}, dict(variant="RLOO", group=32), dict(variant="GRPO", group=32)]
)
def test_ppo_repeats_itself_by_seed_and_leaves_its_start_alone(changes):
    start = policy(6)
    before = weights(start)
    runs = [
        ppo_run(WORLD, BETA, s, start, iterations=3, batch_size=32, **changes)[1]
        for s in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert same(before, start) and runs[0][0]["tv"] == measure(WORLD, start, BETA)["tv"]


def test_rates_fall_in_a_straight_line(monkeypatch):
    rates = []

    class Watched(torch.optim.Adam):
        def step(self):
            rates.append(self.param_groups[-1]["lr"])
            super().step()

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    ppo_run(WORLD, BETA, 0, iterations=4, batch_size=8, minibatches=1, value_lr=0.4)
    dpo_run(WORLD, BETA, draw_pairs(WORLD, 9, seeded()), 0, steps=4, lr=0.4)
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1] * 2)


# Pairs


def test_pairs_are_two_different_words_won_as_bradley_and_terry_say():
    pairs = draw_pairs(WORLD, 200_000, seeded())
    assert pairs.chosen.shape == pairs.rejected.shape == pairs.wrong.shape == (200_000,)
    assert (pairs.chosen != pairs.rejected).all() and (pairs.wrong == 0).all()
    counts = (
        torch.bincount(64 * pairs.chosen + pairs.rejected, minlength=64 * 64)
        .view(64, 64)
        .double()
    )
    expected = (
        200_000 * torch.outer(REFERENCE, REFERENCE) / (1 - REFERENCE.square().sum())
    )
    one, other = torch.triu_indices(64, 64, 1)
    met, expected = (counts + counts.T)[one, other], 2 * expected[one, other]
    chi_squared = float(((met - expected).square() / expected).sum())
    assert chi_squared == pytest.approx(
        2015, abs=4 * 2 * 2015**0.5
    )  # four standard deviations and more
    gap = WORLD.rewards[pairs.chosen] - WORLD.rewards[pairs.rejected]
    for size in (1.0, 2.0, 3.0):
        chance = float((gap[gap.abs() == size] > 0).double().mean())
        assert chance == pytest.approx(1 / (1 + math.exp(-size)), abs=0.01)


def test_exact_labels_choose_the_better_word_and_know_the_others_chance():
    pairs = draw_pairs(WORLD, 1000, seeded(), exact=True)
    gap = WORLD.rewards[pairs.chosen] - WORLD.rewards[pairs.rejected]
    assert gap.min() == 0 and gap.max() > 2
    close(pairs.wrong, 1 / (1 + gap.exp()))


def test_pairs_can_be_drawn_from_any_policy_and_from_some_words_alone():
    pairs = draw_pairs(WORLD, 2000, seeded(), words=COVERED)
    assert COVERED[pairs.chosen].all() and COVERED[pairs.rejected].all()
    two = torch.zeros(64, dtype=torch.float64)
    two[[3, 40]] = torch.tensor([0.999, 0.001], dtype=torch.float64)
    pairs = draw_pairs(WORLD, 50, seeded(), source=two)
    assert {*pairs.chosen.tolist(), *pairs.rejected.tolist()} == {3, 40}
    assert all(
        torch.equal(one, other)
        for one, other in zip(pairs, draw_pairs(WORLD, 50, seeded(), source=two))
    )


# DPO


@pytest.mark.parametrize("beta", BETAS)
def test_with_all_pairs_exactly_labelled_dpos_gradient_is_zero_at_its_optimum(beta):
    def steepness(model):
        return (
            torch.autograd.grad(pair_loss(model, all_pairs(), beta), model.logits)[0]
            .abs()
            .max()
        )

    assert steepness(TabularPolicy.of(optimum(WORLD, beta))) < 1e-12
    assert steepness(TabularPolicy.of(optimum(WORLD, 1.5 * beta))) > 1e-4
    close(pair_loss(WORLD.reference, all_pairs(), beta), math.log(2))


def test_dpo_reaches_the_optimum_with_a_thousand_exact_labels():
    before = weights(WORLD.reference)
    trained, history = dpo_run(
        WORLD, BETA, draw_pairs(WORLD, 1000, seeded(), exact=True), 0, steps=300, lr=0.1
    )
    assert same(before, WORLD.reference)
    assert [entry["step"] for entry in history] == list(range(0, 301, 25))
    assert history[0]["kl"] == pytest.approx(0, abs=1e-12) and history[0]["tv"] > 0.5
    assert history[-1]["tv"] <= 0.01
    assert history[-1] == dict(step=300) | measure(WORLD, trained, BETA)


def test_more_drawn_labels_bring_dpo_nearer_and_few_lead_it_astray():
    ends = []
    for n in (1000, 10_000, 300_000):
        _, history = dpo_run(
            WORLD, BETA, draw_pairs(WORLD, n, seeded()), 0, steps=300, lr=0.1
        )
        ends.append(history[-1]["tv"])
    assert ends[0] > 0.3 > ends[1] > 0.06 > ends[2]


def test_dpo_repeats_itself_by_seed_and_leaves_its_start_alone():
    start, pairs = policy(6), draw_pairs(WORLD, 200, seeded())
    before = weights(start)
    runs = [
        dpo_run(WORLD, BETA, pairs, s, start, steps=5, batch_size=50)[1]
        for s in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert same(before, start) and runs[0][0]["tv"] == measure(WORLD, start, BETA)["tv"]


# Coverage


def test_the_mass_of_words_that_no_pair_holds_is_nothing_to_the_loss():
    pairs = draw_pairs(WORLD, 500, seeded(), words=COVERED)
    one, other = policy(1), policy(1)
    other.logits.data[0, 0] += 3.0
    assert (
        distribution(other)[~COVERED].sum() - distribution(one)[~COVERED].sum()
    ) > 0.2
    close(pair_loss(one, pairs, BETA), pair_loss(other, pairs, BETA))
    (gradient,) = torch.autograd.grad(pair_loss(one, pairs, BETA), one.logits)
    assert (
        gradient[0, 0].abs() < 1e-15
        and (gradient[1] == 0).all()
        and (gradient[5:9] == 0).all()
    )


def test_dpo_orders_the_covered_words_and_others_only_once_it_draws_them():
    pairs = draw_pairs(WORLD, 2000, seeded(), words=COVERED, exact=True)
    higher = TabularPolicy(WORLD.reference.logits)
    higher.logits.data[0, 0] += 2.0
    masses = []
    for start in (None, higher):
        trained, history = dpo_run(WORLD, BETA, pairs, 0, start, steps=300, lr=0.1)
        found = distribution(trained).detach()
        assert total_variation(within(found, COVERED), within(BEST, COVERED)) < 0.01
        assert history[-1]["tv"] > 0.15
        masses.append(float(found[~COVERED].sum()))
    assert (
        masses[0] < 0.15 < 0.35 == pytest.approx(float(BEST[~COVERED].sum()), abs=0.01)
    )
    assert masses[1] - masses[0] > 0.2
    _, report = dpo_rounds(WORLD, BETA, pairs, 0, rounds=1, steps=300, lr=0.1)
    assert [entry["pairs"] for entry in report] == [2000, 3000]
    assert report[0]["tv"] > 0.2 and report[1]["tv"] <= 0.05
    own = torch.tensor(report[1]["probabilities"], dtype=torch.float64)
    close(total_variation(own, BEST), report[1]["tv"])


def test_each_round_goes_on_from_the_policy_so_far_with_its_own_words_added():
    generator, pairs, model, expected = (
        seeded(),
        draw_pairs(WORLD, 50, seeded()),
        None,
        [],
    )
    for added in (0, 20, 20):
        if added:
            own = draw_pairs(WORLD, added, generator, distribution(model).detach())
            pairs = Pairs(*(torch.cat(both) for both in zip(pairs, own)))
        model, history = dpo_run(WORLD, BETA, pairs, 0, model, steps=5, lr=0.3)
        expected.append(
            history[-1]
            | dict(pairs=len(pairs.wrong), probabilities=distribution(model).tolist())
        )
    start = draw_pairs(WORLD, 50, seeded())
    _, report = dpo_rounds(
        WORLD, BETA, start, 0, rounds=2, n=20, exact=False, steps=5, lr=0.3
    )
    assert report == expected and [entry["pairs"] for entry in report] == [50, 70, 90]


def test_a_transformer_takes_the_tables_place():
    class Speller(GPT):
        def forward(self, *arguments):
            return super().forward(*arguments)[..., :V]

    start = Speller(
        GPTConfig(vocab_size=V + 1, context=4, n_layer=1, n_head=1, width=16), seeded()
    ).double()
    close(distribution(start), torch.full((64,), 1 / 64), 1e-12)
    pairs = draw_pairs(WORLD, 1000, seeded(), exact=True)
    _, history = dpo_run(WORLD, BETA, pairs, 0, start, steps=200, lr=0.02)
    assert history[0]["tv"] > 0.5 and history[-1]["tv"] <= 0.05
    _, history = ppo_run(WORLD, BETA, 0, start, iterations=10, lr=0.02)
    assert history[-1]["objective"] > history[0]["objective"] + 0.5


# Refusals


def test_what_cannot_work_is_refused_by_name():
    pairs = draw_pairs(WORLD, 10, seeded())
    for beta in (0.0, -1.0, math.nan):
        for run in (
            lambda b=beta: optimum(WORLD, b),
            lambda b=beta: ppo_run(WORLD, b, 0, iterations=1),
            lambda b=beta: dpo_run(WORLD, b, pairs, 0, steps=1),
        ):
            with pytest.raises(
                ValueError, match="beta is .*: use (a number above|at least) 0"
            ):
                run()
    with pytest.raises(ValueError, match="one for each word"):
        World(WORLD.reference, torch.ones(63))
    with pytest.raises(ValueError, match="one for each word"):
        World(WORLD.reference, torch.full((64,), math.nan))
    for n, words in ((0, None), (5, torch.arange(64) == 3)):
        with pytest.raises(ValueError, match="ask for at least one, of two words"):
            draw_pairs(WORLD, n, seeded(), words=words)
    none = Pairs(*(part[:0] for part in pairs))
    for some, settings in (
        (none, {}),
        (pairs, dict(steps=0)),
        (pairs, dict(batch_size=0)),
    ):
        with pytest.raises(ValueError, match="at least one pair, one step"):
            dpo_run(WORLD, BETA, some, 0, **settings)
    for changes in (dict(temperature=0.8), dict(kl_target=1.0)):
        with pytest.raises(ValueError, match="temperature 1 and a fixed beta"):
            ppo_run(WORLD, BETA, 0, **changes)
    with pytest.raises(ValueError, match="iterations is 0"):
        ppo_run(WORLD, BETA, 0, iterations=0)
