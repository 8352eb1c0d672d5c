"""The task that a program checks: words, questions, the checker, and pass@k."""

import itertools
import math

import pytest
import torch
from tiny import moved

from posttrain.chat import render
from posttrain.checked.task import (
    Checker,
    answer_words,
    count_right,
    exact,
    find_words,
    letters_agree,
    pass_at_k,
    question_of,
    worked,
)
from posttrain.logprobs import pack
from posttrain.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()


def letters(i: int) -> str:
    """A word of three letters, another for each i below 26 ** 3."""
    return "".join(chr(97 + i // 26**place % 26) for place in range(3))


TEXT = " ".join(2 * [letters(i) for i in range(60)]) + " once seen, It's its' caesar"


def rows(*pairs):
    prompts = [render([dict(role="user", content=q)], TOKENIZER) for q, _ in pairs]
    said = [
        TOKENIZER.encode(a.removesuffix("<|end|>"))
        + [TOKENIZER.end] * a.endswith("<|end|>")
        for _, a in pairs
    ]
    tokens, mask = pack(prompts, said, TOKENIZER.pad)
    return tokens, mask


def test_the_words_of_a_text_go_into_three_sets_that_share_none():
    found = find_words(TEXT, examples=20, heldout=10)
    sets = [found.examples, found.practice, found.heldout]
    assert [len(each) for each in sets] == [20, 30, 10]
    together = list(itertools.chain(*sets))
    # Not what stands once, is too long, or has a capital or an apostrophe
    assert sorted(together) == sorted(letters(i) for i in range(60))
    assert find_words(TEXT, 20, 10) == found != find_words(TEXT, 20, 10, seed=2)


def test_too_few_words_are_refused_with_their_number():
    with pytest.raises(ValueError, match="has 60 words to spell, and 70 are asked"):
        find_words(TEXT, examples=50, heldout=20)


def test_worked_examples_are_conversations_with_the_right_answer():
    (row,) = worked(["bridge"])
    assert [m["content"] for m in row["messages"]] == [question_of("bridge"), "egdirb"]
    assert row["id"] == "bridge"


@pytest.mark.parametrize(
    "answer, strict, holed",
    [
        ("egdirb<|end|>", 1, 1),
        ("egdirb", 0, 0),  # not ended
        ("egdir<|end|>", 0, 1),
        ("e<|end|>", 0, 1),
        ("<|end|>", 0, 1),
        ("egdirbs<|end|>", 0, 1),
        ("egdxrb<|end|>", 0, 0),
        ("bridge<|end|>", 0, 0),
    ],
)
def test_the_checker_reads_question_and_answer_and_one_rule_has_a_hole(
    answer, strict, holed
):
    tokens, mask = rows(
        (question_of("bridge"), answer), (question_of("an"), "na<|end|>")
    )
    assert Checker(exact)(tokens, mask).tolist() == [strict, 1]
    assert Checker(letters_agree)(tokens, mask).tolist() == [holed, 1]


def test_the_same_answer_is_right_after_one_question_and_wrong_after_another():
    tokens, mask = rows(
        (question_of("star"), "rats<|end|>"), (question_of("rats"), "rats<|end|>")
    )
    assert Checker()(tokens, mask).tolist() == [1, 0]


def test_another_question_is_refused():
    with pytest.raises(ValueError, match="asks for no word"):
        Checker()(*rows(("Who goes there?", "I<|end|>")))


def test_answers_come_by_word_and_are_counted_where_right_and_ended():
    model = moved()
    answers = answer_words(model, ["star", "an"], n=3)
    assert [len(each) for each in answers] == [3, 3]
    assert answers == answer_words(model, ["star", "an"], n=3)
    assert answers != answer_words(model, ["star", "an"], n=3, seed=1)
    same = answer_words(model, ["star"], n=2, temperature=0)
    assert same[0][0] == same[0][1]
    said = [["rats<|end|>", "rats", "star<|end|>"], ["na<|end|>", "na<|end|>", "n"]]
    assert count_right(said, ["star", "an"]) == [1, 2]


@pytest.mark.parametrize("n, right", [(5, 0), (5, 1), (5, 3), (5, 5), (1, 1)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_with_a_right_one(n, right):
    answers = [True] * right + [False] * (n - right)
    for k in range(1, n + 1):
        chosen = list(itertools.combinations(answers, k))
        share = sum(map(any, chosen)) / len(chosen)
        assert math.isclose(pass_at_k(n, right, k), share)


@pytest.mark.parametrize("k", [0, 6])
def test_pass_at_k_beyond_the_answers_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}: use 1 to 5"):
        pass_at_k(5, 1, k)


def test_a_checker_has_nothing_to_learn():
    assert not list(Checker().parameters()) and torch.is_tensor(
        Checker()(*rows((question_of("an"), "na<|end|>")))
    )
