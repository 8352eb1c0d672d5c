"""Dull ways to win: what needs no preference pairs, or no model at all."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch

from posttrain.best_of_n import draw_answers
from posttrain.chat import render_question
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.lab.policy_trials import judged, models_of, outlined
from posttrain.lab.reward_probes import count_of, word_votes
from posttrain.lab.scorecard import against, judge_answers, lexicon, start_scorecard
from posttrain.logprobs import pack
from posttrain.preference_pairs import encode_response
from posttrain.settings import at_least, one_of
from posttrain.sft import SFTConfig, fine_tune
from posttrain.stages import encode_split
from posttrain.tokenizer import CharTokenizer

CONSTANT = "Gladly, my kind sir."
WAYS = ("constant", "count", "courteous")


@dataclass(frozen=True)
class RivalTrial:
    """A way to win without a method: one sentence for all, "constant"; the best of n by
    a count of words, "count"; fine-tuning goes on with the "courteous" conversations.
    """

    way: str = "courteous"
    n: int = 16  # answers to choose from by the count
    config: SFTConfig = field(default_factory=lambda: SFTConfig(evaluations=1))

    def __post_init__(self):
        one_of(self, way=WAYS)
        at_least(self, n=1)


def rival_trial(corpus: Corpus, trial: RivalTrial, seed: int) -> dict:
    """`cards`: the SFT model's scorecard and the rival's, with what `against` says.

    Only what is trained has a `kl` and an `entropy`.
    """
    start = start_scorecard(corpus, seed)
    rival = dict(constant=constant, count=best_by_count, courteous=courteous_only)
    card = rival[trial.way](corpus, trial, seed, start)
    return dict(cards=outlined([start, card | against(card, start)]))


def constant(corpus: Corpus, trial: RivalTrial, seed: int, start: dict) -> dict:
    """The card of one sentence, whatever is asked."""
    _, judge = models_of(corpus, seed)
    tokenizer, prompts = CharTokenizer(), datasets.heldout_prompts()
    asked = [render_question(prompt, tokenizer) for prompt in prompts]
    answers = [encode_response(CONSTANT, tokenizer)] * len(prompts)
    with torch.no_grad():
        scores = judge(*pack(asked, answers, tokenizer.pad))  # (B,)
    return judge_answers(answers, scores, lexicon(corpus))


def best_by_count(corpus: Corpus, trial: RivalTrial, seed: int, start: dict) -> dict:
    """The card of the best of n, where a count of words stands for the reward model."""
    sft, judge = models_of(corpus, seed)
    answers, scores = draw_answers(
        sft, judge, datasets.heldout_prompts(), trial.n, seed
    )
    votes, text = word_votes(datasets.preferences()), CharTokenizer().decode
    counts = [[count_of(text(answer), votes) for answer in row] for row in answers]
    places = torch.tensor(counts).max(-1).indices  # (B,)
    best = [row[i] for row, i in zip(answers, places.tolist())]
    kept = scores.gather(-1, places[:, None]).squeeze(-1)  # (B,)
    return judge_answers(best, kept, lexicon(corpus))


def courteous_only(corpus: Corpus, trial: RivalTrial, seed: int, start: dict) -> dict:
    """The card of the SFT model after as many steps again, its replay beside them, of
    courteous conversations alone.
    """
    sft, judge = models_of(corpus, seed)
    policy, (text, _) = copy.deepcopy(sft), encode_split(corpus)
    rows = [row for row in datasets.conversations() if row["manner"] == "courteous"]
    fine_tune(policy, rows, text, replace(trial.config, seed=seed))
    return judged(sft, judge, lexicon(corpus), policy, start, seed)
