"""Pairs of a policy's own answers: against brute force, and evenly drawn."""

import itertools
from collections import Counter

import pytest
import torch
from tiny import CORPUS, END, LONG, TOKENIZER, judge, moved

from posttrain.best_of_n import draw_answers
from posttrain.data.synthetic_pairs import (
    Pick,
    Pool,
    any_two,
    best_and_worst,
    draw_pool,
    flip,
    judged_by,
    judgements,
    pair_rows,
    pick_extremes,
    token_pairs,
)
from posttrain.evaluate import answered, gold_score
from posttrain.lab.scorecard import lexicon
from posttrain.preference_pairs import encode_pairs

PROMPTS = ["Who?", "Where is he?", "Say", "Go"]


def encoded(text):
    return [*TOKENIZER.encode(text), END]


def pool_of(texts, reward, gold=None, cut=()):
    """A pool by hand; cut: the places of answers without their end."""
    answers = [
        [encoded(text)[: -1 if (i, j) in cut else None] for j, text in enumerate(row)]
        for i, row in enumerate(texts)
    ]
    usable = torch.tensor(
        [[(i, j) not in cut for j in range(len(row))] for i, row in enumerate(texts)]
    )
    scores = dict(reward=torch.tensor(reward), gold=torch.tensor(gold or reward))
    return Pool(PROMPTS[: len(texts)], answers, usable, scores)


SMALL = pool_of(
    [["A.", "B.", "C."], ["D.", "D.", "D."], ["E.", "F.", "G."], ["H.", "I.", "J."]],
    [[0.5, 2.0, -1.0], [1.0, 1.0, 1.1], [3.0, 1.0, 2.0], [5.0, 1.0, 4.0]],
    [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
    cut={(2, 1), (3, 0), (3, 1)},
)


def by_force(scores, usable, leave_out):
    """The best and the worst place of one row, by looking at them in turn."""
    rank = [score if kept else -float("inf") for score, kept in zip(scores, usable)]
    places = [i for i in range(len(rank)) if usable[i] or not leave_out]
    if not any(usable):
        return -1, -1
    best, worst = (
        max(places, key=lambda i: (rank[i], -i)),
        min(places, key=lambda i: (rank[i], i)),
    )
    return (best, worst) if rank[best] > rank[worst] else (-1, -1)


@pytest.mark.parametrize("leave_out", [False, True])
def test_best_and_worst_are_those_that_brute_force_finds_in_every_small_case(leave_out):
    rows = list(
        itertools.product(
            itertools.product([0.0, 1.0, 2.0], repeat=3),
            itertools.product([False, True], repeat=3),
        )
    )
    scores, usable = (
        torch.tensor([row[0] for row in rows]),
        torch.tensor([row[1] for row in rows]),
    )
    best, worst = best_and_worst(scores, usable, leave_out)
    assert list(zip(best.tolist(), worst.tolist())) == [
        by_force(*row, leave_out) for row in rows
    ]


def test_an_answer_without_its_end_loses_and_no_text_is_preferred_to_itself():
    # The second prompt's answers are one text; the third's cut answer scores least, the
    # fourth's most
    assert pick_extremes(SMALL, "reward") == [
        Pick(0, 1, 2),
        Pick(2, 0, 1),
        Pick(3, 2, 0),
    ]
    assert pick_extremes(SMALL, "reward", leave_out=True) == [
        Pick(0, 1, 2),
        Pick(2, 0, 2),
    ]
    assert pick_extremes(SMALL, "gold", leave_out=True) == [Pick(0, 2, 0)]


def test_any_two_are_all_pairs_told_apart_each_once_and_evenly_drawn():
    possible = {Pick(0, 1, 0), Pick(0, 1, 2), Pick(0, 0, 2), Pick(2, 0, 2)}
    assert set(any_two(SMALL, "reward", 4, seed=0)) == possible
    drawn = Counter(
        pick for seed in range(400) for pick in any_two(SMALL, "reward", 2, seed)
    )
    assert set(drawn) == possible and sum(drawn.values()) == 800
    assert all(abs(count - 200) < 4 * (400 * 0.25) ** 0.5 for count in drawn.values())
    with pytest.raises(ValueError, match="tells 4 pairs apart, not 5: draw more"):
        any_two(SMALL, "reward", 5, seed=0)


def test_a_pool_is_what_the_policy_says_and_what_each_judge_says_of_it():
    policy, reward_model, words = (
        moved(dtype=torch.float32, config=LONG),
        judge(5, torch.float32, LONG),
        lexicon(CORPUS),
    )
    pool = draw_pool(policy, reward_model, PROMPTS, 3, words, seed=2, temperature=0.7)
    answers, scores = draw_answers(policy, reward_model, PROMPTS, 3, 2, 0.7)
    assert (
        pool.answers == answers
        and torch.equal(pool.scores["reward"], scores)
        and pool.prompts == PROMPTS
    )
    for row, place in itertools.product(range(4), range(3)):
        text = TOKENIZER.decode(answers[row][place])
        assert bool(pool.usable[row, place]) == answered(text)
        assert pool.scores["gold"][row, place].item() == pytest.approx(
            gold_score(text, words)
        )
    for prompts, n in ((PROMPTS, 0), ([], 2)):
        with pytest.raises(ValueError, match="ask for 1"):
            draw_pool(policy, reward_model, prompts, n, words, 0)


def test_a_row_of_a_file_becomes_the_very_tokens_that_were_drawn():
    picks = pick_extremes(SMALL, "reward", leave_out=True)
    rows = [dict(row, id=str(i)) for i, row in enumerate(pair_rows(SMALL, picks))]
    assert [row["chosen"] for row in rows] == ["B.", "E."]
    assert encode_pairs(rows, TOKENIZER, 64) == token_pairs(SMALL, picks)
    assert all(
        END in chosen and END in rejected
        for _, chosen, rejected in token_pairs(SMALL, picks)
    )


def test_a_cut_answer_keeps_its_tokens_and_is_refused_for_a_file():
    picks = pick_extremes(SMALL, "reward")
    assert token_pairs(SMALL, picks)[1][2] == TOKENIZER.encode("F.")
    with pytest.raises(ValueError, match="has no end: a file cannot hold it"):
        pair_rows(SMALL, picks)


def test_judgements_are_both_judges_of_both_answers():
    assert judgements(SMALL, Pick(0, 1, 2)) == dict(reward=[2.0, -1.0], gold=[0.0, 1.0])


def test_a_judge_must_be_known_and_its_scores_numbers():
    with pytest.raises(ValueError, match="judge is 'people': use one of reward, gold"):
        judged_by(SMALL, "people")
    with pytest.raises(ValueError, match="by reward is NaN"):
        judged_by(pool_of([["A.", "B."]], [[float("nan"), 1.0]]), "reward")


PAIRS = [([1], [2, i], [3, i]) for i in range(10)]


@pytest.mark.parametrize(
    ("share", "n"), [(0.0, 0), (0.04, 0), (0.2, 2), (0.25, 2), (0.4, 4), (1.0, 10)]
)
def test_exactly_that_share_of_the_labels_is_turned_round_and_the_others_stay(share, n):
    turned = flip(PAIRS, share, seed=1)
    changed = [i for i in range(10) if turned[i] != PAIRS[i]]
    assert len(changed) == n and all(
        turned[i] == (PAIRS[i][0], PAIRS[i][2], PAIRS[i][1]) for i in changed
    )
    assert flip(PAIRS, share, seed=1) == turned


def test_every_pair_is_as_likely_to_be_turned_round():
    hits = Counter(
        i
        for seed in range(400)
        for i, row in enumerate(flip(PAIRS, 0.3, seed))
        if row != PAIRS[i]
    )
    assert sum(hits.values()) == 1200 and all(
        abs(hits[i] - 120) < 4 * (400 * 0.3 * 0.7) ** 0.5 for i in range(10)
    )
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="use a number from 0 to 1"):
            flip(PAIRS, share, 0)
