"""Chapter 5's figures show what they are given."""

import json

import pytest

from posttrain.show import GREY, STAGE_COLOURS, Runs
from posttrain.show.figures_dpo import best_by_beta, one_policy, training_curves

WORDS = ["aa", "ab", "ba", "bb"]
ODDS = {
    "optimum": [0.1, 0.6, 0.1, 0.2],
    "reference": [0.25] * 4,
    "PPO": [0.1, 0.5, 0.2, 0.2],
}


def test_one_policy_has_the_words_in_the_order_of_the_first_odds_and_a_line_per_seed():
    run = dict(
        history=[dict(tv=0.5, kl=0.0), dict(tv=0.1, kl=0.2), dict(tv=0.01, kl=0.3)]
    )
    figure = one_policy(WORDS, ODDS, {"PPO": Runs([run, run])}, aim=0.02, kl=0.31)
    bars, distance, divergence = figure.axes
    names = [tick.get_text() for tick in bars.get_xticklabels()]
    assert names == ["ab", "bb", "aa", "ba"]
    assert [bar.get_height() for bar in bars.patches] == [0.6, 0.2, 0.1, 0.1]
    marks = {line.get_label(): list(line.get_ydata()) for line in bars.lines}
    assert marks == {"reference": [0.25] * 4, "PPO": [0.5, 0.2, 0.1, 0.2]}
    *seeds, aim = distance.lines
    assert [list(line.get_ydata()) for line in seeds] == [[0.5, 0.1, 0.01]] * 2
    assert list(seeds[0].get_xdata()) == [0, 50, 100] and distance.get_yscale() == "log"
    assert list(aim.get_ydata()) == [0.02] * 2
    assert list(divergence.lines[-1].get_ydata()) == [0.31] * 2


def test_the_best_policies_go_to_the_view_by_the_likeliest_words_of_the_middle_one():
    optima = [[0.4, 0.3, 0.2, 0.1], [0.1, 0.6, 0.1, 0.2], [0.25] * 4]
    view = best_by_beta(
        WORDS, [0.1, 0.5, 2.0], optima, [0.9, 0.4, 0.0], [0.25] * 4, [2, 1, 1, 0]
    )
    assert view.kind == "beta" and view.values["start"] == 1
    assert view.values["words"] == ["ab", "bb", "aa", "ba"]
    assert view.values["rewards"] == [1, 0, 2, 1]
    assert view.values["best"][0] == [0.3, 0.1, 0.4, 0.2]
    assert view.values["reward"] == pytest.approx([1.3, 0.9, 1.0])
    assert view.still.rows == [["0.10", "1.30", "0.90", "aa"]]
    json.dumps(view.values)


def test_training_curves_begin_with_the_loss_and_leave_out_the_ties_of_the_start():
    step = dict(loss=0.0, chosen_reward=0.1, rejected_reward=-0.1)
    seen = dict(chosen_reward=-0.1, rejected_reward=-0.2)
    heldout = [seen | dict(step=0, accuracy=0.0), seen | dict(step=5, accuracy=0.75)]
    run = dict(steps=[step | dict(loss=0.7), step], heldout=heldout)
    figure = training_curves({"with replay": Runs([run]), "without": Runs([run])})
    loss, training, unseen, ranked = figure.axes
    assert loss.get_yscale() == "log" and min(loss.lines[0].get_ydata()) > 0
    assert [line.get_color() for line in loss.lines] == [STAGE_COLOURS["DPO"], GREY]
    assert len(training.lines) == len(unseen.lines) == 4
    assert list(ranked.lines[0].get_xdata()) == [5]
    assert list(ranked.lines[0].get_ydata()) == [75.0]
    assert "chosen, without" in [line.get_label() for line in training.lines]
