"""Policies on trial: PPO, DPO, on-policy DPO, best of n, judged on held-out
prompts.

Seed i is also the SFT model's and the reward model's: each run starts from another one
and is judged, or paid, by another one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from posttrain.best_of_n import best_of_n, best_of_n_kl, draw_answers
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.dpo import DPOConfig, dpo_steps, pair_logprobs, pair_report
from posttrain.gpt import GPT
from posttrain.lab.count_judge import paid_by_count
from posttrain.lab.pair_origins import KINDS, pairs_of
from posttrain.lab.ppo_variants import VARIANTS, variant
from posttrain.lab.scorecard import (
    against,
    judge_answers,
    lexicon,
    scorecard,
    start_scorecard,
)
from posttrain.online_dpo import OnlineDPOConfig, online_dpo_rounds
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.preference_pairs import encode_pairs
from posttrain.pretrain import validation_loss
from posttrain.reward_model import RewardConfig, RewardModel
from posttrain.settings import one_of
from posttrain.sft import SFTConfig
from posttrain.stages import encode_split, reward_model, sft_model
from posttrain.tokenizer import CharTokenizer

SIZES = (1, 2, 4, 8, 16)  # the n of best of n
LISTS = ("answers", "scores", "gold")  # what a scorecard has for each prompt


@dataclass(frozen=True)
class PolicyTrial:
    """One way to train a policy, and how often it is judged."""

    config: PPOConfig | DPOConfig | OnlineDPOConfig = field(default_factory=PPOConfig)
    every: int = 1000  # steps or rounds between two scorecards; the last is always made
    early: int = 0  # so many first rounds of PPO are judged, each
    variant: str = ""  # of PPO, by its name in `ppo_variants.VARIANTS`
    paid_by: str = "model"  # PPO's judge; or "count", a count of words
    pairs: str = "own"  # DPO's: one of `pair_origins.KINDS`

    def __post_init__(self):
        one_of(self, pairs=KINDS, variant=tuple(VARIANTS))
        one_of(self, paid_by=("model", "count"))
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
    the training, each with its `round` and what `against` says of it and the first.
    `shakespeare_loss` is the loss at the end on 32 windows of validation text,
    in nats per character.
    """
    config, (sft, judge) = replace(trial.config, seed=seed), models_of(corpus, seed)
    chosen, prompts = variant(trial.variant), datasets.training_prompts()
    counted = trial.paid_by == "count"
    models = paid_by_count(sft, seed) if counted else assemble(sft, judge)
    models = chosen.models(models)
    words = lexicon(corpus)
    start = start_scorecard(corpus, seed, config.temperature)
    rounds, cards = [], [dict(start, round=0) | against(start, start)]
    run = ppo_steps(models, prompts, config, chosen.estimate, chosen.losses)
    for n, noted in enumerate(run, start=1):
        rounds.append(noted)
        early = n <= trial.early
        if early or n % trial.every == 0 or n == config.iterations:
            card = judged(
                sft, judge, words, models.policy, start, seed, config.temperature
            )
            cards.append(dict(card, round=n))
    loss = shakespeare_loss(corpus, models.policy)
    return dict(rounds=rounds, cards=outlined(cards), shakespeare_loss=loss)


def dpo_trial(corpus: Corpus, trial: PolicyTrial, seed: int) -> dict:
    """One run of DPO on pairs or, by its configuration, on the policy's fresh answers.

    `steps` has what each step (or round) noted; `heldout` and `elsewhere` what the
    held-out pairs, own answers and written ones, show before the training and after
    every so many steps, each with its `step`; `cards` and `shakespeare_loss` as in
    `ppo_trial`. Only on-policy DPO needs the reward model for training.
    """
    config, (sft, judge) = replace(trial.config, seed=seed), models_of(corpus, seed)
    policy, cards = copy.deepcopy(sft), [start_scorecard(corpus, seed)]
    if isinstance(config, OnlineDPOConfig):
        prompts, total = datasets.training_prompts(), config.rounds
        run = online_dpo_rounds(policy, sft, judge, prompts, config)
    else:
        pairs, total = pairs_of(corpus, trial.pairs, sft, seed), config.steps
        run = dpo_steps(policy, sft, pairs, config)
    steps, watch = [], watched(policy, sft, config.beta)
    seen = [dict(report, step=0) for report in watch()]
    for noted in run:
        steps.append(noted)
        if len(steps) % trial.every == 0 or len(steps) == total:
            seen += [dict(report, step=len(steps)) for report in watch()]
    cards.append(judged(sft, judge, lexicon(corpus), policy, cards[0], seed))
    return dict(
        steps=steps,
        heldout=seen[::2],
        elsewhere=seen[1::2],
        cards=cards,
        shakespeare_loss=shakespeare_loss(corpus, policy),
    )


def watched(policy: GPT, sft: GPT, beta: float) -> Callable[[], list[dict]]:
    """What to ask while a policy trains: `pair_report` of both kinds of held-out
    pairs.
    """
    tokenizer, context = CharTokenizer(), sft.config.context
    kinds = datasets.heldout_preferences(), datasets.heldout_elsewhere_preferences()
    unseen = [encode_pairs(rows, tokenizer, context) for rows in kinds]
    known = [pair_logprobs(sft, pairs, tokenizer.pad) for pairs in unseen]  # (2, N)

    def watch() -> list[dict]:
        now = [pair_logprobs(policy, pairs, tokenizer.pad) for pairs in unseen]
        return [pair_report(*each, beta) for each in zip(now, known)]

    return watch


def best_of_n_trial(corpus: Corpus, trial: None, seed: int) -> dict:
    """`cards`: a scorecard of the SFT model's best of n answers for each n of SIZES.

    Each card has its `n`, what `against` says of it and that SFT model's own card, and
    for `kl` the analytic `best_of_n_kl`; no `entropy`.
    """
    (sft, judge), words = models_of(corpus, seed), lexicon(corpus)
    drawn = draw_answers(sft, judge, datasets.heldout_prompts(), max(SIZES), seed)
    start, cards = start_scorecard(corpus, seed), []
    for n in SIZES:
        card = judge_answers(*best_of_n(drawn, n), words)
        card |= against(card, start)
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
    """A policy's scorecard, with what `against` says of it and a first one."""
    card = scorecard(policy, sft, judge, words, seed, temperature)
    return card | against(card, start)


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
