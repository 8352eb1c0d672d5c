"""The figure of own answers' rounds shows what it is given."""

from posttrain.show import STAGE_COLOURS, Runs
from posttrain.show.figures_pairs import PANELS, round_by_round


def card(x):
    return dict(score=x, gold_score=2 * x, finished=1 - x, kl=10 * x)


def test_rounds_have_a_line_per_seed_and_one_for_their_mean_in_each_panel():
    runs = [dict(cards=[card(0.0), card(end)]) for end in (0.25, 0.75)]
    figure = round_by_round(Runs(runs))
    assert [axis.get_ylabel() for axis in figure.axes] == list(PANELS.values())
    ends = {"score": (0.25, 0.75, 0.5), "finished": (0.75, 0.25, 0.5)}
    ends |= {"gold_score": (0.5, 1.5, 1.0), "kl": (2.5, 7.5, 5.0)}
    for axis, key in zip(figure.axes, PANELS):
        assert tuple(line.get_ydata()[-1] for line in axis.lines) == ends[key]
        assert {line.get_color() for line in axis.lines} == {
            STAGE_COLOURS["on-policy DPO"]
        }
        assert list(axis.get_xticks()) == [0, 1] and axis.get_xlabel() == "round"
