"""Best of n: the choice by hand, its KL by the definition, and its trials, stored."""

import copy
import json
import math
import types
from dataclasses import replace

import pytest
import torch
from tiny import CORPUS, LONG, TOKENIZER, empty_shelf, judge, moved, stored, user

from posttrain import best_of_n as module
from posttrain.best_of_n import (
    SIZES,
    best_of_n,
    best_of_n_kl,
    best_of_n_trial,
    best_of_n_trials,
    draw_answers,
)
from posttrain.chat import render_prompt
from posttrain.evaluate import win_rate
from posttrain.lab.scorecard import judge_answers, lexicon
from posttrain.logprobs import pack
from posttrain.reward_model import RewardConfig, sample_answers
from posttrain.sft import SFTConfig

PROMPTS = ["Who?", "Where is the duke?", "Say"]


# Drawing and choosing


def test_n_answers_to_each_prompt_stand_in_its_row_with_their_scores():
    policy, reward_model = moved(config=LONG), judge(config=LONG)
    answers, scores = draw_answers(policy, reward_model, PROMPTS, 4, seed=1)
    assert (
        [len(row) for row in answers] == [4, 4, 4]
        and scores.shape == (3, 4)
        and not scores.requires_grad
    )
    flat = sample_answers(policy, [text for text in PROMPTS for _ in range(4)], 1)[1]
    assert [answer for row in answers for answer in row] == flat and len(
        set(map(tuple, flat))
    ) > 3
    for text, row, row_scores in zip(PROMPTS, answers, scores):
        asked = render_prompt([user(text)], TOKENIZER)
        for answer, score in zip(row, row_scores):
            alone = reward_model(*pack([asked], [answer], TOKENIZER.pad))
            assert score.item() == pytest.approx(alone.item(), abs=1e-10)


def test_seed_and_temperature_decide_what_is_drawn():
    policy, reward_model = moved(config=LONG), judge(config=LONG)

    def draw(*how):
        return draw_answers(policy, reward_model, PROMPTS, 2, *how)[0]

    assert (
        draw(1) == draw(1) == draw(1, 0.8)
        and draw(1) != draw(2)
        and draw(1) != draw(1, 0.4)
    )


def test_more_answers_than_one_part_holds_are_all_scored(monkeypatch):
    answers, scores = draw_answers(
        moved(config=LONG), judge(config=LONG), PROMPTS, 90, seed=0
    )
    assert scores.shape == (3, 90) and sum(map(len, answers)) == 270
    last = pack(
        [render_prompt([user("Say")], TOKENIZER)], [answers[2][89]], TOKENIZER.pad
    )
    assert scores[2, 89].item() == pytest.approx(
        judge(config=LONG)(*last).item(), abs=1e-10
    )


DRAWN = (
    [[[1], [2], [3], [4]], [[5], [6], [7], [8]]],
    torch.tensor([[0.0, 2.0, 1.0, 3.0], [4.0, 4.0, 5.0, -1.0]]),
)


@pytest.mark.parametrize(
    ("n", "answers", "scores"),
    [
        (1, [[1], [5]], [0.0, 4.0]),
        (2, [[2], [5]], [2.0, 4.0]),  # the first of equals
        (3, [[2], [7]], [2.0, 5.0]),
        (4, [[4], [7]], [3.0, 5.0]),
    ],
)
def test_the_best_of_the_first_n(n, answers, scores):
    best = best_of_n(DRAWN, n)
    assert best[0] == answers and best[1].tolist() == scores


@pytest.mark.parametrize("n", [0, -1, 5])
def test_of_four_answers_one_to_four_can_be_compared(n):
    with pytest.raises(
        ValueError, match=f"n is {n}: use 1 to 4, as many as were drawn"
    ):
        best_of_n(DRAWN, n)


# The KL


@pytest.mark.parametrize("n", [1, 2, 3, 16])
def test_the_kl_is_that_of_the_best_of_n_among_equally_likely_answers(n):
    # Of M equally likely answers, all different, the k-th worst is the best of n with
    # this probability
    M = 20_000
    chances = [((k + 1) / M) ** n - (k / M) ** n for k in range(M)]
    exact = sum(p * math.log(p * M) for p in chances if p > 0)
    assert best_of_n_kl(n) == pytest.approx(exact, abs=2e-3)
    assert best_of_n_kl(1) == 0


def test_it_is_an_upper_bound_where_answers_repeat():
    odds, n = [0.6, 0.3, 0.1], 4  # from worst to best
    below = [0.0, 0.6, 0.9, 1.0]
    best = [below[i + 1] ** n - below[i] ** n for i in range(3)]
    assert 0 < sum(p * math.log(p / q) for p, q in zip(best, odds)) < best_of_n_kl(n)


def test_the_kl_of_no_draw_is_refused():
    with pytest.raises(ValueError, match="n is 0: draw at least 1"):
        best_of_n_kl(0)


# Trials


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    empty_shelf(monkeypatch, tmp_path)
    sft, asked_sft = stored(moved(config=LONG))
    reward_model, asked_judge = stored(judge(config=LONG))
    monkeypatch.setattr(module, "sft_model", sft)
    monkeypatch.setattr(module, "reward_model", reward_model)
    monkeypatch.setattr(
        module, "start_scorecard", lambda corpus, seed: dict(gold=[0.1 * seed] * 3)
    )
    monkeypatch.setattr(module.datasets, "heldout_prompts", lambda: PROMPTS)
    return types.SimpleNamespace(asked_judge=asked_judge, asked_sft=asked_sft)


def test_a_trial_judges_the_best_of_each_n_of_one_draw(shelf):
    cards = best_of_n_trial(CORPUS, 3)
    assert shelf.asked_judge == [
        (CORPUS, RewardConfig(seed=3))
    ] and shelf.asked_sft == [(CORPUS, SFTConfig(seed=3))]
    assert [card["n"] for card in cards] == list(SIZES)
    drawn = draw_answers(moved(config=LONG), judge(config=LONG), PROMPTS, 16, 3)
    for card, n in zip(cards, SIZES):
        by_hand = judge_answers(*best_of_n(drawn, n), lexicon(CORPUS))
        won = win_rate(by_hand["gold"], [0.3] * 3)
        assert card == json.loads(
            json.dumps(by_hand | dict(n=n, kl=best_of_n_kl(n), win_rate=won))
        )
    assert [card["score"] for card in cards] == sorted(card["score"] for card in cards)


def test_a_trial_is_run_once_and_then_found_until_something_about_it_changes(
    shelf, monkeypatch
):
    def drawn(corpus=CORPUS, seed=0):
        before = len(shelf.asked_judge)
        best_of_n_trial(corpus, seed)
        return len(shelf.asked_judge) > before

    assert drawn() and not drawn()
    assert drawn(seed=1) and drawn(replace(CORPUS, sha256="1" * 64))
    for name in ("preferences", "training_prompts", "conversations"):
        fewer = getattr(module.datasets, name)()[:1]
        monkeypatch.setattr(module.datasets, name, lambda fewer=fewer: fewer)
        assert drawn() and not drawn()
    for name in ("RewardConfig", "SFTConfig", "PretrainConfig"):
        plain = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda plain=plain, **changes: replace(plain(**changes), steps=7),
        )
        assert drawn() and not drawn()
    monkeypatch.setattr(module.datasets, "heldout_prompts", lambda: PROMPTS[:1] * 3)
    assert drawn() and not drawn()


def test_trials_are_spread_by_seed_once_the_base_model_is_there(monkeypatch):
    found = []

    def run_all(function, jobs, progress):
        assert function is best_of_n_trial and found == [CORPUS]
        return [
            seed for corpus, seed in progress(jobs, total=len(jobs)) if corpus is CORPUS
        ]

    monkeypatch.setattr(module, "base_model", found.append)
    monkeypatch.setattr(module.workers, "run_all", run_all)
    assert best_of_n_trials(CORPUS, 3, lambda jobs, total: list(jobs)[:total]) == [
        0,
        1,
        2,
    ]


def test_choosing_changes_neither_model():
    policy, reward_model = moved(config=LONG), judge(config=LONG)
    before = copy.deepcopy((policy.state_dict(), reward_model.state_dict()))
    best_of_n(draw_answers(policy, reward_model, PROMPTS, 2, seed=0), 2)
    for kept, model in zip(before, (policy, reward_model)):
        assert all(
            torch.equal(value, model.state_dict()[name]) for name, value in kept.items()
        )
