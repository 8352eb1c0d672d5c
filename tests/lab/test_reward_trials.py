"""Reward models on trial: judged pairs, slips of labellers, and the order of the runs."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from tiny import CORPUS, empty_shelf, judge, moved, pair, stored

from posttrain.lab import reward_trials as module
from posttrain.lab.reward_trials import (
    accuracy,
    judge_pairs,
    reward_trial,
    reward_trials,
    some_pairs,
    with_flipped_labels,
)
from posttrain.reward_model import RewardConfig, score_answer, train_reward_model

NAMES = ["Ann", "Ben", "Carl", "Dora", "Eve"]
PAIRS = [pair(f"r{i}", "Who?", f"I, {name}.", f"Not {name}") for i, name in enumerate(NAMES)]
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
    assert accuracy(dict(chosen=[1.0, 2.0, 3.0, -1.0], rejected=[0.0, 2.0, 4.0, -2.0])) == 0.5
    assert accuracy(dict(chosen=[1.0], rejected=[0.5])) == 1.0
    assert accuracy(dict(chosen=[1.0, 0.0], rejected=[1.0, 0.0])) == 0.0


# Drawing and spoiling pairs


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_some_pairs_are_drawn_none_twice_and_by_seed_alone(n):
    random.seed(1)
    drawn = some_pairs(PAIRS, n, seed=4)
    assert len(drawn) == len({pair["id"] for pair in drawn}) == n and all(pair in PAIRS for pair in drawn)
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
        assert new in (old, pair(old["id"], old["prompt"], old["rejected"], old["chosen"]))
    assert with_flipped_labels(PAIRS, n, seed=1) == spoilt
    assert n in (0, 5) or any(with_flipped_labels(PAIRS, n, seed) != spoilt for seed in range(5))


def test_a_flipped_pair_keeps_all_its_other_fields():
    (spoilt,) = with_flipped_labels([dict(PAIRS[0], kind="rude")], 1, seed=0)
    assert spoilt == dict(id="r0", prompt="Who?", chosen="Not Ann", rejected="I, Ann.", kind="rude")


# A trial


@pytest.fixture
def starts(monkeypatch, tmp_path):
    """An empty stages folder, a tiny model to start from, three held-out pairs, and the starts that were asked for."""
    empty_shelf(monkeypatch, tmp_path)
    find, asked = stored(moved(dtype=torch.float32))
    monkeypatch.setattr(module, "starting_point", lambda *arguments: find(*arguments)[0])
    monkeypatch.setattr(module.datasets, "heldout_preferences", lambda: HELDOUT)
    return asked


def test_a_trials_history_is_the_trainings_with_the_heldout_scores(starts):
    history = reward_trial(CORPUS, TINY, "base", PAIRS)
    model, expected = train_reward_model(moved(dtype=torch.float32), PAIRS, TINY)
    assert starts == [(CORPUS, "base", TINY.seed)]
    scores = judge_pairs(model, HELDOUT)
    assert history.pop("seconds") > 0 and expected.pop("seconds") > 0
    assert history == expected | scores | dict(heldout_accuracy=accuracy(scores))


def test_a_trial_is_run_once_and_then_found_until_something_about_it_changes(starts, monkeypatch):
    def trained(corpus=CORPUS, config=TINY, start="sft", pairs=PAIRS):
        before = len(starts)
        histories.append(reward_trial(corpus, config, start, pairs))
        return len(starts) > before

    histories = []
    assert trained() and not trained() and histories[0] == histories[1]
    assert trained(start="base") and trained(pairs=PAIRS[:4]) and trained(config=replace(TINY, seed=1))
    assert trained(corpus=replace(CORPUS, sha256="1" * 64))
    monkeypatch.setattr(module.datasets, "heldout_preferences", lambda: HELDOUT[:2])
    assert trained() and len(histories[-1]["chosen"]) == 2
    monkeypatch.setattr(module.datasets, "conversations", lambda: [1])
    assert trained() and not trained()
    for name in ("SFTConfig", "PretrainConfig"):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda plain=plain, **changes: replace(plain(**changes), steps=7))
        assert trained() and not trained()


def test_the_books_own_setting_is_not_trained_again_and_keeps_its_scores(starts, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "reward_model", lambda *given: asked.append(given) or (judge(), dict(train=[0.5])))
    monkeypatch.setattr(module.datasets, "preferences", lambda: PAIRS)
    found = judge()
    raw = {side: [score * 1.5 + 0.25 for score in scores] for side, scores in judge_pairs(found, HELDOUT).items()}
    history = reward_trial(CORPUS, TINY, "sft", PAIRS)
    for side in raw:
        assert history[side] == pytest.approx(raw[side], abs=1e-9)
    assert history["train"] == [0.5] and asked == [(CORPUS, TINY)]
    # Any other start or pairs are trained
    assert "seconds" in reward_trial(CORPUS, TINY, "base", PAIRS)
    assert "seconds" in reward_trial(CORPUS, TINY, "sft", PAIRS[:4]) and len(asked) == 1


def test_each_setting_gets_its_runs_back_in_order_with_seeds_counted_from_0(monkeypatch):
    found = []

    def run_all(function, jobs, progress):
        assert function is reward_trial and found == [CORPUS]
        return [(corpus.source, config, start, pairs) for corpus, config, start, pairs in progress(jobs, total=len(jobs))]

    monkeypatch.setattr(module, "base_model", found.append)
    monkeypatch.setattr(module.workers, "run_all", run_all)
    other = replace(TINY, lr=0.02)
    settings = {
        "b": [(replace(TINY, seed=9), "sft", ["x"]), (other, "base", ["y"])],
        "none": [],
        "a": [(TINY, "sft", ["z"])],
    }
    histories = reward_trials(CORPUS, settings, progress=lambda done, total: list(done)[:total])
    assert list(histories) == ["b", "none", "a"]
    assert histories == {
        "b": [("test", replace(TINY, seed=0), "sft", ["x"]), ("test", replace(other, seed=1), "base", ["y"])],
        "none": [],
        "a": [("test", replace(TINY, seed=0), "sft", ["z"])],
    }
