"""Paths through recorded runs."""

import pytest

from posttrain.show import Runs, Seeds

RUNS = Runs(
    {
        "seconds": seed + 1.0,
        "step": [0, 50],
        "cards": [dict(score=0.0), dict(score=1.0 + seed, answers=["Ay.", "No."])],
        "steps": [dict(loss=0.7, seen=dict(kl=0.0)), dict(loss=0.5, seen=dict(kl=2.0))],
    }
    for seed in range(3)
)


def test_a_path_that_leads_to_numbers_gives_seeds_and_else_runs():
    assert RUNS["cards", -1, "score"] == Seeds([1, 2, 3])
    assert RUNS["seconds"] == Seeds([1, 2, 3])
    assert isinstance(RUNS["cards", -1], Runs) and RUNS["cards", -1]["score"].mean == 2
    assert RUNS["cards", 1, "answers"] == [["Ay.", "No."]] * 3


def test_a_place_is_one_run_and_a_slice_are_some():
    assert RUNS[1]["seconds"] == 2.0 and RUNS[1:]["seconds"] == Seeds([2, 3])
    histories = Runs([[dict(tv=0.5), dict(tv=0.25)]] * 2)
    assert histories[-1] == histories[0] and histories[-1, "tv"] == Seeds([0.25] * 2)


def test_series_are_a_list_per_run_with_what_they_stand_against():
    assert RUNS.series("steps", "loss") == [[0.7, 0.5]] * 3
    assert RUNS.series("steps", "seen", "kl") == [[0.0, 2.0]] * 3
    assert RUNS.series("steps", "loss", x="step") == [([0, 50], [0.7, 0.5])] * 3
    against = RUNS.series("steps", "loss", x=("steps", "seen", "kl"))
    assert against == [([0.0, 2.0], [0.7, 0.5])] * 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("second", "no 'second' of 'second': there are seconds, step, cards, steps"),
        (("cards", 0, "kl"), r"no 'kl' of \('cards', 0, 'kl'\): there are score"),
        (("cards", 7), "no 7 of .*: 2 entries"),
        (("seconds", "x"), "no 'x' of .*: here is 1.0"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_there_is(path, message):
    with pytest.raises(KeyError, match=message):
        RUNS[path]
