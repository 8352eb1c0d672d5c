"""PPO for language models: rollouts, rewards with a KL penalty, advantages, clipped
updates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posttrain.batches import Part, epochs, take_step
from posttrain.chat import render_question
from posttrain.gpt import GPT
from posttrain.logprobs import entropy, masked_mean, pack, token_logprobs
from posttrain.optim import Descent, linear_fall
from posttrain.reward_model import RewardModel
from posttrain.sampling import generate
from posttrain.settings import above_zero, at_least
from posttrain.tokenizer import CharTokenizer


@dataclass(frozen=True)
class PPOConfig:
    """One run of PPO."""

    iterations: int = 48  # rounds of rollouts and updates
    batch_size: int = 32  # B, responses per round
    group: int = 1  # responses to each prompt of a round
    max_new_tokens: int = 96  # a response that has not ended by then is cut
    # Of the policy: of its samples and of all its log-probabilities
    temperature: float = 0.8
    no_end_score: float = -2.0  # the score of a response without <|end|>
    # Advantages
    gamma: float = 1.0  # a later reward counts in full
    gae_lambda: float = 0.95
    # Updates
    epochs: int = 1  # passes over a round's responses
    minibatches: int = 4  # gradient steps per pass
    clip_eps: float = 0.2  # the ratio's room around 1
    value_clip: float = 0.2  # a value's room around the old one; 0 for no clipping
    lr: float = 3e-4  # Adam's, falling in a straight line to 0
    value_lr: float = 3e-4
    # KL penalty
    beta: float = 0.05  # its weight at the start: what a nat costs
    # Nats per response that beta is steered to; 0 keeps beta as it is
    kl_target: float = 10.0
    # Responses over which a KL off by 20% or more moves beta by 20%
    kl_horizon: int = 100
    seed: int = 0

    def __post_init__(self):
        at_least(self, iterations=1, batch_size=1, group=1, max_new_tokens=1, epochs=1)
        at_least(
            self, minibatches=1, kl_horizon=1, lr=0, value_lr=0, beta=0, kl_target=0
        )
        above_zero(self, "temperature")
        if self.batch_size % self.group:
            raise ValueError(
                f"batch_size {self.batch_size} does not split into groups of "
                f"{self.group}"
            )


class ValueModel(nn.Module):
    """A transformer that foresees, at each token, the reward still to come.

    body: the transformer to stand on, used as it is, not copied. The head is of zeros,
    so that every value starts at 0.
    """

    def __init__(self, body: GPT):
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.width, 1).to(body.embedding.weight.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    @torch.no_grad()
    def from_reward_model(cls, model: RewardModel) -> ValueModel:
        """A copy of a reward model, its scores' zero and unit included."""
        value_model = cls(copy.deepcopy(model.body))
        value_model.head.weight.copy_(model.head.weight / model.scale)
        value_model.head.bias.copy_((model.head.bias - model.shift) / model.scale)
        return value_model

    def forward(self, tokens: Tensor) -> Tensor:
        """The values (B, T) of tokens (B, T): column t has read the tokens up to t."""
        return self.head(self.body.hidden(tokens)).squeeze(-1)


@dataclass(frozen=True)
class Models:
    """The four models of RLHF. The first two are trained, the last two only asked."""

    policy: GPT
    value_model: nn.Module
    reference: GPT
    reward_model: RewardModel


def assemble(sft: GPT, reward_model: RewardModel) -> Models:
    """Four models out of two (Ouyang et al. 2022, section 3.5).

    The policy starts as a copy of the SFT model, which itself stays the reference. The
    value model starts as a copy of the reward model.
    """
    policy = copy.deepcopy(sft)
    value_model = ValueModel.from_reward_model(reward_model)
    return Models(policy, value_model, sft, reward_model)


@dataclass(frozen=True)
class Rollout:
    """B answers of the policy, and what the four models say of them.

    tokens (B, T), padded on the right. All else has a column per action, T - 1 of them:
    column t is about token t + 1, given the tokens up to t. actions (B, T-1): True
    where that token is the response's. logprobs, reference_logprobs, values (B, T-1).
    scores (B,): the reward model's. ended (B,): whether the response has its <|end|>.
    """

    tokens: Tensor
    actions: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    scores: Tensor
    ended: Tensor


@torch.no_grad()
def collect_rollout(
    models: Models,
    prompts: list[list[int]],
    config: PPOConfig,
    generator: torch.Generator,
) -> Rollout:
    """Let the policy answer prompts (token ids), and ask the other three about its
    answers.

    Raises ValueError for a score that is not a number.
    """
    tokenizer = CharTokenizer()
    longest, context = max(map(len, prompts)), models.policy.config.context
    if longest + config.max_new_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and {config.max_new_tokens} new ones do "
            "not fit "
            f"into the context of {context}: shorten the prompt or lower max_new_tokens"
        )
    # Answer, and note how likely each token was
    samples = generate(
        models.policy,
        prompts,
        config.max_new_tokens,
        generator=generator,
        temperature=config.temperature,
        stop=tokenizer.end,
    )
    tokens, mask = pack(prompts, samples.responses(), tokenizer.pad)  # (B, T)
    actions = mask[:, 1:]  # (B, T-1)
    logprobs = torch.zeros(actions.shape, dtype=samples.logprobs.dtype)
    logprobs[actions] = samples.logprobs[samples.mask]  # (B, T-1)
    ended = ((tokens == tokenizer.end) & mask).any(-1)  # (B,)
    return ask_models(models, tokens, mask, logprobs, ended, config)


@torch.no_grad()
def ask_models(
    models: Models,
    tokens: Tensor,
    mask: Tensor,
    logprobs: Tensor,
    ended: Tensor,
    config: PPOConfig,
    size: int = 0,
) -> Rollout:
    """Ask all but the policy about its answers, `size` of them in a pass, or all.

    tokens and mask (B, T) as from `pack`; logprobs (B, T-1), the policy's; ended (B,).
    Raises ValueError for a score that is not a number.
    """
    actions, size = mask[:, 1:], size or len(tokens)  # (B, T-1)
    pieces = tokens.split(size)
    # Ask the reference how likely it finds them
    said = [token_logprobs(models.reference(t), t, config.temperature) for t in pieces]
    reference_logprobs = torch.cat(said) * actions  # (B, T-1)
    # Ask the value model what it expects before each token
    expected = [models.value_model(t)[:, :-1] for t in pieces]
    values = torch.cat(expected) * actions  # (B, T-1)
    # Score the whole
    scores = torch.cat(
        [models.reward_model(t, m) for t, m in zip(pieces, mask.split(size))]
    )
    if not torch.isfinite(scores).all():
        raise ValueError("the reward model's score of an answer is NaN or infinite")
    scores = torch.where(ended, scores, config.no_end_score)  # (B,)
    return Rollout(tokens, actions, logprobs, reference_logprobs, values, scores, ended)


def token_rewards(scores: Tensor, kl: Tensor, actions: Tensor, beta: float) -> Tensor:
    """Rewards (B, T-1): -beta times each token's KL; the last has the score too.

    scores (B,); kl and actions (B, T-1).
    """
    positions = torch.arange(actions.size(1), device=actions.device).expand_as(actions)
    last = positions.masked_fill(~actions, -1).amax(-1, keepdim=True)  # (B, 1)
    rewards = -beta * kl * actions
    return rewards.scatter_add(1, last, scores[:, None])  # (B, T-1)


def gae(
    rewards: Tensor,
    values: Tensor,
    actions: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns that go with them.

    An advantage is the news of its step, delta = reward + gamma * next value -
    value, plus gamma * lam times the advantage of the next step; after the last action
    comes nothing. A return is advantage + value. All (B, T-1), 0 where not actions.
    Source: Schulman et al. 2016, equation 16.
    """
    values = values * actions
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])  # (B,)
    for t in reversed(range(values.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * actions[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale values to mean 0 and variance 1 where the mask is True; 0
    elsewhere.

    The variance is the mean squared deviation (divided by n, not n - 1), so that one
    value alone is no division by 0.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


def estimate_advantages(
    rollout: Rollout, config: PPOConfig, beta: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of a rollout, (B, T-1) each; returns train the value
    model.
    """
    # Pay each token the penalty for its KL, and the last one the score
    kl = rollout.logprobs - rollout.reference_logprobs  # (B, T-1)
    rewards = token_rewards(rollout.scores, kl, rollout.actions, beta)  # (B, T-1)
    # Compare what came with what was expected
    advantages, returns = gae(
        rewards, rollout.values, rollout.actions, config.gamma, config.gae_lambda
    )
    return whiten(advantages, rollout.actions), returns


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    actions: Tensor,
    clip_eps: float = 0.2,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped loss, and the share of actions at which the clip holds.

    The ratio is the probability now over the old one. The loss of an action is the
    larger of -ratio * advantage and the same with the ratio kept within clip_eps of 1;
    both results are means over the actions. All (B, T-1). Source: Schulman et al. 2017,
    equation 7.
    """
    ratio = (logprobs - old_logprobs).exp()
    free = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages
    held = (clipped > free).to(ratio.dtype)
    return masked_mean(torch.max(free, clipped), actions), masked_mean(held, actions)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    actions: Tensor,
    clip: float = 0.2,
) -> Tensor:
    """Half the larger of two squared errors: the values', and that of the values kept
    near the old ones.

    The second value is kept within `clip` of the old one. The mean over the actions;
    clip 0 for the plain error. All (B, T-1). Source: OpenAI's baselines; Huang et al.
    2022, detail 9.
    """
    error = (values - returns).square()
    if clip:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.max(error, (near - returns).square())
    return 0.5 * masked_mean(error, actions)


def next_beta(beta: float, kl: float, target: float, n: int, horizon: int) -> float:
    """The KL penalty's next weight: up when the KL is above its target, down when
    below.

    kl: the mean over n responses, in nats per response. Off by 20% or more, beta moves
    by 20% in `horizon` responses. Source: Ziegler et al. 2019, section 2.2.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return beta * (1 + error * n / horizon)


def minibatch_losses(
    models: Models,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    config: PPOConfig,
) -> dict[str, Tensor]:
    """The losses of some responses under the models as they are; `total` is to be
    lowered.
    """
    actions = rollout.actions
    logits = models.policy(rollout.tokens)  # (B, T, V)
    logprobs = token_logprobs(logits, rollout.tokens, config.temperature)  # (B, T-1)
    loss, clip_fraction = policy_loss(
        logprobs, rollout.logprobs, advantages, actions, config.clip_eps
    )
    values = models.value_model(rollout.tokens)[:, :-1]  # (B, T-1)
    error = value_loss(values, rollout.values, returns, actions, config.value_clip)
    with torch.no_grad():
        spread = masked_mean(entropy(logits[:, :-1], config.temperature), actions)
        ratio_error = ((logprobs - rollout.logprobs).exp() - 1)[actions].abs().max()
    return dict(
        policy_loss=loss,
        clip_fraction=clip_fraction,
        entropy=spread,
        ratio_error=ratio_error,
        value_loss=error,
        total=loss + error,
    )


Estimate = Callable[[Rollout, PPOConfig, float], tuple[Tensor, Tensor]]
Losses = Callable[[Models, Rollout, Tensor, Tensor, PPOConfig], dict[str, Tensor]]


def update(
    models: Models,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    descent: Descent,
    step: int,
    config: PPOConfig,
    generator: torch.Generator,
    losses: Losses = minibatch_losses,
) -> dict[str, float]:
    """Go over a rollout `epochs` times in shuffled minibatches; return means of what
    happened.

    step: the round, at whose rates the descent is taken. `clip_fraction`,
    `policy_loss`, `value_loss`, `total`, `entropy` (nats per token) and `ratio_error`,
    how far a minibatch's ratios are from 1; of the first, `first_ratio_error`.
    """
    noted: list[dict[str, float]] = []
    size = -(-len(rollout.tokens) // config.minibatches)
    for _ in range(config.epochs):
        order = torch.randperm(len(rollout.tokens), generator=generator)
        for rows in order.split(size):
            part = minibatch_part(
                models, rollout, rows, advantages, returns, config, losses
            )
            noted.append(take_step(models.policy, [part], descent, step))
    means = {name: sum(each[name] for each in noted) / len(noted) for name in noted[0]}
    return means | dict(first_ratio_error=noted[0]["ratio_error"])


def minibatch_part(
    models: Models,
    rollout: Rollout,
    rows: Tensor,
    advantages: Tensor,
    returns: Tensor,
    config: PPOConfig,
    losses: Losses = minibatch_losses,
) -> Part:
    """The losses of some rows of a rollout, for a step of policy and value model."""

    def part(policy: nn.Module) -> tuple[Tensor, dict[str, float]]:
        some = pick(rollout, rows)
        A = some.actions.size(1)
        found = losses(models, some, advantages[rows, :A], returns[rows, :A], config)
        return found["total"], {name: loss.item() for name, loss in found.items()}

    return part


def pick(rollout: Rollout, rows: Tensor) -> Rollout:
    """Some rows of a rollout, without the columns in which none of them has an
    action.
    """
    A = int(rollout.actions[rows].any(0).nonzero().max()) + 1
    part = {name: value[rows] for name, value in vars(rollout).items()}
    for name, value in part.items():
        if value.dim() == 2:
            part[name] = value[:, : A + (name == "tokens")]
    return Rollout(**part)


def build_optimizer(models: Models, config: PPOConfig) -> torch.optim.Optimizer:
    """Adam with eps 1e-5 (Huang et al. 2022, detail 3) over the policy and the value
    model.
    """
    policy, values = (
        list(model.parameters()) for model in (models.policy, models.value_model)
    )
    groups = [
        dict(params=policy, lr=config.lr),
        dict(params=values, lr=config.value_lr),
    ]
    return torch.optim.Adam(groups, eps=1e-5)


def collect_rollouts(
    models: Models, prompts: list[str], config: PPOConfig, generator: torch.Generator
) -> Iterator[Rollout]:
    """Each round's answers to prompts, by the policy as it is by then."""
    tokenizer = CharTokenizer()
    encoded = [render_question(text, tokenizer) for text in prompts]
    batches = epochs(len(encoded), config.batch_size // config.group, generator)
    for _ in range(config.iterations):
        batch = [encoded[i] for i in next(batches) for _ in range(config.group)]
        yield collect_rollout(models, batch, config, generator)


def ppo_steps(
    models: Models,
    prompts: list[str],
    config: PPOConfig,
    estimate: Estimate = estimate_advantages,
    losses: Losses = minibatch_losses,
) -> Iterator[dict]:
    """Train policy and value model in place; after each round, yield what happened in
    it.

    prompts: texts to answer. Yields and raises as `ppo_rounds` does.
    """
    generator = torch.Generator().manual_seed(config.seed)
    descent = Descent([build_optimizer(models, config)], linear_fall(config.iterations))
    rollouts = collect_rollouts(models, prompts, config, generator)
    return ppo_rounds(models, rollouts, config, descent, generator, estimate, losses)


def ppo_rounds(
    models: Models,
    rollouts: Iterator[Rollout],
    config: PPOConfig,
    descent: Descent,
    generator: torch.Generator,
    estimate: Estimate = estimate_advantages,
    losses: Losses = minibatch_losses,
    first: int = 0,
    beta: float | None = None,
) -> Iterator[dict[str, float]]:
    """Train on each rollout as it is written; yield what happened in the round.

    first: the round of the first rollout; beta: the penalty's weight by then. Yields
    `score`, `kl` (nats per response), `length`, `ended` and `beta`, means over the
    round's rollouts before its update, what `update` notes in it, and `next_beta`.
    Raises ValueError where scores or losses are no longer numbers.
    """
    beta = config.beta if beta is None else beta
    for round_, rollout in enumerate(rollouts, start=first):
        # Judge each token, once
        advantages, returns = estimate(rollout, config, beta)
        # Take some steps on this round's answers
        noted = update(
            models,
            rollout,
            advantages,
            returns,
            descent,
            round_,
            config,
            generator,
            losses,
        )
        noted = rollout_report(rollout) | dict(beta=beta) | noted
        # Steer the penalty
        if config.kl_target:
            n = len(rollout.tokens)
            beta = next_beta(beta, noted["kl"], config.kl_target, n, config.kl_horizon)
        yield noted | dict(next_beta=beta)


def rollout_report(rollout: Rollout) -> dict[str, float]:
    """Means over a rollout's responses: `score`, `kl` (nats), `length`, and `ended`."""
    kl = (rollout.logprobs - rollout.reference_logprobs).sum(-1)  # (B,)
    return dict(
        score=rollout.scores.mean().item(),
        kl=kl.mean().item(),
        length=rollout.actions.sum(-1).double().mean().item(),
        ended=rollout.ended.double().mean().item(),
    )
