"""Pairs that a reader decides: candidates as they were drawn, decisions as typed, kept
after each of them.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_terminal import desk, stored_stages, write  # noqa: F401
from tiny import CONFIG, moved

from posttrain.cli import commands as program
from posttrain.data import datasets, labelling
from posttrain.data.labelling import (
    Candidate,
    UnreadableDecision,
    decide,
    draw_candidates,
    read_decision,
)
from posttrain.reward_model import sample_answers
from posttrain.tokenizer import END, CharTokenizer

SOME = [
    Candidate("A friend.", True, 0, 0),
    Candidate("None, fool.", True, 0, 2),
    Candidate("I am the", False, 1, 1),
]
PROMPTS = ["Who?", "What?", "Where?"]
ROOMY = replace(CONFIG, context=256)


def typist(*lines):
    """What types these lines, and then nothing more."""
    waiting = iter(lines)
    return lambda question: next(waiting, None)


def rows_of(*lines, prompts=PROMPTS, candidates=None, rows=()):
    said = []
    candidates = candidates or [SOME] * len(prompts)
    kept = list(decide(prompts, candidates, rows, typist(*lines), said.append))
    return kept, said


def test_a_candidate_is_the_draw_that_it_names():
    models = {3: moved(config=ROOMY), 7: moved(1, config=ROOMY)}
    found = draw_candidates(models, ["Who?", "What?"], 2, seed=5)
    for prompt, candidates in zip(["Who?", "What?"], found):
        assert len({candidate.text for candidate in candidates}) == len(candidates)
        for candidate in candidates:
            asked = [text for text in ("Who?", "What?") for _ in range(2)]
            _, answers = sample_answers(models[candidate.model_seed], asked, 5)
            place = ["Who?", "What?"].index(prompt) * 2 + candidate.draw
            text = CharTokenizer().decode(answers[place])
            assert candidate.text == text.removesuffix(END)
            assert candidate.ended == text.endswith(END)


def test_what_a_file_cannot_hold_is_no_candidate_and_no_text_comes_twice(monkeypatch):
    said = ["A friend." + END, END, "A friend." + END, "So<|user|>So" + END, "On and"]
    monkeypatch.setattr(labelling, "ask", lambda *asked, **settings: said)
    (found,) = draw_candidates({0: None}, ["Who?"], 5)
    assert found == [
        Candidate("A friend.", True, 0, 0),
        Candidate("On and", False, 0, 4),
    ]


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("1", "is not two numbers and a letter"),
        ("1 2", "is not two numbers and a letter"),
        ("one 2 m", "is not two numbers and a letter"),
        ("1 4 m", "there are answers 1 to 3"),
        ("0 1 m", "there are answers 1 to 3"),
        ("2 2 m", "cannot be better than itself"),
        ("1 2 x", "'x' is none of m, p, f"),
        ("3 1 m", "answer 3 breaks off: it cannot be chosen"),
    ],
)
def test_what_is_no_decision_says_why(typed, reason):
    with pytest.raises(UnreadableDecision, match=reason):
        read_decision(typed, SOME)


def test_a_decision_names_better_worse_and_the_ground():
    assert read_decision(" 1 2 M ", SOME) == (SOME[0], SOME[1], "manner")
    assert read_decision("2 3 f", SOME) == (SOME[1], SOME[2], "finished")
    assert read_decision("2 1 p", SOME)[2] == "to the point"


def test_each_decision_is_a_row_with_its_draws_and_enter_leaves_a_prompt_out():
    kept, _ = rows_of("1 2 m", "", "2 3 f")
    assert [len(rows) for rows in kept] == [1, 2]
    assert kept[-1] == [
        dict(
            id="p01",
            prompt="Who?",
            chosen="A friend.",
            rejected="None, fool.",
            ground="manner",
            chosen_draw=dict(model_seed=0, draw=0),
            rejected_draw=dict(model_seed=0, draw=2),
        ),
        dict(
            id="p02",
            prompt="Where?",
            chosen="None, fool.",
            rejected="I am the",
            ground="finished",
            chosen_draw=dict(model_seed=0, draw=2),
            rejected_draw=dict(model_seed=1, draw=1),
        ),
    ]


def test_the_last_decision_can_be_taken_back_and_what_cannot_be_read_is_asked_again():
    kept, said = rows_of("u", "1 2 m", "2 1 m", "u", "nonsense", "2 3 p", "q")
    assert [len(rows) for rows in kept] == [1, 2, 1, 2]
    assert kept[-1][1]["prompt"] == "What?" and kept[-1][1]["rejected"] == "I am the"
    assert "There is nothing to take back." in said
    assert any("'nonsense' is not two numbers" in text for text in said)


def test_what_was_decided_before_stays_and_is_not_asked_again():
    before = [dict(id="p07", prompt="What?", chosen="So.", rejected="No.")]
    kept, said = rows_of("1 2 m", "1 2 m", rows=before)
    assert kept[-1][0] == before[0]
    assert [row["id"] for row in kept[-1]] == ["p07", "p08", "p09"]
    assert not any("What?" in text for text in said)
    # And cannot be taken back
    kept, said = rows_of("u", "q", rows=before)
    assert kept == [] and "There is nothing to take back." in said


def test_a_prompt_with_nothing_to_choose_from_is_passed_over():
    hopeless = [SOME[:1], [SOME[2], Candidate("Nor this", False, 0, 3)], SOME]
    kept, said = rows_of("1 2 m", candidates=hopeless)
    assert kept[-1][0]["prompt"] == "Where?" and len(said) == 1


def test_the_command_keeps_each_decision_and_goes_on_from_there(  # noqa: F811
    desk,  # noqa: F811
    capsys,
    monkeypatch,
):
    write("asked.jsonl", [dict(id=name, prompt=f"{name}?") for name in ("Who", "What")])
    drawn = []

    def draw(models, prompts, *settings):
        drawn.append((list(models), prompts, *settings))
        return [SOME] * len(prompts)

    monkeypatch.setattr(program, "draw_candidates", draw)
    flags = "--prompts asked.jsonl --out mine.jsonl --models 2 --samples 3".split()

    def labels(*lines):
        monkeypatch.setattr(program, "read_line", typist(*lines))
        return program.main(["pairs", "label", *flags])

    assert labels("1 2 m") == 0
    assert drawn == [([0, 1], ["Who?", "What?"], 3, 0.8, 0)]
    assert stored_stages() == ["base", "sft", "sft"]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "1 pair is in mine.jsonl.",
        "Try it: python -m posttrain train dpo --data mine.jsonl",
    ]
    assert labels("2 3 f") == 0
    rows = datasets.preferences("mine.jsonl")
    assert [(row["prompt"], row["ground"]) for row in rows] == [
        ("Who?", "manner"),
        ("What?", "finished"),
    ]
    assert program.main(["train", "dpo", "--data", "mine.jsonl"]) == 0


def test_what_is_taken_back_leaves_no_empty_file(desk, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        program, "draw_candidates", lambda models, prompts, *_: [SOME] * len(prompts)
    )
    monkeypatch.setattr(program, "read_line", typist("1 2 m", "u", "q"))
    assert program.main(["pairs", "label", "--out", "mine.jsonl", "--models", "1"]) == 0
    assert not list(Path().iterdir())


def test_what_cannot_be_written_or_read_is_refused_before_training(
    desk,  # noqa: F811
    capsys,
):
    assert program.main(["pairs", "label", "--out", "no/mine.jsonl"]) == 2
    assert "no is no folder: make it first" in capsys.readouterr().err
    Path("mine.jsonl").write_text("oops\n")
    assert program.main(["pairs", "label", "--out", "mine.jsonl"]) == 2
    assert "mine.jsonl" in capsys.readouterr().err
    assert Path("mine.jsonl").read_text() == "oops\n" and desk == []
    write("asked.jsonl", [dict(id="a", prompt="Who?"), dict(id="b", prompt="x" * 159)])
    flags = ["--prompts", "asked.jsonl", "--out", "new.jsonl"]
    assert program.main(["pairs", "label", *flags]) == 2 and desk == []
    said = capsys.readouterr().err
    assert "'xxxx" in said and "leaves no room for 96 of an answer in 256" in said


def test_the_books_own_pairs_name_a_ground_and_two_different_draws():
    for rows in (datasets.preferences(), datasets.heldout_preferences()):
        for row in rows:
            assert row["ground"] in labelling.GROUNDS.values()
            draws = [row["chosen_draw"], row["rejected_draw"]]
            assert draws[0] != draws[1] and row["chosen"].endswith((".", "!", "?"))


def test_torch_is_seeded_by_the_command_alone():
    model, state = moved(config=ROOMY), torch.random.get_rng_state()
    draw_candidates({0: model}, ["Who?"], 2)
    assert torch.equal(torch.random.get_rng_state(), state)
