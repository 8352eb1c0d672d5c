"""Losses beside DPO's that learn from preferences: IPO, SimPO, KTO, ORPO. All are
pure.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ipo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Squared distance of the log-ratios' gap from 1 / (2 beta): a gap wide enough.

    All (B,): summed log-probabilities of the responses, in nats. Source: Azar et al.
    2023, equation 17, read with sums over tokens. (TRL divides by the length first and
    reports, from the authors, that the paper's results do too.)
    """
    gap = (chosen - reference_chosen) - (rejected - reference_rejected)
    return (gap - 1 / (2 * beta)).square().mean()


def simpo_loss(
    chosen_mean: Tensor, rejected_mean: Tensor, beta: float = 2.0, gamma: float = 1.0
) -> Tensor:
    """DPO's form without a reference, on means per token, in nats.

    -log sigmoid(beta * (chosen_mean - rejected_mean) - gamma). chosen_mean,
    rejected_mean: (B,), log-probability per token, in nats. gamma: the gap, times beta,
    at which a pair counts as even. Source: Meng et al. 2024, equation 6.
    """
    return -F.logsigmoid(beta * (chosen_mean - rejected_mean) - gamma).mean()


def kto_loss(
    chosen_ratios: Tensor, rejected_ratios: Tensor, baseline: Tensor, beta: float = 0.1
) -> Tensor:
    """Gains and losses against a baseline, each answer by itself and not in its pair.

    1 - sigmoid(beta * (ratio - baseline)) for a chosen answer, 1 - sigmoid(beta *
    (baseline - ratio)) for a rejected one. chosen_ratios, rejected_ratios: (B,), log
    policy - log reference of whole responses, in nats. baseline: an estimate of
    KL(policy || reference); it gets no gradient and counts as 0 where it is negative.
    Source: Ethayarajh et al. 2024, section 4.1, both weights 1.
    """
    baseline = baseline.detach().clamp_min(0.0)
    gains = torch.sigmoid(beta * (chosen_ratios - baseline))
    losses = torch.sigmoid(beta * (baseline - rejected_ratios))
    return 1 - torch.cat([gains, losses]).mean()


def log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of log-probabilities below 0: any shape."""
    # Take expm1, which keeps the digits of 1 - p where p is near 1
    return mean_logprobs - torch.log(-torch.expm1(mean_logprobs))


def orpo_loss(
    chosen_mean: Tensor, rejected_mean: Tensor, weight: float = 0.1
) -> Tensor:
    """Fine-tuning on the chosen answers, plus the log of an odds ratio: no reference.

    -chosen_mean - weight * log sigmoid(log odds of the chosen - those of the rejected).
    chosen_mean, rejected_mean: (B,), log-probability per token, in nats, below 0.
    Source: Hong et al. 2024, equations 6 and 7.
    """
    ratio = F.logsigmoid(log_odds(chosen_mean) - log_odds(rejected_mean))
    return (-chosen_mean - weight * ratio).mean()
