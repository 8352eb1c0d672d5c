"""Best of n: draw n answers, let the reward model choose one. Nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.evaluate import win_rate
from posttrain.gpt import GPT
from posttrain.keep import store, workers
from posttrain.lab.scorecard import judge_answers, lexicon, start_scorecard
from posttrain.logprobs import pack
from posttrain.pretrain import PretrainConfig
from posttrain.reward_model import RewardConfig, RewardModel, sample_answers
from posttrain.sft import SFTConfig
from posttrain.stages import base_model, reward_model, sft_model
from posttrain.tokenizer import CharTokenizer

SIZES = (1, 2, 4, 8, 16)
Drawn = tuple[list[list[list[int]]], Tensor]  # answers and scores, n for each prompt


@torch.no_grad()
def draw_answers(
    policy: GPT, reward_model: RewardModel, prompts: list[str], n: int, seed: int,
    temperature: float = 0.8,
) -> Drawn:
    """n answers to each prompt, as token ids, and the reward model's scores of them (B, n)."""
    repeated = [text for text in prompts for _ in range(n)]
    asked, responses = sample_answers(policy, repeated, seed, temperature)
    tokens, mask = pack(asked, responses, CharTokenizer().pad)  # (B n, T)
    # Score a few hundred at a time, which bounds the memory
    parts = zip(tokens.split(256), mask.split(256))
    scores = torch.cat([reward_model(*part) for part in parts]).view(-1, n)  # (B, n)
    answers = [responses[row * n : (row + 1) * n] for row in range(len(prompts))]
    return answers, scores


def best_of_n(drawn: Drawn, n: int) -> tuple[list[list[int]], Tensor]:
    """Of the first n answers to each prompt the one with the highest score, and that score.

    The first of equals. Raises ValueError where fewer than n were drawn.
    """
    answers, scores = drawn
    if not 1 <= n <= scores.size(1):
        raise ValueError(f"n is {n}: use 1 to {scores.size(1)}, as many as were drawn")
    best, chosen = scores[:, :n].max(-1)  # (B,)
    return [row[i] for row, i in zip(answers, chosen.tolist())], best


def best_of_n_kl(n: int) -> float:
    r"""KL(best of n || one draw), in nats: $\log n - \frac{n - 1}{n}$.

    Exact where no two of the answers are the same, and an upper bound elsewhere. Sources:
    Stiennon et al. 2020, appendix G.3; Beirami et al. 2024, theorem 1, for the bound.
    """
    if n < 1:
        raise ValueError(f"n is {n}: draw at least 1")
    return math.log(n) - (n - 1) / n


def best_of_n_trial(corpus: Corpus, seed: int) -> list[dict]:
    """A scorecard of the SFT model's best of n answers for each n of SIZES; stored.

    SFT model and reward model are those of this seed. Each card has its `n`, its `win_rate`
    against that SFT model's own card, and for `kl` the analytic `best_of_n_kl`; no `entropy`.
    """
    prompts = datasets.heldout_prompts()

    def train() -> tuple[dict[str, Tensor], dict]:
        sft, _ = sft_model(corpus, SFTConfig(seed=seed))
        judge, _ = reward_model(corpus, RewardConfig(seed=seed))
        drawn, real_words = draw_answers(sft, judge, prompts, max(SIZES), seed), lexicon(corpus)
        start, cards = start_scorecard(corpus, seed), []
        for n in SIZES:
            card = judge_answers(*best_of_n(drawn, n), real_words)
            card["win_rate"] = win_rate(card["gold"], start["gold"])
            cards.append(card | dict(n=n, kl=best_of_n_kl(n)))
        return {}, dict(cards=cards)

    inputs = dict(
        sizes=SIZES, reward=asdict(RewardConfig(seed=seed)), sft=asdict(SFTConfig(seed=seed)),
        base=asdict(PretrainConfig()), pairs=datasets.preferences(), judged_on=prompts,
        prompts=datasets.training_prompts(), conversations=datasets.conversations(),
        corpus=corpus.sha256,
    )  # fmt: skip
    return store.obtain("best-of-n", inputs, train, source=__name__).history["cards"]


def best_of_n_trials(
    corpus: Corpus, seeds: int, progress: Callable = lambda done, total: done
) -> list[list[dict]]:
    """The cards of every seed, side by side."""
    base_model(corpus)  # once, before the workers all want it
    jobs = [(corpus, seed) for seed in range(seeds)]
    return workers.run_all(best_of_n_trial, jobs, progress)
