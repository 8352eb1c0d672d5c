"""Deliberate mistakes, to see what they do: each holds within its block, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch import Tensor

from posttrain import ppo, sft
from posttrain.batches import Alone
from posttrain.ppo import PPOConfig, Rollout


@contextmanager
def returns_after_whitening() -> Iterator[None]:
    """PPO's values learn from whitened advantages, which have lost the rewards' unit."""
    right = ppo.estimate_advantages

    def wrong(rollout: Rollout, config: PPOConfig, beta: float) -> tuple[Tensor, Tensor]:
        advantages, _ = right(rollout, config, beta)
        return advantages, advantages + rollout.values

    with patch.object(ppo, "estimate_advantages", wrong):
        yield


@contextmanager
def mean_of_means() -> Iterator[None]:
    """Each of several processes divides its SFT loss by its own graded tokens."""
    right = sft.batch_graded

    def wrong(examples: list, crew: Alone) -> int:
        own = right(examples[crew.rank :: crew.size], crew)
        return max(own, 1) * crew.size

    with patch.object(sft, "batch_graded", wrong):
        yield
