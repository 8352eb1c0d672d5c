"""The world of 64 words on trial: PPO and DPO, and what each of their parts is worth
there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from posttrain.lab.enumerable import (
    WORDS,
    Pairs,
    build_world,
    distribution,
    dpo_rounds,
    dpo_run,
    draw_pairs,
    ppo_run,
)
from posttrain.lab.ppo_variants import VARIANTS
from posttrain.settings import one_of


@dataclass(frozen=True)
class WorldTrial:
    """One run in the world of 64 words."""

    method: str = "ppo"  # or "dpo", or "rounds": DPO, and then rounds on its own words
    beta: float = 0.5
    ppo: dict = field(default_factory=dict)  # changes to fields of SMALL_PPO
    pairs: int = 10_000  # for DPO
    exact: bool = True  # whether a pair's preference is known, or one label is drawn
    gap: bool = False  # whether the words that begin with a are left out of the pairs
    variant: str = "not whitened"  # of PPO, by its name in `ppo_variants.VARIANTS`

    def __post_init__(self):
        one_of(self, method=("ppo", "dpo", "rounds"), variant=tuple(VARIANTS))


def world_trial(corpus: object, trial: WorldTrial, seed: int) -> dict:
    """What `measure` found on the way, and in the end the `probabilities` of the 64
    words.

    No corpus is needed: it is an argument because all trials have it.
    """
    world = build_world()
    if trial.method == "ppo":
        policy, history = ppo_run(
            world, trial.beta, seed, variant=trial.variant, **trial.ppo
        )
    elif trial.method == "dpo":
        policy, history = dpo_run(world, trial.beta, pairs_of(trial, seed), seed)
    else:
        policy, history = dpo_rounds(world, trial.beta, pairs_of(trial, seed), seed)
    return dict(history=history, probabilities=distribution(policy).tolist())


def pairs_of(trial: WorldTrial, seed: int) -> Pairs:
    """The pairs that a trial's DPO learns from, drawn from the reference."""
    generator = torch.Generator().manual_seed(seed)
    words = without_a() if trial.gap else None
    return draw_pairs(
        build_world(), trial.pairs, generator, words=words, exact=trial.exact
    )


def without_a() -> Tensor:
    """Which of the 64 words do not begin with a: (64,), True for those."""
    return torch.tensor([word[0] != "a" for word in WORDS])
