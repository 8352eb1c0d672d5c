"""The LoRA chapter's figure shows what it is given."""

import pytest

from posttrain.show import GREEN, GREY, Runs
from posttrain.show.figures_lora import ENDS, WHOLE, learned_and_forgotten

RUN = dict(learned=[1.5, 0.5], shakespeare_loss=[1.75, 2.25], base_loss=1.5)


def test_whole_runs_are_lines_and_of_other_runs_the_end_is_marked():
    other = dict(learned=[1.0, 0.25], shakespeare_loss=[3.0, 3.5], base_loss=2.0)
    trials = dict.fromkeys([*WHOLE, *ENDS], Runs([RUN, other]))
    (axis,) = learned_and_forgotten(trials).axes
    drawn = {}
    for line in axis.lines:
        drawn.setdefault(line.get_label(), []).append(line)
    assert list(drawn) == [*WHOLE, *ENDS]
    assert {len(lines) for lines in drawn.values()} == {2}
    whole, _ = drawn["LoRA"]
    assert whole.get_xydata().tolist() == [[1.5, 0.25], [0.5, 0.75]]
    assert whole.get_linestyle() == "-" and whole.get_color() == GREEN
    _, end = drawn["replay"]
    assert end.get_xydata().tolist() == [[0.25, 1.5]]
    assert end.get_linestyle() == "None" and end.get_color() == GREY
    assert axis.get_ylim()[0] == 0


def test_no_two_names_look_alike_and_each_is_in_the_legend_once():
    looks = {("o", colour) for colour in WHOLE.values()} | set(ENDS.values())
    assert len(looks) == len(WHOLE) + len(ENDS)
    trials = dict.fromkeys([*WHOLE, *ENDS], Runs([RUN, RUN]))
    (legend,) = learned_and_forgotten(trials).legends
    assert [text.get_text() for text in legend.get_texts()] == [*WHOLE, *ENDS]


def test_a_trial_that_is_missing_is_named():
    with pytest.raises(KeyError, match="all weights"):
        learned_and_forgotten({})
