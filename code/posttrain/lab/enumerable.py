"""A world small enough to enumerate: 64 words, where every promise can be checked
exactly.

An answer is any three of the letters abcd, and there is no prompt. So the best policy
is known in closed form, and with it how far from it PPO and DPO end. Words, tables and
exact numbers are made here; what trains is the package's own PPO and DPO.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain import ppo
from posttrain.batches import Part, follow
from posttrain.dpo import dpo_loss
from posttrain.lab import ppo_variants
from posttrain.logprobs import get_response_log_probs, token_logprobs
from posttrain.optim import Descent, linear_fall
from posttrain.ppo import Models, PPOConfig, Rollout
from posttrain.sampling import draw

LETTERS = "abcd"
V, LENGTH = len(LETTERS), 3  # letters of the alphabet, letters of a word
START = V  # the token before the first letter
WORDS = ["".join(letters) for letters in itertools.product(LETTERS, repeat=LENGTH)]
PREFIXES = sum(V**t for t in range(LENGTH))  # beginnings of words: 1 + 4 + 16

SMALL_PPO = PPOConfig(
    iterations=100,
    batch_size=256,
    temperature=1.0,
    lr=0.1,
    value_lr=0.1,
    kl_target=0.0,
)


def all_responses() -> tuple[Tensor, Tensor]:
    """The 64 words, in the order of WORDS: tokens (64, 4), and mask, True on
    letters.
    """
    letters = torch.cartesian_prod(*[torch.arange(V)] * LENGTH)  # (64, 3)
    tokens = F.pad(letters, (1, 0), value=START)  # (64, 4)
    return tokens, tokens != START


def prefix_rows(tokens: Tensor) -> Tensor:
    """Which row of a table belongs to the letters read so far: tokens (B, T) to (B, T).

    Row 0 is the start's; after a whole word it is row 21, of zeros that nothing reads.
    """
    rows = [torch.zeros_like(tokens[:, 0])]
    for letters in tokens[:, 1:].unbind(-1):
        rows.append(V * rows[-1] + 1 + letters)
    return torch.stack(rows, -1).clamp_max(PREFIXES)


class TabularPolicy(nn.Module):
    """A policy that shares nothing: four logits of its own for each of the 21
    prefixes.
    """

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.detach().clone())  # (21, V)

    @classmethod
    def of(cls, probabilities: Tensor) -> TabularPolicy:
        """The policy that writes each word with its probability (64,)."""
        masses = [probabilities.view(V ** (t + 1), -1).sum(-1) for t in range(LENGTH)]
        return cls(torch.cat(masses).log().view(PREFIXES, V))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) of the letter that follows each of tokens (B, T)."""
        return F.pad(self.logits, (0, 0, 0, 1))[prefix_rows(tokens)]


class TabularValue(nn.Module):
    """A value of its own for each of the 21 prefixes, 0 at first."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(PREFIXES, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        """The values (B, T) of tokens (B, T)."""
        return F.pad(self.values, (0, 1))[prefix_rows(tokens)]


@dataclass(frozen=True)
class World:
    """A reference policy, and what each of the 64 words is worth: rewards (64,)."""

    reference: TabularPolicy
    rewards: Tensor

    def __post_init__(self):
        if self.rewards.shape != (len(WORDS),) or not self.rewards.isfinite().all():
            raise ValueError(
                f"rewards must be {len(WORDS)} finite numbers: one for each word"
            )


def build_world(seed: int = 0, shyness: float = 0.0) -> World:
    """A reference of random odds, and the reward: 1 for each a, -2 for each letter
    repeated.

    The logits are normal with standard deviation 0.5; shyness is taken off that of a as
    the first letter, in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = 0.5 * torch.randn(PREFIXES, V, generator=generator, dtype=torch.float64)
    logits[0, 0] -= shyness
    repeats = [
        sum(one == next_ for one, next_ in zip(word, word[1:])) for word in WORDS
    ]
    rewards = [
        word.count("a") - 2.0 * repeated for word, repeated in zip(WORDS, repeats)
    ]
    return World(TabularPolicy(logits), torch.tensor(rewards, dtype=torch.float64))


def distribution(policy: nn.Module) -> Tensor:
    """The exact probability of each word: (64,), with its gradient."""
    return get_response_log_probs(policy, *all_responses()).exp()


@torch.no_grad()
def optimum(world: World, beta: float) -> Tensor:
    r"""The best policy there is: $\pi_{ref}(y)\,e^{r(y)/\beta} / Z$, (64,).

    Raises ValueError for a beta that is not above 0. Source: Rafailov et al. 2023,
    equation 4.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}: use a number above 0")
    return (distribution(world.reference).log() + world.rewards / beta).softmax(-1)


def exact_kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one || other) of distributions (64,), in nats; infinite where other lacks a
    word.
    """
    return (torch.xlogy(one, one) - torch.xlogy(one, other)).sum()


def objective(world: World, probabilities: Tensor, beta: float) -> Tensor:
    r"""What RLHF maximises, of probabilities (64,): $E[r] -
    \beta\,KL(\pi\,\|\,\pi_{ref})$.
    """
    kl = exact_kl(probabilities, distribution(world.reference).detach())
    return (probabilities * world.rewards).sum() - beta * kl


def total_variation(one: Tensor, other: Tensor) -> Tensor:
    """The probability that must move to turn one distribution into the other, from 0 to
    1.
    """
    return (one - other).abs().sum() / 2


def within(probabilities: Tensor, words: Tensor) -> Tensor:
    """The distribution (64,) among some words only: words (64,), True for those."""
    return probabilities * words / (probabilities * words).sum()


@torch.no_grad()
def measure(world: World, policy: nn.Module, beta: float) -> dict[str, float]:
    """Exact: `tv` to the optimum, `kl` to the reference in nats, and the
    `objective`.
    """
    found = distribution(policy)
    return dict(
        tv=total_variation(found, optimum(world, beta)).item(),
        kl=exact_kl(found, distribution(world.reference)).item(),
        objective=objective(world, found, beta).item(),
    )


@torch.no_grad()
def sample_words(policy: nn.Module, n: int, generator: torch.Generator) -> Tensor:
    """Words written letter by letter: tokens (n, 4)."""
    tokens = torch.full((n, 1), START)
    for _ in range(LENGTH):
        letters, _ = draw(policy(tokens)[:, -1], 1.0, generator)  # (n,)
        tokens = torch.cat([tokens, letters[:, None]], dim=1)
    return tokens


@torch.no_grad()
def roll_out(models: Models, world: World, tokens: Tensor) -> Rollout:
    """What policy, reference, value model and the known reward say of words (B, 4)."""
    table, mask = world.rewards.view([V] * LENGTH), tokens != START  # (B, 4)
    models = replace(
        models, reward_model=lambda words, _: table[words[:, 1:].unbind(-1)]
    )
    logprobs = token_logprobs(models.policy(tokens), tokens)  # (B, T-1)
    return ppo.ask_models(models, tokens, mask, logprobs, mask.any(-1), SMALL_PPO)


def ppo_run(
    world: World,
    beta: float,
    seed: int,
    start: nn.Module | None = None,
    variant: str = "not whitened",
    **changes,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """PPO on sampled words: the policy, and what `measure` found before each round and
    after.

    start: the policy before, of which a copy is trained; the reference if none is
    given. variant: of PPO, by its name in `ppo_variants.VARIANTS`; as it is, advantages
    are not whitened, since near the optimum there is only noise left to scale up.
    changes: to fields of SMALL_PPO. `words` counts those drawn so far. Raises
    ValueError for a setting that cannot work.
    """
    config = replace(SMALL_PPO, beta=beta, seed=seed, **changes)
    if config.temperature != 1 or config.kl_target:
        raise ValueError(
            "the optimum is for temperature 1 and a fixed beta, with kl_target 0"
        )
    generator = torch.Generator().manual_seed(config.seed)
    policy = copy.deepcopy(start or world.reference)
    chosen = ppo_variants.variant(variant)
    models = chosen.models(Models(policy, TabularValue(), world.reference, None))
    descent = Descent(
        [ppo.build_optimizer(models, config)], linear_fall(config.iterations)
    )
    n = config.batch_size
    rollouts = (
        roll_out(models, world, sample_words(policy, n, generator))
        for _ in range(config.iterations)
    )
    history = [dict(words=0) | measure(world, policy, beta)]
    rounds = ppo.ppo_rounds(
        models,
        rollouts,
        config,
        descent,
        generator,
        chosen.estimate,
        chosen.losses,
    )
    for i, _ in enumerate(rounds, start=1):
        history.append(dict(words=i * n) | measure(world, policy, beta))
    return policy, history


class Pairs(NamedTuple):
    """N pairs of words by their index, and the chance that each label is wrong: (N,)
    each.
    """

    chosen: Tensor
    rejected: Tensor
    wrong: Tensor


@torch.no_grad()
def draw_pairs(
    world: World,
    n: int,
    generator: torch.Generator,
    source: Tensor | None = None,
    words: Tensor | None = None,
    exact: bool = False,
) -> Pairs:
    r"""n pairs of two different words, labelled by Bradley-Terry on the known reward.

    source: probabilities (64,) that words are drawn from, the reference's if none are
    given. words: (64,), True for those that may be drawn. Labels are drawn, the first
    word winning with probability $\sigma(r_1 - r_2)$; exact: the better word wins, and
    `wrong` holds the chance of the other label. Raises ValueError where there are no
    pairs to draw.
    """
    source = distribution(world.reference) if source is None else source
    source = source if words is None else source * words
    if n < 1 or (source > 0).sum() < 2:
        raise ValueError(
            f"no {n} pairs: ask for at least one, of two words that can be drawn"
        )
    both = torch.outer(source, source).fill_diagonal_(0.0).flatten()  # (64 * 64,)
    drawn = torch.multinomial(both, n, replacement=True, generator=generator)  # (N,)
    first, second = drawn // len(WORDS), drawn % len(WORDS)
    gap = world.rewards[first] - world.rewards[second]  # (N,)
    wins, wrong = gap >= 0, (-gap.abs()).sigmoid()
    if not exact:
        wins = torch.rand(n, generator=generator, dtype=gap.dtype) < gap.sigmoid()
        wrong = torch.zeros_like(gap)
    return Pairs(
        torch.where(wins, first, second), torch.where(wins, second, first), wrong
    )


def word_batches(
    world: World, beta: float, pairs: Pairs, seed: int, steps: int, batch_size: int
) -> Iterator[list[Part]]:
    """Each step's pairs of words: all of them, or, of very many, some."""
    N, generator = len(pairs.chosen), torch.Generator().manual_seed(seed)
    words = all_responses()
    known = get_response_log_probs(world.reference, *words).detach()  # (64,)
    for _ in range(steps):
        batch = pairs
        if batch_size < N:
            rows = torch.randint(N, (batch_size,), generator=generator)
            batch = Pairs(*(part[rows] for part in pairs))  # (B,) each
        yield [partial(word_loss, batch, words, known, beta)]


def word_loss(
    pairs: Pairs,
    words: tuple[Tensor, Tensor],
    known: Tensor,
    beta: float,
    policy: nn.Module,
) -> tuple[Tensor, dict[str, float]]:
    """DPO's loss of pairs of words; every word is read once, however many pairs have
    it.
    """
    logprobs, (chosen, rejected, wrong) = (
        get_response_log_probs(policy, *words),
        pairs,
    )  # (64,)
    loss = dpo_loss(
        logprobs[chosen],
        logprobs[rejected],
        known[chosen],
        known[rejected],
        beta,
        wrong,
    )
    return loss, dict(loss=loss.item())


def dpo_run(
    world: World,
    beta: float,
    pairs: Pairs,
    seed: int,
    start: nn.Module | None = None,
    steps: int = 500,
    batch_size: int = 8192,
    lr: float = 0.05,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """DPO on pairs of words: the policy, and what `measure` found every 25 steps and
    after.

    start: the policy before, of which a copy is trained; the reference if none is
    given. Raises ValueError for no pairs, and for a setting that cannot work.
    """
    if min(len(pairs.chosen), steps, batch_size) < 1:
        raise ValueError(
            "DPO needs at least one pair, one step and one pair in each step"
        )
    policy = copy.deepcopy(start or world.reference)
    descent = Descent(
        [torch.optim.Adam(policy.parameters(), lr=lr)], linear_fall(steps)
    )
    batches = word_batches(world, beta, pairs, seed, steps, batch_size)
    history = [dict(step=0) | measure(world, policy, beta)]
    for step, _ in enumerate(follow(policy, batches, descent), start=1):
        if step % 25 == 0 or step == steps:
            history.append(dict(step=step) | measure(world, policy, beta))
    return policy, history


def dpo_rounds(
    world: World,
    beta: float,
    pairs: Pairs,
    seed: int,
    rounds: int = 3,
    n: int = 1000,
    exact: bool = True,
    **settings,
) -> tuple[nn.Module, list[dict]]:
    """DPO on given pairs, then on these and n more of the policy's own words, round by
    round.

    The policy, and after each stretch what `measure` found, the number of `pairs` so
    far and the `probabilities` of the 64 words. exact as in `draw_pairs`, settings as
    in `dpo_run`.
    """
    generator, policy, report = torch.Generator().manual_seed(seed), None, []
    for round_ in range(rounds + 1):
        if round_:
            own = draw_pairs(world, n, generator, distribution(policy), exact=exact)
            pairs = Pairs(*(torch.cat(both) for both in zip(pairs, own)))
        policy, history = dpo_run(world, beta, pairs, seed, policy, **settings)
        known = dict(
            pairs=len(pairs.chosen), probabilities=distribution(policy).tolist()
        )
        report.append({**history[-1], **known})
    return policy, report
