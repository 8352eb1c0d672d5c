"""The trial of GRPO on checked rewards, with a model that knows nothing."""

from dataclasses import replace

import pytest
import torch
from tiny import CORPUS, moved

from posttrain.checked.grpo import Choices
from posttrain.checked.task import Words
from posttrain.lab import checked_trials as trials

WORDS = Words(["star"], ["an", "bridge", "sea", "oak"], ["moon", "to"])
SHORT = trials.CheckedTrial(
    grpo=trials.checked_ppo(iterations=3, batch_size=16, group=4, lr=1e-2),
    rule="letters agree",
)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(trials, "KS", (1, 2, 4))
    # Pay for what this model does now and then: the right answer is beyond it
    rules = trials.RULES | {"letters agree": lambda said, right: len(said) % 2 == 0}
    monkeypatch.setattr(trials, "RULES", rules)
    seeds = []

    def taught(corpus, config):
        seeds.append(config.seed)
        return moved(config.seed, torch.float32), WORDS

    monkeypatch.setattr(trials, "taught", taught)
    return seeds


def test_a_trial_notes_each_round_and_examines_before_and_after(small):
    found = trials.checked_trial(CORPUS, SHORT, 3)
    assert small == [3] and len(found["rounds"]) == 3
    for part in ("before", "after"):
        exam = found[part]
        assert [*exam["passed"]] == ["1", "2", "4"]
        assert len(exam["right"]) == len(exam["answers"]) == 2
        assert 1 <= exam["different"] <= 4 and 0 <= exam["ended"] <= 1
    assert found["before"] != found["after"]
    assert trials.checked_trial(CORPUS, SHORT, 3) == found
    assert trials.checked_trial(CORPUS, SHORT, 4)["rounds"] != found["rounds"]


def test_the_answers_that_are_tried_follow_the_seed_too(small, monkeypatch):
    same = moved(0, torch.float32)
    monkeypatch.setattr(trials, "taught", lambda corpus, config: (same, WORDS))
    one, other = (trials.checked_trial(CORPUS, SHORT, seed) for seed in (0, 1))
    assert one["rounds"] != other["rounds"] and one["before"] != other["before"]


def test_choices_and_rules_reach_the_run(small):
    first = trials.checked_trial(CORPUS, SHORT, 0)
    for changed in (
        replace(SHORT, choices=Choices(mean="fixed")),
        replace(SHORT, rule="exact"),
    ):
        other = trials.checked_trial(CORPUS, changed, 0)
        assert other["before"] == first["before"] and other != first
    strict = trials.checked_trial(CORPUS, replace(SHORT, rule="exact"), 0)
    assert strict["rounds"][0]["score"] < first["rounds"][0]["score"]


def test_the_exam_counts_right_answers(monkeypatch):
    monkeypatch.setattr(trials, "KS", (1, 2))
    said = {2: [["noom<|end|>", "noom"], ["ot<|end|>", "ot<|end|>"]]}
    said[1] = [["moon<|end|>"], ["ot<|end|>"]]

    def answer_words(model, words, n=1, temperature=1.0, seed=0):
        return said[n]

    monkeypatch.setattr(trials, "answer_words", answer_words)
    exam = trials.exam(None, WORDS.heldout, 0)
    assert exam["passed"] == {"1": 0.75, "2": 1.0} and exam["right"] == [0.5, 1.0]
    assert exam["greedy"] == 0.5 and exam["ended"] == 0.75
    assert exam["letters"] == 3.0 and exam["different"] == 1.5


def test_a_rule_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="rule is 'lenient': use one of"):
        trials.CheckedTrial(rule="lenient")
