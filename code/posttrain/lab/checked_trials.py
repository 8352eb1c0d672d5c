"""GRPO on a checked reward: what it learns, and what each of its choices does."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch

from posttrain.checked.grpo import Choices, grpo_steps
from posttrain.checked.task import (
    NEW_TOKENS,
    Checker,
    Words,
    answer_words,
    count_right,
    exact,
    find_words,
    letters_agree,
    pass_at_k,
    question_of,
    worked,
)
from posttrain.data.corpus import Corpus
from posttrain.gpt import GPT
from posttrain.ppo import PPOConfig
from posttrain.settings import one_of
from posttrain.sft import SFTConfig, sft
from posttrain.stages import base_model
from posttrain.tokenizer import END

RULES = {"exact": exact, "letters agree": letters_agree}
KS = (1, 2, 4, 8, 16, 32, 64)  # of pass@k
SHOWN = 8  # words whose first answers are kept


def teaching(**changes) -> SFTConfig:
    """Fine-tuning on worked examples: short answers, so larger batches, no replay."""
    usual = dict(steps=200, batch_size=8, micro_batch_size=8, replay=0, evaluations=1)
    return SFTConfig(**usual | changes)


def checked_ppo(**changes) -> PPOConfig:
    """GRPO's rounds: sixteen words, eight answers each, no penalty, no judge."""
    usual = dict(
        iterations=120,
        batch_size=128,
        group=8,
        max_new_tokens=NEW_TOKENS,
        temperature=1.0,
        no_end_score=0.0,
        minibatches=2,
        lr=4e-4,
        beta=0.0,
        kl_target=0.0,
    )
    return PPOConfig(**usual | changes)


@dataclass(frozen=True)
class CheckedTrial:
    """How one policy is taught and trained."""

    sft: SFTConfig = field(default_factory=teaching)
    grpo: PPOConfig = field(default_factory=checked_ppo)
    choices: Choices = field(default_factory=Choices)
    rule: str = "exact"

    def __post_init__(self):
        one_of(self, rule=tuple(RULES))


def taught(corpus: Corpus, config: SFTConfig) -> tuple[GPT, Words]:
    """The base model, fine-tuned on worked examples, and the words.

    Which words are examples does not depend on the seed.
    """
    words, (base, _) = find_words(corpus.text), base_model(corpus)
    model, _ = sft(base, worked(words.examples), torch.zeros(0), config)
    return model, words


def exam(model: GPT, words: list[str], seed: int) -> dict:
    """What a model does with words that nothing was trained on.

    `passed`: pass@k for each of KS, of max(KS) answers at temperature 1. `greedy`: the
    share of right answers at temperature 0. `letters`, `ended`, means over all answers;
    `different`, how many different ones a word gets. `answers`: some first ones.
    """
    n = max(KS)
    answers = answer_words(model, words, n, seed=seed)
    right = count_right(answers, words)
    said = [text for each in answers for text in each]
    plain = [text.removesuffix(END) for text in said]
    likeliest = answer_words(model, words, temperature=0)
    return dict(
        passed={
            str(k): sum(pass_at_k(n, c, k) for c in right) / len(right) for k in KS
        },
        right=[c / n for c in right],
        greedy=sum(count_right(likeliest, words)) / len(words),
        letters=sum(map(len, plain)) / len(plain),
        ended=sum(text.endswith(END) for text in said) / len(said),
        different=sum(len(set(each)) for each in answers) / len(answers),
        answers=[each[0] for each in answers[:SHOWN]],
    )


def checked_trial(corpus: Corpus, trial: CheckedTrial, seed: int) -> dict:
    """One model taught by examples and trained by GRPO.

    `rounds`: what each noted. `before`, `after`: `exam` on the held-out words.
    """
    model, words = taught(corpus, replace(trial.sft, seed=seed))
    policy = copy.deepcopy(model)
    steps = grpo_steps(
        policy,
        model,
        Checker(RULES[trial.rule]),
        [question_of(word) for word in words.practice],
        replace(trial.grpo, seed=seed),
        trial.choices,
    )
    rounds = list(steps)
    before, after = (exam(each, words.heldout, seed) for each in (model, policy))
    return dict(rounds=rounds, before=before, after=after)
