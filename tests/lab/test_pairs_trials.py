"""Trials of a policy's own answers: where each round starts, what it is told, and what
is stored.
"""

import copy
import math
import types
from dataclasses import replace

import pytest
import torch
from tiny import CORPUS, LONG, TOKENIZER, empty_shelf, judge, moved, pair, same

from posttrain.data.synthetic_pairs import (
    any_two,
    draw_pool,
    flip,
    pick_extremes,
    token_pairs,
)
from posttrain.dpo import dpo_steps
from posttrain.keep import code
from posttrain.keep.store import Stage
from posttrain.lab import pairs_trials as module
from posttrain.lab.pairs_trials import (
    PairsTrial,
    clean_pairs,
    describe,
    dpo_config,
    learn,
    pairs_trial,
    start_pool,
)
from posttrain.lab.rejection_sampling import imitate, imitation, keep_any, keep_best
from posttrain.preference_pairs import encode_pairs
from posttrain.reward_model import RewardConfig
from posttrain.sft import SFTConfig

PRACTICE = ["What now?", "Is it so?", "Where?", "Who goes there?"]
WRITTEN = [
    pair("a", "Who?", "I am.", "You"),
    pair("b", "Where is he?", "At sea.", "At"),
]
TRIAL = PairsTrial(steps=2, seed=3)  # of the steps alone: a trial's seed is its run's


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Tiny models, given out themselves, cards of gold scores alone, and the policies
    that were judged.
    """
    empty_shelf(monkeypatch, tmp_path)
    monkeypatch.setattr(module.datasets, "training_prompts", lambda: PRACTICE)
    monkeypatch.setattr(module.datasets, "preferences", lambda *path: WRITTEN)
    tried = types.SimpleNamespace(
        sft=moved(dtype=torch.float32, config=LONG),
        judge=judge(5, torch.float32, LONG),
        judged=[],
        started=[],
    )

    def card(policy, reference, reward_model, words, seed):
        assert same(reference.state_dict(), tried.sft) and reward_model is tried.judge
        tried.judged.append((copy.deepcopy(policy), seed))
        return dict(gold=[1.0, 1.0, 1.0, 4.0], answers=["a b", "a b c"])

    tried.asked = []
    monkeypatch.setattr(module, "models_of", lambda *asked: (tried.sft, tried.judge))
    for name in ("sft_stage", "reward_stage"):

        def find(*asked, name=name):
            tried.asked.append((name, *asked))
            return Stage(name, name, {}, {})

        monkeypatch.setattr(module, name, find)
    monkeypatch.setattr(module, "language_model", lambda stage: tried.sft)
    monkeypatch.setattr(module, "scoring_model", lambda stage: tried.judge)
    # What stands in the place of others is kept all the same
    monkeypatch.setattr(code, "changed", lambda function: [])
    monkeypatch.setattr(
        module,
        "start_scorecard",
        lambda *asked: (
            tried.started.append(asked)
            or dict(gold=[0.0, 1.0, 2.0, 3.0], answers=["x y z", "x y"])
        ),
    )
    monkeypatch.setattr(module, "scorecard", card)
    return tried


def pool_of(tried, seed=3, prompts=PRACTICE):
    return draw_pool(
        tried.sft, tried.judge, prompts, module.SAMPLES, module.lexicon(CORPUS), seed
    )


def test_each_round_draws_from_the_last_rounds_policy_its_reference(tried):
    before = copy.deepcopy(tried.sft)
    history = pairs_trial(CORPUS, replace(TRIAL, rounds=3, seed=9), 3)
    policy, words = copy.deepcopy(tried.sft), module.lexicon(CORPUS)
    for round_, noted in enumerate(history["rounds"]):
        pool = draw_pool(policy, tried.judge, PRACTICE, 4, words, 3 + 1000 * round_)
        pairs = token_pairs(pool, pick_extremes(pool, "reward"))
        reference = copy.deepcopy(policy)
        steps = list(dpo_steps(policy, reference, pairs, dpo_config(TRIAL)))
        assert (
            noted["loss"] == [steps[0]["loss"], steps[-1]["loss"]]
            and noted["pairs"] == len(pairs) > 0
        )
        assert noted["loss"][0] == pytest.approx(math.log(2), abs=1e-5)
        assert {name: noted[name] for name in describe(pool)} == describe(pool)
        assert same(policy.state_dict(), tried.judged[round_][0])
    assert len(history["rounds"]) == 3 and same(before.state_dict(), tried.sft)


def test_cards_are_the_sft_models_and_one_a_round_won_against_it(tried):
    history = pairs_trial(CORPUS, replace(TRIAL, rounds=2), 3)
    first, *others = history["cards"]
    assert "win_rate" not in first and [card["tied"] for card in others] == [0.25] * 2
    assert [card["win_rate"] for card in others] == [2.5 / 4] * 2 and tried.started == [
        (CORPUS, 3)
    ]
    assert [seed for _, seed in tried.judged] == [3, 3]


def test_the_policy_learns_the_flipped_labels_and_is_asked_for_the_true_ones(tried):
    pool, trial = pool_of(tried), replace(TRIAL, flipped=1.0, steps=12)
    pairs = clean_pairs(pool, trial, LONG.context)
    policy, by_hand = copy.deepcopy(tried.sft), copy.deepcopy(tried.sft)
    noted = learn(policy, pool, trial)
    steps = list(dpo_steps(by_hand, tried.sft, flip(pairs, 1.0, 3), dpo_config(trial)))
    assert (
        same(by_hand.state_dict(), policy)
        and steps[-1]["accuracy"] == 1.0
        and noted["ranked"] == 0.0
        and noted["obeyed"] == 1.0
    )
    plain = learn(copy.deepcopy(tried.sft), pool, replace(trial, flipped=0.0))
    assert plain["ranked"] == plain["obeyed"] == 1.0
    assert dpo_config(replace(trial, label_smoothing=0.2)).label_smoothing == 0.2


def test_pairs_are_the_extremes_or_any_or_the_books_eighteen(tried):
    pool = pool_of(tried)
    for name in ("reward", "gold"):
        trial = replace(TRIAL, judge=name)
        assert clean_pairs(pool, trial, 160) == token_pairs(
            pool, pick_extremes(pool, name)
        )
    assert clean_pairs(pool, replace(TRIAL, pairs=3), 160) == token_pairs(
        pool, any_two(pool, "reward", 3, 3)
    )
    assert clean_pairs(None, TRIAL, 160) == encode_pairs(WRITTEN, TOKENIZER, 160)


@pytest.mark.parametrize("method", ["best", "any"])
def test_imitation_is_of_the_best_or_of_the_control(tried, method):
    pool, policy, by_hand = (
        pool_of(tried),
        copy.deepcopy(tried.sft),
        copy.deepcopy(tried.sft),
    )
    noted = learn(policy, pool, replace(TRIAL, method=method))
    choice = keep_best(pool, "reward") if method == "best" else keep_any(pool, 3)
    losses = list(imitate(by_hand, pool, choice, imitation(3)))
    assert same(by_hand.state_dict(), policy) and noted == dict(
        pairs=4, loss=[losses[0]["loss"], losses[-1]["loss"]]
    )


def test_a_setting_that_is_not_known_is_named(tried):
    with pytest.raises(ValueError, match="method is 'ppo': use 'dpo', 'best' or 'any'"):
        learn(tried.sft, pool_of(tried), replace(TRIAL, method="ppo"))
    with pytest.raises(ValueError, match="prompts is 'all': use 'practice' or 'pairs'"):
        pairs_trial(CORPUS, replace(TRIAL, prompts="all"), 3)


def test_the_first_answers_are_drawn_once_and_found_again_as_they_were(
    tried, monkeypatch
):
    drawn = start_pool(CORPUS, PRACTICE, 3)
    monkeypatch.setattr(module, "draw_pool", lambda *_: pytest.fail("drawn again"))
    found, by_hand = start_pool(CORPUS, PRACTICE, 3), pool_of(tried)
    for pool in (drawn, found):
        assert (
            pool.answers == by_hand.answers
            and pool.prompts == PRACTICE
            and torch.equal(pool.usable, by_hand.usable)
        )
        assert all(
            torch.equal(pool.scores[name], by_hand.scores[name])
            for name in ("reward", "gold")
        )


def test_the_first_answers_are_those_of_the_seeds_models(tried):
    start_pool(CORPUS, PRACTICE, 3)
    assert tried.asked == [
        ("sft_stage", CORPUS, SFTConfig(seed=3)),
        ("reward_stage", CORPUS, RewardConfig(seed=3)),
    ]


def test_trials_of_one_seed_share_their_first_answers(tried, monkeypatch):
    drawn = []

    def draw(*given):
        drawn.append(given[2])
        return draw_pool(*given)

    monkeypatch.setattr(module, "draw_pool", draw)
    for trial in (TRIAL, replace(TRIAL, judge="gold"), replace(TRIAL, steps=1)):
        pairs_trial(CORPUS, trial, 3)
    assert drawn == [PRACTICE]
    pairs_trial(CORPUS, TRIAL, 0)
    pairs_trial(CORPUS, replace(TRIAL, prompts="pairs"), 3)
    assert drawn == [PRACTICE, PRACTICE, [row["prompt"] for row in WRITTEN]]


def test_the_books_eighteen_pairs_need_no_answers(tried, monkeypatch):
    monkeypatch.setattr(module, "draw_pool", lambda *_: pytest.fail("drawn"))
    (noted,) = pairs_trial(CORPUS, replace(TRIAL, eighteen=True), 3)["rounds"]
    assert noted["pairs"] == 2 and "usable" not in noted
