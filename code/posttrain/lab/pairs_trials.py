"""A policy's own answers as data, under trial: pairs, rounds, slips of labels,
imitation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from torch import Tensor

from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.data.synthetic_pairs import (
    Pool,
    any_two,
    draw_pool,
    flip,
    pick_extremes,
    token_pairs,
)
from posttrain.dpo import DPOConfig, dpo_steps, pair_logprobs
from posttrain.gpt import GPT
from posttrain.keep.store import obtain
from posttrain.lab.policy_trials import models_of, outlined
from posttrain.lab.rejection_sampling import imitate, imitation, keep_any, keep_best
from posttrain.lab.scorecard import against, lexicon, scorecard, start_scorecard
from posttrain.preference_pairs import Pair, encode_pairs
from posttrain.reward_model import RewardConfig
from posttrain.sft import SFTConfig
from posttrain.stages import (
    language_model,
    reward_stage,
    scoring_model,
    sft_stage,
)
from posttrain.tokenizer import CharTokenizer

SAMPLES = 4  # answers to each prompt


@dataclass(frozen=True)
class PairsTrial:
    """One way to learn from a policy's own answers, and what it is compared with."""

    # Or fine-tuning on the "best" answer to each prompt, or on "any" one
    method: str = "dpo"
    judge: str = "reward"  # or "gold", the rubric that also judges the result
    prompts: str = "practice"  # the 96; or "pairs", those of the book's 18 pairs
    eighteen: bool = False  # train on these 18 pairs themselves
    # Any so many that the judge tells apart; 0: each prompt's best and worst
    pairs: int = 0
    # Of answering, judging and training, each from where the last one ended
    rounds: int = 1
    steps: int = 20  # of DPO in each round, eight pairs each
    flipped: float = 0.0  # the share of labels that are turned round
    label_smoothing: float = 0.0  # the share that the loss takes to be wrong
    seed: int = 0


def dpo_config(trial: PairsTrial) -> DPOConfig:
    """DPO on a policy's fresh answers: smaller steps, and a smaller beta."""
    return DPOConfig(
        steps=trial.steps,
        batch_size=8,
        lr=5e-5,
        beta=0.1,
        label_smoothing=trial.label_smoothing,
        nll_weight=0.0,
        seed=trial.seed,
    )


def asked_prompts(trial: PairsTrial) -> list[str]:
    """The prompts that the policy answers. Raises ValueError for a set unknown."""
    if trial.prompts == "pairs":
        return [pair["prompt"] for pair in datasets.preferences()]
    if trial.prompts != "practice":
        raise ValueError(f"prompts is {trial.prompts!r}: use 'practice' or 'pairs'")
    return datasets.training_prompts()


def clean_pairs(pool: Pool | None, trial: PairsTrial, context: int) -> list[Pair]:
    """The pairs as the judge sees them, or the book's 18 where there is no pool."""
    if pool is None:
        return encode_pairs(datasets.preferences(), CharTokenizer(), context)
    if trial.pairs:
        return token_pairs(pool, any_two(pool, trial.judge, trial.pairs, trial.seed))
    return token_pairs(pool, pick_extremes(pool, trial.judge))


def learn_from_pairs(policy: GPT, pairs: list[Pair], trial: PairsTrial) -> dict:
    """One round of DPO from the policy to itself; what it noted.

    The reference is the policy as the round found it. `pairs`: how many; `loss`: the
    first and the last step's. Shares of the pairs that the policy, by its implicit
    reward, ranks in the end: as they were labelled (`obeyed`), and as the judge did,
    whatever was flipped (`ranked`).
    """
    reference, pad = copy.deepcopy(policy), CharTokenizer().pad
    learned = flip(pairs, trial.flipped, trial.seed)
    steps = list(dpo_steps(policy, reference, learned, dpo_config(trial)))

    def share(labels: list[Pair]) -> float:
        gained = pair_logprobs(policy, labels, pad) - pair_logprobs(
            reference, labels, pad
        )
        return (gained[0] > gained[1]).double().mean().item()  # of (2, N)

    return dict(
        pairs=len(pairs),
        loss=[steps[0]["loss"], steps[-1]["loss"]],
        obeyed=share(learned),
        ranked=share(pairs),
    )


def learn(policy: GPT, pool: Pool | None, trial: PairsTrial) -> dict:
    """Train the policy in place on one round's answers; what it noted.

    Raises ValueError for a method unknown.
    """
    if trial.method == "dpo":
        pairs = clean_pairs(pool, trial, policy.config.context)
        return learn_from_pairs(policy, pairs, trial)
    choices = dict(
        best=lambda: keep_best(pool, trial.judge),
        any=lambda: keep_any(pool, trial.seed),
    )
    if trial.method not in choices:
        raise ValueError(f"method is {trial.method!r}: use 'dpo', 'best' or 'any'")
    choice = choices[trial.method]()
    losses = list(imitate(policy, pool, choice, imitation(trial.seed)))
    return dict(pairs=len(choice), loss=[losses[0]["loss"], losses[-1]["loss"]])


def describe(pool: Pool) -> dict[str, float]:
    """Means over a pool's answers: each judge's score, and the share that can be
    used.
    """
    means = {
        name: scores.double().mean().item() for name, scores in pool.scores.items()
    }
    return means | dict(usable=pool.usable.double().mean().item())


def start_pool(corpus: Corpus, prompts: list[str], seed: int) -> Pool:
    """The SFT model's answers to the prompts, and their scores; stored.

    Every trial's first round with this seed starts from them.
    """
    parents = [
        sft_stage(corpus, SFTConfig(seed=seed)),
        reward_stage(corpus, RewardConfig(seed=seed)),
    ]

    def draw() -> tuple[dict[str, Tensor], dict]:
        sft, judge = language_model(parents[0]), scoring_model(parents[1])
        pool = draw_pool(sft, judge, prompts, SAMPLES, lexicon(corpus), seed)
        return dict(pool.scores, usable=pool.usable), dict(answers=pool.answers)

    stage = obtain(
        "pool", dict(samples=SAMPLES, seed=seed), draw, after=parents, reads=prompts
    )
    scores = {name: stage.weights[name] for name in ("reward", "gold")}
    return Pool(prompts, stage.history["answers"], stage.weights["usable"], scores)


def pairs_trial(corpus: Corpus, trial: PairsTrial, seed: int) -> dict:
    """One way to learn from a policy's own answers, judged before it and after each
    round.

    `rounds`: what each round noted, its pool's means with it; `cards`: scorecards on
    the 64 held-out prompts, the first the SFT model's, and from the second on with what
    `against` says of it and the first.
    """
    trial, (sft, judge) = replace(trial, seed=seed), models_of(corpus, seed)
    policy, words, asked = copy.deepcopy(sft), lexicon(corpus), asked_prompts(trial)
    pool = None if trial.eighteen else start_pool(corpus, asked, seed)
    cards, rounds = [dict(start_scorecard(corpus, seed))], []
    for round_ in range(trial.rounds):
        # Answer and judge, then train
        if round_ and pool is not None:
            pool = draw_pool(policy, judge, asked, SAMPLES, words, seed + 1000 * round_)
        noted = learn(policy, pool, trial)
        rounds.append(noted | (describe(pool) if pool is not None else {}))
        card = scorecard(policy, sft, judge, words, seed)
        cards.append(card | against(card, cards[0]))
    return dict(rounds=rounds, cards=outlined(cards))
