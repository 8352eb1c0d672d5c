"""On-policy DPO: pairs of the policy's own answers, ranked by the reward model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from posttrain.batches import epochs, take_step
from posttrain.chat import render_question
from posttrain.dpo import DPOConfig, dpo_loss, pair_logprobs, pair_part, pair_report
from posttrain.gpt import GPT
from posttrain.logprobs import pack
from posttrain.optim import Descent, linear_fall
from posttrain.preference_pairs import Pair
from posttrain.reward_model import RewardModel
from posttrain.sampling import generate
from posttrain.settings import above_zero, at_least
from posttrain.tokenizer import CharTokenizer


@dataclass(frozen=True)
class OnlineDPOConfig:
    """One run of DPO on the policy's own answers."""

    rounds: int = 12
    prompts: int = 32  # per round
    samples: int = 8  # answers per prompt, of which the best and the worst are paired
    max_new_tokens: int = 96  # an answer that has not ended by then is cut
    # Of the policy: of its samples and of all its log-probabilities
    temperature: float = 0.8
    steps: int = 12  # optimiser steps per round at most, which share its pairs
    lr: float = 1e-4  # Adam's, falling in a straight line to 0
    beta: float = 0.05
    label_smoothing: float = 0.2  # the share of the judge's labels taken to be wrong
    # Of the best answers' surprise per token, added to the loss
    nll_weight: float = 1.0
    seed: int = 0

    def __post_init__(self):
        at_least(self, rounds=1, prompts=1, samples=2, max_new_tokens=1, steps=1, lr=0)
        at_least(self, nll_weight=0)
        above_zero(self, "temperature", "beta")


@torch.no_grad()
def on_policy_pairs(
    policy: GPT,
    judge: RewardModel,
    prompts: list[list[int]],
    config: OnlineDPOConfig,
    generator: torch.Generator,
) -> tuple[list[Pair], float]:
    """Pairs of the policy's own answers to prompts (token ids), and their mean score.

    Of `samples` answers to a prompt, the reward model names the best and the worst. An
    answer without <|end|> is worse than any with one. A prompt whose answers are
    equally good gives no pair. Raises ValueError for a score that is not a number.
    """
    tokenizer, n = CharTokenizer(), config.samples
    asked = [prompt for prompt in prompts for _ in range(n)]
    answers = generate(
        policy,
        asked,
        config.max_new_tokens,
        generator=generator,
        temperature=config.temperature,
        stop=tokenizer.end,
    ).responses()
    scores = judge(*pack(asked, answers, tokenizer.pad))  # (B n,)
    if not torch.isfinite(scores).all():
        raise ValueError("the reward model's score of an answer is NaN or infinite")
    ended = torch.tensor([answer[-1] == tokenizer.end for answer in answers])
    ranked = scores.masked_fill(~ended, -torch.inf).view(-1, n)  # (B, n)
    pairs = []
    for row, (best, worst) in enumerate(zip(ranked.argmax(1), ranked.argmin(1))):
        one, other = (answers[row * n + int(i)] for i in (best, worst))
        if ranked[row, best] > ranked[row, worst] and one != other:
            pairs.append((prompts[row], one, other))
    return pairs, scores.mean().item()


def online_dpo_rounds(
    policy: GPT,
    reference: GPT,
    judge: RewardModel,
    prompts: list[str],
    config: OnlineDPOConfig,
) -> Iterator[dict[str, float]]:
    """Train the policy in place; after each round, yield what happened in it.

    prompts: texts to answer. Yields `score`, the reward model's mean over the round's
    answers; `pairs`, their number; and of the pairs, before they were trained on,
    `loss`, `dpo_loss` alone, and what `pair_report` says. Raises ValueError where
    scores or loss are no longer numbers.
    """
    tokenizer, generator = CharTokenizer(), torch.Generator().manual_seed(config.seed)
    pad, temperature = tokenizer.pad, config.temperature
    loss = DPOConfig(
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        nll_weight=config.nll_weight,
    )
    encoded = [render_question(text, tokenizer) for text in prompts]
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr)
    descent = Descent([optimizer], linear_fall(config.rounds))
    batches = epochs(len(encoded), config.prompts, generator)
    for round_ in range(config.rounds):
        # Answer and rank
        asked = [encoded[i] for i in next(batches)]
        pairs, score = on_policy_pairs(policy, judge, asked, config, generator)
        if not pairs:
            yield dict(score=score, pairs=0)
            continue
        # Ask both models once, for the report and for the reference
        now, known = (
            pair_logprobs(model, pairs, pad, temperature)
            for model in (policy, reference)
        )  # (2, N)
        smoothing = config.label_smoothing
        noted = dict(loss=dpo_loss(*now, *known, config.beta, smoothing).item())
        noted |= pair_report(now, known, config.beta)
        # Step through the pairs
        order = torch.randperm(len(pairs), generator=generator)
        for rows in order.split(-(-len(pairs) // config.steps)):
            some, said = [pairs[i] for i in rows], known[:, rows]  # (2, B)
            part = pair_part(some, 1.0, reference, said, loss, pad, temperature)
            take_step(policy, [part], descent, round_)
        yield dict(score=score, pairs=len(pairs)) | noted
