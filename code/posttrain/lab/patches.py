<<<<<<< HEAD
"""Mistakes that are made on purpose, to see their signature: each a patch of one function."""
=======
"""Deliberate mistakes, to see what they do: each holds within its block, in this process."""
>>>>>>> h-loops

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch import Tensor

<<<<<<< HEAD
from posttrain import ppo
from posttrain.ppo import PPOConfig, Rollout, estimate_advantages


def returns_after_whitening(
    rollout: Rollout, config: PPOConfig, beta: float
) -> tuple[Tensor, Tensor]:
    """Advantages as they should be, and returns of the whitened ones: the famous slip."""
    advantages, _ = estimate_advantages(rollout, config, beta)
    return advantages, advantages + rollout.values


# By name: what is replaced, and by what
MISTAKES = {"returns after whitening": (ppo, "estimate_advantages", returns_after_whitening)}


@contextmanager
def making(mistake: str) -> Iterator[None]:
    """Within the block the package makes the named mistake; "" makes none.

    Raises ValueError for one that is not known.
    """
    if not mistake:
        yield
        return
    if mistake not in MISTAKES:
        raise ValueError(f"mistake is {mistake!r}: use one of {', '.join(MISTAKES)}")
    with patch.object(*MISTAKES[mistake]):
=======
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
>>>>>>> h-loops
        yield
