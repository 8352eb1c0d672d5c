"""PPO for language models: rollouts, rewards with a KL penalty, advantages, clipped
updates.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posttrain.batches import Part, epochs, take_step
from posttrain.chat import render_question
from posttrain.gpt import GPT
from posttrain.logprobs import entropy, kl_estimate, masked_mean, pack, token_logprobs
from posttrain.optim import Descent, linear_fall
from posttrain.reward_model import RewardModel
from posttrain.sampling import generate
from posttrain.settings import above_zero, at_least, one_of
from posttrain.tokenizer import CharTokenizer


@dataclass(frozen=True)
class PPOConfig:
    """One run of PPO."""

    iterations: int = 48  # rounds of rollouts and updates
    batch_size: int = 32  # B, responses per round
    max_new_tokens: int = 96  # a response that has not ended by then is cut
    # Of the policy: of its samples and of all its log-probabilities
    temperature: float = 0.8
    no_end_score: float = -2.0  # the score of a response without <|end|>
    # Scores as `normalise` left them; or as they came from training
    normalised: bool = True
    # Advantages
    estimator: str = "gae"  # or, without a value model, "reinforce", "rloo", "grpo"
    group: int = 1  # responses per prompt; "rloo" and "grpo" compare within a group
    gamma: float = 1.0  # a later reward counts in full
    gae_lambda: float = 0.95
    whiten_rewards: bool = False  # to variance 1, keeping the mean
    whiten_advantages: bool = True
    # Or "zero", its head at zero; or "shared", the policy's
    value_start: str = "reward_model"
    # Updates
    epochs: int = 1  # passes over a round's responses
    minibatches: int = 4  # gradient steps per pass
    clip_eps: float = 0.2  # the ratio's room around 1
    value_clip: float = 0.2  # a value's room around the old one; 0 for no clipping
    value_coef: float = 0.1  # weight of the value loss where the transformer is shared
    lr: float = 3e-4  # Adam's, falling in a straight line to 0
    value_lr: float = 3e-4
    # KL to the reference
    beta: float = 0.05  # the penalty's weight at the start
    # Nats per response that beta is steered to; 0 keeps beta as it is
    kl_target: float = 10.0
    # Responses over which a KL off by 20% or more moves beta by 20%
    kl_horizon: int = 100
    kl_in: str = "reward"  # or "loss", there as k2 or k3: k1 has no effect in it
    kl_estimator: str = "k1"  # or "k2", "k3"
    seed: int = 0

    def __post_init__(self):
        one_of(
            self,
            estimator=("gae", "reinforce", "rloo", "grpo"),
            kl_in=("reward", "loss"),
            kl_estimator=("k1", "k2", "k3"),
            value_start=("reward_model", "zero", "shared"),
        )
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
        if self.estimator in ("rloo", "grpo") and self.group < 2:
            raise ValueError(
                f"{self.estimator} compares answers to one prompt: set group >= 2"
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
    """The four models of RLHF. The first two are trained, the last two only asked.

    An estimator that compares answers with each other needs no value model: it is None.
    """

    policy: GPT
    value_model: ValueModel | None
    reference: GPT
    reward_model: RewardModel


def assemble(sft: GPT, reward_model: RewardModel, config: PPOConfig) -> Models:
    """Four models out of two (Ouyang et al. 2022, section 3.5).

    The policy starts as a copy of the SFT model, which itself stays the reference. The
    value model starts as a copy of the reward model's transformer, or stands on the
    policy's own.
    """
    policy, value_model = copy.deepcopy(sft), None
    if not config.normalised:
        reward_model = reward_model.unnormalised()
    if config.estimator == "gae":
        if config.value_start == "reward_model":
            value_model = ValueModel.from_reward_model(reward_model)
        else:
            shared = config.value_start == "shared"
            value_model = ValueModel(
                policy if shared else copy.deepcopy(reward_model.body)
            )
    return Models(policy, value_model, sft, reward_model)


@dataclass(frozen=True)
class Rollout:
    """B answers of the policy, and what the four models say of them.

    tokens (B, T), padded on the right. All else has a column per action, A = T - 1:
    column t is about token t + 1, given the tokens up to t. actions (B, A): True where
    that token is the response's. logprobs, reference_logprobs, values (B, A). scores
    (B,): the reward model's. ended (B,): whether the response has its <|end|>.
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
    actions = mask[:, 1:]  # (B, A)
    logprobs = torch.zeros(actions.shape, dtype=samples.logprobs.dtype)
    logprobs[actions] = samples.logprobs[samples.mask]  # (B, A)
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

    tokens and mask (B, T) as from `pack`; logprobs (B, A), the policy's; ended (B,).
    Raises ValueError for a score that is not a number.
    """
    actions, size = mask[:, 1:], size or len(tokens)  # (B, A)
    pieces = tokens.split(size)
    # Ask the reference how likely it finds them
    said = [token_logprobs(models.reference(t), t, config.temperature) for t in pieces]
    reference_logprobs = torch.cat(said) * actions  # (B, A)
    # Ask the value model what it expects before each token
    values = torch.zeros_like(logprobs)
    if models.value_model is not None:
        values = (
            torch.cat([models.value_model(t)[:, :-1] for t in pieces]) * actions
        )  # (B, A)
    # Score the whole
    scores = torch.cat(
        [models.reward_model(t, m) for t, m in zip(pieces, mask.split(size))]
    )
    if not torch.isfinite(scores).all():
        raise ValueError("the reward model's score of an answer is NaN or infinite")
    scores = torch.where(ended, scores, config.no_end_score)  # (B,)
    return Rollout(tokens, actions, logprobs, reference_logprobs, values, scores, ended)


def token_rewards(scores: Tensor, kl: Tensor, actions: Tensor, beta: float) -> Tensor:
    """The reward of each token: -beta times its KL, and the score once, at the last:
    (B, A).

    scores (B,); kl and actions (B, A).
    """
    positions = torch.arange(actions.size(1), device=actions.device).expand_as(actions)
    last = positions.masked_fill(~actions, -1).amax(-1, keepdim=True)  # (B, 1)
    rewards = -beta * kl * actions
    return rewards.scatter_add(1, last, scores[:, None])  # (B, A)


def gae(
    rewards: Tensor,
    values: Tensor,
    actions: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimates, and the returns that the values should have
    foreseen.

    $A_t = \delta_t + \gamma\lambda A_{t+1}$ with $\delta_t = r_t + \gamma V_{t+1} -
    V_t$, and nothing after the last action; returns are $A_t + V_t$. All (B, A), 0
    where actions is False. Source: Schulman et al. 2016, equation 16.
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


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale values to variance 1 where the mask is True, and 0 elsewhere.

    The mean becomes 0, or stays what it was without shift_mean. The variance is the
    mean squared deviation (divided by n, not n - 1), so that one value alone is no
    division by 0.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    whitened = (values - mean) * (variance + 1e-8).rsqrt()
    return (whitened if shift_mean else whitened + mean) * mask


def leave_one_out(returns: Tensor, group: int) -> Tensor:
    """Each response's return less the mean of the others to its prompt (RLOO): (B,).

    Neighbours, `group` at a time, answer one prompt. Source: Ahmadian et al. 2024,
    equation 8.
    """
    groups = returns.view(-1, group)  # (B / group, group)
    others = (groups.sum(-1, keepdim=True) - groups) / (group - 1)
    return (groups - others).flatten()


def group_relative(scores: Tensor, group: int) -> Tensor:
    """Each response's score in its group's standard units (GRPO): (B,).

    Source: Shao et al. 2024, section 4.1.2.
    """
    groups = scores.view(-1, group)
    mean, std = groups.mean(-1, keepdim=True), groups.std(-1, keepdim=True)
    return ((groups - mean) / (std + 1e-4)).flatten()


def compare_returns(returns: Tensor, config: PPOConfig) -> Tensor:
    """Each response's return against the others', as the estimator has it: (B,)."""
    if config.estimator == "rloo":
        return leave_one_out(returns, config.group)
    if config.estimator == "grpo":
        return group_relative(returns, config.group)
    return returns - returns.mean()


def estimate_advantages(
    rollout: Rollout, config: PPOConfig, beta: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of a rollout, (B, A) each; returns train the value
    model.
    """
    actions = rollout.actions
    kl = kl_estimate(rollout.logprobs, rollout.reference_logprobs, config.kl_estimator)
    penalty = beta if config.kl_in == "reward" else 0.0
    rewards = token_rewards(rollout.scores, kl, actions, penalty)  # (B, A)
    if config.whiten_rewards:
        rewards = whiten(rewards, actions, shift_mean=False)
    if config.estimator == "gae":
        advantages, returns = gae(
            rewards, rollout.values, actions, config.gamma, config.gae_lambda
        )
    else:
        # Give every token the whole response's return, compared with other responses'
        whole = rewards.sum(-1)  # (B,)
        advantages = compare_returns(whole, config)[:, None] * actions
        returns = whole[:, None] * actions
    if config.whiten_advantages:
        advantages = whiten(advantages, actions)
    return advantages, returns


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    actions: Tensor,
    clip_eps: float = 0.2,
) -> tuple[Tensor, Tensor]:
    r"""PPO's clipped loss, and the share of actions at which the clip holds.

    $\max(-\rho A, -\mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A)$ with the ratio
    $\rho = \pi / \pi_{old}$, averaged over the actions. All (B, A). Source: Schulman et
    al. 2017, equation 7.
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
    r"""Half the larger of two squared errors: the values', and that of the values kept
    near the old ones.

    $\frac12\max((V - G)^2, (V_{clip} - G)^2)$ with $V_{clip}$ at most `clip` from the
    old value, averaged over the actions; clip 0 for the plain error. All (B, A).
    Source: OpenAI's baselines; Huang et al. 2022, detail 9.
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


def update(
    models: Models,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    descent: Descent,
    step: int,
    config: PPOConfig,
    beta: float,
    generator: torch.Generator,
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
                models, rollout, rows, advantages, returns, config, beta
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
    beta: float,
) -> Part:
    """The losses of some rows of a rollout, for a step of policy and value model."""

    def part(policy: nn.Module) -> tuple[Tensor, dict[str, float]]:
        some = pick(rollout, rows)
        A = some.actions.size(1)
        losses = minibatch_losses(
            models, some, advantages[rows, :A], returns[rows, :A], config, beta
        )
        return losses["total"], {name: loss.item() for name, loss in losses.items()}

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


def minibatch_losses(
    models: Models,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    config: PPOConfig,
    beta: float,
) -> dict[str, Tensor]:
    """The losses of some responses under the models as they are; `total` is to be
    lowered.
    """
    actions = rollout.actions
    logits = models.policy(rollout.tokens)  # (B, T, V)
    logprobs = token_logprobs(logits, rollout.tokens, config.temperature)  # (B, A)
    loss, clip_fraction = policy_loss(
        logprobs, rollout.logprobs, advantages, actions, config.clip_eps
    )
    with torch.no_grad():
        spread = masked_mean(entropy(logits[:, :-1], config.temperature), actions)
        ratio_error = ((logprobs - rollout.logprobs).exp() - 1)[actions].abs().max()
    noted = dict(
        policy_loss=loss,
        clip_fraction=clip_fraction,
        entropy=spread,
        ratio_error=ratio_error,
    )
    total = loss
    if config.kl_in == "loss":
        # Leave out what is no action: k3 of an unlikely prompt token would overflow
        kl = kl_estimate(
            logprobs * actions, rollout.reference_logprobs, config.kl_estimator
        )
        total = total + beta * masked_mean(kl, actions)
    if models.value_model is not None:
        values = models.value_model(rollout.tokens)[:, :-1]  # (B, A)
        error = value_loss(values, rollout.values, returns, actions, config.value_clip)
        total = (
            total
            + (config.value_coef if config.value_start == "shared" else 1.0) * error
        )
        noted["value_loss"] = error
    return noted | dict(total=total)


def build_optimizer(models: Models, config: PPOConfig) -> torch.optim.Optimizer:
    """Adam with eps 1e-5 (Huang et al. 2022, detail 3) over the policy and the value
    model.
    """
    groups = [dict(params=list(models.policy.parameters()), lr=config.lr)]
    if models.value_model is not None:
        taken = {id(parameter) for parameter in groups[0]["params"]}
        value = [p for p in models.value_model.parameters() if id(p) not in taken]
        groups.append(dict(params=value, lr=config.value_lr))
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


def ppo_steps(models: Models, prompts: list[str], config: PPOConfig) -> Iterator[dict]:
    """Train policy and value model in place; after each round, yield what happened in
    it.

    prompts: texts to answer. Yields and raises as `ppo_rounds` does.
    """
    generator = torch.Generator().manual_seed(config.seed)
    descent = Descent([build_optimizer(models, config)], linear_fall(config.iterations))
    rollouts = collect_rollouts(models, prompts, config, generator)
    return ppo_rounds(models, rollouts, config, descent, generator)


def ppo_rounds(
    models: Models,
    rollouts: Iterator[Rollout],
    config: PPOConfig,
    descent: Descent,
    generator: torch.Generator,
    first: int = 0,
    beta: float | None = None,
) -> Iterator[dict[str, float]]:
    """Train on each rollout, and let the next be written; yield what happened in the
    round.

    first: the round of the first rollout; beta: the penalty's weight by then. Yields
    `score`, `kl` (nats per response), `length`, `ended` and `beta`, means over the
    round's rollouts before its update, what `update` notes in it, and `next_beta`.
    Raises ValueError where scores or losses are no longer numbers.
    """
    beta = config.beta if beta is None else beta
    for round_, rollout in enumerate(rollouts, start=first):
        advantages, returns = estimate_advantages(rollout, config, beta)
        noted = update(
            models,
            rollout,
            advantages,
            returns,
            descent,
            round_,
            config,
            beta,
            generator,
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
