"""Policies on trial: PPO, DPO, DPO on own answers, best of n, judged on held-out
prompts.

Seed i is also the SFT model's and the reward model's: each run starts from another one
and is judged, or paid, by another one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from posttrain.best_of_n import best_of_n, best_of_n_kl, draw_answers
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.dpo import DPOConfig, pair_logprobs, pair_report
from posttrain.evaluate import win_rate
from posttrain.gpt import GPT
from posttrain.lab.patches import making
from posttrain.lab.scorecard import judge_answers, lexicon, scorecard, start_scorecard
from posttrain.online_dpo import OnlineDPOConfig, online_dpo_rounds
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.preference_pairs import encode_pairs
from posttrain.pretrain import validation_loss
from posttrain.reward_model import RewardConfig, RewardModel
from posttrain.sft import SFTConfig
from posttrain.stages import encode_split, reward_model, sft_model, train_dpo
from posttrain.tokenizer import CharTokenizer

SIZES = (1, 2, 4, 8, 16)  # the n of best of n
LISTS = ("answers", "scores", "gold")  # what a scorecard has for each prompt


@dataclass(frozen=True)
class PolicyTrial:
    """One way to train a policy, and how often it is judged."""

    config: PPOConfig | DPOConfig | OnlineDPOConfig = field(default_factory=PPOConfig)
    every: int = 1000  # steps or rounds between two scorecards; the last is always made
    mistake: str = ""  # made on purpose, by its name in `patches.MISTAKES`

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"every is {self.every}: use at least 1 step")


def models_of(corpus: Corpus, seed: int) -> tuple[GPT, RewardModel]:
    """The SFT model and the reward model of a seed."""
    sft, _ = sft_model(corpus, SFTConfig(seed=seed))
    judge, _ = reward_model(corpus, RewardConfig(seed=seed))
    return sft, judge


def ppo_trial(corpus: Corpus, trial: PolicyTrial, seed: int) -> dict:
    """One run of PPO, judged before, on its way and at its end.

    `rounds` has what each round noted; `cards` the scorecards, the first from before
    the training, each with its `round` and its `win_rate` against the first by the gold
    rubric. `shakespeare_loss` is the loss at the end on 32 windows of validation text,
    in nats per character.
    """
    config, (sft, judge) = replace(trial.config, seed=seed), models_of(corpus, seed)
    models, prompts = assemble(sft, judge, config), datasets.training_prompts()
    words = lexicon(corpus)
    start = start_scorecard(corpus, seed, config.temperature)
    rounds, cards = (
        [],
        [dict(start, round=0, win_rate=win_rate(start["gold"], start["gold"]))],
    )
    with making(trial.mistake):
        for noted in ppo_steps(models, prompts, config):
            rounds.append(noted)
            if len(rounds) % trial.every == 0 or len(rounds) == config.iterations:
                card = judged(
                    sft, judge, words, models.policy, start, seed, config.temperature
                )
                cards.append(dict(card, round=len(rounds)))
    loss = shakespeare_loss(corpus, models.policy)
    return dict(rounds=rounds, cards=outlined(cards), shakespeare_loss=loss)


def dpo_trial(corpus: Corpus, trial: PolicyTrial, seed: int) -> dict:
    """One run of DPO on the written pairs or, by its configuration, on the policy's own
    answers.

    `steps` has what each step (or round) noted; `heldout` what the 72 held-out pairs
    show, before the training and after every so many steps, each with its `step`;
    `cards` and `shakespeare_loss` as in `ppo_trial`. Only the policy's own answers need
    the reward model for training.
    """
    config, (sft, judge) = replace(trial.config, seed=seed), models_of(corpus, seed)
    policy, tokenizer, cards = (
        copy.deepcopy(sft),
        CharTokenizer(),
        [start_scorecard(corpus, seed)],
    )
    unseen = encode_pairs(datasets.heldout_preferences(), tokenizer, sft.config.context)
    known = pair_logprobs(sft, unseen, tokenizer.pad)  # (2, N)
    steps, seen = [], [pair_report(known, known, config.beta) | dict(step=0)]
    run, total = run_of(policy, sft, judge, config)
    for noted in run:
        steps.append(noted)
        if len(steps) % trial.every == 0 or len(steps) == total:
            now = pair_logprobs(policy, unseen, tokenizer.pad)  # (2, N)
            seen.append(pair_report(now, known, config.beta) | dict(step=len(steps)))
    cards.append(judged(sft, judge, lexicon(corpus), policy, cards[0], seed))
    loss = shakespeare_loss(corpus, policy)
    return dict(steps=steps, heldout=seen, cards=cards, shakespeare_loss=loss)


def run_of(
    policy: GPT, sft: GPT, judge: RewardModel, config: DPOConfig | OnlineDPOConfig
) -> tuple[Iterator[dict], int]:
    """A run of DPO that has not begun, and how many steps (or rounds) it has."""
    if isinstance(config, OnlineDPOConfig):
        prompts = datasets.training_prompts()
        return online_dpo_rounds(policy, sft, judge, prompts, config), config.rounds
    return train_dpo(policy, sft, config), config.steps


def best_of_n_trial(corpus: Corpus, trial: None, seed: int) -> dict:
    """`cards`: a scorecard of the SFT model's best of n answers for each n of SIZES.

    Each card has its `n`, its `win_rate` against that SFT model's own card, and for
    `kl` the analytic `best_of_n_kl`; no `entropy`.
    """
    (sft, judge), words = models_of(corpus, seed), lexicon(corpus)
    drawn = draw_answers(sft, judge, datasets.heldout_prompts(), max(SIZES), seed)
    start, cards = start_scorecard(corpus, seed), []
    for n in SIZES:
        card = judge_answers(*best_of_n(drawn, n), words)
        card["win_rate"] = win_rate(card["gold"], start["gold"])
        cards.append(card | dict(n=n, kl=best_of_n_kl(n)))
    return dict(cards=outlined(cards))


def base_trial(corpus: Corpus, trial: None, seed: int) -> dict:
    """`cards`: the base model's scorecard alone, with the vocabulary that the chat
    needs.
    """
    return dict(cards=[start_scorecard(corpus, seed, start="base")])


def judged(
    sft: GPT,
    judge: RewardModel,
    words: frozenset[str],
    policy: GPT,
    start: dict,
    seed: int,
    temperature: float = 0.8,
) -> dict:
    """A policy's scorecard, with its `win_rate` against a first one by the gold
    rubric.
    """
    card = scorecard(policy, sft, judge, words, seed, temperature)
    return card | dict(win_rate=win_rate(card["gold"], start["gold"]))


def outlined(cards: list[dict]) -> list[dict]:
    """Scorecards, of which only the first and the last keep what they have for each
    prompt.
    """
    ends = (0, len(cards) - 1)
    return [
        card if i in ends else {key: card[key] for key in card if key not in LISTS}
        for i, card in enumerate(cards)
    ]


def shakespeare_loss(corpus: Corpus, policy: GPT) -> float:
    """A policy's loss on 32 windows of validation text, in nats per character."""
    return validation_loss(policy, encode_split(corpus)[1], windows=32)
