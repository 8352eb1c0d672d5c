"""Reward modelling under trial: one setting over several seeds, judged on held-out pairs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from posttrain import store, workers
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.evaluate import gold_score, lexicon
from posttrain.gpt import GPT
from posttrain.pretrain import PretrainConfig, base_model
from posttrain.reward_model import (
    RewardConfig,
    encode_pairs,
    reward_model,
    sample_answers,
    score_pairs,
    starting_point,
    train_reward_model,
)
from posttrain.sft import SFTConfig, sft_model
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


def label_answers(model: GPT, n: int, seed: int, real_words: frozenset[str]) -> list[dict]:
    """n pairs of a model's own answers, the one preferred that the gold rubric prefers.

    Two answers to each training prompt, again and again; where the rubric sees no difference,
    there is no pair. The end token of each answer is part of the judgement. Raises ValueError
    where a hundred rounds are not enough.
    """
    prompts, tokenizer = datasets.training_prompts(), CharTokenizer()
    pairs, round_ = [], 0
    while len(pairs) < n:
        if round_ == 100:
            raise ValueError(f"the rubric tells only {len(pairs)} pairs apart, not {n}")
        texts = [
            [tokenizer.decode(answer) for answer in sample_answers(model, prompts, draw)[1]]
            for draw in (1000 * seed + 2 * round_, 1000 * seed + 2 * round_ + 1)
        ]
        round_ += 1
        for prompt, one, other in zip(prompts, *texts):
            better, worse = sorted((one, other), key=lambda t: -gold_score(t, real_words))
            if gold_score(better, real_words) == gold_score(worse, real_words):
                continue
            answers = [plain_text(text) for text in (better, worse)]
            if all(answers) and answers[0] != answers[1]:
                pairs.append(dict(id=f"g{len(pairs)}", prompt=prompt,
                                  chosen=answers[0], rejected=answers[1]))  # fmt: skip
    return pairs[:n]


def gold_pairs(corpus: Corpus, n: int, seed: int) -> list[dict]:
    """`label_answers` of the SFT model of the same seed; stored."""
    sft = SFTConfig(seed=seed)

    def train() -> tuple[dict[str, Tensor], dict]:
        pairs = label_answers(sft_model(corpus, sft)[0], n, seed, lexicon(corpus))
        return {}, dict(pairs=pairs)

    inputs = dict(
        n=n, sft=asdict(sft), base=asdict(PretrainConfig()), corpus=corpus.sha256,
        conversations=datasets.conversations(), prompts=datasets.training_prompts(),
    )  # fmt: skip
    return store.obtain("gold-pairs", inputs, train, source=__name__).history["pairs"]


def plain_text(answer: str) -> str:
    """An answer up to its first special token."""
    return answer.split("<|")[0].strip()
