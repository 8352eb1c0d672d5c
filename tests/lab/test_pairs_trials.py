"""Trials of a policy's own answers: where each round starts, what it is told, and what is stored."""

import copy
import math
import types
from dataclasses import replace

import pytest
import torch
from tiny import CORPUS, LONG, TOKENIZER, empty_shelf, judge, moved, pair, same

from posttrain.data.synthetic_pairs import any_two, draw_pool, flip, pick_extremes, token_pairs
from posttrain.dpo import dpo_steps
from posttrain.evaluate import distinct_n
from posttrain.lab import pairs_trials as module
from posttrain.lab.pairs_trials import (
    PairsTrial,
    clean_pairs,
    describe,
    dpo_config,
    learn,
    pairs_trial,
    pairs_trials,
    start_pool,
)
from posttrain.lab.rejection_sampling import imitate, imitation, keep_any, keep_best
from posttrain.preference_pairs import encode_pairs

PRACTICE = ["What now?", "Is it so?", "Where?", "Who goes there?"]
WRITTEN = [pair("a", "Who?", "I am.", "You"), pair("b", "Where is he?", "At sea.", "At")]
TRIAL = PairsTrial(steps=2, seed=3)


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Tiny models, given out themselves, cards of gold scores alone, and the policies that were judged."""
    empty_shelf(monkeypatch, tmp_path)
    monkeypatch.setattr(module.datasets, "training_prompts", lambda: PRACTICE)
    monkeypatch.setattr(module.datasets, "preferences", lambda: WRITTEN)
    tried = types.SimpleNamespace(sft=moved(dtype=torch.float32, config=LONG), judge=judge(5, torch.float32, LONG), judged=[], started=[])

    def card(policy, reference, reward_model, words, seed):
        assert same(reference.state_dict(), tried.sft) and reward_model is tried.judge
        tried.judged.append((copy.deepcopy(policy), seed))
        return dict(gold=[1.0, 1.0, 1.0, 4.0], answers=["a b", "a b c"])

    monkeypatch.setattr(module, "sft_model", lambda *asked: (tried.sft, {}))
    monkeypatch.setattr(module, "reward_model", lambda *asked: (tried.judge, {}))
    monkeypatch.setattr(module, "start_scorecard", lambda *asked: tried.started.append(asked) or dict(gold=[0.0, 1.0, 2.0, 3.0], answers=["x y z", "x y"]))
    monkeypatch.setattr(module, "scorecard", card)
    return tried


def pool_of(tried, seed=3, prompts=PRACTICE):
    return draw_pool(tried.sft, tried.judge, prompts, module.SAMPLES, module.lexicon(CORPUS), seed)


def test_each_round_draws_from_the_last_rounds_policy_its_reference(tried):
    before = copy.deepcopy(tried.sft)
    history = pairs_trial(CORPUS, replace(TRIAL, rounds=3))
    policy, words = copy.deepcopy(tried.sft), module.lexicon(CORPUS)
    for round_, noted in enumerate(history["rounds"]):
        pool = draw_pool(policy, tried.judge, PRACTICE, 4, words, 3 + 1000 * round_)
        pairs = token_pairs(pool, pick_extremes(pool, "reward"))
        reference = copy.deepcopy(policy)
        steps = list(dpo_steps(policy, reference, pairs, dpo_config(TRIAL)))
        assert noted["loss"] == [steps[0]["loss"], steps[-1]["loss"]] and noted["pairs"] == len(pairs) > 0
        assert noted["loss"][0] == pytest.approx(math.log(2), abs=1e-5)
        assert {name: noted[name] for name in describe(pool)} == describe(pool)
        assert same(policy.state_dict(), tried.judged[round_][0])
    assert len(history["rounds"]) == 3 and same(before.state_dict(), tried.sft)


def test_cards_are_the_sft_models_and_one_a_round_won_against_it(tried):
    history = pairs_trial(CORPUS, replace(TRIAL, rounds=2))
    first, *others = history["cards"]
    assert "win_rate" not in first and first["distinct"] == distinct_n(["x y z", "x y"], 2)
    assert [card["win_rate"] for card in others] == [2.5 / 4] * 2 and tried.started == [(CORPUS, 3)]
    assert all(card["distinct"] == distinct_n(["a b", "a b c"], 2) for card in others)
    assert [seed for _, seed in tried.judged] == [3, 3]


def test_the_policy_learns_the_flipped_labels_and_is_asked_for_the_true_ones(tried):
    pool, trial = pool_of(tried), replace(TRIAL, flipped=1.0, steps=12)
    pairs = clean_pairs(pool, trial, LONG.context)
    policy, by_hand = copy.deepcopy(tried.sft), copy.deepcopy(tried.sft)
    noted = learn(policy, pool, trial)
    steps = list(dpo_steps(by_hand, tried.sft, flip(pairs, 1.0, 3), dpo_config(trial)))
    assert same(by_hand.state_dict(), policy) and steps[-1]["accuracy"] == 1.0 and noted["ranked"] == 0.0 and noted["obeyed"] == 1.0
    plain = learn(copy.deepcopy(tried.sft), pool, replace(trial, flipped=0.0))
    assert plain["ranked"] == plain["obeyed"] == 1.0
    assert dpo_config(replace(trial, label_smoothing=0.2)).label_smoothing == 0.2


def test_pairs_are_the_extremes_or_any_or_the_written_ones(tried):
    pool = pool_of(tried)
    for name in ("reward", "gold"):
        trial = replace(TRIAL, judge=name)
        assert clean_pairs(pool, trial, 160) == token_pairs(pool, pick_extremes(pool, name))
    assert clean_pairs(pool, replace(TRIAL, pairs=3), 160) == token_pairs(pool, any_two(pool, "reward", 3, 3))
    assert clean_pairs(None, TRIAL, 160) == encode_pairs(WRITTEN, TOKENIZER, 160)


@pytest.mark.parametrize("method", ["best", "any"])
def test_imitation_is_of_the_best_or_of_the_control(tried, method):
    pool, policy, by_hand = pool_of(tried), copy.deepcopy(tried.sft), copy.deepcopy(tried.sft)
    noted = learn(policy, pool, replace(TRIAL, method=method))
    choice = keep_best(pool, "reward") if method == "best" else keep_any(pool, 3)
    losses = list(imitate(by_hand, pool, choice, imitation(3)))
    assert same(by_hand.state_dict(), policy) and noted == dict(pairs=4, loss=[losses[0].item(), losses[-1].item()])


def test_a_setting_that_is_not_known_is_named(tried):
    with pytest.raises(ValueError, match="method is 'ppo': use 'dpo', 'best' or 'any'"):
        learn(tried.sft, pool_of(tried), replace(TRIAL, method="ppo"))
    with pytest.raises(ValueError, match="prompts is 'all': use 'practice' or 'pairs'"):
        pairs_trial(CORPUS, replace(TRIAL, prompts="all"))


def test_the_first_answers_are_drawn_once_and_found_again_as_they_were(tried, monkeypatch):
    drawn = start_pool(CORPUS, PRACTICE, 3)
    monkeypatch.setattr(module, "draw_pool", lambda *_: pytest.fail("drawn again"))
    found, by_hand = start_pool(CORPUS, PRACTICE, 3), pool_of(tried)
    for pool in (drawn, found):
        assert pool.answers == by_hand.answers and pool.prompts == PRACTICE and torch.equal(pool.usable, by_hand.usable)
        assert all(torch.equal(pool.scores[name], by_hand.scores[name]) for name in ("reward", "gold"))


def test_a_trial_runs_once_and_again_where_anything_about_it_changes(tried):
    for trial in (TRIAL, TRIAL, replace(TRIAL, seed=0), replace(TRIAL, prompts="pairs"), replace(TRIAL, written=True), replace(TRIAL, steps=1)):
        pairs_trial(CORPUS, trial)
    assert len(tried.judged) == 5
    written = pairs_trial(CORPUS, replace(TRIAL, written=True))["rounds"][0]
    assert written["pairs"] == 2 and "usable" not in written and len(tried.judged) == 5


def test_trials_run_group_by_group_one_per_seed(monkeypatch):
    monkeypatch.setattr(module, "base_model", lambda corpus: None)
    monkeypatch.setattr(module.workers, "run_groups", lambda function, groups, progress: (function, groups))
    function, groups = pairs_trials(CORPUS, dict(a=TRIAL, b=replace(TRIAL, judge="gold")), 2)
    assert function is pairs_trial and [trial.seed for _, trial in groups["a"]] == [0, 1]
    assert [trial.judge for _, trial in groups["b"]] == ["gold", "gold"]
