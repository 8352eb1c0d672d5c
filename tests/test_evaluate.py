"""Judging by rules: what counts as an answer, finished, courteous or blunt."""

import pytest

from posttrain.data.corpus import Corpus
from posttrain.data.datasets import (
    conversations,
    elsewhere_preferences,
    heldout_conversations,
    heldout_elsewhere_preferences,
)
from posttrain.evaluate import (
    BLUNT,
    COURTEOUS,
    answered,
    distinct_n,
    echo_rate,
    finished,
    gold_parts,
    gold_score,
    manner,
    opens_a_speech,
    topic_words,
    win_rate,
    words_of,
)
from posttrain.lab.scorecard import lexicon


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Ay, my lord.<|end|>", True),
        ("Ay<|end|>", True),
        ("Ay, my lord.", False),
        ("<|end|>", False),
        (" \n<|end|>", False),
        ("", False),
        ("Ay.<|end|>Ay.", False),
        ("Ay.<|end|><|end|>", False),
        ("Ay. <|user|>No.<|end|>", False),
        ("<|assistant|>Ay.<|end|>", False),
        ("Ay.<|pad|><|end|>", False),
        ("Ay.<|end|>\n", False),
    ],
)
def test_an_answer_has_words_ends_once_and_holds_no_other_special_token(text, expected):
    assert answered(text) is expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Ay.<|end|>", True),
        ("Ay?<|end|>", True),
        ("Ay!<|end|>", True),
        ("Ay. \n<|end|>", True),
        ("Ay, my lo<|end|>", False),
        ("Ay,<|end|>", False),
        ("Ay:<|end|>", False),
        ("Ay --<|end|>", False),
        ("Ay.", False),
        ("<|end|>", False),
        ("Ay.<|user|>No.<|end|>", False),
    ],
)
def test_an_answer_is_finished_where_its_last_sentence_is(text, expected):
    assert finished(text) is expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Good sir, you are welcome.", 1),
        ("THANK you", 1),
        ("Away, FOOL!", -1),
        ("Fool.", -1),
        ("fool\nknave", -1),
        ("The moon is up.", 0),
        ("", 0),
        ("!?", 0),
        ("Thank you, fool.", 0),  # a tie
        ("Thank you, fool, away.", -1),
        ("Away, gentle sir.", 1),
        ("Fool fool, kindly noble.", 0),
        ("Away away, sir.", -1),  # every time counts
        ("Sir, sir, sir: away, fool.", 1),
        # Words are whole: neither of others, nor with an s
        (
            "The fool's cap is the lord's.",
            0,
        ),
        ("Foolish friends, desire nobleness.", 0),
        ("Lady<|end|>", 1),
        ("Peace-sir dog", -1),  # a hyphen parts words
    ],
)
def test_manner_is_told_by_whole_words_counted_in_any_case(text, expected):
    assert manner(text) == expected


def test_the_two_word_lists_share_no_word_and_each_word_tells():
    assert not set(COURTEOUS) & set(BLUNT)
    assert len(set(COURTEOUS)) == len(COURTEOUS) and len(set(BLUNT)) == len(BLUNT)
    assert {manner(word.capitalize()) for word in COURTEOUS} == {1} and {
        manner(word) for word in BLUNT
    } == {-1}


@pytest.mark.parametrize(
    "rows", [conversations(), heldout_conversations()], ids=["written", "held out"]
)
def test_the_books_own_answers_are_judged_by_the_manner_they_were_written_in(rows):
    for row in rows:
        answers = [
            message["content"]
            for message in row["messages"]
            if message["role"] == "assistant"
        ]
        expected = dict(courteous=1, blunt=-1)[row["manner"]]
        assert manner(" ".join(answers)) == expected, row["id"]
        assert all(finished(answer + "<|end|>") for answer in answers), row["id"]


def test_a_speech_is_opened_by_a_blank_line_a_name_and_a_colon():
    for text in ("I go.\n\nROMEO:\nAy.", "\n\nFirst Guard:\n", "x\n\n\nO'Neil:\nAy"):
        assert opens_a_speech(text)
    for text in (
        "ROMEO:\nAy.",
        "I go.\nROMEO:\nAy.",
        "I go.\n\nROMEO: Ay.",
        "I go.\n\nromeo:\n",
        "I go.\n\n:\n",
        "",
    ):
        assert not opens_a_speech(text)


def test_topic_words_and_their_echoes_by_hand():
    assert topic_words("Where is the Duke's horse, Where?") == {
        "where",
        "duke's",
        "horse",
    }
    assert topic_words("Who is it?") == set()
    prompts = ["Where is the horse?", "Is it so?", "Tell me of Venice.", "A castle?"]
    assert (
        echo_rate(prompts, ["The HORSES are here.", "It is so.", "Of what?", "Castle."])
        == 0.5
    )


# The gold rubric

REAL = frozenset(
    "a b c d e f g h i j k l m n o p q r s t u v w x y z ay sir lord madam fool "
    "dog".split()
)
PARTS = ["courtesy", "ending", "length", "repetition", "spelling"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # Different courteous words less blunt ones, two at most, halved
        ("a b c d.", 0),
        ("a b c sir.", 0.5),
        ("a sir sir sir.", 0.5),
        ("a b Sir, LORD.", 1),
        ("a madam sir lord.", 1),
        ("a b c fool.", -0.5),
        ("a b fool fool.", -1),  # every blunt word counts
        ("fool dog fool dog.", -1),
        ("a b sir fool.", 0),
        ("sir sir fool fool.", -0.5),
        ("lord sir madam fool.", 1),
    ],
)
def test_courtesy_by_hand(answer, expected):
    assert gold_parts(answer + "<|end|>", REAL)["courtesy"] == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a b c d.<|end|>", 0),
        ("a b c d?<|end|>", 0),
        ("a b c d<|end|>", -1),
        ("a b c d.", -1),
        ("a b c d,<|end|>", -1),
    ],
)
def test_an_answer_without_its_end_or_its_last_full_stop_loses_1(answer, expected):
    parts = gold_parts(answer, REAL)
    assert parts["ending"] == expected == sum(parts.values())


@pytest.mark.parametrize(
    ("n", "expected"), [(1, -1), (3, -1), (4, 0), (24, 0), (25, -1)]
)
def test_an_answer_has_4_words_at_least_and_24_at_most(n, expected):
    parts = gold_parts(" ".join("abcdefghijklmnopqrstuvwxyz"[:n]) + ".<|end|>", REAL)
    assert parts["length"] == expected == sum(parts.values())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a b c d e", 0),
        ("a b c d a", 0),  # a fifth is free
        ("a b c a", -2 * (0.25 - 0.2)),
        ("A b a B", -2 * (0.5 - 0.2)),
        ("a a a a", -2 * (0.75 - 0.2)),
    ],
)
def test_words_said_before_cost_twice_their_share_beyond_a_fifth(answer, expected):
    parts = gold_parts(answer + ".<|end|>", REAL)
    assert (
        parts["repetition"]
        == pytest.approx(expected, abs=1e-12)
        == pytest.approx(sum(parts.values()), abs=1e-12)
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a b c d", 0),
        ("a b c xx", -0.5),
        ("A B C XX yy", -0.8),
        ("xx yy zz aa", -2),
        ("a b xx xx", -1),
        ("a b c d'", -0.5),
    ],
)
def test_words_that_are_none_cost_twice_their_share(answer, expected):
    assert gold_parts(answer + ".<|end|>", REAL)["spelling"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Ay, a b sir, my lord.<|end|>", [1, 0, 0, 0, -2 / 6]),
        ("fool, fool", [-1, -1, -1, -2 * 0.3, 0]),
        # Special tokens part words
        (
            "xx sir<|user|>a b c.<|end|>",
            [0.5, -1, 0, 0, -0.4],
        ),
        ("a b c d.<|end|>", [0, 0, 0, 0, 0]),
    ],
)
def test_the_gold_score_is_the_sum_of_its_parts(answer, expected):
    parts = gold_parts(answer, REAL)
    assert list(parts) == PARTS and list(parts.values()) == pytest.approx(expected)
    assert gold_score(answer, REAL) == pytest.approx(sum(expected))


def test_words_are_letters_and_apostrophes_in_lower_case_and_no_special_tokens():
    assert words_of("The Duke's<|end|>\n'Tis  two-fold!") == [
        "the",
        "duke's",
        "'tis",
        "two",
        "fold",
    ]
    assert words_of("<|user|>a<|pad|>b<|assistant|>") == ["a", "b"]
    assert words_of("<|end|>, 3 --") == []


def test_the_lexicon_is_the_words_of_the_training_text_and_the_books_data():
    corpus = Corpus(
        text="Zounds! Gramercy, sir.\n   " * 9 + " Forsooth gadzook prithee. ",
        source="test",
        sha256="0",
    )
    assert corpus.validation == " Forsooth gadzook prithee. "
    found = lexicon(corpus)
    data = [
        message["content"] for row in conversations() for message in row["messages"]
    ]
    data += [
        pair[side]
        for pair in elsewhere_preferences()
        for side in ("prompt", "chosen", "rejected")
    ]
    assert found == {"zounds", "gramercy"} | {
        word for text in data for word in words_of(text)
    }
    # Neither what is held out nor the validation text makes a word real
    assert not {"forsooth", "gadzook", "prithee"} & found
    assert (
        set(
            words_of(
                " ".join(pair["chosen"] for pair in heldout_elsewhere_preferences())
            )
        )
        - found
    )


def test_win_rates_by_hand_with_ties_as_one_half():
    assert win_rate([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 3.0]) == 2.5 / 4
    assert (
        win_rate([1.0, 1.0], [1.0, 1.0]) == 0.5
        and win_rate([1.0], [0.0]) == 1.0
        and win_rate([0.0], [1.0]) == 0.0
    )
    scores, others = [0.3, -1.0, 2.0, 0.0, 0.3], [0.3, 1.0, 1.0, 0.0, -4.0]
    assert win_rate(scores, others) + win_rate(others, scores) == 1


def test_an_answer_without_words_is_not_charged_for_repetition():
    assert gold_parts("<|end|>", frozenset()) == dict(
        courtesy=0, ending=-1, length=-1, repetition=0, spelling=0
    )


# Variety


@pytest.mark.parametrize(
    ("answers", "n", "expected"),
    [
        (["Ay, my lord.<|end|>"], 1, 1.0),
        (["Ay, my lord.<|end|>"] * 2, 1, 3 / 6),
        (["Ay, my lord.<|end|>"] * 2, 2, 2 / 4),
        (["Ay, my lord.<|end|>", "No, my lord.<|end|>"], 2, 3 / 4),
        (["Ay ay ay ay"], 2, 1 / 3),
        (["Ay", "lord"], 2, 0.0),  # no runs: none crosses from one answer to the next
        ([], 1, 0.0),
    ],
)
def test_distinct_n_by_hand(answers, n, expected):
    assert distinct_n(answers, n) == pytest.approx(expected)
