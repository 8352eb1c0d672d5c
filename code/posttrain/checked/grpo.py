"""GRPO on checked rewards, and the choices that are made about it: PPO's loop without a
value model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from posttrain.gpt import GPT
from posttrain.lab.ppo_variants import NoValues, check_group, group_relative
from posttrain.logprobs import entropy, kl_estimate, masked_mean, token_logprobs
from posttrain.optim import Descent, linear_fall
from posttrain.ppo import (
    Models,
    PPOConfig,
    Rollout,
    build_optimizer,
    collect_rollouts,
    pick,
    ppo_rounds,
)
from posttrain.settings import at_least, one_of

MOST_DRAWN = 4  # rollouts for one round, where groups without a lesson are left out


@dataclass(frozen=True)
class Choices:
    """What the reports on GRPO disagree about; as it stands, GRPO as published.

    scale: divide by the group's standard deviation. mean: over an answer's tokens and
    then over answers ("sequence"), over all tokens ("token"), or sums by a fixed length
    ("fixed"). ratio: one for each "token", or one for the whole "sequence". clip_low,
    clip_high: the ratio's room below 1 and above. varied: leave out groups whose
    answers have all one score, and draw others.
    """

    scale: bool = True
    mean: str = "sequence"
    ratio: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    varied: bool = False

    def __post_init__(self):
        one_of(self, mean=("sequence", "token", "fixed"), ratio=("token", "sequence"))
        at_least(self, clip_low=0, clip_high=0)


def centred(scores: Tensor, group: int) -> Tensor:
    """Each answer's score less its group's mean (Dr. GRPO): (B,).

    Raises ValueError for a group of one. Source: Liu et al. 2025, section 3.2.
    """
    check_group(group)
    groups = scores.view(-1, group)  # (B / group, group)
    return (groups - groups.mean(-1, keepdim=True)).flatten()


def group_advantages(
    rollout: Rollout, config: PPOConfig, beta: float, scale: bool = True
) -> tuple[Tensor, Tensor]:
    """Each token gets its answer's score against the group's; no returns, no penalty.

    Both (B, T-1).
    """
    compare = group_relative if scale else centred
    relative = compare(rollout.scores, config.group)  # (B,)
    return relative[:, None] * rollout.actions, torch.zeros_like(rollout.values)


def average(values: Tensor, actions: Tensor, mean: str, longest: int) -> Tensor:
    """One number of a number per token (B, T-1).

    "sequence": the mean of each answer's mean (Shao et al. 2024). "token": the mean
    over all tokens (Yu et al. 2025). "fixed": the sums, by what an answer may have of
    tokens at most (Liu et al. 2025).
    """
    if mean == "token":
        return masked_mean(values, actions)
    sums = (values * actions).sum(-1)  # (B,)
    lengths = actions.sum(-1) if mean == "sequence" else longest
    return (sums / lengths).mean()


def ratios(
    logprobs: Tensor, old_logprobs: Tensor, actions: Tensor, level: str
) -> Tensor:
    """The probability now over the old one: (B, T-1), or for whole answers (B, 1).

    An answer's is the geometric mean of its tokens' (Zheng et al. 2025, equation 7).
    """
    moved = (logprobs - old_logprobs) * actions
    if level == "sequence":
        moved = moved.sum(-1, keepdim=True) / actions.sum(-1, keepdim=True)
    return moved.exp()


def clipped_loss(
    ratio: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The larger of -ratio * advantage and the same with the ratio kept from 1 - low to
    1 + high; and where the clip holds, 1. Shapes as the factors'.
    """
    free = -ratio * advantages
    kept = -ratio.clamp(1 - low, 1 + high) * advantages
    return torch.max(free, kept), (kept > free).to(ratio.dtype)


def grpo_losses(
    models: Models,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    config: PPOConfig,
    choices: Choices,
) -> dict[str, Tensor]:
    """GRPO's loss of some answers under the policy as it is; `total` is to be lowered.

    With config.beta, the KL to the reference is in it, as k3. `idle`: the share of
    answers whose group taught nothing.
    """
    actions = rollout.actions
    logits = models.policy(rollout.tokens)  # (B, T, V)
    logprobs = token_logprobs(logits, rollout.tokens, config.temperature)  # (B, T-1)
    logprobs = logprobs * actions
    ratio = ratios(logprobs, rollout.logprobs, actions, choices.ratio)
    lost, held = clipped_loss(ratio, advantages, choices.clip_low, choices.clip_high)
    mean = partial(
        average, actions=actions, mean=choices.mean, longest=config.max_new_tokens
    )
    loss = mean(lost)
    kl = kl_estimate(logprobs, rollout.reference_logprobs, "k3")  # (B, T-1)
    with torch.no_grad():
        spread = masked_mean(entropy(logits[:, :-1], config.temperature), actions)
        error = (ratio - 1).abs().max()
        idle = (advantages == 0).all(-1).double().mean()
    return dict(
        policy_loss=loss,
        clip_fraction=masked_mean(held, actions),
        entropy=spread,
        ratio_error=error,
        idle=idle,
        total=loss + config.beta * mean(kl) if config.beta else loss,
    )


def with_a_lesson(rollout: Rollout, group: int) -> Tensor:
    """The rows of the groups whose answers have not all one score: (R,)."""
    groups = rollout.scores.view(-1, group)
    lesson = groups.amax(-1) > groups.amin(-1)  # (B / group,)
    return lesson.repeat_interleave(group).nonzero().flatten()


def join(parts: list[Rollout]) -> Rollout:
    """Rollouts as one, with zeros behind the shorter."""
    width = max(part.actions.size(1) for part in parts)
    whole = {}
    for name in vars(parts[0]):
        values = [getattr(part, name) for part in parts]
        if values[0].dim() == 2:
            to = width + (name == "tokens")
            values = [
                torch.nn.functional.pad(each, (0, to - each.size(1))) for each in values
            ]
        whole[name] = torch.cat(values)
    return Rollout(**whole)


def varied_rollouts(
    rollouts: Iterator[Rollout], config: PPOConfig
) -> Iterator[Rollout]:
    """Rollouts of config.batch_size answers, all in groups that teach something.

    Drawn until there are enough of them, MOST_DRAWN times at most. Source: Yu et al.
    2025 (DAPO), dynamic sampling.
    """
    kept, drawn = [], 0
    for rollout in rollouts:
        drawn += 1
        rows = with_a_lesson(rollout, config.group)
        kept += [pick(rollout, rows)] if len(rows) else []
        n = sum(len(part.scores) for part in kept)
        if kept and (n >= config.batch_size or drawn >= MOST_DRAWN):
            whole = join(kept)
            yield pick(whole, torch.arange(min(n, config.batch_size)))
            kept, drawn = [], 0


def grpo_steps(
    policy: GPT,
    reference: GPT,
    checker: torch.nn.Module,
    prompts: list[str],
    config: PPOConfig,
    choices: Choices,
) -> Iterator[dict[str, float]]:
    """Train the policy in place on a checked reward; yield after each round as
    `ppo_rounds`.
    """
    models = Models(policy, NoValues(), reference, checker)
    generator = torch.Generator().manual_seed(config.seed)
    drawing = replace(config, iterations=config.iterations * MOST_DRAWN)
    drawing = drawing if choices.varied else config
    rollouts = collect_rollouts(models, prompts, drawing, generator)
    if choices.varied:
        rollouts = islice(varied_rollouts(rollouts, config), config.iterations)
    descent = Descent([build_optimizer(models, config)], linear_fall(config.iterations))
    estimate = partial(group_advantages, scale=choices.scale)
    losses = partial(grpo_losses, choices=choices)
    return ppo_rounds(models, rollouts, config, descent, generator, estimate, losses)
