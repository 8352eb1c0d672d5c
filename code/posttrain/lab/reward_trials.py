"""Reward modelling under trial: one setting over several seeds, judged on held-out
pairs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import torch

from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.preference_pairs import encode_pairs
from posttrain.reward_model import RewardConfig, score_pairs, train_reward_model
from posttrain.stages import starting_point
from posttrain.tokenizer import CharTokenizer


@torch.no_grad()
def judge_pairs(model, pairs: list[dict]) -> dict[str, list[float]]:
    """The scores that a reward model gives to the `chosen` and the `rejected` of each
    pair.
    """
    tokenizer = CharTokenizer()
    encoded = encode_pairs(pairs, tokenizer, model.body.config.context)
    chosen, rejected = score_pairs(model, encoded, tokenizer.pad)
    return dict(chosen=chosen.tolist(), rejected=rejected.tolist())


def accuracy(scores: dict[str, list[float]]) -> float:
    """The share of pairs whose chosen answer has the higher score."""
    ranked = [a > b for a, b in zip(scores["chosen"], scores["rejected"])]
    return sum(ranked) / len(ranked)


@dataclass(frozen=True)
class RewardTrial:
    """One way to train a reward model."""

    config: RewardConfig = field(default_factory=RewardConfig)
    start: str = "sft"  # the language model to start from: of the same seed, or "base"
    pairs: str = "own"  # or "elsewhere", the written ones
    n: int = 18  # how many of them, drawn anew for each seed
    flipped: int = 0  # of how many chosen and rejected are exchanged


def reward_trial(corpus: Corpus, trial: RewardTrial, seed: int) -> dict:
    """The history of one run, with the scores of the 76 held-out pairs.

    Scores are in the units of training, not normalised. `elsewhere` has the scores of
    the 72 held-out written pairs, `elsewhere_accuracy` the share ranked right.
    """
    pairs = pairs_for(trial, seed)
    body = starting_point(corpus, trial.start, seed)
    model, history = train_reward_model(body, pairs, replace(trial.config, seed=seed))
    scores = judge_pairs(model, datasets.heldout_preferences())
    others = judge_pairs(model, datasets.heldout_elsewhere_preferences())
    return (
        history
        | scores
        | dict(
            heldout_accuracy=accuracy(scores),
            elsewhere=others,
            elsewhere_accuracy=accuracy(others),
        )
    )


def pairs_for(trial: RewardTrial, seed: int) -> list[dict]:
    """The pairs that a trial trains on. Raises ValueError for a set unknown."""
    sets = dict(own=datasets.preferences, elsewhere=datasets.elsewhere_preferences)
    if trial.pairs not in sets:
        raise ValueError(f"pairs is {trial.pairs!r}: use one of {', '.join(sets)}")
    pairs = sets[trial.pairs]()
    pairs = pairs if trial.n == len(pairs) else some_pairs(pairs, trial.n, seed)
    return with_flipped_labels(pairs, trial.flipped, seed)


def some_pairs(pairs: list[dict], n: int, seed: int) -> list[dict]:
    """n of the pairs, drawn without replacement."""
    return random.Random(seed).sample(pairs, n)


def with_flipped_labels(pairs: list[dict], n: int, seed: int) -> list[dict]:
    """The pairs, n of them with chosen and rejected exchanged: a labeller's slips."""
    flipped = {pair["id"] for pair in some_pairs(pairs, n, seed)}
    return [
        dict(pair, chosen=pair["rejected"], rejected=pair["chosen"])
        if pair["id"] in flipped
        else pair
        for pair in pairs
    ]
