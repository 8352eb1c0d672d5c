"""Judging by rules: what counts as an answer, as finished, as courteous or blunt, checked on hand-written texts."""

import pytest

from posttrain.data.datasets import conversations, heldout_conversations
from posttrain.evaluate import (
    BLUNT,
    COURTEOUS,
    answered,
    echo_rate,
    finished,
    manner,
    opens_a_speech,
    topic_words,
)


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
        ("The fool's cap is the lord's.", 0),  # words are whole: neither of others, nor with an s
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
    assert {manner(word.capitalize()) for word in COURTEOUS} == {1} and {manner(word) for word in BLUNT} == {-1}


@pytest.mark.parametrize("rows", [conversations(), heldout_conversations()], ids=["written", "held out"])
def test_the_books_own_answers_are_judged_by_the_manner_they_were_written_in(rows):
    for row in rows:
        answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        expected = dict(courteous=1, blunt=-1)[row["manner"]]
        assert manner(" ".join(answers)) == expected, row["id"]
        assert all(finished(answer + "<|end|>") for answer in answers), row["id"]


def test_a_speech_is_opened_by_a_blank_line_a_name_and_a_colon():
    for text in ("I go.\n\nROMEO:\nAy.", "\n\nFirst Guard:\n", "x\n\n\nO'Neil:\nAy"):
        assert opens_a_speech(text)
    for text in ("ROMEO:\nAy.", "I go.\nROMEO:\nAy.", "I go.\n\nROMEO: Ay.", "I go.\n\nromeo:\n", "I go.\n\n:\n", ""):
        assert not opens_a_speech(text)


def test_topic_words_and_their_echoes_by_hand():
    assert topic_words("Where is the Duke's horse, Where?") == {"where", "duke's", "horse"}
    assert topic_words("Who is it?") == set()
    prompts = ["Where is the horse?", "Is it so?", "Tell me of Venice.", "A castle?"]
    assert echo_rate(prompts, ["The HORSES are here.", "It is so.", "Of what?", "Castle."]) == 0.5
