"""Chapter 4: `kl_estimate`, `gae`, `whiten`, `policy_loss` and `value_loss`."""

import torch

from posttrain.logprobs import kl_estimate
from posttrain.ppo import gae, policy_loss, value_loss, whiten
from posttrain.practice.cases import exercise, normal, numbers, spans

TWO = numbers([-1, -2]), numbers([-2, -1.5])
CLOSE = torch.full((1, 4), -2.0), -2 + torch.tensor([[1e-3, -2e-3, 3e-3, -5e-3]])
KL_ESTIMATE = exercise(
    kl_estimate,
    4,
    [
        ("", *TWO),
        ("k1", *TWO, "k1"),
        ("k2", *TWO, "k2"),
        ("k3", *TWO, "k3"),
        ("k3 of two that are close", *CLOSE, "k3"),
        ("k3 of two far apart", numbers([-1, -60]), numbers([-60, -40]), "k3"),
        ("another kind", *TWO, "k4"),
    ],
    """
the two the wrong way round: d is the policy's less the reference's
  logprobs - reference_logprobs -> reference_logprobs - logprobs
k1 has the wrong sign: k1 is d
  return d -> return -d
k1 without a sign: it may be below 0: a size would be too large on average
  return d -> return d.abs()
k2 without the half: k2 is d squared over 2
  0.5 * d.square() -> d.square()
k3 has the wrong sign: the exponent is -d, the reference over the policy
  torch.expm1(-d) + d -> torch.expm1(d) - d
k3 with -d at the end: it is + d there: only so is it never below 0
  torch.expm1(-d) + d -> torch.expm1(-d) - d
k3 without the -1: k3 is 0 where the two agree
  torch.expm1(-d) -> (-d).exp()
k3 loses its digits: exp(-d) - 1 rounds where d is near 0, so use expm1
  torch.expm1(-d) -> (-d).exp() - 1
the kind is ignored: k1, k2 and k3 are three formulas
  kind == 'k1' -> True
the mean instead of each token's: the KL is charged token by token
  return d -> return d.mean()
  0.5 * d.square() -> 0.5 * d.square().mean()
  torch.expm1(-d) + d -> (torch.expm1(-d) + d).mean()
the sum instead of each token's: the KL is charged token by token
  return d -> return d.sum(-1)
  0.5 * d.square() -> 0.5 * d.square().sum(-1)
  torch.expm1(-d) + d -> (torch.expm1(-d) + d).sum(-1)
""",
    rounding=("k3 of two that are close",),
    gradients=("logprobs",),
    tolerance=5e-9,  # of single precision near 0
)

GAE_INPUT = numbers([0, 0, 1]), numbers([0.5, 0.25, 0.5]), spans(3, (0, 3))
RAGGED = spans(3, (0, 3), (1, 2))
GAE = exercise(
    gae,
    4,
    [
        ("", *GAE_INPUT),
        ("gamma and lambda", *GAE_INPUT, 0.9, 0.5),
        ("padding", numbers([1, 2, 4]), numbers([0.5, 1, 3]), spans(3, (0, 2))),
        (
            "a prompt before the answer",
            numbers([4, 0, 1]),
            numbers([3, 0.5, 1]),
            spans(3, (1, 3)),
        ),
        ("answers of one token", numbers([0, 1]), numbers([0, 0.25]), spans(2, (1, 2))),
        ("rows of unequal length", normal(0, 2, 3), normal(1, 2, 3), RAGGED, 0.8, 0.7),
    ],
    """
off by one: the surprise takes V_t where V_{t+1} belongs
  gamma * next_value -> gamma * values[:, t]
@ next_value = next_advantage = torch.zeros_like(values[:, 0])
something after the end: after the last action the next value is 0
  values = values * actions -> values = values * actions ; rewards = rewards + gamma *
    values * (actions.flip(1).cumsum(1).flip(1) == 1)
  or
  -> next_value, next_advantage = values[:, -1], torch.zeros_like(values[:, 0])
  or
  values = values * actions -> pass
  -> next_value, next_advantage = values[:, -1], torch.zeros_like(values[:, 0])
  advantages + values -> advantages + values * actions
  or
  values = values * actions -> pass
  -> next_value, next_advantage = values[:, -1], torch.zeros_like(values[:, 0])
the mask is ignored: what stands in prompt and padding flows into the answer
  values = values * actions -> actions = torch.ones_like(actions)
only the results are masked: what stands in the padding flows into the answer: mask
    inside the loop, too
  values = values * actions -> pass
  (delta + gamma * lam * next_advantage) * actions[:, t]
    -> delta + gamma * lam * next_advantage
  advantages[:, t] = next_advantage -> advantages[:, t] = next_advantage * actions[:, t]
  advantages + values -> advantages + values * actions
  or
  (delta + gamma * lam * next_advantage) * actions[:, t]
    -> delta + gamma * lam * next_advantage
  advantages[:, t] = next_advantage -> advantages[:, t] = next_advantage * actions[:, t]
  or
  values = values * actions -> pass
  (delta + gamma * lam * next_advantage) * actions[:, t]
    -> delta + gamma * lam * next_advantage
  advantages[:, t] = next_advantage -> advantages[:, t] = next_advantage * actions[:, t]
the padding's value leaks in: the last action has no V_{t+1}: mask the values before the
    loop
  values = values * actions -> pass
  advantages + values -> advantages + values * actions
  or
  values = values * actions -> pass
@ gamma * lam
lambda is ignored: each further surprise is discounted by lambda, too
  -> gamma
gamma is ignored: gamma stands in the surprise, and in the sum
  gamma * next_value -> next_value
  -> lam
@ gamma * next_value
gamma is missing in the surprise: V_{t+1} is discounted by gamma
  -> next_value
gamma is missing in the sum: A_{t+1} is discounted by gamma times lambda
  gamma * lam -> lam
gamma and lambda the wrong way round: the next value is discounted by gamma
  -> lam * next_value
one surprise alone: the surprises that follow belong to the advantage
  delta + gamma * lam * next_advantage -> delta
forwards in time: an advantage looks at what comes after: go backwards
  reversed(range(values.size(1))) -> range(values.size(1))
  -> gamma * (values[:, t + 1] if t + 1 < values.size(1) else 0)
  or
  reversed(range(values.size(1))) -> range(values.size(1))
the sign of a value: a surprise is r_t + gamma V_{t+1} - V_t
  gamma * next_value - values[:, t] -> gamma * next_value + values[:, t]
  or
  rewards[:, t] + gamma * next_value - values[:, t]
    -> rewards[:, t] - gamma * next_value + values[:, t]
  or
  rewards[:, t] + gamma * next_value -> rewards[:, t] - gamma * next_value
the two results swapped: first the advantages, then the returns
  return advantages, advantages + values -> return advantages + values, advantages
@ advantages + values
returns without the values: a return is the advantage plus the value
  -> advantages
returns of whitened advantages: whiten later: returns keep the reward's unit
  -> whiten(advantages, actions) + values
returns less the values: the return is A + V, and not A - V
  -> advantages - values
returns of the rewards alone: the return is A + V, and not the sum of the rewards still
    to come
  -> gae(rewards, 0 * values, actions, gamma, 1.0)[0]
  or
  -> gae(rewards, 0 * values, actions, 1.0, 1.0)[0]
returns that are not masked: both results are 0 where actions is False
  values = values * actions -> raw, values = values, values * actions
  -> advantages + raw
""",
    results=("advantages", "returns"),
)

WHITEN = exercise(
    whiten,
    4,
    [
        ("", numbers([1, 3, 8]), spans(3, (0, 3))),
        ("padding", numbers([1, 4, 9]), spans(3, (0, 2))),
        ("one value alone", numbers([2, 5]), spans(2, (0, 1))),
        ("rows of unequal length", 3 * normal(0, 2, 3) + 2, RAGGED),
        ("rows of unequal length", 3 * normal(1, 2, 3) - 1, RAGGED),
        ("a mask that is False everywhere", numbers([1, 2]), spans(2, (0, 0))),
    ],
    """
n - 1 instead of n: divide by n: one value alone would be divided by 0
  masked_mean((values - mean).square(), mask)
    -> ((values - mean) * mask).square().sum() / (mask.sum() - 1)
the variance instead of the deviation: divide by the variance's square root
  (variance + 1e-8).rsqrt() -> (variance + 1e-8).reciprocal()
not scaled: the variance has to become 1
  (values - mean) * (variance + 1e-8).rsqrt() -> values - mean
the mask is ignored: mean and variance are those of the masked values alone
  masked_mean(values, mask) -> values.mean()
  masked_mean((values - mean).square(), mask) -> (values - mean).square().mean()
padding is not 0: where the mask is False the result is 0
  (variance + 1e-8).rsqrt() * mask -> (variance + 1e-8).rsqrt()
each row by itself: one mean and one variance for the whole batch
  masked_mean(values, mask) -> (values * mask).sum(1, True) / mask.sum(1, True)
  masked_mean((values - mean).square(), mask)
    -> ((values - mean).square() * mask).sum(1, True) / mask.sum(1, True)
the mean is not taken away: the mean has to become 0
  (values - mean) * (variance + 1e-8).rsqrt() -> values * (variance + 1e-8).rsqrt()
the mean is added again: the mean has to become 0
  (values - mean) * (variance + 1e-8).rsqrt()
    -> ((values - mean) * (variance + 1e-8).rsqrt() + mean)
""",
    tolerance=1e-5,  # so that any small number inside the root is right
)

OLD, ONE = normal(1, 2, 3) - 2, spans(1, (0, 1))
DRAWN = OLD + 0.4 * normal(0, 2, 3), OLD, normal(2, 2, 3), RAGGED
FAR, ZERO, GOOD, BAD = numbers([0.5]), numbers([0]), numbers([1]), numbers([-1])
PADDED = spans(2, (0, 1))
POLICY_LOSS = exercise(
    policy_loss,
    4,
    [
        ("", numbers([0.1]), ZERO, GOOD, ONE),
        ("a good token far more likely", FAR, ZERO, GOOD, ONE),
        ("a bad token far more likely", FAR, ZERO, BAD, ONE),
        ("a good token far less likely", -FAR, ZERO, GOOD, ONE),
        ("padding", numbers([0.1, 2]), numbers([0, 0]), numbers([1, 5]), PADDED),
        ("rows of unequal length", *DRAWN),
        ("clip_eps", *DRAWN, 0.05),
        ("actions that are False everywhere", numbers([0.1]), ZERO, GOOD, ~ONE),
    ],
    """
@ torch.max(free, clipped)
no clip: a ratio outside the range goes on being paid
  -> free
  clipped > free -> free > free
the smaller loss instead of the larger: of two losses the maximum counts
  -> torch.min(free, clipped)
the clipped loss alone: a bad token that became likely has to count in full
  -> clipped
the wrong sign: a loss falls where the advantage is gained: it is minus
  -ratio * advantages -> ratio * advantages
  -ratio.clamp -> ratio.clamp
the ratio upside down: it is the new probability over the old one
  logprobs - old_logprobs -> old_logprobs - logprobs
no exponential: the difference of logarithms is not yet the ratio
  (logprobs - old_logprobs).exp() -> logprobs - old_logprobs
@ masked_mean(torch.max(free, clipped), actions)
the sum instead of the mean: take the mean over the actions
  -> (torch.max(free, clipped) * actions).sum()
the mean over all columns: prompt and padding do not count in the mean
  -> (torch.max(free, clipped) * actions).mean()
the mean of the rows' means: a token of a short answer counts for more
  -> ((torch.max(free, clipped) * actions).sum(1) / actions.sum(1)).mean()
the mask is ignored: prompt and padding are no actions
  -> torch.max(free, clipped).mean()
  masked_mean(held, actions) -> held.mean()
clip_eps is ignored: the room around 1 is an argument
  ratio.clamp(1 - clip_eps, 1 + clip_eps) -> ratio.clamp(0.8, 1.2)
the share of ratios outside: the clip holds where it makes the loss larger, not wherever
    the ratio is far
  clipped > free -> (ratio - 1).abs() > clip_eps
the share with >=: where the two sides are the same the clip holds nothing
  clipped > free -> clipped >= free
@ masked_mean(held, actions)
a number instead of the share: divide it by the number of actions
  -> (held * actions).sum()
the share of all columns: prompt and padding do not count in the share
  -> (held * actions).mean()
  or
  -> held.mean()
the two results swapped: first the loss, then the share
  masked_mean(torch.max(free, clipped), actions) -> masked_mean(held, actions)
  -> masked_mean(torch.max(free, clipped), actions)
  or
  masked_mean(torch.max(free, clipped), actions) -> masked_mean(held, actions).item()
  -> masked_mean(torch.max(free, clipped), actions)
""",
    gradients=("logprobs",),
    results=("loss", "share"),
    by_value=("share",),
)

VALUES = normal(0, 2, 3), normal(1, 2, 3), normal(2, 2, 3), RAGGED
VALUE_LOSS = exercise(
    value_loss,
    4,
    [
        ("", numbers([0.1]), ZERO, GOOD, ONE),
        ("a value far from the old one", FAR, ZERO, GOOD, ONE),
        ("a value gone the wrong way", -FAR, ZERO, GOOD, ONE),
        ("padding", numbers([0.1, 3]), numbers([0, 0]), numbers([1, 0]), PADDED),
        ("rows of unequal length", *VALUES),
        ("another clip", *VALUES, 0.5),
        ("clip=0", FAR, ZERO, GOOD, ONE, 0.0),
        ("actions that are False everywhere", numbers([0.1]), ZERO, GOOD, ~ONE),
    ],
    """
without the half: it is half the squared error
  0.5 * masked_mean(error, actions) -> masked_mean(error, actions)
no clip: the value kept near the old one is judged, too
  if clip: -> if False:
the smaller error instead of the larger: the worse of the two counts
  torch.max -> torch.min
the clipped error alone: the value itself is judged, too
  torch.max(error, (near - returns).square()) -> (near - returns).square()
the value itself is clipped: it is its distance from the old value
  old_values + (values - old_values).clamp(-clip, clip) -> values.clamp(-clip, clip)
not squared: the error is squared
  (values - returns).square() -> (values - returns).abs()
  (near - returns).square() -> (near - returns).abs()
@ masked_mean(error, actions)
the sum instead of the mean: take the mean over the actions
  -> (error * actions).sum()
the mean over all columns: prompt and padding do not count in the mean
  -> (error * actions).mean()
the mean of the rows' means: a token of a short answer counts for more
  -> ((error * actions).sum(1) / actions.sum(1)).mean()
the mask is ignored: prompt and padding are no actions
  -> error.mean()
clip is ignored: the room around the old value is an argument
  (values - old_values).clamp(-clip, clip) -> (values - old_values).clamp(-0.2, 0.2)
clip 0 leaves no room: 0 stands for no clipping
  if clip: -> if True:
""",
    gradients=("values",),
)

EXERCISES = (KL_ESTIMATE, GAE, WHITEN, POLICY_LOSS, VALUE_LOSS)
