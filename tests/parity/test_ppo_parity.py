"""PPO's rewards, advantages, whitening and losses: ours and the very lines of TRL's
PPO, RLOO and GRPO trainers.

TRL keeps responses alone, from the first column on, where we keep whole texts and a
mask: `flush` turns ours into that.
"""

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from parity.oracles import (
    DTYPES,
    agree,
    always,
    as_gpt2,
    as_gpt2_names,
    as_scoring_gpt2,
    body_gradients,
    excerpt,
    flush,
    in_float64,
    near,
    outside,
    peer_gradients,
    policy_of,
    run,
    same_gradients,
    scorer_of,
    texts,
)
from tiny import END, PAD, normal, seeded
from torch.nn.utils.rnn import pad_sequence
from trl.experimental.ppo import ppo_trainer
from trl.experimental.utils import first_true_indices, get_reward, truncate_right
from trl.trainer.utils import entropy_from_logits, nanstd, selective_log_softmax

from posttrain import ppo
from posttrain.lab.ppo_variants import (
    group_relative,
    leave_one_out,
    losses_with_kl,
)
from posttrain.logprobs import kl_estimate, pack, token_logprobs
from posttrain.optim import Descent
from posttrain.ppo import (
    Models,
    PPOConfig,
    Rollout,
    assemble,
    collect_rollout,
    estimate_advantages,
    gae,
    minibatch_losses,
    next_beta,
    token_rewards,
    whiten,
)
from posttrain.sampling import generate

PPO = "trl.experimental.ppo.ppo_trainer"
PENALISE = excerpt(
    PPO, "logr = ref_logprobs - logprobs", "rewards[actual_start, actual_end] += scores"
)
ADVANTAGES = excerpt(PPO, "lastgaelam = 0", "returns = advantages + values")
ALL_ADVANTAGES = excerpt(
    PPO, "response_idxs = torch.arange(", "advantages = torch.masked_fill(advantages"
)
LOSSES = excerpt(
    PPO, "output, vpred_temp = forward(model", "loss = pg_loss + args.vf_coef * vf_loss"
)
CLIPPED = excerpt(PPO, "pg_clipfrac = masked_mean(", ")")
RLOO = excerpt(
    "trl.trainer.rloo_trainer",
    "grouped_rewards = rewards.view",
    "advantages = torch.zeros_like(rewards)",
)
GRPO = excerpt(
    "trl.trainer.grpo_trainer",
    "mean_grouped_rewards = torch.nanmean(",
    "advantages = advantages / (std_",
)
GRPO_KL = excerpt("trl.trainer.grpo_trainer", "per_token_kl = (", ")")
FUNCTIONS = dict(
    masked_mean=ppo_trainer.masked_mean,
    masked_whiten=ppo_trainer.masked_whiten,
    empty_cache=lambda: None,
    selective_log_softmax=selective_log_softmax,
    INVALID_LOGPROB=ppo_trainer.INVALID_LOGPROB,
)


def over_n():
    """TRL divides the variance by n - 1, which one value alone does not survive, and we
    by n: its switch for that.
    """
    return mock.patch.object(
        ppo_trainer, "masked_var", partial(ppo_trainer.masked_var, unbiased=False)
    )


def actions_of(seed, length=None):
    """Tokens (B, T) and the mask of actions (B, T - 1); given a length, all responses
    have it.
    """
    prompts, responses = texts(seed)
    if length is not None:
        responses = [(row * length)[:length] for row in responses]
    tokens, mask = pack(prompts, responses, PAD)
    return tokens, mask[:, 1:]


def with_an_empty_row(actions):
    return torch.cat([actions, torch.zeros_like(actions[:1])])


# Rewards, advantages, whitening


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["k1", "k3"])
@pytest.mark.parametrize("seed", range(4))
def test_token_rewards_are_trls_for_each_row_without_padding(seed, kind, dtype):
    # TRL adds the score one place after the last token where there is padding, and we
    # always at the last token
    _, actions = actions_of(seed)
    lengths, shape = actions.sum(-1).tolist(), actions.shape

    def ours(logprobs, reference, scores):
        kl = kl_estimate(logprobs, reference, kind)
        return flush(token_rewards(scores, kl, actions, 0.3), actions)

    def theirs(logprobs, reference, scores):
        rows = [
            run(
                PENALISE,
                logprobs=one[None],
                ref_logprobs=other[None],
                scores=score[None],
                sequence_lengths=torch.tensor([n - 1]),
                sequence_lengths_p1=torch.tensor([n]),
                args=SimpleNamespace(kl_estimator=kind, kl_coef=0.3),
            ).rewards[0]
            for one, other, score, n in zip(
                flush(logprobs, actions), flush(reference, actions), scores, lengths
            )
            for one, other in [(one[:n], other[:n])]
        ]
        return pad_sequence(rows, batch_first=True)

    inputs = [normal(*shape), normal(*shape, seed=1), 5 * normal(shape[0], seed=2)]
    agree(ours, theirs, inputs, dtype)
    assert (
        outside(token_rewards(inputs[2], inputs[0], actions, 0.3), actions) == 0
    ).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "gamma, lam", [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (1.0, 1.0)]
)
@pytest.mark.parametrize("seed", range(3))
def test_advantages_and_returns_are_those_of_trls_loop_within_the_mask(
    seed, gamma, lam, dtype
):
    actions = with_an_empty_row(actions_of(seed)[1])

    def ours(rewards, values):
        return tuple(
            flush(x, actions) for x in gae(rewards, values, actions, gamma, lam)
        )

    def theirs(rewards, values):
        rewards, values = flush(rewards, actions), flush(values, actions)
        settings = SimpleNamespace(gamma=gamma, lam=lam)
        part = run(
            ADVANTAGES, responses=rewards, rewards=rewards, values=values, args=settings
        )
        return part.advantages, part.returns

    inputs = [3 * normal(*actions.shape), 2 * normal(*actions.shape, seed=1)]
    agree(ours, theirs, inputs, dtype)
    for result in gae(*inputs, actions, gamma, lam):
        assert (outside(result, actions) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("seed", range(3))
def test_whitened_values_are_trls_with_its_variance_over_n(seed, scale, dtype):
    actions = with_an_empty_row(actions_of(seed)[1])
    values = scale * (normal(*actions.shape) + 2)

    def theirs(x):
        with over_n():
            return ppo_trainer.masked_whiten(x, actions) * actions

    agree(lambda x: whiten(x, actions), theirs, [values], dtype)
    # And with TRL's own n - 1, the two differ by one factor alone (but for 1e-8 in the
    # square root)
    n = actions.sum().item()
    with in_float64():
        raw = ppo_trainer.masked_whiten(values, actions) * actions
    torch.testing.assert_close(
        whiten(values, actions) * ((n - 1) / n) ** 0.5, raw, rtol=0, atol=1e-7
    )


def test_one_value_alone_is_whitened_to_0_where_trl_divides_by_0():
    values, actions = normal(1, 4), torch.tensor([[False, True, False, False]])
    assert ppo_trainer.masked_whiten(values, actions)[0, 1].isnan()
    assert torch.equal(whiten(values, actions), torch.zeros(1, 4, dtype=torch.float64))


def rollout_of(actions, tokens, dtype, seed=0):
    """A rollout of random numbers: 0 outside of the actions, as the real ones are."""
    logprobs, reference, values = (
        (normal(*actions.shape, seed=seed + i) * actions).to(dtype) for i in range(3)
    )
    scores = (2 * normal(len(tokens), seed=seed + 3)).to(dtype)
    ended = torch.ones(len(tokens), dtype=torch.bool)
    return Rollout(tokens, actions, logprobs, reference, values, scores, ended)


def trl_advantages(rollout, config, beta, rows=slice(None), **changes):
    """TRL's lines from the log-probabilities to the whitened advantages, on rows of
    equal length.
    """
    kept = rollout.actions[rows]
    names = dict(
        logprobs=rollout.logprobs,
        ref_logprobs=rollout.reference_logprobs,
        values=rollout.values,
    )
    names = {name: flush(value[rows], kept).double() for name, value in names.items()}
    responses = flush(rollout.tokens[rows, 1:], kept)
    settings = SimpleNamespace(
        kl_estimator="k1",
        kl_coef=beta,
        whiten_rewards=False,
        gamma=config.gamma,
        lam=config.gae_lambda,
    )
    lengths = first_true_indices(responses == PAD) - 1
    with over_n():
        part = run(
            ALL_ADVANTAGES,
            **names,
            responses=responses,
            sequence_lengths=lengths,
            args=settings,
            scores=rollout.scores[rows].double(),
            **{**FUNCTIONS, **changes},
        )
    return part.advantages, part.returns


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 6])
def test_a_rollouts_advantages_and_returns_are_trls_from_end_to_end(length, dtype):
    tokens, actions = actions_of(5, length)
    rollout = rollout_of(actions, tokens, dtype)
    config = PPOConfig()
    ours = [flush(x, actions) for x in estimate_advantages(rollout, config, 0.4)]
    for one, other in zip(ours, trl_advantages(rollout, config, 0.4)):
        near(one, other, dtype)
    assert ours[0].std() > 0.9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_a_padded_rollouts_advantages_are_trls_whitened_over_all_rows(seed, dtype):
    tokens, actions = actions_of(seed)
    rollout, config = rollout_of(actions, tokens, dtype), PPOConfig()
    rows = [
        trl_advantages(
            rollout, config, 0.4, [row], masked_whiten=lambda values, mask: values
        )
        for row in range(len(tokens))
    ]
    raw, returns = (
        pad_sequence([row[i][0] for row in rows], batch_first=True) for i in range(2)
    )
    there = flush(actions, actions)
    with over_n():
        advantages = ppo_trainer.masked_whiten(raw, there) * there
    ours = estimate_advantages(rollout, config, 0.4)
    for one, other in zip(ours, (advantages, returns)):
        near(flush(one, actions), other, dtype)
        assert (outside(one, actions) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [2, 4])
def test_rloo_and_grpo_compare_a_group_as_trls_trainers_do(group, dtype):
    def rloo(rewards):
        return run(
            RLOO, rewards=rewards, num_generations=group, nanstd=nanstd
        ).advantages

    def grpo(rewards):
        settings = SimpleNamespace(scale_rewards="group")
        return run(
            GRPO, rewards=rewards, num_generations=group, nanstd=nanstd, self=settings
        ).advantages

    agree(lambda x: leave_one_out(x, group), rloo, [3 * normal(12)], dtype)
    agree(lambda x: group_relative(x, group), grpo, [3 * normal(12)], dtype)


@pytest.mark.parametrize("kl", [0.0, 3.9, 6.0, 8.0, 9.5, 400.0])
def test_beta_is_steered_by_the_formula_of_ziegler_et_al(kl):
    # TRL has dropped this controller
    expected = 0.05 * (1 + np.clip(kl / 8.0 - 1, -0.2, 0.2) * 32 / 100)
    assert next_beta(0.05, kl, 8.0, 32, 100) == pytest.approx(expected, rel=1e-12)


# Losses


def trl_losses(
    forward,
    rollout,
    advantages,
    returns,
    config,
    query_responses=None,
    context_length=1,
    model=None,
):
    """TRL's lines from the forward pass to the loss; and the share of actions at which
    the clip holds.

    TRL counts the place after the last token in the value loss, where it puts the
    score: it is given our mask instead. TRL adds 1e-7 to the temperature.
    """
    kept = rollout.actions
    padding = ~flush(kept, kept)
    settings = SimpleNamespace(
        temperature=config.temperature - 1e-7,
        cliprange=config.clip_eps,
        cliprange_value=config.value_clip or 1e9,
        vf_coef=1.0,
    )
    names = dict(
        mb_advantage=advantages,
        mb_return=returns,
        mb_values=rollout.values,
        mb_logprobs=rollout.logprobs,
        mb_responses=rollout.tokens[:, 1:],
    )
    names = {name: flush(value, kept) for name, value in names.items()}
    names = {
        name: value.double() if value.is_floating_point() else value
        for name, value in names.items()
    }
    with in_float64():
        part = run(
            LOSSES,
            **names,
            **FUNCTIONS,
            forward=forward,
            model=model,
            mb_query_responses=query_responses,
            processing_class=SimpleNamespace(pad_token_id=PAD),
            context_length=context_length,
            args=settings,
            padding_mask=padding,
            padding_mask_p1=padding,
            micro_batch_inds=slice(None),
        )
        part.pg_clipfrac = run(CLIPPED, **vars(part)).pg_clipfrac
    return part


def total_with_grpos_kl(part, rollout, beta):
    """TRL's PPO has the KL in the reward alone; in the loss it is as in its GRPO."""
    reference = flush(rollout.reference_logprobs, rollout.actions).double()
    kl = run(
        GRPO_KL, per_token_logps=part.new_logprobs, ref_per_token_logps=reference
    ).per_token_kl
    return part.loss + beta * ppo_trainer.masked_mean(kl, ~part.padding_mask)


NAMES = ("total", "policy_loss", "value_loss", "clip_fraction", "entropy")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(temperature=1.0, clip_eps=0.05, value_clip=0.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("losses_of", [minibatch_losses, losses_with_kl])
@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_minibatchs_losses_are_trls_from_the_logits_on(
    seed, scale, losses_of, changes, dtype
):
    config = PPOConfig(**changes, beta=0.7)
    tokens, actions = actions_of(seed)
    if len(actions) > 2:
        actions[-1] = False  # an empty response
    logits, values = (
        scale * normal(*tokens.shape, 69, seed=seed),
        2 * normal(*tokens.shape, seed=4),
    )
    # Old log-probabilities and values a little off the new ones, so that both clips
    # hold at some actions
    now = selective_log_softmax(logits[:, :-1] / config.temperature, tokens[:, 1:])
    rollout = replace(
        rollout_of(actions, tokens, dtype),
        logprobs=((now + 0.3 * normal(*actions.shape, seed=5)) * actions).to(dtype),
        reference_logprobs=((now + 0.5 * normal(*actions.shape, seed=6)) * actions).to(
            dtype
        ),
        values=((values[:, :-1] + 0.5 * normal(*actions.shape, seed=7)) * actions).to(
            dtype
        ),
    )
    advantages, returns = (
        normal(*actions.shape, seed=8 + i).to(dtype) for i in range(2)
    )

    def ours(x, v):
        models = Models(always(x), always(v), None, None)
        found = losses_of(models, rollout, advantages, returns, config)
        return tuple(found[name] for name in NAMES)

    def theirs(x, v):
        # What TRL cuts out as [context - 1 : -1]: what is said before each token of the
        # response
        x, v = flush(x[:, :-1], actions), flush(v[:, :-1], actions)
        output = SimpleNamespace(logits=torch.cat([x, x[:, :1]], dim=1))
        part = trl_losses(
            lambda *_: (output, torch.cat([v, v[:, :1]], dim=1)[..., None]),
            rollout,
            advantages,
            returns,
            config,
        )
        spread = ppo_trainer.masked_mean(
            entropy_from_logits(part.logits.detach()), ~part.padding_mask
        )
        total = part.loss
        if losses_of is losses_with_kl:
            total = total_with_grpos_kl(part, rollout, 0.7)
        return total, part.pg_loss, part.vf_loss, part.pg_clipfrac, spread

    losses = dict(zip(NAMES, agree(ours, theirs, [logits, values], dtype)))
    assert 0 < losses["clip_fraction"] < 1


def left_padded(prompts, responses):
    """TRL's layout: prompts padded on the left, responses on the right; and where these
    begin.
    """
    context = max(map(len, prompts))
    length = max(map(len, responses))
    rows = [
        [PAD] * (context - len(p)) + p + r + [PAD] * (length - len(r))
        for p, r in zip(prompts, responses)
    ]
    return torch.tensor(rows), context


def responses_of(rollout):
    return [
        row[1:][kept].tolist() for row, kept in zip(rollout.tokens, rollout.actions)
    ]


# Twelve prompts to which the four models' policy gives answers of several lengths, some
# without their end
PROMPTS = [prompt for seed in range(3) for prompt in texts(seed)[0]][:12]


def four_models(dtype, **changes):
    """GPT-2s, whose policy has moved away from its reference."""
    config = PPOConfig(max_new_tokens=6, no_end_score=-7.0, **changes)
    models = assemble(policy_of(3, dtype), scorer_of(5, dtype))
    with torch.no_grad():
        for i, parameter in enumerate(models.policy.parameters()):
            parameter += 0.1 * normal(*parameter.shape, seed=i).to(dtype)
    return models, config


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_rollouts_numbers_are_those_of_transformers_gpt2s_asked_as_trl_asks_them(
    temperature, dtype
):
    models, config = four_models(dtype, temperature=temperature)
    rollout = collect_rollout(models, PROMPTS, config, seeded(3))
    actions, responses = rollout.actions, responses_of(rollout)
    assert not any(
        PAD in response for response in responses
    )  # TRL could not tell it from padding
    assert 0 < rollout.ended.sum() < len(PROMPTS) and len({*map(len, responses)}) > 2
    # Ask the same four in float64
    policy, reference, value_model, scorer = (
        peer(copy.deepcopy(model).double()).eval()
        for peer, model in (
            (as_gpt2, models.policy),
            (as_gpt2, models.reference),
            (as_scoring_gpt2, models.value_model),
            (as_scoring_gpt2, models.reward_model),
        )
    )
    rows, context = left_padded(PROMPTS, responses)
    taken, there = rows[:, context:], flush(actions, actions)
    with torch.no_grad():
        for model, ours in (
            (policy, rollout.logprobs),
            (reference, rollout.reference_logprobs),
        ):
            logits = (
                ppo_trainer.forward(model, rows, PAD).logits[:, context - 1 : -1]
                / temperature
            )
            near(
                flush(ours, actions),
                selective_log_softmax(logits, taken) * there,
                dtype,
            )
            assert (outside(ours, actions) == 0).all()
        values = (
            get_reward(value_model, rows, PAD, context)[0][:, context - 1 : -1, 0]
            * there
        )
        near(flush(rollout.values, actions), values, dtype)
        # TRL lowers the score of a response without its end, and we replace it
        raw = get_reward(scorer, rows, PAD, context)[1]
        ended = torch.any(taken == END, dim=-1)
        assert torch.equal(rollout.ended, ended)
        normalised = (raw - models.reward_model.shift) / models.reward_model.scale
        near(rollout.scores, torch.where(ended, normalised, -7.0), dtype)


def peers_of(models):
    """transformers' policy and value model in float64, as TRL's PPO holds them."""
    policy, value_model = (
        copy.deepcopy(model).double() for model in (models.policy, models.value_model)
    )
    return as_gpt2(policy), as_scoring_gpt2(value_model)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("losses_of", [minibatch_losses, losses_with_kl])
def test_a_minibatchs_gradients_of_both_models_are_those_of_trl(losses_of, dtype):
    models, config = four_models(dtype, beta=0.7)
    prompts, responses = texts(7)
    tokens, mask = pack(prompts, responses, PAD)
    actions = mask[:, 1:]
    now = token_logprobs(models.policy(tokens), tokens, config.temperature).detach()
    old, reference = (
        (now + 0.3 * normal(*actions.shape, seed=i).to(dtype)) * actions for i in (5, 6)
    )
    rollout = replace(
        rollout_of(actions, tokens, dtype), logprobs=old, reference_logprobs=reference
    )
    advantages, returns = (normal(*actions.shape, seed=i).to(dtype) for i in range(2))
    peers = peers_of(models)
    losses = losses_of(models, rollout, advantages, returns, config)
    losses["total"].backward()
    rows, context = left_padded(prompts, responses)
    part = trl_losses(
        ppo_trainer.forward,
        rollout,
        advantages,
        returns,
        config,
        rows,
        context,
        ppo_trainer.PolicyAndValueWrapper(*peers),
    )
    total = part.loss
    if losses_of is losses_with_kl:
        total = total_with_grpos_kl(part, rollout, 0.7)
    total.backward()
    near(losses["total"], total, dtype)
    same_gradients(
        body_gradients(models.policy), peer_gradients(peers[0].transformer), dtype
    )
    same_gradients(
        body_gradients(models.value_model.body),
        peer_gradients(peers[1].transformer),
        dtype,
    )
    same_gradients(
        peer_gradients(models.value_model.head), peer_gradients(peers[1].score), dtype
    )
    assert not any(
        p.grad is not None
        for m in (models.reference, models.reward_model)
        for p in m.parameters()
    )


def test_responses_are_cut_after_their_first_end_as_trl_cuts_them():
    model, (prompts, _) = policy_of(2, torch.float64), texts(3)
    prompts = prompts * 4
    ours = generate(model, prompts, 8, generator=seeded(4), stop=END)
    # The same draws, uncut
    drawn = generate(model, prompts, 8, generator=seeded(4)).tokens
    tokens, mask = truncate_right(drawn, END, PAD)
    n = ours.mask.size(1)
    assert torch.equal(ours.mask, mask[:, :n].bool()) and not mask[:, n:].any()
    assert torch.equal(ours.tokens.masked_fill(~ours.mask, PAD), tokens[:, :n])
    assert len({*mask.sum(-1).tolist()}) > 2
    assert torch.equal(ppo_trainer.truncate_response(END, PAD, drawn), tokens)


def test_twenty_updates_are_those_of_trls_lines_with_adam_between_them():
    # Not TRL's train(), which would draw responses of its own: its lines from the
    # forward pass to the loss
    models, config = four_models(
        torch.float64, epochs=5, minibatches=4, lr=3e-3, value_lr=1e-3
    )
    rollout = collect_rollout(models, PROMPTS, config, seeded(3))
    advantages, returns = estimate_advantages(rollout, config, 0.4)
    peers = peers_of(models)
    noted = []

    def noting(*arguments):
        noted.append(minibatch_losses(*arguments))
        return noted[-1]

    descent = Descent([ppo.build_optimizer(models, config)], lambda step: 1.0)
    ppo.update(
        models, rollout, advantages, returns, descent, 0, config, seeded(8), noting
    )
    groups = [
        dict(params=list(peer.parameters()), lr=lr)
        for peer, lr in zip(peers, (3e-3, 1e-3))
    ]
    optimizer, generator = torch.optim.Adam(groups, eps=1e-5), seeded(8)
    both, responses, theirs = (
        ppo_trainer.PolicyAndValueWrapper(*peers),
        responses_of(rollout),
        [],
    )
    for _ in range(5):
        for rows in torch.randperm(12, generator=generator).split(3):
            some = Rollout(
                **{name: value[rows] for name, value in vars(rollout).items()}
            )
            asked = left_padded(
                [PROMPTS[i] for i in rows], [responses[i] for i in rows]
            )
            part = trl_losses(
                ppo_trainer.forward,
                some,
                advantages[rows],
                returns[rows],
                config,
                *asked,
                both,
            )
            optimizer.zero_grad()
            part.loss.backward()
            optimizer.step()
            theirs.append(part)
    assert len(noted) == len(theirs) == 20
    for ours, part in zip(noted, theirs):
        near(ours["total"], part.loss, torch.float64)
        near(ours["clip_fraction"], part.pg_clipfrac, torch.float64)
    assert noted[0]["clip_fraction"] == 0 < noted[-1]["clip_fraction"]
    assert len({losses["total"].item() for losses in noted}) == 20
    last = peers[0].transformer.state_dict()
    for name, weight in as_gpt2_names(models.policy.state_dict()).items():
        near(weight, last[name], torch.float64)
