"""The book's data sets: schema, alphabet, and that nothing held out is trained on."""

import json
import re

import pytest

from posttrain.data.datasets import (
    FOLDER,
    elsewhere_preferences,
    heldout_elsewhere_preferences,
    heldout_preferences,
    heldout_prompts,
    minimal_preferences,
    preferences,
    training_prompts,
)
from posttrain.evaluate import manner
from posttrain.tokenizer import CharTokenizer

COUNTS = {
    "conversations": 40,
    "conversations_heldout": 20,
    "preferences": 18,
    "preferences_heldout": 76,
    "preferences_elsewhere": 18,
    "preferences_elsewhere_heldout": 72,
    "prompts": 96,
    "prompts_heldout": 64,
}
OWN = ("preferences", "preferences_heldout")  # answers that models gave


def rows(name):
    return [
        json.loads(line)
        for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def texts(row):
    """Every text a model could read in a row: (role, text)."""
    if "messages" in row:
        return [(message["role"], message["content"]) for message in row["messages"]]
    answers = [
        ("assistant", row[side]) for side in ("chosen", "rejected") if side in row
    ]
    return [("user", row["prompt"]), *answers]


def plain(text):
    return " ".join(re.findall(r"[a-z']+", text.lower()))


@pytest.mark.parametrize("name", COUNTS)
def test_counts_ids_and_alphabet(name):
    assert len(rows(name)) == COUNTS[name]
    assert len({row["id"] for row in rows(name)}) == COUNTS[name]
    for row in rows(name):
        for _, text in texts(row):
            assert CharTokenizer().encode(text)
            # What a model gave stands as it gave it, lines and all
            if name not in OWN:
                assert "\n" not in text and text == text.strip()


@pytest.mark.parametrize("name", ["conversations", "conversations_heldout"])
def test_conversations_alternate_and_their_manners_are_balanced(name):
    for row in rows(name):
        assert [message["role"] for message in row["messages"]] == [
            "user",
            "assistant",
        ] * (len(row["messages"]) // 2)
    manners = [row["manner"] for row in rows(name)]
    assert manners.count("courteous") == manners.count("blunt") == COUNTS[name] / 2


def test_no_prompt_and_no_answer_that_was_written_occurs_twice_in_any_of_the_sets():
    seen = [
        (role, plain(text))
        for name in COUNTS
        if name not in OWN  # to prompts that those from elsewhere have, too
        for row in rows(name)
        for role, text in texts(row)
    ]
    assert len(seen) == len(set(seen))


def test_chosen_and_rejected_differ_and_length_gives_nothing_away():
    for name in ("preferences_elsewhere", "preferences_elsewhere_heldout"):
        gaps = [len(row["chosen"]) - len(row["rejected"]) for row in rows(name)]
        assert all(plain(row["chosen"]) != plain(row["rejected"]) for row in rows(name))
        assert abs(sum(gaps) / len(gaps)) < 1


def test_heldout_prompts_are_the_64():
    assert len(heldout_prompts()) == 64


def test_the_packages_preferences_and_training_prompts_are_these_files():
    assert preferences() == rows("preferences")
    assert heldout_preferences() == rows("preferences_heldout")
    assert elsewhere_preferences() == rows("preferences_elsewhere")
    others = rows("preferences_elsewhere_heldout")
    assert heldout_elsewhere_preferences() == others
    assert training_prompts() == [row["prompt"] for row in rows("prompts")]


def test_heldout_pairs_from_elsewhere_say_what_is_wrong_with_the_rejected_answer():
    kinds = [row["kind"] for row in heldout_elsewhere_preferences()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict(
        rude=48, broken=12, rambling=12
    )
    assert not any("kind" in row for row in elsewhere_preferences())


def test_pairs_of_all_origins_ask_the_same():
    asked = [row["prompt"] for row in preferences()]
    assert [row["prompt"] for row in elsewhere_preferences()] == asked
    assert [row["prompt"] for row in minimal_preferences()] == asked


def test_heldout_pairs_ask_nothing_that_is_trained_or_chosen_on():
    pairs = heldout_preferences()
    asked = {plain(row["prompt"]) for row in pairs}
    assert len(pairs) == len(asked) == 76
    # The held-out pairs from elsewhere are no less held out: they may ask the same
    for name in COUNTS:
        if name not in ("preferences_heldout", "preferences_elsewhere_heldout"):
            others = {plain(text) for row in rows(name) for _, text in texts(row)}
            assert not asked & others


def test_a_minimal_pair_is_one_text_in_two_manners():
    for row in minimal_preferences():
        one, other = plain(row["chosen"]).split(), plain(row["rejected"]).split()
        differ = [pair for pair in zip(one, other) if pair[0] != pair[1]]
        assert len(one) == len(other) and len(differ) == 2
        assert manner(row["chosen"]) == 1 and manner(row["rejected"]) == -1
