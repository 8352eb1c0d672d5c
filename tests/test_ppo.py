"""PPO: rollouts, rewards, advantages, losses and the loop, against loops, closed forms,
autograd and hand numbers.
"""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from tiny import (
    CONFIG,
    END,
    PAD,
    TOKENIZER,
    close,
    judge,
    moved,
    normal,
    same,
    seeded,
    weights,
)
from torch import nn

from posttrain import ppo as module
from posttrain.chat import render_prompt
from posttrain.lab.ppo_variants import (
    VARIANTS,
    NoValues,
    group_relative,
    leave_one_out,
    losses_with_kl,
    variant,
)
from posttrain.logprobs import kl_estimate, sequence_kl
from posttrain.optim import Descent
from posttrain.ppo import (
    Models,
    PPOConfig,
    Rollout,
    ValueModel,
    assemble,
    build_optimizer,
    collect_rollout,
    estimate_advantages,
    gae,
    minibatch_losses,
    next_beta,
    pick,
    policy_loss,
    ppo_steps,
    token_rewards,
    update,
    value_loss,
    whiten,
)

QUESTIONS = ["Who?", "Why so?"]
PROMPTS = [
    render_prompt([dict(role="user", content=text)], TOKENIZER)
    for text in (
        "Who?",
        "Where is the duke?",
        "",
        "Why so?",
        "Say",
        "Ay",
        "No",
        "What now?",
    )
]
TINY = PPOConfig(iterations=2, batch_size=4, max_new_tokens=6)


def models(dtype=torch.float64):
    return assemble(moved(dtype=dtype), judge(5, dtype))


def apart(dtype=torch.float64):
    """Four models whose policy has moved away from its reference."""
    some = models(dtype)
    with torch.no_grad():
        for parameter in some.policy.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=seeded(9), dtype=dtype
            )
    return some


def rollout_of(some, **changes):
    return collect_rollout(some, PROMPTS, replace(TINY, **changes), seeded(2))


def responses(rollout):
    return [
        row[1:][kept].tolist() for row, kept in zip(rollout.tokens, rollout.actions)
    ]


# Three responses within rows of 7 columns: after prompts of 2, 1 and 4 tokens; the last
# is one token long
ACTIONS = torch.tensor(
    [[0, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0]],
    dtype=torch.bool,
)


# Four models out of two


def test_the_policy_starts_as_a_copy_and_the_reference_is_the_sft_model_itself():
    sft, reward_model = moved(), judge(5)
    some = assemble(sft, reward_model)
    assert some.reference is sft and some.reward_model is reward_model
    assert same(weights(sft), some.policy)
    owners = [
        {id(p) for p in m.parameters()}
        for m in (some.policy, some.value_model, sft, reward_model)
    ]
    assert not any(one & other for one, other in itertools.combinations(owners, 2))


def test_values_start_as_what_the_reward_model_would_say_if_the_text_ended_there():
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        some = models(dtype)
        tokens = torch.randint(69, (3, 20), generator=seeded())
        values = some.value_model(tokens)
        assert values.shape == (3, 20) and values.dtype == dtype and values.std() > 0.1
        close(values, some.reward_model.token_scores(tokens), atol)


def test_a_value_model_of_its_own_starts_at_zero_on_the_body_it_is_given():
    body = moved()
    model = ValueModel(body)
    tokens = torch.randint(69, (3, 20), generator=seeded())
    assert model(tokens).abs().max() == 0 and model.body is body
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    close(model(tokens), body.hidden(tokens).sum(-1), 1e-10)


def test_nothing_is_dropped_out_in_any_of_the_four():
    some = models()
    tokens = torch.randint(69, (2, 9), generator=seeded())
    for model in (some.policy, some.value_model, some.reference, some.reward_model):
        assert not [m for m in model.modules() if "Dropout" in type(m).__name__]
    for model in (some.policy, some.value_model, some.reference):
        assert torch.equal(model.train()(tokens), model.eval()(tokens))


# Rollouts


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_rollouts_logprobs_are_those_of_one_forward_pass_per_row(temperature):
    some = apart()
    rollout = rollout_of(some, temperature=temperature)
    assert (
        rollout.logprobs.shape
        == rollout.actions.shape
        == (8, rollout.tokens.size(1) - 1)
    )
    for row, (prompt, response) in enumerate(zip(PROMPTS, responses(rollout))):
        text = torch.tensor([prompt + response])
        columns = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        for model, noted in (
            (some.policy, rollout.logprobs),
            (some.reference, rollout.reference_logprobs),
        ):
            alone = (model(text)[0] / temperature).log_softmax(-1)
            expected = [
                alone[t - 1, text[0, t]] for t in range(len(prompt), text.size(1))
            ]
            close(noted[row, columns], torch.stack(expected), 1e-10)
    assert rollout.logprobs.sub(rollout.reference_logprobs).abs().max() > 0.01
    outside = ~rollout.actions
    for noted in (rollout.logprobs, rollout.reference_logprobs, rollout.values):
        assert (noted[outside] == 0).all() and not noted.requires_grad


def test_the_responses_are_drawn_from_the_whole_distribution_at_the_temperature():
    some = models()
    with torch.no_grad():
        some.policy.head.weight.zero_()  # uniform: top-k or top-p would show
    config = replace(TINY, max_new_tokens=40)
    rollout = collect_rollout(some, PROMPTS * 8, config, seeded())
    assert set(rollout.tokens[:, 1:][rollout.actions].tolist()) == set(range(69))
    close(
        rollout.logprobs[rollout.actions],
        torch.full((int(rollout.actions.sum()),), -math.log(69)),
        1e-6,
    )


def test_before_any_update_the_kl_to_the_reference_is_zero():
    some = models()
    rollout = rollout_of(some)
    close(rollout.logprobs, rollout.reference_logprobs, 1e-10)
    mask = torch.cat([torch.zeros(8, 1, dtype=torch.bool), rollout.actions], 1)
    assert (
        sequence_kl(some.policy, some.reference, rollout.tokens, mask).abs().max() == 0
    )
    for kind in ("k1", "k2", "k3"):
        assert (
            kl_estimate(rollout.logprobs, rollout.reference_logprobs, kind).abs().max()
            < 1e-10
        )


def test_a_responses_end_is_its_last_action_and_nothing_follows_it():
    rollout = rollout_of(models())
    answers = responses(rollout)
    assert rollout.ended.tolist() == [answer[-1] == END for answer in answers]
    assert 0 < rollout.ended.sum() < 8
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers)):
        assert END not in answer[:-1]
        assert len(answer) == 6 or answer[-1] == END
        whole = prompt + answer
        assert rollout.tokens[row].tolist() == whole + [PAD] * (
            rollout.tokens.size(1) - len(whole)
        )
        expected = [
            len(prompt) <= t + 1 < len(whole) for t in range(rollout.actions.size(1))
        ]
        assert rollout.actions[row].tolist() == expected


def test_an_end_token_in_the_prompt_does_not_end_the_response():
    some = models()
    with torch.no_grad():
        some.policy.head.weight.zero_()  # uniform: an end is rare
    history = [
        [
            TOKENIZER.user,
            3,
            TOKENIZER.assistant,
            4,
            END,
            TOKENIZER.user,
            5,
            TOKENIZER.assistant,
        ]
    ]
    rollout = collect_rollout(
        some, history * 8, replace(TINY, max_new_tokens=2), seeded(1)
    )
    answers = responses(rollout)
    assert (
        rollout.ended.tolist() == [END in answer for answer in answers]
        and not rollout.ended.all()
    )


def test_a_response_without_its_end_gets_the_stated_score_others_the_models():
    some = models()
    rollout = rollout_of(some, no_end_score=-7.5)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, responses(rollout))):
        text = torch.tensor([prompt + answer])
        expected = (
            some.reward_model.token_scores(text)[0, -1].item()
            if answer[-1] == END
            else -7.5
        )
        assert rollout.scores[row].item() == pytest.approx(expected, abs=1e-10)
    assert not rollout.scores.requires_grad


def test_a_value_is_read_before_its_token_is_known():
    some = models()
    rollout = rollout_of(some)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, responses(rollout))):
        for i in range(len(answer)):
            before = torch.tensor(
                [prompt + answer[:i]]
            )  # all that came before the answer's token i
            close(
                rollout.values[row, len(prompt) - 1 + i],
                some.value_model(before)[0, -1],
                1e-10,
            )
    assert rollout.values.abs().max() > 0.1


def test_a_score_that_is_no_number_is_refused():
    some = models(torch.float32)
    with torch.no_grad():
        some.reward_model.head.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        rollout_of(some)
    with pytest.raises(ValueError, match="NaN or infinite"):
        list(ppo_steps(some, QUESTIONS, TINY))


# Rewards


def test_rewards_by_hand():
    actions = torch.tensor([[False, True, True, False], [True, True, True, True]])
    kl = torch.tensor([[9.0, 1.0, -2.0, 9.0], [0.5, 0.0, 1.0, 2.0]])
    found = token_rewards(torch.tensor([3.0, -1.0]), kl, actions, beta=0.1)
    torch.testing.assert_close(
        found, torch.tensor([[0.0, -0.1, 3.2, 0.0], [-0.05, 0.0, -0.1, -1.2]])
    )


def test_rewards_sum_to_the_score_less_the_kl_and_the_score_comes_last():
    scores, kl = normal(3), normal(3, 7, seed=1)
    found = token_rewards(scores, kl, ACTIONS, 0.3)
    close(found.sum(-1), scores - 0.3 * (kl * ACTIONS).sum(-1))
    free = token_rewards(scores, kl, ACTIONS, 0.0)
    assert (free != 0).sum(-1).tolist() == [1, 1, 1]
    close(free[[0, 1, 2], [4, 6, 3]], scores)


# Advantages


def brute_force_gae(rewards, values, actions, gamma, lam):
    """Equation 16 as it is printed: a sum over all later steps, for each step."""
    advantages = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        steps = actions[row].nonzero().flatten().tolist()
        r, v = (
            [float(rewards[row, t]) for t in steps],
            [float(values[row, t]) for t in steps] + [0.0],
        )
        for i, t in enumerate(steps):
            advantages[row, t] = sum(
                (gamma * lam) ** (k - i) * (r[k] + gamma * v[k + 1] - v[k])
                for k in range(i, len(steps))
            )
    return advantages


@pytest.mark.parametrize(
    ("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.9, 0.0)]
)
def test_advantages_equal_the_sum_over_all_later_steps_within_the_mask(gamma, lam):
    rewards, values = normal(3, 7), normal(3, 7, seed=1)
    expected = brute_force_gae(rewards, values, ACTIONS, gamma, lam)
    advantages, returns = gae(rewards, values, ACTIONS, gamma, lam)
    close(advantages, expected)
    close(returns, (expected + values) * ACTIONS)
    assert (advantages[~ACTIONS] == 0).all() and (returns[~ACTIONS] == 0).all()


def test_advantages_by_hand():
    actions = torch.tensor([[True, True, True, False]])
    rewards, values = (
        torch.tensor([[0.0, 0.0, 1.0, 0.0]]),
        torch.tensor([[0.5, 0.6, 0.8, 0.0]]),
    )
    # deltas 0.1, 0.2, 0.2; lambda 0.5
    advantages, returns = gae(rewards, values, actions, 1.0, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.25, 0.3, 0.2, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.75, 0.9, 1.0, 0.0]]))
    default, _ = gae(rewards, values, actions)
    torch.testing.assert_close(
        default, torch.tensor([[0.1 + 0.95 * 0.39, 0.2 + 0.95 * 0.2, 0.2, 0.0]])
    )
    # lambda 1: what came after, less what was expected
    torch.testing.assert_close(
        gae(rewards, values, actions, 1.0, 1.0)[0], torch.tensor([[0.5, 0.4, 0.2, 0.0]])
    )
    assert (PPOConfig().gamma, PPOConfig().gae_lambda) == (1.0, 0.95)


def test_whitened_values_have_mean_0_and_variance_1_over_n_within_the_mask():
    values = normal(3, 7) * 3 + 5
    broken = values.masked_fill(~ACTIONS, 1e6)
    found = whiten(broken, ACTIONS)
    kept = values[ACTIONS]
    close(
        found[ACTIONS],
        (kept - kept.mean()) / ((kept - kept.mean()) ** 2).mean().sqrt(),
        1e-7,
    )
    assert found[ACTIONS].var(unbiased=False).item() == pytest.approx(1, abs=1e-7)
    assert (found[~ACTIONS] == 0).all()


def test_whitening_one_value_divides_by_no_zero():
    value, mask = torch.tensor([[4.0, 1.0]]), torch.tensor([[True, False]])
    assert whiten(value, mask).tolist() == [[0, 0]]
    assert (
        whiten(torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool)).abs().max()
        == 0
    )
    with pytest.raises(ValueError, match="False everywhere"):
        whiten(value, torch.zeros_like(mask))


def test_leave_one_out_by_hand():
    found = leave_one_out(torch.tensor([1.0, 2.0, 6.0, 10.0, 10.0, 40.0]), 3)
    torch.testing.assert_close(
        found, torch.tensor([-3.0, -1.5, 4.5, -15.0, -15.0, 30.0])
    )
    torch.testing.assert_close(
        leave_one_out(torch.tensor([1.0, 4.0]), 2), torch.tensor([-3.0, 3.0])
    )


def test_group_relative_by_hand():
    found = group_relative(torch.tensor([1.0, 2.0, 3.0, 10.0, 30.0, 50.0]), 3)
    torch.testing.assert_close(
        found, torch.tensor([-1.0, 0, 1, -1, 0, 1]), rtol=0, atol=2e-4
    )
    assert group_relative(torch.tensor([5.0, 5.0]), 2).tolist() == [0, 0]


def made_up(seed=0):
    """A rollout of made-up numbers."""
    B, A = 4, 7
    actions = torch.cat([ACTIONS, torch.ones(1, A, dtype=torch.bool)])
    old, reference, values = (normal(B, A, seed=seed + i) * actions for i in range(3))
    return Rollout(
        torch.randint(69, (B, A + 1), generator=seeded(seed)),
        actions,
        old,
        reference,
        values,
        normal(B, seed=seed + 3),
        torch.ones(B, dtype=torch.bool),
    )


def rewards_by_hand(rollout, kind, beta):
    """Minus beta times the KL of each token, and the score at the last."""
    r = rollout.reference_logprobs - rollout.logprobs
    kl = dict(k1=-r, k2=r**2 / 2, k3=r.exp() - 1 - r)[kind]
    rewards = -beta * kl * rollout.actions
    for row in range(4):
        rewards[row, rollout.actions[row].nonzero()[-1]] += rollout.scores[row]
    return rewards


def whitened_by_hand(values, actions):
    kept = values[actions]
    return (values - kept.mean()) / kept.std(unbiased=False) * actions


SETTINGS = PPOConfig(gamma=0.9, gae_lambda=0.8)


def test_estimated_advantages_are_gae_and_returns_come_before_whitening():
    rollout = made_up()
    rewards = rewards_by_hand(rollout, "k1", 0.3)
    expected = brute_force_gae(rewards, rollout.values, rollout.actions, 0.9, 0.8)
    white = whitened_by_hand(expected, rollout.actions)
    advantages, returns = estimate_advantages(rollout, SETTINGS, 0.3)
    close(advantages, white, 1e-7)
    close(returns, expected + rollout.values)
    # The swapped order, where it is asked for
    wrong, returns = variant("returns after whitening").estimate(rollout, SETTINGS, 0.3)
    close(wrong, white, 1e-7)
    close(returns, white + rollout.values, 1e-7)


@pytest.mark.parametrize(
    ("name", "kind", "beta"),
    [
        ("not whitened", "k1", 0.3),
        ("k2 in the reward", "k2", 0.3),
        ("k3 in the reward", "k3", 0.3),
        ("k1 in the loss", "k1", 0.0),
        ("k2 in the loss", "k1", 0.0),
        ("k3 in the loss", "k1", 0.0),
    ],
)
def test_without_whitening_advantages_are_gae_of_the_rewards_of_each_kind(
    name, kind, beta
):
    rollout = made_up()
    rewards = rewards_by_hand(rollout, kind, beta)
    expected = brute_force_gae(rewards, rollout.values, rollout.actions, 0.9, 0.8)
    advantages, returns = variant(name).estimate(rollout, SETTINGS, 0.3)
    close(advantages, expected)
    close(returns, expected + rollout.values)


@pytest.mark.parametrize("name", ["REINFORCE", "RLOO", "GRPO"])
def test_estimators_without_values_give_each_token_its_whole_responses_advantage(name):
    rollout = made_up()
    config = PPOConfig(group=2)
    beta = 0.0 if name == "GRPO" else 0.3
    kl = ((rollout.logprobs - rollout.reference_logprobs) * rollout.actions).sum(-1)
    a, b, c, d = (rollout.scores - beta * kl).tolist()
    mean = (a + b + c + d) / 4
    expected = dict(
        REINFORCE=[a - mean, b - mean, c - mean, d - mean],
        RLOO=[a - b, b - a, c - d, d - c],
        GRPO=[
            s * 0.5**0.5 / (1 + 1e-4 / (abs(x - y) * 0.5**0.5)) * (1 if x > y else -1)
            for s, x, y in ((1, a, b), (1, b, a), (1, c, d), (1, d, c))
        ],
    )[name]
    spread = torch.tensor(expected, dtype=torch.float64)[:, None] * rollout.actions
    if name != "GRPO":
        spread = whitened_by_hand(spread, rollout.actions)
    advantages, returns = variant(name).estimate(rollout, config, 0.3)
    close(advantages, spread, 1e-7)
    assert returns.shape == rollout.actions.shape and (returns == 0).all()


@pytest.mark.parametrize("compare", [leave_one_out, group_relative])
def test_a_group_of_one_has_nothing_to_compare(compare):
    with pytest.raises(ValueError, match="group is 1: .* use at least 2"):
        compare(torch.ones(3), 1)


def test_a_variant_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="variant is 'GRPO2': use one of returns"):
        variant("GRPO2")


# Losses


def test_the_policy_loss_equals_a_loop_over_actions():
    old, advantages = normal(3, 7), normal(3, 7, seed=1)
    new = (old + 0.4 * normal(3, 7, seed=2)).requires_grad_()
    for eps in (0.2, 0.05):
        loss, fraction = policy_loss(new, old, advantages, ACTIONS, eps)
        terms, held = [], []
        for b, t in ACTIONS.nonzero().tolist():
            ratio, A = (
                math.exp(float((new - old)[b, t].detach())),
                float(advantages[b, t]),
            )
            terms.append(max(-ratio * A, -min(max(ratio, 1 - eps), 1 + eps) * A))
            held.append((A > 0 and ratio > 1 + eps) or (A < 0 and ratio < 1 - eps))
        close(loss, sum(terms) / len(terms))
        assert fraction.item() == pytest.approx(sum(held) / len(held)) and 0 < sum(
            held
        ) < len(held)
        (gradient,) = torch.autograd.grad(loss, new)
        stopped = torch.zeros_like(ACTIONS)
        stopped[ACTIONS] = torch.tensor(held)
        assert torch.equal(gradient == 0, stopped | ~ACTIONS)
        expected = -(new - old).exp() * advantages / ACTIONS.sum()
        close(gradient[ACTIONS & ~stopped], expected[ACTIONS & ~stopped])


def test_clipping_by_hand_for_both_signs():
    ratios = torch.tensor([[1.5, 0.5, 1.5, 0.5]], dtype=torch.float64)
    advantages = torch.tensor([[2.0, 2.0, -2.0, -2.0]], dtype=torch.float64)
    new, every = ratios.log().requires_grad_(), torch.ones(1, 4, dtype=torch.bool)
    loss, fraction = policy_loss(
        new, torch.zeros(1, 4, dtype=torch.float64), advantages, every, 0.2
    )
    close(loss, (-2.4 - 1.0 + 3.0 + 1.6) / 4)
    assert fraction.item() == 0.5
    loss.backward()
    close(new.grad, [[0.0, -0.25, 0.75, 0.0]])
    assert PPOConfig().clip_eps == PPOConfig().value_clip == 0.2


def test_at_ratio_1_the_loss_has_the_plain_policy_gradient():
    old, advantages = normal(3, 7), normal(3, 7, seed=1)
    new = old.clone().requires_grad_()
    loss, fraction = policy_loss(new, old, advantages, ACTIONS)
    loss.backward()
    close(loss, -advantages[ACTIONS].mean())
    close(new.grad, -advantages * ACTIONS / ACTIONS.sum())
    assert fraction == 0


def test_the_value_loss_equals_a_loop_with_the_clip_around_the_old_values():
    old, returns = normal(3, 7), normal(3, 7, seed=1)
    new = (old + 0.4 * normal(3, 7, seed=2)).requires_grad_()
    for clip in (0.2, 0.05):
        terms = []
        for b, t in ACTIONS.nonzero().tolist():
            v, o, r = (float(x[b, t].detach()) for x in (new, old, returns))
            terms.append(
                0.5 * max((v - r) ** 2, (min(max(v, o - clip), o + clip) - r) ** 2)
            )
        close(value_loss(new, old, returns, ACTIONS, clip), sum(terms) / len(terms))
    plain = value_loss(new, old, returns, ACTIONS, 0)
    close(plain, 0.5 * (new - returns)[ACTIONS].square().mean())
    assert plain < value_loss(new, old, returns, ACTIONS, 0.05)


def test_value_clipping_by_hand():
    every = torch.ones(1, 1, dtype=torch.bool)
    old, returns = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    for value, expected, slope in (
        (1.8, 0.5 * 0.8**2, 0.0),
        (1.1, 0.5 * 0.9**2, -0.9),
        (0.5, 0.5 * 1.5**2, -1.5),
    ):
        new = torch.tensor([[value]], requires_grad=True)
        loss = value_loss(new, old, returns, every, 0.2)
        loss.backward()
        assert loss.item() == pytest.approx(
            expected
        ) and new.grad.item() == pytest.approx(slope)


def test_losses_are_means_over_actions_whatever_stands_elsewhere():
    old, advantages, returns = normal(3, 7), normal(3, 7, seed=1), normal(3, 7, seed=2)
    new = old + 0.4 * normal(3, 7, seed=3)
    nan = torch.full((3, 7), float("nan"), dtype=torch.float64)
    a, b, c, d = (torch.where(ACTIONS, x, nan) for x in (new, old, advantages, returns))
    for one, other in zip(
        policy_loss(new, old, advantages, ACTIONS), policy_loss(a, b, c, ACTIONS)
    ):
        close(one, other)
    close(value_loss(new, old, returns, ACTIONS), value_loss(a, b, d, ACTIONS))


@pytest.mark.parametrize("kind", ["", "k1", "k2", "k3"])
def test_the_total_loss_is_the_sum_of_its_parts_under_the_models_of_now(kind):
    config, some = replace(TINY, temperature=0.6, beta=0.7), models()
    rollout = collect_rollout(some, PROMPTS, config, seeded(2))
    with torch.no_grad():
        for parameter in [*some.policy.parameters(), *some.value_model.parameters()]:
            parameter += 0.05 * torch.randn(
                parameter.shape, generator=seeded(4), dtype=torch.float64
            )
    shape, actions = rollout.actions.shape, rollout.actions
    advantages, returns = normal(*shape), normal(*shape, seed=1)
    losses = variant(f"{kind} in the loss" if kind else "").losses
    found = losses(some, rollout, advantages, returns, config)
    distribution = (some.policy(rollout.tokens)[:, :-1] / 0.6).log_softmax(-1)
    logprobs = distribution.gather(-1, rollout.tokens[:, 1:, None]).squeeze(-1)
    policy, held = policy_loss(logprobs, rollout.logprobs, advantages, actions, 0.2)
    value = value_loss(
        some.value_model(rollout.tokens)[:, :-1], rollout.values, returns, actions, 0.2
    )
    r = rollout.reference_logprobs - logprobs
    kl = dict(k1=-r, k2=r**2 / 2, k3=r.exp() - 1 - r).get(kind, 0 * r)
    close(found["policy_loss"], policy)
    close(found["value_loss"], value)
    close(found["clip_fraction"], held)
    close(found["total"], policy + value + 0.7 * kl[actions].mean())
    close(
        found["entropy"], -(distribution.exp() * distribution).sum(-1)[actions].mean()
    )
    close(
        found["ratio_error"],
        ((logprobs - rollout.logprobs).exp() - 1)[actions].abs().max(),
    )
    assert held > 0 and not found["entropy"].requires_grad


def test_an_all_but_excluded_prompt_token_leaves_the_kl_in_the_loss_finite():
    """e^r of such a token is infinite in float32, and 0 times infinity no number."""
    some, config = models(torch.float32), replace(TINY, beta=0.1)
    rollout = rollout_of(some)
    advantages, returns = variant("k3 in the loss").estimate(rollout, config, 0.1)
    some.policy.head.register_forward_hook(
        lambda layer, inputs, logits: (
            logits - 200 * (torch.arange(69) == TOKENIZER.assistant)
        )
    )
    losses = losses_with_kl(some, rollout, advantages, returns, config)
    losses["total"].backward()
    assert torch.isfinite(losses["total"]) and all(
        torch.isfinite(p.grad).all() for p in some.policy.parameters()
    )


@pytest.mark.parametrize("name", ["", "k3 in the loss"])
def test_the_gradient_reaches_policy_and_value_model_and_no_one_else(name):
    some, chosen = models(), variant(name)
    rollout = rollout_of(some)
    advantages, returns = chosen.estimate(rollout, TINY, 0.1)
    chosen.losses(some, rollout, advantages, returns, TINY)["total"].backward()
    for model, reached in (
        (some.policy, True),
        (some.value_model, True),
        (some.reference, False),
        (some.reward_model, False),
    ):
        assert all((p.grad is not None) == reached for p in model.parameters())
    # The value loss leaves the policy alone
    some = models()
    found = minibatch_losses(some, rollout, torch.zeros_like(advantages), returns, TINY)
    found["total"].backward()
    assert all(p.grad.abs().max() == 0 for p in some.policy.parameters())
    assert any(p.grad.abs().max() > 0 for p in some.value_model.parameters())


# The update


def cut(rollout, rows, A):
    """Some rows of a rollout and its first A actions, written out."""
    return Rollout(
        tokens=rollout.tokens[rows][:, : A + 1],
        actions=rollout.actions[rows][:, :A],
        logprobs=rollout.logprobs[rows][:, :A],
        reference_logprobs=rollout.reference_logprobs[rows][:, :A],
        values=rollout.values[rows][:, :A],
        scores=rollout.scores[rows],
        ended=rollout.ended[rows],
    )


def descent(some, config):
    """A descent at the peak rates."""
    return Descent([build_optimizer(some, config)], lambda step: 1.0)


def watched(some, rollout, config):
    """Run one update; return what each minibatch was given and noted, in order, and the
    result.
    """
    seen = []

    def watch(models_, part, advantages, returns, *rest):
        found = minibatch_losses(models_, part, advantages, returns, *rest)
        noted = {name: value.detach() for name, value in found.items()}
        seen.append((part, advantages, returns, noted))
        return found

    advantages, returns = estimate_advantages(rollout, config, 0.1)
    steps = descent(some, config)
    result = update(
        some, rollout, advantages, returns, steps, 0, config, seeded(3), watch
    )
    return seen, result, advantages, returns


def test_the_first_minibatch_has_ratio_1_and_clips_nothing_and_later_ones_do_not():
    some, config = apart(), replace(TINY, lr=0.02, epochs=2, minibatches=2)
    rollout = rollout_of(some)
    seen, result, *_ = watched(some, rollout, config)
    assert seen[0][3]["ratio_error"] < 1e-10 and seen[0][3]["clip_fraction"] == 0
    assert result["first_ratio_error"] == float(seen[0][3]["ratio_error"])
    assert all(each[3]["ratio_error"] > 1e-3 for each in seen[1:])
    for name in ("clip_fraction", "policy_loss", "value_loss", "entropy"):
        assert result[name] == pytest.approx(
            sum(float(each[3][name]) for each in seen) / 4
        )


def test_each_epoch_goes_over_every_response_once_in_an_order_of_its_own():
    some, config = models(), replace(TINY, epochs=3, minibatches=3)
    rollout = rollout_of(some)
    seen, _, advantages, returns = watched(some, rollout, config)
    assert [len(part.tokens) for part, *_ in seen] == [3, 3, 2] * 3
    # Find each row again by its values: rows, advantages and returns must belong
    # together
    orders = []
    for epoch in range(3):
        order = []
        for part, some_advantages, some_returns, _ in seen[3 * epoch : 3 * epoch + 3]:
            A = part.actions.size(1)
            for i in range(len(part.tokens)):
                row = next(
                    r
                    for r in range(8)
                    if torch.equal(rollout.values[r, :A], part.values[i])
                )
                order.append(row)
                for name, value in vars(cut(rollout, torch.tensor([row]), A)).items():
                    assert torch.equal(getattr(part, name)[i], value[0])
                assert not rollout.actions[row, A:].any()
                assert torch.equal(some_advantages[i], advantages[row, :A])
                assert torch.equal(some_returns[i], returns[row, :A])
        orders.append(tuple(order))
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({*orders, tuple(range(8))}) == 4


@pytest.mark.parametrize(
    ("rows", "A"),
    [([2, 0], 5), ([2], 4), ([0], 5), ([1, 2], 7), ([3, 0, 2], 7), ([2, 2], 4)],
    ids=str,
)
def test_picked_are_all_fields_of_the_rows_up_to_the_last_action_of_any_of_them(
    rows, A
):
    rollout, rows = made_up(), torch.tensor(rows)
    some = pick(rollout, rows)
    for name, value in vars(cut(rollout, rows, A)).items():
        assert torch.equal(getattr(some, name), value), name
    assert some.tokens.shape == (len(rows), A + 1) and some.actions[:, -1].any()
    assert some.actions.sum() == rollout.actions[rows].sum()


def test_nothing_is_cut_where_a_row_acts_to_the_end_and_the_prompts_columns_stay():
    rollout = made_up()
    for name, value in vars(pick(rollout, torch.arange(4))).items():
        assert torch.equal(value, getattr(rollout, name))
    assert (
        not pick(rollout, torch.tensor([2])).actions[:, :3].any()
    )  # the text before a row's actions is read


@pytest.mark.parametrize("name", ["", "k3 in the loss"])
def test_a_minibatchs_losses_and_gradients_are_those_of_the_same_rows_uncut(name):
    some, losses = apart(), variant(name).losses
    rollout = rollout_of(some)
    with torch.no_grad():
        for parameter in some.policy.parameters():
            parameter += 0.05 * torch.randn(
                parameter.shape, generator=seeded(4), dtype=torch.float64
            )
    advantages, returns = estimate_advantages(rollout, TINY, 0.1)
    parameters = list(nn.ModuleList([some.policy, some.value_model]).parameters())
    whole, trimmed = rollout.actions.size(1), []
    for rows in torch.randperm(8, generator=seeded(3)).split(2):
        part = pick(rollout, rows)
        A = part.actions.size(1)
        trimmed.append(whole - A)
        one = losses(some, part, advantages[rows, :A], returns[rows, :A], TINY)
        uncut = cut(rollout, rows, whole)
        other = losses(some, uncut, advantages[rows], returns[rows], TINY)
        for key in one.keys() | other.keys():
            close(one[key], other[key])
        for a, b in zip(
            *(torch.autograd.grad(found["total"], parameters) for found in (one, other))
        ):
            close(a, b)
    assert sum(n > 0 for n in trimmed) >= 3  # most parts are cut


@pytest.mark.parametrize("minibatches", [1, 2])
def test_each_minibatch_is_one_step_of_adam_down_its_own_gradient(minibatches):
    config = replace(TINY, epochs=1, minibatches=minibatches, lr=0.003, value_lr=0.001)
    some = models()
    twin = Models(
        copy.deepcopy(some.policy),
        copy.deepcopy(some.value_model),
        some.reference,
        some.reward_model,
    )
    rollout = rollout_of(some)
    advantages, returns = estimate_advantages(rollout, config, 0.1)
    update(
        some,
        rollout,
        advantages,
        returns,
        descent(some, config),
        0,
        config,
        seeded(3),
    )
    groups = [
        dict(params=list(twin.policy.parameters()), lr=0.003),
        dict(params=list(twin.value_model.parameters()), lr=0.001),
    ]
    optimizer = torch.optim.Adam(groups, eps=1e-5)
    for rows in torch.randperm(8, generator=seeded(3)).chunk(minibatches):
        for group in groups:
            for parameter in group["params"]:
                parameter.grad = None
        part = cut(rollout, rows, rollout.actions.size(1))
        minibatch_losses(twin, part, advantages[rows], returns[rows], config)[
            "total"
        ].backward()
        optimizer.step()
    for one, other in (
        (some.policy, twin.policy),
        (some.value_model, twin.value_model),
    ):
        for a, b in zip(one.parameters(), other.parameters()):
            close(a, b, 1e-12)


def test_the_optimiser_is_adam_with_eps_1e_5_over_every_trained_parameter_once():
    some = models()
    optimizer = build_optimizer(some, replace(TINY, lr=0.1, value_lr=0.2))
    assert type(optimizer) is torch.optim.Adam
    assert [group["eps"] for group in optimizer.param_groups] == [1e-5, 1e-5]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    taken = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = {
        id(p) for model in (some.policy, some.value_model) for p in model.parameters()
    }
    assert len(taken) == len(wanted) and set(taken) == wanted
    alone = build_optimizer(variant("RLOO").models(some), replace(TINY, lr=0.1))
    assert [len(group["params"]) > 0 for group in alone.param_groups] == [True, False]


# The controller and the settings


def test_betas_by_hand():
    assert next_beta(0.1, 6.0, 6.0, 32, 300) == pytest.approx(0.1)
    assert next_beta(0.1, 6.6, 6.0, 30, 300) == pytest.approx(
        0.1 * 1.01
    )  # 10% over, a tenth of the horizon
    assert next_beta(0.1, 600.0, 6.0, 30, 300) == pytest.approx(
        0.1 * 1.02
    )  # held at 20%
    assert next_beta(0.1, 0.0, 6.0, 30, 300) == pytest.approx(0.1 * 0.98)
    assert next_beta(0.1, -60.0, 6.0, 300, 300) == pytest.approx(0.08)
    assert next_beta(0.1, 5.4, 6.0, 300, 300) == pytest.approx(0.09)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(group=3), "batch_size 4 does not split into groups of 3"),
        (dict(minibatches=0), "minibatches is 0"),
        (dict(group=0), "group is 0"),
        (dict(epochs=0), "epochs is 0"),
        (dict(temperature=0.0), "temperature is 0.0"),
        (dict(temperature=-1.0), "temperature is -1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
    assert replace(TINY, group=2)


def test_an_answer_that_could_outgrow_the_context_is_refused_before_it_is_drawn():
    some, longest = models(torch.float32), max(map(len, PROMPTS))
    collect_rollout(
        some,
        PROMPTS[:2],
        replace(TINY, max_new_tokens=CONFIG.context - longest),
        seeded(),
    )
    with pytest.raises(ValueError, match="do not fit into the context of 64"):
        collect_rollout(
            some,
            PROMPTS,
            replace(TINY, max_new_tokens=CONFIG.context - longest + 1),
            seeded(),
        )


# The loop


def followed(monkeypatch, config, dtype=torch.float64):
    """Run the loop: what it yielded, its rollouts, the rates and betas of each update,
    and the models.
    """
    some, rollouts, rates, betas = models(dtype), [], [], []
    collect, update_ = module.collect_rollout, module.update

    def note_rollout(*args):
        rollouts.append(collect(*args))
        return rollouts[-1]

    def note_update(*args):
        found = update_(*args)
        rates.append([group["lr"] for group in args[4].groups])
        return found

    def note_estimate(rollout, config, beta):
        betas.append((rollout, beta))
        return estimate_advantages(rollout, config, beta)

    monkeypatch.setattr(module, "collect_rollout", note_rollout)
    monkeypatch.setattr(module, "update", note_update)
    rounds = list(ppo_steps(some, QUESTIONS, config, note_estimate))
    assert all(a is b for (a, _), b in zip(betas, rollouts, strict=True))
    return rounds, rollouts, rates, [beta for _, beta in betas], some


def test_the_rates_fall_in_a_straight_line_to_zero(monkeypatch):
    _, _, rates, _, _ = followed(
        monkeypatch, replace(TINY, iterations=4, lr=0.04, value_lr=0.08)
    )
    assert [x for pair in rates for x in pair] == pytest.approx(
        [0.04, 0.08, 0.03, 0.06, 0.02, 0.04, 0.01, 0.02]
    )


def test_what_is_yielded_are_the_means_over_the_rollout(monkeypatch):
    yielded, rollouts, *_ = followed(
        monkeypatch, replace(TINY, lr=0.02, iterations=3, batch_size=6)
    )
    assert len(yielded) == len(rollouts) == 3
    for noted, rollout in zip(yielded, rollouts):
        answers = responses(rollout)
        assert len(answers) == 6
        assert noted["length"] == pytest.approx(sum(map(len, answers)) / 6)
        assert noted["ended"] == pytest.approx(
            sum(answer[-1] == END for answer in answers) / 6
        )
        assert noted["score"] == pytest.approx(sum(rollout.scores.tolist()) / 6)
        each = [
            sum((p - q)[a].tolist())
            for p, q, a in zip(
                rollout.logprobs, rollout.reference_logprobs, rollout.actions
            )
        ]
        assert noted["kl"] == pytest.approx(sum(each) / 6, abs=1e-10)
        assert noted["first_ratio_error"] < 1e-9
    assert abs(yielded[0]["kl"]) < 1e-10 and abs(yielded[1]["kl"]) > 1e-3


def test_beta_is_steered_by_the_kl_of_whole_responses_and_used_where_it_is_shown(
    monkeypatch,
):
    config = replace(
        TINY, lr=0.02, iterations=4, kl_target=0.3, kl_horizon=10, beta=0.5
    )
    yielded, _, _, betas, _ = followed(monkeypatch, config)
    expected = 0.5
    for noted, used in zip(yielded, betas):
        assert noted["beta"] == used == pytest.approx(expected)
        expected *= 1 + max(-0.2, min(0.2, noted["kl"] / 0.3 - 1)) * 4 / 10
    assert betas[1] == pytest.approx(0.5 * 0.92)  # at first there is no KL
    steady, *_ = followed(monkeypatch, replace(config, kl_target=0.0))
    assert [noted["beta"] for noted in steady] == [0.5] * 4


def test_the_rollouts_answer_the_prompts_in_turn_each_group_times(monkeypatch):
    _, rollouts, *_ = followed(monkeypatch, replace(TINY, group=2))
    prompts = [
        render_prompt([dict(role="user", content=text)], TOKENIZER)
        for text in QUESTIONS
    ]
    for rollout in rollouts:
        asked = [
            row[: int(kept.nonzero()[0]) + 1].tolist()
            for row, kept in zip(rollout.tokens, rollout.actions)
        ]
        assert asked[0] == asked[1] and asked[2] == asked[3]
        assert sorted((asked[0], asked[2])) == sorted(prompts)
        assert responses(rollout)[0] != responses(rollout)[1]  # two draws


@pytest.mark.parametrize("name", ["", "k3 in the loss"])
def test_only_policy_and_value_model_change(name):
    some, chosen = models(torch.float32), variant(name)
    policy, value, reference, reward = (
        weights(m)
        for m in (some.policy, some.value_model, some.reference, some.reward_model)
    )
    list(ppo_steps(some, QUESTIONS, TINY, chosen.estimate, chosen.losses))
    assert same(reference, some.reference) and same(reward, some.reward_model)
    assert all(
        p.grad is None
        for m in (some.reference, some.reward_model)
        for p in m.parameters()
    )
    for before, model in ((policy, some.policy), (value, some.value_model)):
        after = model.state_dict()
        assert all(
            not torch.equal(before[name], after[name])
            for name, _ in model.named_parameters()
        )


def test_the_same_seed_gives_the_same_run_whatever_the_global_randomness():
    def run(seed):
        some, state = models(torch.float32), torch.get_rng_state()
        noted = list(ppo_steps(some, QUESTIONS, replace(TINY, seed=seed)))
        assert torch.equal(torch.get_rng_state(), state)
        return noted, weights(some.policy)

    torch.manual_seed(1)
    first, one = run(0)
    torch.manual_seed(2)
    second, other = run(0)
    assert first == second and all(torch.equal(one[name], other[name]) for name in one)
    assert run(1)[0] != first


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_runs_with_finite_numbers(name):
    config, chosen = replace(TINY, iterations=1, group=2), variant(name)
    some = chosen.models(models(torch.float32))
    assert isinstance(some.value_model, NoValues) != chosen.values
    before = weights(some.policy)
    (noted,) = ppo_steps(some, QUESTIONS, config, chosen.estimate, chosen.losses)
    assert all(math.isfinite(value) for value in noted.values())
    assert (noted["value_loss"] != 0) == chosen.values
    assert noted["first_ratio_error"] < 1e-4 and abs(noted["kl"]) < 1e-4
    assert all(torch.isfinite(p).all() for p in some.policy.parameters()) and not same(
        before, some.policy
    )


def test_a_penalty_for_not_ending_teaches_to_end():
    """The whole chain has the right sign."""
    chosen = variant("RLOO")
    some = chosen.models(models(torch.float32))
    with torch.no_grad():
        some.reward_model.head.weight.zero_()  # every answer that ends gets the same
    config = replace(
        TINY,
        group=4,
        batch_size=32,
        iterations=6,
        max_new_tokens=2,
        lr=0.02,
        beta=0.0,
        no_end_score=-9.0,
    )
    run = ppo_steps(some, QUESTIONS, config, chosen.estimate)
    rates = [noted["ended"] for noted in run]
    assert rates[-1] > rates[0] + 0.2


def test_a_mean_over_actions_needs_an_action():
    with pytest.raises(ValueError, match="False everywhere"):
        policy_loss(
            *(normal(2, 3) for _ in range(3)), torch.zeros(2, 3, dtype=torch.bool)
        )
    with pytest.raises(ValueError, match="False everywhere"):
        value_loss(
            *(normal(2, 3) for _ in range(3)), torch.zeros(2, 3, dtype=torch.bool)
        )
