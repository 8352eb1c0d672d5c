"""Rejection sampling and its control: what is kept, how evenly, and what it is trained
on.
"""

import copy
from collections import Counter

import torch
from test_synthetic_pairs import SMALL, encoded
from tiny import LONG, PAD, TOKENIZER, moved, same

from posttrain.chat import IGNORE, collate
from posttrain.lab.rejection_sampling import (
    as_examples,
    imitate,
    imitation,
    keep_any,
    keep_best,
)
from posttrain.sft import sft_loss, sft_steps


def test_the_best_usable_answer_is_kept_of_each_prompt_that_has_one():
    assert keep_best(SMALL, "reward") == [(0, 1), (1, 2), (2, 0), (3, 2)]
    assert keep_best(SMALL, "gold") == [(0, 2), (1, 0), (2, 0), (3, 2)]
    SMALL.usable[3, 2] = False
    try:
        assert keep_best(SMALL, "reward") == [(0, 1), (1, 2), (2, 0)]
        assert [row for row, _ in keep_any(SMALL, 0)] == [0, 1, 2]
    finally:
        SMALL.usable[3, 2] = True


def test_the_control_keeps_as_many_answers_per_prompt_all_equally_likely():
    drawn = Counter(choice for seed in range(600) for choice in keep_any(SMALL, seed))
    allowed = {
        (i, j): int(SMALL.usable[i].sum())
        for i in range(4)
        for j in range(3)
        if SMALL.usable[i, j]
    }
    assert set(drawn) == set(allowed)
    for choice, n in allowed.items():
        assert abs(drawn[choice] - 600 / n) <= 4 * (600 / n * (1 - 1 / n)) ** 0.5
    assert keep_any(SMALL, 3) == keep_any(SMALL, 3)
    assert [row for row, _ in keep_any(SMALL, 3)] == [
        row for row, _ in keep_best(SMALL, "reward")
    ]


def test_what_is_imitated_is_the_answer_with_its_end_and_not_the_prompt():
    ((tokens, labels), *_) = as_examples(SMALL, keep_best(SMALL, "reward"))
    answer = encoded("B.")
    assert tokens[-len(answer) :] == labels[-len(answer) :] == answer
    assert set(labels[: -len(answer)]) == {IGNORE} and TOKENIZER.decode(
        tokens
    ).startswith("<|user|>Who?")


def test_imitation_is_fine_tuning_on_the_chosen_answers_alone():
    policy, config = moved(dtype=torch.float32, config=LONG), imitation(seed=3)
    by_hand, choice = copy.deepcopy(policy), keep_best(SMALL, "reward")
    losses = [noted["loss"] for noted in imitate(policy, SMALL, choice, config)]
    examples = as_examples(SMALL, choice)
    assert losses == [
        noted["loss"]
        for noted in sft_steps(by_hand, examples, torch.empty(0).long(), config, PAD)
    ]
    assert (
        len(losses) == config.steps
        and config.replay == 0
        and same(by_hand.state_dict(), policy)
    )
    tokens, labels = collate(examples, PAD)
    start = sft_loss(moved(dtype=torch.float32, config=LONG)(tokens), labels).item()
    assert losses[-1] < start - 0.5
