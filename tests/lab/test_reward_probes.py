"""What is asked of a reward model: a count of words beside it, and by what its pairs
differ.
"""

import random

import pytest
from tiny import pair

from posttrain.lab.reward_probes import (
    accuracy_by,
    count_accuracy,
    count_of,
    word_votes,
)
from posttrain.tokenizer import END

COUNTED = [
    pair("a", "Who?", "Kind sir, kind, kind sir. The end.", "The dog."),
    pair("b", "Say", "Good SIR, the end?", "Dog! Dog, end the dog's day."),
    pair("c", "Why", "Kind", "Good"),
]
# Worked out by hand: kind 2, sir 2, the -0, end 1, dog -2, good 0, dog's -1, day -1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Kind.", 2),
        ("Kind kind, KIND", 2),  # once for each different word
        ("Kind sir", 4),
        ("The sir", 2),  # as often chosen as rejected
        ("Good", 0),
        ("Dog", -2),
        ("Dog's day", -2),  # each a word of its own, and neither is "dog"
        ("Kind dog, the end", 1),
        ("Kindly", 0),  # in no pair
        ("end", 1),
        ("", 0),
    ],
)
def test_a_count_of_words_is_the_one_made_by_hand(answer, expected):
    votes = word_votes(COUNTED)
    # The sign of the end is no word
    assert count_of(answer, votes) == count_of(answer + END, votes) == expected


def test_counts_are_those_of_brute_force():
    chance = random.Random(0)
    words = ["kind", "sir", "dog", "the", "end", "day", "good", "o"]

    def said(n):
        return " ".join(chance.choices(words, k=n))

    pairs = [pair(str(i), "Who?", said(4), said(4)) for i in range(7)]
    texts = [[said(5) for _ in range(4)] for _ in range(6)]
    expected = [
        [
            sum(
                (word in row["chosen"].split()) - (word in row["rejected"].split())
                for row in pairs
                for word in words
                if word in text.split()
            )
            for text in texts_of_a_prompt
        ]
        for texts_of_a_prompt in texts
    ]
    votes = word_votes(pairs)
    assert [[count_of(text, votes) for text in row] for row in texts] == expected
    assert len({count for row in expected for count in row}) > 5


def test_a_count_ranks_pairs_and_a_tie_is_half():
    heldout = [
        pair("u", "Who?", "Kind sir", "Dog"),
        pair("v", "Who?", "Dog", "End"),
        pair("w", "Who?", "Hm", "Oh"),
        pair("x", "Who?", "Sir", "Kindly"),
    ]
    assert count_accuracy(COUNTED, heldout) == 2.5 / 4


def test_accuracy_is_told_apart_by_a_field_of_the_pairs():
    run = dict(chosen=[1.0, 0.0, 2.0, 0.5], rejected=[0.0, 1.0, 2.0, 0.0])
    grounds = ("manner", "manner", "finished", "to the point")
    heldout = [dict(ground=ground) for ground in grounds]
    assert accuracy_by("ground", run, heldout) == {
        "manner": 0.5,
        "finished": 0.0,
        "to the point": 1.0,
    }
