"""Trials: conversations drawn, swapped and found in a play, a model's scorecard, and
the interval over seeds.
"""

import math
import random
from dataclasses import replace

import pytest
import torch

from posttrain.chat import ask
from posttrain.data import standin
from posttrain.data.corpus import Corpus
from posttrain.data.datasets import (
    conversations,
    heldout_conversations,
    heldout_prompts,
)
from posttrain.evaluate import answered, interval
from posttrain.gpt import GPT, GPTConfig
from posttrain.lab import sft_trials
from posttrain.lab.sft_trials import (
    SFTTrial,
    answers_of,
    conversations_for,
    found_conversations,
    sft_scorecard,
    sft_trial,
    subset,
    with_questions_swapped,
)
from posttrain.pretrain import validation_loss
from posttrain.sft import SFTConfig, conversation_loss, encode_conversations, sft
from posttrain.stages import encode_split
from posttrain.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()


def test_the_interval_is_students_by_hand():
    # t(0.975; 3) = 3.182446, standard error sqrt(5/3)/2; t(0.975; 1) = 12.706205;
    # t(0.95; 3) = 2.353363
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx(
        (2.5, 2.5 - half, 2.5 + half), abs=1e-6
    )
    assert interval([0.0, 1.0]) == pytest.approx(
        (0.5, 0.5 - 6.3531025, 0.5 + 6.3531025), abs=1e-6
    )
    half = 2.353363 * math.sqrt(5 / 3) / 2
    assert interval([4.0, 1.0, 3.0, 2.0], confidence=0.9) == pytest.approx(
        (2.5, 2.5 - half, 2.5 + half), abs=1e-6
    )
    assert all(isinstance(end, float) for end in interval([1.0, 2.0]))


@pytest.mark.parametrize("values", [[0.25] * 5, [0.0, 0.0]], ids=["five", "zeros"])
def test_equal_values_have_an_interval_of_no_width(values):
    assert interval(values) == pytest.approx((values[0],) * 3)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_values_have_no_interval(values):
    with pytest.raises(
        ValueError, match=f"two values or more, and here are {len(values)}"
    ):
        interval(values)


def test_answers_are_every_text_of_the_assistants():
    rows = [
        dict(
            messages=[
                dict(role="user", content="A?"),
                dict(role="assistant", content="B."),
            ]
        ),
        dict(
            messages=[
                dict(role=role, content=text)
                for role, text in zip(["user", "assistant"] * 2, "CDEB")
            ]
        ),
    ]
    assert answers_of(rows) == {"B.", "D", "B"}
    assert answers_of([]) == set()
    assert len(answers_of(conversations())) == sum(
        len(row["messages"]) // 2 for row in conversations()
    )


def test_swapping_moves_first_questions_on_by_one_and_touches_nothing_else():
    rows = heldout_conversations()
    swapped = with_questions_swapped(rows)
    assert rows == heldout_conversations()
    for i, (before, after) in enumerate(zip(rows, swapped)):
        assert (
            after["messages"][0]
            == rows[(i + 1) % len(rows)]["messages"][0]
            != before["messages"][0]
        )
        assert after["messages"][1:] == before["messages"][1:]
        assert {**after, "messages": 0} == {**before, "messages": 0}


@pytest.mark.parametrize(
    "n_courteous, n_blunt", [(20, 0), (0, 5), (7, 3), (0, 0), (20, 20)]
)
def test_a_subset_has_so_many_of_each_manner_none_twice_by_seed_alone(
    n_courteous, n_blunt
):
    rows = conversations()
    chosen = subset(rows, n_courteous, n_blunt, seed=1)
    assert [row["manner"] for row in chosen] == ["courteous"] * n_courteous + [
        "blunt"
    ] * n_blunt
    assert all(row in rows for row in chosen) and len(
        {row["id"] for row in chosen}
    ) == len(chosen)
    random.seed(5)
    assert subset(rows, n_courteous, n_blunt, seed=1) == chosen
    assert not chosen or subset(rows, n_courteous, n_blunt, seed=2) != chosen


def test_a_subset_larger_than_the_set_is_refused():
    with pytest.raises(ValueError):
        subset(conversations(), 21, 0, seed=0)


PLAY = f"""ANNE:
Who comes
so late?

First Guard:
A friend: no more.

BEN:
{"x" * 79}?

ANNE:
{"y" * 70}z

BEN:
{"x" * 80}?

ANNE:
Too long a question.

BEN:
Is it so? I know.

ANNE:
Whose?

BEN:

ANNE:
Why?

ANNE:
   \t

BEN:
How?



ANNE:
What?

CARL:
O!

BEN:
The last?"""


def pairs(rows):
    return {
        (row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows
    }


def test_questions_and_what_is_said_next_are_found_in_a_play_by_hand():
    found = found_conversations(PLAY, 100)
    assert pairs(found) == {
        ("Who comes so late?", "A friend: no more."),
        ("x" * 79 + "?", "y" * 70),
        ("Whose?", "Why?"),  # a name alone says nothing
        ("How?", "What?"),
        ("What?", "O!"),
    }
    assert sorted(row["id"] for row in found) == [f"found-{i}" for i in range(5)]
    for row in found:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


def test_so_many_are_found_as_asked_for_without_repetition_and_by_seed_alone():
    play = "\n\n".join(f"A:\nQ{'x' * i}?\n\nB:\nS{'x' * i}." for i in range(60))
    rows = found_conversations(play, 20)
    assert len(rows) == len(pairs(rows)) == 20 and [row["id"] for row in rows] == [
        f"found-{i}" for i in range(20)
    ]
    random.seed(5)
    assert (
        found_conversations(play, 20) == rows == found_conversations(play, 20, seed=0)
    )
    assert found_conversations(play, 20, seed=1) != rows
    assert pairs(found_conversations(play, 60)) == pairs(
        found_conversations(play, 1000)
    )
    assert (
        found_conversations(play, 0)
        == found_conversations("", 5)
        == found_conversations("No play?", 5)
        == []
    )


@pytest.fixture(scope="module")
def play():
    return standin.generate_play()


def test_what_is_found_in_the_stand_in_can_be_rendered(play):
    for row in found_conversations(play, 1000):
        question, answer = (message["content"] for message in row["messages"])
        assert question.endswith("?") and len(question) <= 80 and 0 < len(answer) <= 70
        assert "\n" not in question + answer and TOKENIZER.encode(question + answer)


def test_the_stand_in_holds_enough_for_the_chapter(play):
    assert (
        120
        <= len(
            found_conversations(play[: int(0.9 * len(play))], 10 * len(conversations()))
        )
        < 400
    )


def tiny(seed=None):
    """A small model that knows nothing: all tokens alike, or, with a seed, random
    weights.
    """
    model = GPT(GPTConfig(vocab_size=69, context=256, n_layer=1, n_head=1, width=16))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


VALIDATION = torch.randint(65, (3000,), generator=torch.Generator().manual_seed(0))
SHARES = ["in_format", "finished", "courteous", "blunt", "recited"]
LOSSES = ["conversation_loss", "swapped_loss", "shakespeare_loss"]


def test_a_model_that_knows_nothing_has_shares_in_0_to_1_and_losses_of_log_69():
    card = sft_scorecard(tiny(), set(), VALIDATION, seed=0)
    assert list(card) == SHARES + LOSSES
    assert all(
        0 <= card[name] <= 1 and (card[name] * 64).is_integer() for name in SHARES
    )
    assert [card[name] for name in LOSSES] == pytest.approx(
        [math.log(69)] * 3, abs=1e-5
    )
    assert (
        card["finished"] <= card["in_format"]
        and 0 < card["in_format"] < 1
        and card["recited"] == 0
    )


def test_a_scorecard_depends_on_model_and_seed_alone_and_says_what_was_measured():
    model, heldout = tiny(seed=1), heldout_conversations()
    card = sft_scorecard(model, set(), VALIDATION, seed=3, windows=2)
    torch.manual_seed(9)
    assert sft_scorecard(model, set(), VALIDATION, seed=3, windows=2) == card
    answers = ask(model, heldout_prompts(), generator=torch.Generator().manual_seed(3))
    assert card["in_format"] == sum(map(answered, answers)) / 64
    own, swapped = (
        encode_conversations(rows, TOKENIZER, 256)
        for rows in (heldout, with_questions_swapped(heldout))
    )
    assert card["conversation_loss"] == conversation_loss(model, own, TOKENIZER.pad)
    assert (
        card["swapped_loss"]
        == conversation_loss(model, swapped, TOKENIZER.pad)
        != card["conversation_loss"]
    )
    assert card["shakespeare_loss"] == validation_loss(model, VALIDATION, windows=2)
    assert (
        card["shakespeare_loss"]
        != sft_scorecard(model, set(), VALIDATION, seed=4)["shakespeare_loss"]
    )
    assert (
        len(
            {
                sft_scorecard(model, set(), VALIDATION, seed=seed, windows=1)[
                    "in_format"
                ]
                for seed in range(4)
            }
        )
        > 1
    )


def reciting(text):
    """A model whose answers are all the same text."""
    model, calls = tiny(), []
    ids = [*TOKENIZER.encode(text), TOKENIZER.end]

    def favour(module, inputs, logits):
        calls.append(1)
        logits[:, -1, ids[min(len(calls), len(ids)) - 1]] += 1000

    model.register_forward_hook(favour)
    return model


@pytest.mark.parametrize(
    "text, known, expected",
    [
        ("Ay, good sir.", {"Ay, good sir."}, [1, 1, 1, 0, 1]),
        ("Ay, good sir.", {"Ay, good sir", "Ay, good sir.<|end|>"}, [1, 1, 1, 0, 0]),
        ("Away, fool", {"No."}, [1, 0, 0, 1, 0]),
        ("Ay.", set(), [1, 1, 0, 0, 0]),
        ("", {""}, [0, 0, 0, 0, 1]),
    ],
)
def test_a_model_that_recites_is_known_by_its_shares(text, known, expected):
    card = sft_scorecard(reciting(text), known, VALIDATION, seed=0)
    assert [card[name] for name in SHARES] == expected


@pytest.fixture
def play_of_letters(monkeypatch):
    """A corpus of many windows, an untrained base model, and cards that say who
    asked.
    """
    corpus = Corpus("".join(TOKENIZER.decode(VALIDATION)) * 30, "test", "0" * 64)
    base = GPT(GPTConfig(context=256, n_layer=1, n_head=1, width=16))
    monkeypatch.setattr(sft_trials, "base_model", lambda corpus: (base, {}))

    def card(model, known, validation, seed):
        return dict(n=len(known), seed=seed, shown=len(validation))

    monkeypatch.setattr(sft_trials, "sft_scorecard", card)
    return corpus


@pytest.mark.parametrize("seed", [0, 3])
def test_a_trials_history_has_its_scorecard_at_every_evaluation(play_of_letters, seed):
    config, corpus = SFTConfig(steps=4, evaluations=2, seed=9), play_of_letters
    history = sft_trial(corpus, SFTTrial(config), seed)
    text, validation = encode_split(corpus)
    base, _ = sft_trials.base_model(corpus)
    _, expected = sft(base, conversations(), text, replace(config, seed=seed))
    assert history["step"] == [2, 4] and history["train"] == expected["train"]
    assert history["seed"] == [seed, seed] and history["shown"] == [len(validation)] * 2
    # What is learned is measured after the step, so it goes on falling
    first, last = history["learned"]
    assert last < first < math.log(69) + 1
    assert history["n"] == [len(answers_of(conversations()))] * 2
    loss = validation_loss(base, validation, windows=32)
    assert history["base_loss"] == loss == pytest.approx(math.log(65), abs=1e-5)


def test_a_trial_trains_on_the_books_conversations_some_of_them_or_found_ones():
    corpus = Corpus(PLAY * 3, "test", "0" * 64)
    assert conversations_for(corpus, SFTTrial(), 1) == conversations()
    some = SFTTrial(courteous=3, blunt=2)
    assert conversations_for(corpus, some, 1) == subset(conversations(), 3, 2, 1)
    assert conversations_for(corpus, some, 1) != conversations_for(corpus, some, 2)
    found = conversations_for(corpus, SFTTrial(found=4), 1)
    assert found == found_conversations(corpus.train, 4) and len(found) == 4


def test_a_trial_learns_and_knows_what_it_trains_on(play_of_letters, monkeypatch):
    asked, rows = [], conversations()[:8]
    monkeypatch.setattr(
        sft_trials, "conversations_for", lambda *given: asked.append(given) or rows
    )
    trial = SFTTrial(SFTConfig(steps=2, evaluations=1), courteous=4, blunt=4)
    history = sft_trial(play_of_letters, trial, 2)
    assert asked == [(play_of_letters, trial, 2)] and history["n"] == [
        len(answers_of(rows))
    ]
    text, _ = encode_split(play_of_letters)
    base, _ = sft_trials.base_model(play_of_letters)
    model, expected = sft(base, rows, text, replace(trial.config, seed=2))
    own = encode_conversations(rows, TOKENIZER, 256)
    assert history["train"] == expected["train"]
    assert history["learned"] == [conversation_loss(model, own, TOKENIZER.pad)]
