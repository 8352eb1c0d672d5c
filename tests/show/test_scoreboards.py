"""Tables of results, to the letter."""

import pytest

from posttrain.show import POLICY_COLUMNS, Runs, Seeds, scoreboard, side_by_side


def run(score, win, kl):
    cards = [dict(score=0.0, kl=0.0), dict(score=score, win_rate=win, kl=kl)]
    return dict(cards=cards, note="seen")


RUNS = Runs([run(1.0, 0.6, 8.0), run(2.0, 0.7, 9.0), run(3.0, 0.8, 7.0)])
COLUMNS = {
    "score": (("cards", -1, "score"), "+.2f"),
    "won": (("cards", -1, "win_rate"), ".0%"),
    "rise": (lambda runs: runs["cards", -1, "kl"] - runs["cards", 0, "kl"], ".1f"),
}


def test_a_row_per_name_and_a_column_per_quantity():
    table = scoreboard({"PPO": RUNS, "seed 0": RUNS[0]}, COLUMNS, "Held out", "A note")
    assert repr(table).splitlines() == [
        " | score | won | rise",
        "PPO | +2.00 [-0.48, +4.48] | 70% [45%, 95%] | 8.0 [5.5, 10.5]",
        "seed 0 | +1.00 | 60% | 8.0",
        "A note",
    ]
    assert table.caption == "Held out" and "[45%, 95%]</span>" in table._repr_html_()


def test_rows_may_be_plain_lists_dictionaries_of_seeds_and_texts():
    rows = {
        "list": [dict(x=1, how="a"), dict(x=3, how="a")],
        "made": dict(x=Seeds([1, 3]), how="by hand"),
        "one": dict(x=2, how="read"),
    }
    columns = {"x": ("x", "range .0f"), "mean": ("x", "mean .1f")}
    assert repr(scoreboard(rows, columns, corner="what")).splitlines() == [
        "what | x | mean",
        "list | 1 to 3 | 2.0",
        "made | 1 to 3 | 2.0",
        "one | 2 | 2.0",
    ]
    assert (
        scoreboard({"made": rows["made"]}, {"how": ("how", "")}).rows[0][1] == "by hand"
    )


def test_a_cell_is_empty_where_one_row_lacks_it_and_refused_where_all_do():
    rows = {"SFT": RUNS["cards", 0], "PPO": RUNS["cards", -1]}
    table = scoreboard(rows, {"won": ("win_rate", ".0%")})
    assert [row[1] for row in table.rows] == ["", "70% [45%, 95%]"]
    with pytest.raises(
        KeyError, match="no row has 'gold': no 'golf' of 'golf': there are"
    ):
        scoreboard(rows, {"gold": ("golf", ".2f")})


def test_a_path_that_ends_before_a_number_is_refused():
    for path, found in (("cards", "score"), ("note", "seen"), (("cards", -1), "kl")):
        with pytest.raises(ValueError, match=f"leads to .*{found}.*a number is needed"):
            scoreboard({"PPO": RUNS}, {"": (path, ".2f")})


def test_a_policys_columns_are_those_of_its_scorecard():
    card = dict(score=1, gold_score=2, win_rate=0.5, kl=8, finished=1, different=0.25)
    card |= dict(tied=0.5, recited=0.75, words=9)
    table = scoreboard({"PPO": card})
    assert table.header == ("", *POLICY_COLUMNS)
    assert table.rows == [
        ["PPO", "+1.00", "+2.00", "50%", "50%", "8.0", "100%", "25%", "75%", "9.0"]
    ]


def test_lists_stand_side_by_side():
    columns = {"question": ["a?", "b?", "c?"], "answer": ["A.", "B.", "C."]}
    table = side_by_side(columns, first=2, caption="First two")
    assert repr(table) == "question | answer\na? | A.\nb? | B."
    with pytest.raises(ValueError, match="unequal length .*'a': 1, 'b': 0"):
        side_by_side({"a": [1], "b": []})
