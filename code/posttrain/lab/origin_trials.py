"""Where a pair's answers come from: DPO, by one recipe, on four kinds of eighteen
pairs.

All kinds answer the same eighteen prompts. "own" are answers that SFT models gave,
decided by reading; "written" were written for the purpose; "minimal" are one text in
two manners; "stronger" prefers PPO's answer to the SFT model's, whatever they say.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from posttrain.batches import follow
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.dpo import DPOConfig, dpo_batches, pair_logprobs, pair_report
from posttrain.gpt import GPT
from posttrain.lab.policy_trials import judged, models_of, outlined
from posttrain.lab.scorecard import lexicon, start_scorecard
from posttrain.optim import Descent, linear_fall
from posttrain.ppo import PPOConfig
from posttrain.preference_pairs import Pair, encode_pairs
from posttrain.reward_model import sample_answers
from posttrain.settings import above_zero, at_least, one_of
from posttrain.stages import ppo_model
from posttrain.tokenizer import CharTokenizer

KINDS = ("own", "written", "minimal", "stronger")
DRAWS = 8  # answers to each prompt, among which a stronger and a weaker one must differ


@dataclass(frozen=True)
class OriginTrial:
    """DPO with small steps on one kind of pairs, all of them in each step."""

    kind: str = "own"
    steps: int = 80
    lr: float = 5e-5  # Adam's, falling in a straight line to 0
    beta: float = 0.5

    def __post_init__(self):
        one_of(self, kind=KINDS)
        above_zero(self, "lr")
        above_zero(self, "beta")
        at_least(self, steps=1)


def origin_trial(corpus: Corpus, trial: OriginTrial, seed: int) -> dict:
    """One run, judged on held-out prompts and on held-out pairs of two kinds.

    `steps` has what each step noted; `own` and `written` what the held-out pairs of the
    SFT models' answers and the written ones show before the training and after it;
    `cards` the scorecards before and after, the second with its `win_rate` against the
    first.
    """
    sft, judge = models_of(corpus, seed)
    policy, pad, context = copy.deepcopy(sft), CharTokenizer().pad, sft.config.context
    unseen = dict(
        own=datasets.heldout_own_preferences(), written=datasets.heldout_preferences()
    )
    unseen = {
        name: encode_pairs(rows, CharTokenizer(), context)
        for name, rows in unseen.items()
    }
    known = {name: pair_logprobs(sft, pairs, pad) for name, pairs in unseen.items()}
    steps = list(gentle_steps(policy, sft, pairs_of(corpus, trial.kind, seed), trial))
    found: dict[str, list] = {}
    for name, pairs in unseen.items():
        now = pair_logprobs(policy, pairs, pad)  # (2, N)
        found[name] = [
            pair_report(logprobs, known[name], trial.beta)
            for logprobs in (known[name], now)
        ]
    start = start_scorecard(corpus, seed)
    cards = [start, judged(sft, judge, lexicon(corpus), policy, start, seed)]
    return dict(steps=steps, cards=outlined(cards), **found)


def gentle_steps(
    policy: GPT, reference: GPT, pairs: list[Pair], trial: OriginTrial
) -> Iterator[dict[str, float]]:
    """DPO's steps on all pairs at once, with Adam and nothing beside them."""
    config = DPOConfig(
        steps=trial.steps, batch_size=len(pairs), beta=trial.beta, replay=0
    )
    optimizer = torch.optim.Adam(policy.parameters(), lr=trial.lr)
    batches = dpo_batches(reference, pairs, config, CharTokenizer().pad)
    return follow(policy, batches, Descent([optimizer], linear_fall(trial.steps)))


def pairs_of(corpus: Corpus, kind: str, seed: int) -> list[Pair]:
    """The pairs of a kind, as token ids: eighteen; "stronger" are this seed's own."""
    if kind == "stronger":
        return stronger_pairs(corpus, seed)
    rows = dict(
        own=datasets.own_preferences,
        written=datasets.preferences,
        minimal=datasets.minimal_preferences,
    )[kind]()
    sft, _ = models_of(corpus, seed)
    return encode_pairs(rows, CharTokenizer(), sft.config.context)


def stronger_pairs(corpus: Corpus, seed: int) -> list[Pair]:
    """PPO's answer to each prompt of the pairs, over an answer of the SFT model.

    The first of a few draws in which the two are not the same; a prompt that both
    always answer alike gives no pair. Raises ValueError where none gives one.
    """
    prompts = [row["prompt"] for row in datasets.preferences()]
    asked = [prompt for prompt in prompts for _ in range(DRAWS)]
    (sft, _), (policy, _) = (
        models_of(corpus, seed),
        ppo_model(corpus, PPOConfig(seed=seed)),
    )
    encoded, better = sample_answers(policy, asked, seed)
    _, worse = sample_answers(sft, asked, seed)
    pairs = []
    for first in range(0, len(asked), DRAWS):
        places = range(first, first + DRAWS)
        different = [i for i in places if better[i] != worse[i]]
        if different:
            i = different[0]
            pairs.append((encoded[i], better[i], worse[i]))
    if not pairs:
        raise ValueError("both models answer all prompts alike: there are no pairs")
    return pairs
