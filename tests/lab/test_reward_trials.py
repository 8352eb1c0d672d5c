"""Reward models on trial: judged pairs, slips of labellers, and what a trial trains
on.
"""

import copy
import random
from dataclasses import replace

import pytest
import torch
from tiny import CORPUS, judge, moved, pair, stored

from posttrain.lab import reward_trials as module
from posttrain.lab.reward_trials import (
    RewardTrial,
    accuracy,
    judge_pairs,
    pairs_for,
    reward_trial,
    some_pairs,
    with_flipped_labels,
)
from posttrain.reward_model import RewardConfig, score_answer, train_reward_model

NAMES = ["Ann", "Ben", "Carl", "Dora", "Eve"]
PAIRS = [
    pair(f"r{i}", "Who?", f"I, {name}.", f"Not {name}") for i, name in enumerate(NAMES)
]
HELDOUT = [
    pair("v1", "Where is he?", "At sea, my lord.", "At"),
    pair("v2", "Why", "No.", "No, no, no"),
    pair("v3", "Say", "Ay.", "Aye"),
]
TINY = RewardConfig(steps=2, batch_size=2, lr=0.01)


# Judging pairs


def test_a_pairs_scores_are_those_of_its_two_answers_one_by_one():
    model = judge()
    scores = judge_pairs(model, HELDOUT)
    assert list(scores) == ["chosen", "rejected"]
    for side in scores:
        alone = [score_answer(model, pair["prompt"], pair[side]) for pair in HELDOUT]
        assert scores[side] == pytest.approx(alone, abs=1e-10) and len(set(alone)) == 3


def test_accuracy_is_the_share_ranked_right_and_a_tie_is_not():
    assert (
        accuracy(dict(chosen=[1.0, 2.0, 3.0, -1.0], rejected=[0.0, 2.0, 4.0, -2.0]))
        == 0.5
    )
    assert accuracy(dict(chosen=[1.0], rejected=[0.5])) == 1.0
    assert accuracy(dict(chosen=[1.0, 0.0], rejected=[1.0, 0.0])) == 0.0


# Drawing and spoiling pairs


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_some_pairs_are_drawn_none_twice_and_by_seed_alone(n):
    random.seed(1)
    drawn = some_pairs(PAIRS, n, seed=4)
    assert len(drawn) == len({pair["id"] for pair in drawn}) == n and all(
        pair in PAIRS for pair in drawn
    )
    random.seed(2)
    assert some_pairs(PAIRS, n, seed=4) == drawn
    assert n == 0 or any(some_pairs(PAIRS, n, seed) != drawn for seed in range(4))


def test_more_pairs_than_there_are_cannot_be_drawn():
    with pytest.raises(ValueError):
        some_pairs(PAIRS, 6, seed=0)


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_exactly_so_many_labels_are_flipped_and_nothing_else_changes(n):
    before = copy.deepcopy(PAIRS)
    spoilt = with_flipped_labels(PAIRS, n, seed=1)
    assert PAIRS == before
    flipped = [new for old, new in zip(PAIRS, spoilt, strict=True) if new != old]
    assert len(flipped) == n
    for old, new in zip(PAIRS, spoilt):
        assert new in (
            old,
            pair(old["id"], old["prompt"], old["rejected"], old["chosen"]),
        )
    assert with_flipped_labels(PAIRS, n, seed=1) == spoilt
    assert n in (0, 5) or any(
        with_flipped_labels(PAIRS, n, seed) != spoilt for seed in range(5)
    )


def test_a_flipped_pair_keeps_all_its_other_fields():
    (spoilt,) = with_flipped_labels([dict(PAIRS[0], kind="rude")], 1, seed=0)
    assert spoilt == dict(
        id="r0", prompt="Who?", chosen="Not Ann", rejected="I, Ann.", kind="rude"
    )


# A trial


@pytest.fixture
def starts(monkeypatch):
    """A tiny model to start from, few pairs, and the starts that were asked for."""
    find, asked = stored(moved(dtype=torch.float32))
    monkeypatch.setattr(module, "starting_point", lambda *given: find(*given)[0])
    rows = dict(
        heldout_preferences=HELDOUT,
        heldout_elsewhere_preferences=HELDOUT[:1],
        preferences=PAIRS,
        elsewhere_preferences=PAIRS[::-1],
    )
    for name, some in rows.items():
        monkeypatch.setattr(module.datasets, name, lambda some=some: some)
    return asked


TRIAL = RewardTrial(replace(TINY, seed=9), n=5)


@pytest.mark.parametrize("start, seed", [("base", 0), ("sft", 3)])
def test_a_trials_history_is_the_trainings_with_the_heldout_scores(starts, start, seed):
    history = reward_trial(CORPUS, replace(TRIAL, start=start), seed)
    config = replace(TINY, seed=seed)
    model, expected = train_reward_model(moved(dtype=torch.float32), PAIRS, config)
    assert starts == [(CORPUS, start, seed)]
    scores = judge_pairs(model, HELDOUT)
    assert history.pop("seconds") > 0 and expected.pop("seconds") > 0
    others = judge_pairs(model, HELDOUT[:1])
    assert history == expected | scores | dict(
        heldout_accuracy=accuracy(scores),
        elsewhere=others,
        elsewhere_accuracy=accuracy(others),
    )


def test_a_trial_trains_on_the_pairs_that_it_names(starts):
    assert pairs_for(TRIAL, 1) == PAIRS
    assert pairs_for(replace(TRIAL, pairs="elsewhere"), 1) == PAIRS[::-1]
    some = some_pairs(PAIRS, 3, 1)
    assert (
        pairs_for(replace(TRIAL, n=3), 1) == some != pairs_for(replace(TRIAL, n=3), 2)
    )
    spoilt = pairs_for(replace(TRIAL, n=3, flipped=2), 1)
    assert spoilt == with_flipped_labels(some, 2, 1) != some
    with pytest.raises(ValueError, match="pairs is 'wide': use one of own, elsewhere"):
        pairs_for(replace(TRIAL, pairs="wide"), 0)
    # And these are what it learns from
    config, trial = replace(TINY, seed=1), replace(TRIAL, n=3, flipped=2)
    _, expected = train_reward_model(moved(dtype=torch.float32), spoilt, config)
    assert reward_trial(CORPUS, trial, 1)["train"] == expected["train"]
