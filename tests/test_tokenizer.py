"""The tokenizer: round trips, safe special tokens, and what happens to strangers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tokenizer import (
    ALPHABET,
    SPECIAL_TOKENS,
    CharTokenizer,
    UnknownCharacterError,
)

tokenizer = CharTokenizer()


@given(st.text(alphabet=ALPHABET))
def test_round_trip(text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_letters_are_numbered_as_karpathy_numbers_them_and_special_tokens_follow():
    assert len(ALPHABET) == 65 and list(ALPHABET) == sorted(ALPHABET)
    assert tokenizer.encode("\n z") == [0, 1, 64]
    assert tokenizer.tokens[65:] == list(SPECIAL_TOKENS) and tokenizer.vocab_size == 69
    assert (tokenizer.user, tokenizer.assistant, tokenizer.end, tokenizer.pad) == (
        65,
        66,
        67,
        68,
    )


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_no_text_can_spell_a_special_token(special):
    with pytest.raises(UnknownCharacterError, match="'<'"):
        tokenizer.encode(f"hello {special}")


def test_a_stranger_is_named_with_its_place_and_the_alphabet():
    with pytest.raises(
        UnknownCharacterError,
        match=r"'é' \(U\+00E9, at position 4\) is not in the alphabet",
    ) as caught:
        tokenizer.encode("To bé")
    assert "clean()" in str(caught.value)


@given(st.text())
def test_clean_makes_any_text_encodable_and_leaves_good_text_alone(text):
    cleaned = tokenizer.clean(text)
    assert tokenizer.decode(tokenizer.encode(cleaned)) == cleaned
    assert tokenizer.clean(cleaned) == cleaned


def test_clean_keeps_what_it_can():
    assert tokenizer.clean("“Où est l’âme?” — Ægon…") == "'Ou est l'ame?' -- Aegon..."
    assert tokenizer.clean("日本 42") == "?? ??"
