"""Direct preference optimisation: from pairs to a policy, with one loss and two models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.batches import epochs
from posttrain.chat import collate
from posttrain.gpt import GPT
from posttrain.logprobs import get_response_log_probs, pack
from posttrain.optim import set_rates
from posttrain.preference_losses import ipo_loss, kto_loss, orpo_loss, simpo_loss
from posttrain.preference_pairs import Pair, pack_pairs
from posttrain.pretrain import PretrainConfig, build_optimizers
from posttrain.sft import sft_loss
from posttrain.tokenizer import CharTokenizer


@dataclass(frozen=True)
class DPOConfig:
    """One run of DPO, or of a loss beside it."""

    steps: int = 40  # optimiser steps
    batch_size: int = 6  # pairs per step
    muon_lr: float = 5e-3  # both rates as in fine-tuning, falling in a straight line to 0
    adamw_lr: float = 3e-3
    loss: str = "dpo"  # or "ipo", "simpo", "kto", "orpo"
    beta: float = 0.02  # how much a nat of log-ratio counts: the fee for leaving the reference
    label_smoothing: float = 0.0  # the share of labels that are taken to be wrong
    gamma: float = 1.0  # "simpo" alone: the gap at which a pair counts as even
    odds_weight: float = 0.1  # "orpo" alone: of the odds ratio
    nll_weight: float = 0.0  # of the chosen answers' surprise per token, added to the loss
    replay: int = 3  # conversations of the fine-tuning beside each batch; 0 for none
    replay_weight: float = 0.3  # of their loss beside the pairs'
    seed: int = 0


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor,
    beta: float = 0.1, label_smoothing: float | Tensor = 0.0,
) -> Tensor:
    r"""Mean surprise at the preferences, the policy itself being the reward model, in nats.

    $-\log\sigma(h)$ with $h = \beta(\log\frac{\pi(y_c)}{\pi_{ref}(y_c)} -
    \log\frac{\pi(y_r)}{\pi_{ref}(y_r)})$. All (B,): log-probabilities of whole responses, sums
    over their tokens, in nats. label_smoothing: the chance $\epsilon$ that a label is wrong,
    one number or one per pair; the loss is then $-(1 - \epsilon)\log\sigma(h) -
    \epsilon\log\sigma(-h)$. Sources: Rafailov et al. 2023, equation 7; Mitchell 2023 for
    the smoothing.
    """
    chosen_ratio = chosen - reference_chosen
    rejected_ratio = rejected - reference_rejected
    h = beta * (chosen_ratio - rejected_ratio)  # (B,)
    wrong = label_smoothing
    return -((1 - wrong) * F.logsigmoid(h) + wrong * F.logsigmoid(-h)).mean()


def implicit_rewards(logprobs: Tensor, reference_logprobs: Tensor, beta: float) -> Tensor:
    r"""$\beta(\log\pi - \log\pi_{ref})$: what the policy, as a reward model, says. No gradient.

    Any shape, in the reward's unit; it lacks what depends on the prompt alone. Source: Rafailov
    et al. 2023, equation 5.
    """
    return beta * (logprobs - reference_logprobs).detach()


@torch.no_grad()
def pair_logprobs(
    model: nn.Module, pairs: list[Pair], pad: int, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each pair's chosen and rejected answer: (2, N), sums, in nats."""
    return get_response_log_probs(model, *pack_pairs(pairs, pad), temperature).view(2, -1)


@torch.no_grad()
def mismatched_kl(
    policy: nn.Module, reference: nn.Module, pairs: list[Pair], pad: int
) -> Tensor:
    """KTO's baseline: the mean log-ratio of answers that belong to another prompt, in nats.

    Each prompt gets the chosen answer of the pair after it, cut to what the context holds.
    Source: Ethayarajh et al. 2024, section 4.1.
    """
    answers = [chosen for _, chosen, _ in pairs]
    tokens, mask = pack([prompt for prompt, _, _ in pairs], answers[1:] + answers[:1], pad)
    tokens, mask = (rows[:, : policy.config.context] for rows in (tokens, mask))
    one, other = (get_response_log_probs(model, tokens, mask) for model in (policy, reference))
    return (one - other).mean()


def preference_loss(
    logprobs: Tensor, reference_logprobs: Tensor, lengths: Tensor, config: DPOConfig,
    baseline: Tensor | None = None,
) -> Tensor:
    """The configured loss of a batch, in nats or in its own unit.

    logprobs, reference_logprobs, lengths: (2, B), chosen above rejected, sums over the tokens
    and their number. baseline: KTO's.
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
        loss = dpo_loss(*logprobs, *reference_logprobs, config.beta, config.label_smoothing)
    return loss - config.nll_weight * means[0].mean()


def check_config(config: DPOConfig) -> None:
    """Raise ValueError for a setting that cannot work, naming it and the way out."""
    losses = ("dpo", "ipo", "simpo", "kto", "orpo")
    if config.loss not in losses:
        raise ValueError(f"loss is {config.loss!r}: use one of {losses}")
    if config.beta <= 0:
        raise ValueError(f"beta is {config.beta}: use a number above 0")
    if not 0 <= config.label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {config.label_smoothing}: from 0 to below 0.5, where a label "
            "would say nothing"
        )
    if config.label_smoothing and config.loss != "dpo":
        raise ValueError(f"label_smoothing goes with the loss 'dpo', not with {config.loss!r}")
    smallest = 2 if config.loss == "kto" else 1  # KTO needs another pair's answer
    for name, least in dict(steps=1, batch_size=smallest, replay=0).items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} is {getattr(config, name)}: use at least {least}")


def dpo_steps(
    policy: GPT, reference: GPT, pairs: list[Pair], config: DPOConfig,
    conversations: Sequence[tuple[list[int], list[int]]] = (),
) -> Iterator[dict[str, float]]:
    """Train the policy in place; after each step, yield what that batch showed before it.

    conversations: (tokens, labels) of the fine-tuning, to replay. Yields `loss`, the pairs'
    alone; means over the batch of the implicit rewards `chosen_reward`, `rejected_reward`
    and their gap `margin`; `accuracy`, the share of pairs whose gap is above 0; and
    `chosen_logprob`, `rejected_logprob`, nats per response. Raises ValueError for a setting
    that cannot work, and where the loss is no longer a number.
    """
    check_config(config)
    # Flush denormals, as in pre-training
    torch.set_flush_denormal(True)
    pad, generator = CharTokenizer().pad, torch.Generator().manual_seed(config.seed)
    rates = PretrainConfig(muon_lr=config.muon_lr, adamw_lr=config.adamw_lr)
    optimizers = build_optimizers(policy, rates)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    # Ask the reference once: it never changes
    known = pair_logprobs(reference, pairs, pad)  # (2, N)
    batches = epochs(len(pairs), min(config.batch_size, len(pairs)), generator)
    replayed = epochs(len(conversations), config.replay, generator)
    for step in range(config.steps):
        set_rates(groups, peaks, 1 - step / config.steps)
        # Compare the chosen answers with the rejected ones
        rows = next(batches)
        batch, asked = [pairs[i] for i in rows], known[:, rows]  # (2, B)
        loss, logprobs = pair_loss(policy, reference, batch, asked, config)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss of step {step} is {loss.item()}: lower the rate")
        # Rehearse some conversations of the fine-tuning
        total = loss
        if config.replay and conversations:
            tokens, labels = collate([conversations[i] for i in next(replayed)], pad)
            total = loss + config.replay_weight * sft_loss(policy(tokens), labels)
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield dict(loss=loss.item()) | pair_report(logprobs, asked, config.beta)


def pair_loss(
    policy: GPT, reference: GPT, pairs: list[Pair], reference_logprobs: Tensor,
    config: DPOConfig,
) -> tuple[Tensor, Tensor]:
    """The configured loss of some pairs, and the policy's log-probabilities of them (2, B).

    reference_logprobs: (2, B), the reference's. The reference itself answers only to KTO.
    """
    pad, baseline = CharTokenizer().pad, None
    # Read chosen and rejected answers in one pass
    tokens, mask = pack_pairs(pairs, pad)  # (2B, T)
    logprobs = get_response_log_probs(policy, tokens, mask).view(2, -1)  # (2, B)
    if config.loss == "kto":
        baseline = mismatched_kl(policy, reference, pairs, pad)
    lengths = mask.sum(-1).view(2, -1)  # (2, B)
    return preference_loss(logprobs, reference_logprobs, lengths, config, baseline), logprobs


def pair_report(logprobs: Tensor, reference_logprobs: Tensor, beta: float) -> dict[str, float]:
    """Means over pairs, from log-probabilities (2, B); the names as in `dpo_steps`."""
    chosen, rejected = implicit_rewards(logprobs, reference_logprobs, beta)
    return dict(
        chosen_reward=chosen.mean().item(), rejected_reward=rejected.mean().item(),
        margin=(chosen - rejected).mean().item(),
        accuracy=(chosen > rejected).double().mean().item(),
        chosen_logprob=logprobs[0].mean().item(), rejected_logprob=logprobs[1].mean().item(),
    )  # fmt: skip
