"""Best of n: draw n answers, let the reward model choose one. Nothing is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posttrain.gpt import GPT
from posttrain.logprobs import pack
from posttrain.reward_model import RewardModel, sample_answers
from posttrain.tokenizer import CharTokenizer

Drawn = tuple[list[list[list[int]]], Tensor]  # answers and scores, n for each prompt


@torch.no_grad()
def draw_answers(
    policy: GPT,
    reward_model: RewardModel,
    prompts: list[str],
    n: int,
    seed: int,
    temperature: float = 0.8,
) -> Drawn:
    """n answers to each prompt, as token ids, and the reward model's scores of them (B,
    n).
    """
    repeated = [text for text in prompts for _ in range(n)]
    asked, responses = sample_answers(policy, repeated, seed, temperature)
    tokens, mask = pack(asked, responses, CharTokenizer().pad)  # (B n, T)
    # Score a few hundred at a time, which bounds the memory
    parts = zip(tokens.split(256), mask.split(256))
    scores = torch.cat([reward_model(*part) for part in parts]).view(-1, n)  # (B, n)
    answers = [responses[row * n : (row + 1) * n] for row in range(len(prompts))]
    return answers, scores


def best_of_n(drawn: Drawn, n: int) -> tuple[list[list[int]], Tensor]:
    """Of the first n answers to each prompt the one with the highest score, and that
    score.

    The first of equals. Raises ValueError where fewer than n were drawn.
    """
    answers, scores = drawn
    if not 1 <= n <= scores.size(1):
        raise ValueError(f"n is {n}: use 1 to {scores.size(1)}, as many as were drawn")
    best, chosen = scores[:, :n].max(-1)  # (B,)
    return [row[i] for row, i in zip(answers, chosen.tolist())], best


def best_of_n_kl(n: int) -> float:
    """KL(best of n || one draw), in nats: log n - (n - 1) / n."""
    if n < 1:
        raise ValueError(f"n is {n}: draw at least 1")
    return math.log(n) - (n - 1) / n
