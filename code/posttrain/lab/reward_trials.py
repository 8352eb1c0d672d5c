"""Reward modelling under trial: one setting over several seeds, judged on held-out pairs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.keep import store, workers
from posttrain.preference_pairs import encode_pairs
from posttrain.pretrain import PretrainConfig
from posttrain.reward_model import RewardConfig, score_pairs, train_reward_model
from posttrain.sft import SFTConfig
from posttrain.stages import base_model, reward_model, starting_point
from posttrain.tokenizer import CharTokenizer


@torch.no_grad()
def judge_pairs(model, pairs: list[dict]) -> dict[str, list[float]]:
    """The scores that a reward model gives to the `chosen` and the `rejected` of each pair."""
    tokenizer = CharTokenizer()
    encoded = encode_pairs(pairs, tokenizer, model.body.config.context)
    chosen, rejected = score_pairs(model, encoded, tokenizer.pad)
    return dict(chosen=chosen.tolist(), rejected=rejected.tolist())


def accuracy(scores: dict[str, list[float]]) -> float:
    """The share of pairs whose chosen answer has the higher score."""
    ranked = [a > b for a, b in zip(scores["chosen"], scores["rejected"])]
    return sum(ranked) / len(ranked)


def reward_trial(corpus: Corpus, config: RewardConfig, start: str, pairs: list[dict]) -> dict:
    """The history of one run, with the scores of the 72 held-out pairs; stored.

    start: the language model to start from: "sft", of the same seed, or "base". The book's own
    setting is not trained again: it is `reward_model`. Scores are in the units of training, not
    normalised.
    """
    heldout = datasets.heldout_preferences()

    def train() -> tuple[dict[str, Tensor], dict]:
        if start == "sft" and pairs == datasets.preferences():
            model, history = reward_model(corpus, config)
            model = model.unnormalised()
        else:
            body = starting_point(corpus, start, config.seed)
            model, history = train_reward_model(body, pairs, config)
        scores = judge_pairs(model, heldout)
        return {}, history | scores | dict(heldout_accuracy=accuracy(scores))

    inputs = dict(
        config=asdict(config), start=start, pairs=pairs,
        sft=asdict(SFTConfig(seed=config.seed)), base=asdict(PretrainConfig()),
        conversations=datasets.conversations(), corpus=corpus.sha256, judged_on=heldout,
    )  # fmt: skip
    return store.obtain("reward-trial", inputs, train, source=__name__).history


Run = tuple[RewardConfig, str, list[dict]]  # configuration, start, pairs


def reward_trials(
    corpus: Corpus, settings: dict[str, list[Run]],
    progress: Callable = lambda done, total: done,
) -> dict[str, list[dict]]:
    """The histories of every setting's runs, side by side; the i-th runs with seed i."""
    base_model(corpus)  # once, before the workers all want it
    groups = {
        name: [
            (corpus, replace(config, seed=seed), start, pairs)
            for seed, (config, start, pairs) in enumerate(runs)
        ]
        for name, runs in settings.items()
    }
    return workers.run_groups(reward_trial, groups, progress)


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
