"""Best of n: the choice by hand, its KL by the definition, and its trials, stored."""

import copy
import math

import pytest
import torch
from tiny import LONG, TOKENIZER, judge, moved, user

from posttrain.best_of_n import (
    best_of_n,
    best_of_n_kl,
    draw_answers,
)
from posttrain.chat import render_prompt
from posttrain.logprobs import pack
from posttrain.reward_model import sample_answers

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


def test_choosing_changes_neither_model():
    policy, reward_model = moved(config=LONG), judge(config=LONG)
    before = copy.deepcopy((policy.state_dict(), reward_model.state_dict()))
    best_of_n(draw_answers(policy, reward_model, PROMPTS, 2, seed=0), 2)
    for kept, model in zip(before, (policy, reward_model)):
        assert all(
            torch.equal(value, model.state_dict()[name]) for name, value in kept.items()
        )
