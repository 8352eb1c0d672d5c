"""Direct preference optimisation: from pairs to a policy, with one loss and two
models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.batches import ALONE, Alone, Part, device_of, epochs, follow, turns
from posttrain.gpt import GPT
from posttrain.logprobs import get_response_log_probs, pack
from posttrain.optim import Descent, linear_fall
from posttrain.preference_losses import ipo_loss, kto_loss, orpo_loss, simpo_loss
from posttrain.preference_pairs import Pair, pack_pairs
from posttrain.settings import above_zero, at_least, one_of
from posttrain.tokenizer import CharTokenizer


@dataclass(frozen=True)
class DPOConfig:
    """One run of DPO, or of a loss beside it."""

    steps: int = 40  # optimiser steps
    batch_size: int = 18  # pairs per step
    # Pairs per forward pass, whose gradients add up; 0 for all
    micro_batch_size: int = 0
    lr: float = 2e-4  # Adam's, falling in a straight line to 0
    loss: str = "dpo"  # or "ipo", "simpo", "kto", "orpo"
    # How much a nat of log-ratio counts, as the KL penalty has it
    beta: float = 0.05
    # "dpo" alone: the share of labels that are taken to be wrong. A pair is settled at
    # a gap of log((1 - share) / share) / beta nats, and without it at none
    label_smoothing: float = 0.2
    gamma: float = 1.0  # "simpo" alone: the gap at which a pair counts as even
    odds_weight: float = 0.1  # "orpo" alone: of the odds ratio
    # Of the chosen answers' surprise per token, added to the loss
    nll_weight: float = 3.0
    seed: int = 0

    def __post_init__(self):
        one_of(self, loss=("dpo", "ipo", "simpo", "kto", "orpo"))
        above_zero(self, "beta")
        # KTO needs another pair's answer
        at_least(
            self, steps=1, batch_size=2 if self.loss == "kto" else 1, micro_batch_size=0
        )
        at_least(self, lr=0, nll_weight=0, odds_weight=0)
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}: from 0 to below 0.5, "
                "where a "
                "label would say nothing"
            )
        if self.loss == "kto" and 0 < self.micro_batch_size < self.batch_size:
            raise ValueError(
                "KTO's baseline needs the whole batch in one pass: set "
                "micro_batch_size to 0"
            )


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float | Tensor = 0.0,
) -> Tensor:
    """Mean surprise at the preferences, the policy being the reward model, in nats.

    That is -log sigmoid(h), with h = beta * (log-ratio of the chosen response - that of
    the rejected one), and a log-ratio is log policy - log reference. All (B,): log-
    probabilities of whole responses, sums over their tokens, in nats. label_smoothing:
    the chance that a label is wrong, one number or one per pair; it mixes in that share
    of -log sigmoid(-h). Sources: Rafailov et al. 2023, equation 7; Mitchell 2023 for
    the smoothing.
    """
    chosen_ratio = chosen - reference_chosen
    rejected_ratio = rejected - reference_rejected
    h = beta * (chosen_ratio - rejected_ratio)  # (B,)
    wrong = label_smoothing
    return -((1 - wrong) * F.logsigmoid(h) + wrong * F.logsigmoid(-h)).mean()


def implicit_rewards(
    logprobs: Tensor, reference_logprobs: Tensor, beta: float
) -> Tensor:
    """beta * (log policy - log reference): what the policy says as a reward model.

    Any shape, in the reward's unit, without a gradient; it lacks what depends on the
    prompt alone. Source: Rafailov et al. 2023, equation 5.
    """
    return beta * (logprobs - reference_logprobs).detach()


@torch.no_grad()
def pair_logprobs(
    model: nn.Module, pairs: list[Pair], pad: int, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each pair's chosen and rejected answer: (2, N), sums, in
    nats.
    """
    tokens, mask = (
        rows.to(device_of(model)) for rows in pack_pairs(pairs, pad)
    )  # (2N, T)
    return get_response_log_probs(model, tokens, mask, temperature).view(2, -1)


@torch.no_grad()
def mismatched_kl(
    policy: nn.Module, reference: nn.Module, pairs: list[Pair], pad: int
) -> Tensor:
    """KTO's baseline: the mean log-ratio of answers that belong to another prompt, in
    nats.

    Each prompt gets the chosen answer of the pair after it, cut to what the context
    holds. Source: Ethayarajh et al. 2024, section 4.1, who take rejected ones as well.
    """
    answers = [chosen for _, chosen, _ in pairs]
    tokens, mask = pack(
        [prompt for prompt, _, _ in pairs], answers[1:] + answers[:1], pad
    )
    context, device = policy.config.context, device_of(policy)
    tokens, mask = (rows[:, :context].to(device) for rows in (tokens, mask))
    one, other = (
        get_response_log_probs(model, tokens, mask) for model in (policy, reference)
    )
    return (one - other).mean()


def preference_loss(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    lengths: Tensor,
    config: DPOConfig,
    baseline: Tensor | None = None,
) -> Tensor:
    """The configured loss of a batch, in nats or in its own unit.

    logprobs, reference_logprobs, lengths: (2, B), chosen above rejected, sums over the
    tokens and their number. baseline: KTO's.
    """
    means = logprobs / lengths  # (2, B)
    if config.loss == "ipo":
        loss = ipo_loss(*logprobs, *reference_logprobs, config.beta)
    elif config.loss == "simpo":
        loss = simpo_loss(*means, config.beta, config.gamma)
    elif config.loss == "kto":
        loss = kto_loss(*(logprobs - reference_logprobs), baseline, config.beta)
    elif config.loss == "orpo":
        loss = orpo_loss(*means, config.odds_weight)
    else:
        loss = dpo_loss(
            *logprobs, *reference_logprobs, config.beta, config.label_smoothing
        )
    return loss - config.nll_weight * means[0].mean()


def pair_loss(
    policy: nn.Module,
    reference: nn.Module,
    pairs: list[Pair],
    reference_logprobs: Tensor,
    config: DPOConfig,
    pad: int,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The configured loss of some pairs, and the policy's log-probabilities of them (2,
    B).

    reference_logprobs: (2, B), the reference's. The reference itself answers only to
    KTO.
    """
    # Read chosen and rejected answers in one pass
    tokens, mask = (
        rows.to(device_of(policy)) for rows in pack_pairs(pairs, pad)
    )  # (2B, T)
    logprobs = get_response_log_probs(policy, tokens, mask, temperature).view(
        2, -1
    )  # (2, B)
    baseline = None
    if config.loss == "kto":
        baseline = mismatched_kl(policy, reference, pairs, pad)
    lengths = mask.sum(-1).view(2, -1)  # (2, B)
    return preference_loss(
        logprobs, reference_logprobs, lengths, config, baseline
    ), logprobs


def pair_part(
    pairs: list[Pair],
    share: float,
    reference: nn.Module,
    reference_logprobs: Tensor,
    config: DPOConfig,
    pad: int,
    temperature: float = 1.0,
) -> Part:
    """The preference loss of a batch's part, and what `pair_report` says of its
    pairs.
    """

    def part(policy: nn.Module) -> tuple[Tensor, dict[str, float]]:
        loss, logprobs = pair_loss(
            policy, reference, pairs, reference_logprobs, config, pad, temperature
        )
        lengths = logprobs.new_tensor([len(chosen) for _, chosen, _ in pairs])  # (B,)
        surprise = -(logprobs[0] / lengths).mean()
        noted = dict(loss=loss.item(), nll=surprise.item())
        noted |= pair_report(logprobs, reference_logprobs, config.beta)
        return share * loss, {name: share * value for name, value in noted.items()}

    return part


def ask_once(
    reference: nn.Module,
    pairs: list[Pair],
    rows: list[int],
    known: dict[int, Tensor],
    pad: int,
) -> Tensor:
    """The reference's log-probabilities (2, B) of some of the pairs; it never changes.

    What is not known yet is asked for in one pass, and kept in `known`.
    """
    new = [i for i in dict.fromkeys(rows) if i not in known]
    if new:
        known.update(zip(new, pair_logprobs(reference, [pairs[i] for i in new], pad).T))
    return torch.stack([known[i] for i in rows], dim=1)  # (2, B)


def dpo_batches(
    reference: nn.Module,
    pairs: list[Pair],
    config: DPOConfig,
    pad: int,
    crew: Alone = ALONE,
) -> Iterator[list[Part]]:
    """Each step's pairs, in parts."""
    generator, known = torch.Generator().manual_seed(config.seed), {}
    batches = epochs(len(pairs), min(config.batch_size, len(pairs)), generator)
    for _ in range(config.steps):
        batch, parts = next(batches), []
        for rows, share in turns(batch, config.micro_batch_size or len(batch), crew):
            asked = ask_once(reference, pairs, rows, known, pad)  # (2, B)
            some = [pairs[i] for i in rows]
            parts.append(pair_part(some, share, reference, asked, config, pad))
        yield parts


def dpo_steps(
    policy: GPT, reference: GPT, pairs: list[Pair], config: DPOConfig
) -> Iterator[dict[str, float]]:
    """Train the policy in place; after each step, yield what that batch showed before
    it.

    Yields `loss`, the whole of it; `nll`, the chosen answers' surprise in nats per
    token, before it is weighted; means over the batch of the implicit rewards
    `chosen_reward`, `rejected_reward` and their gap `margin`; `accuracy`, the share of
    pairs whose gap is above 0; and `chosen_logprob`, `rejected_logprob`, nats per
    response. Raises ValueError where the loss is no longer a number.
    """
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr)
    descent = Descent([optimizer], linear_fall(config.steps))
    batches = dpo_batches(reference, pairs, config, CharTokenizer().pad)
    return follow(policy, batches, descent)


def pair_report(
    logprobs: Tensor, reference_logprobs: Tensor, beta: float
) -> dict[str, float]:
    """Means over pairs, from log-probabilities (2, B); the names as in `dpo_steps`."""
    chosen, rejected = implicit_rewards(logprobs, reference_logprobs, beta)
    return dict(
        chosen_reward=chosen.mean().item(),
        rejected_reward=rejected.mean().item(),
        margin=(chosen - rejected).mean().item(),
        accuracy=(chosen > rejected).double().mean().item(),
        chosen_logprob=logprobs[0].mean().item(),
        rejected_logprob=logprobs[1].mean().item(),
    )
