"""What a policy answers to the held-out prompts, and all that is to be said of it."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.evaluate import (
    distinct_n,
    finished,
    gold_parts,
    win_rate,
    words_of,
)
from posttrain.gpt import GPT
from posttrain.keep.store import obtain
from posttrain.lab.sft_trials import answers_of
from posttrain.logprobs import entropy, masked_mean, pack, sequence_kl
from posttrain.reward_model import RewardConfig, RewardModel, sample_answers
from posttrain.sft import SFTConfig
from posttrain.stages import (
    language_model,
    reward_stage,
    scoring_model,
    sft_stage,
    starting_point,
)
from posttrain.tokenizer import END, CharTokenizer


def lexicon(corpus: Corpus) -> frozenset[str]:
    """The words that count as real: those of the training text, and of the book's own
    data.
    """
    messages = [
        message for row in datasets.conversations() for message in row["messages"]
    ]
    texts = [corpus.train, *(message["content"] for message in messages)]
    # Of pairs only the written ones: what a model said may hold words that are none
    for pair in datasets.elsewhere_preferences():
        texts += [pair["prompt"], pair["chosen"], pair["rejected"]]
    return frozenset(words_of("\n".join(texts)))


@torch.no_grad()
def scorecard(
    policy: GPT,
    reference: GPT,
    reward_model: RewardModel,
    real_words: frozenset[str],
    seed: int,
    temperature: float = 0.8,
) -> dict:
    """What a policy answers to the 64 held-out prompts, and what is to be said of it.

    Lists, one entry per prompt: `answers`, `scores` (the reward model's), `gold` (the
    rubric's). Means: `score`, `gold_score`, `kl` (to the reference, nats per response),
    `entropy` (nats per token), and what `judge_answers` says.
    """
    asked, responses = sample_answers(
        policy, datasets.heldout_prompts(), seed, temperature
    )
    tokens, mask = pack(asked, responses, CharTokenizer().pad)  # (B, T)
    undecided = entropy(policy(tokens)[:, :-1], temperature)  # (B, T - 1)
    return judge_answers(responses, reward_model(tokens, mask), real_words) | dict(
        kl=sequence_kl(policy, reference, tokens, mask, temperature).mean().item(),
        entropy=masked_mean(undecided, mask[:, 1:]).item(),
    )


def start_scorecard(
    corpus: Corpus, seed: int, temperature: float = 0.8, start: str = "sft"
) -> dict:
    """The scorecard of the "sft" model of this seed or of the "base" model; stored.

    The reward model of this seed judges. The SFT model's card is where every run of PPO
    and of DPO with that seed starts from.
    """
    parents = [
        sft_stage(corpus, SFTConfig(seed=seed)),
        reward_stage(corpus, RewardConfig(seed=seed)),
    ]

    def judge() -> tuple[dict[str, Tensor], dict]:
        sft, judge = language_model(parents[0]), scoring_model(parents[1])
        policy = sft if start == "sft" else starting_point(corpus, start, seed)
        return {}, scorecard(policy, sft, judge, lexicon(corpus), seed, temperature)

    settings, reads = (
        dict(start=start, temperature=temperature),
        datasets.heldout_prompts(),
    )
    return obtain("scorecard", settings, judge, after=parents, reads=reads).history


def judge_answers(
    responses: list[list[int]], scores: Tensor, real_words: frozenset[str]
) -> dict:
    """The entries of a scorecard that need no model, from token ids and scores (B,).

    Beside the lists and their means: shares of the answers that are `finished`,
    `different` and, word for word, one of the conversations' (`recited`); `words` per
    answer; `distinct` of neighbouring words; `non_words`, a share of the words; and
    `parts`, the means of the rubric's.
    """
    tokenizer, n = CharTokenizer(), len(responses)
    answers = [tokenizer.decode(response) for response in responses]
    parts = [gold_parts(answer, real_words) for answer in answers]
    gold = [sum(part.values()) for part in parts]
    known = answers_of(datasets.conversations())
    return dict(
        answers=answers,
        scores=scores.tolist(),
        gold=gold,
        score=scores.mean().item(),
        gold_score=sum(gold) / n,
        finished=sum(map(finished, answers)) / n,
        different=len(set(answers)) / n,
        distinct=distinct_n(answers, 2),
        non_words=non_words(answers, real_words),
        recited=sum(answer.removesuffix(END) in known for answer in answers) / n,
        words=sum(len(words_of(answer)) for answer in answers) / n,
        parts={name: sum(part[name] for part in parts) / n for name in parts[0]},
    )


def against(card: dict, first: dict) -> dict[str, float]:
    """A scorecard against another one of the same prompts, by the gold rubric.

    `win_rate`: the share of prompts won, a tie being one half; `tied`: of ties.
    """
    gold, other = card["gold"], first["gold"]
    tied = sum(a == b for a, b in zip(gold, other)) / len(gold)
    return dict(win_rate=win_rate(gold, other), tied=tied)


def non_words(answers: list[str], real_words: frozenset[str]) -> float:
    """The share of the answers' words that are none: that stand in no text a model was
    given.
    """
    words = [word for answer in answers for word in words_of(answer)]
    return sum(word not in real_words for word in words) / max(1, len(words))
