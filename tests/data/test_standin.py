"""The stand-in: the same text everywhere, and much like the plays it stands for."""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from posttrain.data import standin
from posttrain.data.standin import doubled, generate_play, inflect
from posttrain.tokenizer import ALPHABET

SHA256 = "1a6e93ebf5bad471d37a4a11999235c1ed3a05019a8c12a81d71031670f8fed1"


@pytest.fixture(scope="module")
def text():
    return generate_play()


@pytest.fixture(scope="module")
def words(text):
    return re.findall(r"[A-Za-z'-]+", text)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


# The same text everywhere.


def test_the_text_is_the_one_the_book_was_built_with(text):
    assert digest(text) == SHA256


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_the_text_does_not_depend_on_the_hash_seed(text, hash_seed):
    program = (
        "import hashlib; from posttrain.data.standin import generate_play; "
        "print(hashlib.sha256(generate_play(200_000).encode()).hexdigest())"
    )
    source = Path(standin.__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(source)}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == digest(generate_play(200_000))


def test_a_seed_gives_one_text_and_another_seed_another():
    assert generate_play(20_000, seed=7) == generate_play(20_000, seed=7)
    assert generate_play(20_000, seed=7) != generate_play(20_000, seed=8)


def test_a_longer_text_continues_a_shorter_one(text):
    assert text.startswith(generate_play(5_000).rstrip("\n"))


@pytest.mark.parametrize("characters", [0, 1, 1_000, 12_345])
def test_it_is_as_long_as_asked_and_ends_with_a_speech(characters):
    short = generate_play(characters)
    assert (
        len(short) >= characters and short.endswith("\n") and not short.endswith("\n\n")
    )


def test_it_takes_less_than_three_seconds():
    start = time.process_time()
    generate_play()
    assert time.process_time() - start < 3


# The alphabet and the layout of tinyshakespeare.


def test_it_uses_exactly_the_65_characters(text):
    assert "".join(sorted(set(text))) == ALPHABET


def test_it_is_longer_than_a_megabyte(text):
    assert len(text) == len(text.encode()) >= 1_100_000


def test_every_speech_is_a_speaker_and_lines(text):
    for speech in text.rstrip("\n").split("\n\n"):
        speaker, *lines = speech.split("\n")
        assert re.fullmatch(
            r"[A-Z]+( [A-Z]+)?:|(First |Second |Third )?[A-Z][a-z]+:", speaker
        )
        assert lines and all(line == line.strip() != "" for line in lines)


def test_lines_are_as_long_as_lines_of_verse(text):
    lengths = [
        len(line) for line in text.split("\n") if line and not line.endswith(":")
    ]
    assert max(lengths) <= 60
    assert sum(30 <= length <= 52 for length in lengths) > 0.7 * len(lengths)


def test_speeches_are_long_and_short(text):
    lengths = Counter(speech.count("\n") for speech in text.rstrip("\n").split("\n\n"))
    assert lengths[1] > 100 and lengths[2] > 100
    assert sum(n for length, n in lengths.items() if length > 8) > 100


# The language.


def test_the_vocabulary_is_rich_and_its_frequencies_fall_like_zipfs(words):
    counts = [n for _, n in Counter(word.lower() for word in words).most_common()]
    assert len(counts) > 1_500
    # A tenth of the words make up most of the text, and no word more than a tenth
    assert sum(counts[: len(counts) // 10]) > 0.6 * sum(counts)
    assert counts[0] < 0.1 * sum(counts)


def test_half_of_the_lines_occur_once(text):
    lines = Counter(
        line for line in text.split("\n") if line and not line.endswith(":")
    )
    assert sum(n == 1 for n in lines.values()) > 0.5 * sum(lines.values())


def test_it_has_courtesy_and_abuse(words):
    counts = Counter(word.lower() for word in words)
    for word in (
        "pray good gentle thank welcome lord lady sir friend noble sweet prithee"
    ).split():
        assert counts[word] > 50, word
    for word in "fool knave rogue villain churl varlet blockhead wretch begone".split():
        assert counts[word] > 50, word


def test_every_rule_and_word_class_that_is_named_exists():
    lists, named = standin.read_lists(), set()
    for templates in [*lists.rules.values(), *lists.common.values()]:
        for template in templates:
            named |= {match[1] for match in standin.SYMBOL.finditer(template)}
    personal = {"you", "me", "name", "third", "absent", "he", "him", "his"}
    fixed = {"focus", "place", "foe", *personal, *standin.THOU}
    assert named <= {*lists.rules, *lists.common, *lists.persons, *fixed}
    kinds = {kind for kinds in lists.moods.values() for kind in kinds}
    assert {f"{side}_{kind}" for side in ("ask", "tell") for kind in kinds} <= {
        *lists.rules
    }


def test_the_lists_are_whole():
    lists = standin.read_lists()
    kinds = {*standin.TOPICAL}
    assert all(
        {*words} == kinds and kinds <= {*lists.common}
        for words in lists.topics.values()
    )
    assert all(
        [*forms] == ["I", "thou", "he", "they"] for forms in lists.persons.values()
    )
    entries = [*lists.rules.values(), *lists.common.values(), *lists.people.values()]
    assert all(entry == entry.strip() != "" for listed in entries for entry in listed)


def test_no_symbol_is_left_over(text):
    assert not set("{}[]*_/") & set(text)


@pytest.mark.parametrize(
    "wrong",
    [
        r"\b[Tt]hou (are|have|hath|were|has)\b",
        r"\b[Yy]ou (art|hast|dost|wilt|canst)\b",
        r"\bI (art|is|hath|are)\b",
        r"\b(he|she) (have|do|are)\b",
        r"\b[Tt]hey (hath|doth|is)\b",
        r"\b[Aa] [aeiou]",
        r"\b[Aa]n [b-df-gj-np-tv-z]",
        r"\b[Tt]hy [aeio]",
    ],
)
def test_the_grammar_agrees(text, wrong):
    found = re.search(wrong, re.sub(r"\s+", " ", text))
    assert found is None, found


@pytest.mark.parametrize(
    "entry, form, expected",
    [
        ("love", "eth", "loveth"),
        ("love", "est", "lovest"),
        ("cry", "eth", "crieth"),
        ("cry", "es", "cries"),
        ("pray", "es", "prays"),
        ("kiss", "es", "kisses"),
        ("trap", "ed", "trapped"),
        ("fear", "ed", "feared"),
        ("quarrel", "en", "quarrelled"),
        ("see/saw/seen", "est", "seest"),
        ("see/saw/seen", "ed", "saw"),
        ("see/saw/seen", "en", "seen"),
        ("win/won", "en", "won"),
        ("die", "ing", "dying"),
        ("love", "ing", "loving"),
        ("shoe/shod", "ing", "shoeing"),
        ("knife/knives", "s", "knives"),
        ("enemy", "s", "enemies"),
        ("weary", "", "weary"),
    ],
)
def test_words_are_inflected(entry, form, expected):
    assert inflect(entry, form) == expected


def test_only_a_short_stressed_vowel_doubles_the_consonant():
    words = "stab fear bow quit gallop abhor".split()
    assert [
        doubled(word) for word in words
    ] == "stabb fear bow quitt gallop abhorr".split()


# Conversation.


def test_whoever_is_asked_answers(monkeypatch):
    asked, answered = [], []
    draw = standin.Playwright.draw

    def noting(self, rule):
        side, _, kind = rule.partition("_")
        {"ask": asked, "tell": answered}.get(side, []).append(kind)
        return draw(self, rule)

    monkeypatch.setattr(standin.Playwright, "draw", noting)
    generate_play(50_000)
    assert len(asked) > 50 and asked[: len(answered)] == answered


def test_the_one_who_was_asked_speaks_next(monkeypatch):
    turns = []
    speech = standin.Playwright.speech

    def noting(self, speaker, listener, question, mood):
        text, asks = speech(self, speaker, listener, question, mood)
        turns.append((speaker, listener, asks))
        return text, asks

    monkeypatch.setattr(standin.Playwright, "speech", noting)
    generate_play(50_000)
    followed = [
        (turn, next_turn[0])
        for turn, next_turn in zip(turns, turns[1:], strict=False)
        if turn[2]
    ]
    assert len(followed) > 50 and all(
        listener is speaks for (_, listener, _), speaks in followed
    )


def test_a_scene_keeps_to_its_cast_and_nobody_speaks_twice_running():
    playwright = standin.Playwright(seed=3)
    company = playwright.company()
    playwright.bound.update(place="Marenford", foe="Tordis")
    speakers = [speech.split(":")[0] for speech in playwright.scene(company)]
    assert 2 <= len(set(speakers)) <= 5 and set(speakers) <= {
        role.label for role in company
    }
    assert all(a != b for a, b in zip(speakers, speakers[1:], strict=False))


def test_the_names_of_a_company_differ():
    for seed in range(20):
        company = standin.Playwright(seed).company()
        assert (
            len({role.name for role in company}) == 12
            and sum(role.noble for role in company) == 7
        )
