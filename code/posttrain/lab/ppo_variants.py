"""What can stand in the places of PPO's two functions: advantages without a value
model, other places of the KL penalty, and a famous slip.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from posttrain.logprobs import kl_estimate, masked_mean, token_logprobs
from posttrain.ppo import (
    Estimate,
    Losses,
    Models,
    PPOConfig,
    Rollout,
    estimate_advantages,
    gae,
    minibatch_losses,
    token_rewards,
    whiten,
)


class NoValues(nn.Module):
    """Stands in a value model's place, and expects nothing: values of 0."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Zeros (B, T), of tokens (B, T)."""
        return torch.zeros(tokens.shape, device=tokens.device)


def rewards_of(rollout: Rollout, beta: float, estimator: str = "k1") -> Tensor:
    """The rewards (B, T-1) of a rollout, its KL estimated as k1, k2 or k3."""
    kl = kl_estimate(rollout.logprobs, rollout.reference_logprobs, estimator)
    return token_rewards(rollout.scores, kl, rollout.actions, beta)


def unwhitened(
    rollout: Rollout, config: PPOConfig, beta: float, estimator: str = "k1"
) -> tuple[Tensor, Tensor]:
    """Advantages and returns as PPO's, in the rewards' own unit."""
    rewards = rewards_of(rollout, beta, estimator)
    return gae(
        rewards, rollout.values, rollout.actions, config.gamma, config.gae_lambda
    )


def returns_after_whitening(
    rollout: Rollout, config: PPOConfig, beta: float
) -> tuple[Tensor, Tensor]:
    """Advantages as they should be, and returns of the whitened ones: the famous
    slip.
    """
    advantages, _ = estimate_advantages(rollout, config, beta)
    return advantages, advantages + rollout.values


# Without a value model


def leave_one_out(returns: Tensor, group: int) -> Tensor:
    """Each response's return less the mean of the others to its prompt (RLOO): (B,).

    Neighbours, `group` at a time, answer one prompt. Raises ValueError for a group of
    one. Source: Ahmadian et al. 2024, equation 8.
    """
    check_group(group)
    groups = returns.view(-1, group)  # (B / group, group)
    others = (groups.sum(-1, keepdim=True) - groups) / (group - 1)
    return (groups - others).flatten()


def group_relative(scores: Tensor, group: int) -> Tensor:
    """Each response's score in its group's standard units (GRPO): (B,).

    Raises ValueError for a group of one. Source: Shao et al. 2024, section 4.1.2.
    """
    check_group(group)
    groups = scores.view(-1, group)  # (B / group, group)
    mean, std = groups.mean(-1, keepdim=True), groups.std(-1, keepdim=True)
    return ((groups - mean) / (std + 1e-4)).flatten()


def check_group(group: int) -> None:
    """Raise ValueError for a group in which there is nothing to compare."""
    if group < 2:
        raise ValueError(
            f"group is {group}: answers to one prompt are compared, so use at least 2"
        )


def reinforce(
    rollout: Rollout, config: PPOConfig, beta: float
) -> tuple[Tensor, Tensor]:
    """Each token gets its whole response's return, less the round's mean (REINFORCE).

    The returns that are handed on are 0: there is no value model to teach.
    """
    whole = rewards_of(rollout, beta).sum(-1)  # (B,)
    return for_each_token(whole - whole.mean(), rollout)


def rloo(rollout: Rollout, config: PPOConfig, beta: float) -> tuple[Tensor, Tensor]:
    """As `reinforce`, less the mean of the other responses to the prompt."""
    whole = rewards_of(rollout, beta).sum(-1)  # (B,)
    return for_each_token(leave_one_out(whole, config.group), rollout)


def grpo(rollout: Rollout, config: PPOConfig, beta: float) -> tuple[Tensor, Tensor]:
    """Each token gets its response's score in the group's units, and no penalty.

    As published nothing is whitened beside it, and the KL stands in the loss.
    """
    relative = group_relative(rollout.scores, config.group)  # (B,)
    return relative[:, None] * rollout.actions, torch.zeros_like(rollout.values)


def for_each_token(advantages: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """One number per response (B,) as whitened advantages of its tokens, returns 0."""
    spread = advantages[:, None] * rollout.actions  # (B, T-1)
    return whiten(spread, rollout.actions), torch.zeros_like(rollout.values)


# The penalty in the loss


def losses_with_kl(
    models: Models,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    config: PPOConfig,
    estimator: str = "k3",
) -> dict[str, Tensor]:
    """PPO's losses, and config.beta times the mean KL per token in the `total`."""
    found = minibatch_losses(models, rollout, advantages, returns, config)
    logits = models.policy(rollout.tokens)  # (B, T, V)
    logprobs = token_logprobs(logits, rollout.tokens, config.temperature)  # (B, T-1)
    # Leave out what is no action: k3 of an unlikely prompt token would overflow
    logprobs = logprobs * rollout.actions
    kl = kl_estimate(logprobs, rollout.reference_logprobs, estimator)  # (B, T-1)
    penalty = config.beta * masked_mean(kl, rollout.actions)
    return found | dict(total=found["total"] + penalty)


def unpenalised(
    rollout: Rollout, config: PPOConfig, beta: float
) -> tuple[Tensor, Tensor]:
    """As `unwhitened`, without a penalty in the reward."""
    return unwhitened(rollout, config, 0.0)


# By name


class Variant(NamedTuple):
    """What stands in PPO's places, and whether there is a value model."""

    estimate: Estimate = estimate_advantages
    losses: Losses = minibatch_losses
    values: bool = True

    def models(self, models: Models) -> Models:
        """The four models, or three of them."""
        return models if self.values else replace(models, value_model=NoValues())


VARIANTS = {
    "": Variant(),
    "returns after whitening": Variant(returns_after_whitening),
    "REINFORCE": Variant(reinforce, values=False),
    "RLOO": Variant(rloo, values=False),
    "GRPO": Variant(grpo, losses_with_kl, values=False),
    "not whitened": Variant(unwhitened),
    "k2 in the reward": Variant(partial(unwhitened, estimator="k2")),
    "k3 in the reward": Variant(partial(unwhitened, estimator="k3")),
    "k1 in the loss": Variant(unpenalised, partial(losses_with_kl, estimator="k1")),
    "k2 in the loss": Variant(unpenalised, partial(losses_with_kl, estimator="k2")),
    "k3 in the loss": Variant(unpenalised, losses_with_kl),
}


def variant(name: str) -> Variant:
    """A variant by its name; "" is PPO itself. Raises ValueError for one not known."""
    if name not in VARIANTS:
        known = ", ".join(filter(None, VARIANTS))
        raise ValueError(f"variant is {name!r}: use one of {known}")
    return VARIANTS[name]
