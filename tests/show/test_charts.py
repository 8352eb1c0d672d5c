"""Charts: the lines and labels that are drawn, and the same bytes twice."""

import io

import pytest

from posttrain.show import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    Runs,
    Seeds,
    curves,
    diagram,
    frontier,
    histogram,
    intervals,
    setup_figures,
)

THREE = [[3.0, 2.0, 1.0], [3.0, 2.5, 2.0], [3.0, 1.5, 1.5]]
AGAINST = [([0, 50, 100], line) for line in THREE]


def bytes_of(figure):
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def lines(axis):
    return [([*line.get_xdata()], [*line.get_ydata()]) for line in axis.lines]


def labels(axis):
    return axis.get_legend_handles_labels()[1]


def legend(figure):
    return [[text.get_text() for text in each.get_texts()] for each in figure.legends]


def test_a_line_per_seed_one_label_and_the_legend_beside_the_panels():
    losses = {"PPO": AGAINST, "held out": [4.0, 2.0], "base model": 1.5}
    figure = curves({"loss (nats)": losses, "score": {"PPO": THREE[0]}}, x="step")
    first, second = figure.axes
    assert (first.get_xlabel(), first.get_ylabel()) == ("step", "loss (nats)")
    assert lines(first)[:3] == [([0, 50, 100], line) for line in THREE]
    assert lines(first)[3] == ([0, 1], [4.0, 2.0]) and lines(first)[4][1] == [1.5, 1.5]
    assert lines(second) == [([0, 1, 2], THREE[0])]
    assert labels(first) == ["PPO", "held out", "base model"] and labels(second) == [
        "PPO"
    ]
    assert legend(figure) == [["PPO", "held out", "base model"]]
    assert legend(curves({"loss (nats)": {"PPO": AGAINST}}, x="step")) == []


def test_the_mean_of_the_seeds_and_its_band():
    mean = [3.0, 2.0, 1.5]
    (thick,) = curves({"y": {"PPO": AGAINST}}, x="step", draw="band").axes
    assert lines(thick) == [([0, 50, 100], mean)]
    low, high = Seeds([2.0, 2.5, 1.5]).interval
    path = thick.collections[0].get_paths()[0].vertices.tolist()
    assert [50.0, low] in path and [50.0, high] in path
    (both,) = curves({"y": {"PPO": AGAINST}}, x="step", draw="mean").axes
    assert len(both.lines) == 4 and lines(both)[-1] == ([0, 50, 100], mean)
    with pytest.raises(ValueError, match='seeds of "PPO" were noted at unequal places'):
        curves({"y": {"PPO": [[1, 2], [1, 2, 3]]}}, x="step", draw="band")
    with pytest.raises(ValueError, match='draw is "bands": choose'):
        curves({"y": {"PPO": AGAINST}}, x="step", draw="bands")


def test_dots_per_seed_with_a_line_through_their_means():
    sizes = {5: Seeds([0.1, 0.3]), 40: Seeds([0.5, 0.9])}
    (axis,) = curves({"share": {"SFT": sizes}}, x="pairs", log="x", diagonal=True).axes
    assert lines(axis)[1:] == [
        ([5, 5], [0.1, 0.3]),
        ([40, 40], [0.5, 0.9]),
        ([5, 40], [0.2, 0.7]),
    ]
    assert axis.get_xscale() == "log" and [*axis.get_xticks()] == [5, 40]
    assert axis.lines[1].get_color() == GREEN


def test_a_label_has_the_colour_of_its_stage_and_what_differs_from_it_is_grey():
    names = ["PPO", "PPO, no penalty", "trained on", "DPO", "mine", "held out"]
    panels = {"y": {name: [1, 2] for name in names}}
    (axis,) = curves(panels, x="step", colours={"mine": "on-policy DPO"}).axes
    colours = [line.get_color() for line in axis.lines]
    assert colours == [BLUE, GREY, GREEN, ORANGE, PINK, "#b8860b"]
    assert axis.lines[0].get_linestyle() != axis.lines[1].get_linestyle()


def test_a_label_looks_the_same_in_every_panel_and_panels_may_differ_in_x():
    panels = {"a": {"x": [1, 2], "y": [2, 1]}, "b": {"y": [2, 1]}}
    figure = curves(panels, x=["tokens", "seconds"], log="y")
    first, second = figure.axes
    looks = [(line.get_color(), line.get_linestyle()) for line in first.lines]
    assert (second.lines[0].get_color(), second.lines[0].get_linestyle()) == looks[1]
    assert [axis.get_xlabel() for axis in figure.axes] == ["tokens", "seconds"]
    assert first.get_yscale() == "log" and first.get_xscale() == "linear"


@pytest.mark.parametrize(("n", "rows"), [(1, 1), (3, 1), (4, 2), (5, 2), (6, 2)])
def test_panels_stand_three_in_a_row_and_four_in_a_square(n, rows):
    figure = curves({f"y{i}": {"PPO": [1, 2]} for i in range(n)}, x="step")
    shown = [axis for axis in figure.axes if axis.lines]
    grid = shown[0].get_gridspec()
    assert len(shown) == n and grid.nrows == rows and len(figure.axes) == n


def test_intervals_are_rows_with_seeds_mean_and_ends():
    score = {"SFT": Seeds([1.0, 3.0]), "mine": Seeds([2.0]), "guessing": 0.5}
    figure = intervals({"score": score, "won (%)": {"mine": Seeds([3, 4])}})
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["SFT", "mine"]
    drawn = lines(first)
    assert drawn[0] == ([1.0, 3.0], [0, 0]) and drawn[1] == ([2.0], [0])
    assert drawn[2] == ([*Seeds([1.0, 3.0]).interval], [0, 0])
    assert drawn[3:5] == [([2.0], [1]), ([2.0], [1])] and drawn[5][0] == [0.5, 0.5]
    assert lines(second)[0] == ([3.0, 4.0], [1, 1])
    assert first.lines[0].get_color() == GREEN and second.get_xlabel() == "won (%)"
    assert legend(figure) == [["guessing"]]


def test_a_frontier_joins_the_means_of_a_methods_settings_and_names_them():
    near = Runs([dict(kl=1.0, score=0.5), dict(kl=3.0, score=1.5)])
    far = Runs([dict(kl=9.0, score=2.0)])
    groups = {"PPO": {"target 3": near, "no penalty": far}, "best of n": {"": far}}
    panels = dict(score="reward score", kl="again")
    first, second = frontier(groups, ("kl", "KL (nats)"), panels, root=True).axes
    assert lines(first)[:3] == [
        ([1.0, 3.0], [0.5, 1.5]),
        ([9.0], [2.0]),
        ([2.0, 9.0], [1.0, 2.0]),
    ]
    assert [text.get_text() for text in first.texts] == ["target 3", "no penalty", ""]
    assert labels(first) == ["PPO", "best of n"] and not second.texts
    assert first.lines[-1].get_color() == SKY
    # On a square-root scale nothing lies beyond the left end, and 4 lies 2 from 0
    places = first.transData.transform([(0, 0), (1, 0), (4, 0)])[:, 0]
    assert places[2] - places[0] == pytest.approx(2 * (places[1] - places[0]))
    nothing = {"SFT": {"": Runs([dict(kl=0.0, score=1.0)])}, **groups}
    (axis,) = frontier(
        nothing, ("kl", "KL"), dict(score="reward score"), root=True
    ).axes
    assert axis.get_xlim()[0] < 0 < 9 < axis.get_xlim()[1]
    assert [*axis.get_xticks()] == [0, 1, 4]


def test_heaps_share_their_bins():
    figure = histogram(
        {"chosen": [0, 4], "rejected": [2, 2]}, "score", "answers", bins=2
    )
    (axis,) = figure.axes
    heights = [[patch.get_height() for patch in heap] for heap in axis.containers]
    assert heights == [[1, 1], [0, 2]] and legend(figure) == [["chosen", "rejected"]]


def test_a_diagram_has_boxes_in_their_stages_colours_and_arrows_between_them():
    boxes = {"plays": (0, 1), "SFT model": (2, 1), "reference\n(frozen)": (4, 0)}
    arrows = ["plays > SFT model", "SFT model > reference"]
    figure = diagram(boxes, arrows, heavy=["SFT model"], colours={"reference": "PPO"})
    (axis,) = figure.axes
    texts = {text.get_text(): text for text in axis.texts if text.get_text()}
    frames = {name: text.get_bbox_patch() for name, text in texts.items()}
    assert list(frames) == list(boxes) and len(axis.texts) == len(boxes) + len(arrows)
    assert [frame.get_linewidth() for frame in frames.values()] == [1, 2.5, 1]
    assert frames["plays"].get_edgecolor()[-1] == 0
    with pytest.raises(KeyError, match="play"):
        diagram(boxes, ["play > SFT model"])


def test_a_figure_is_the_same_bytes_twice():
    setup_figures()
    near = Runs([dict(kl=1.0, score=0.5), dict(kl=3.0, score=1.5)])
    draw = [
        lambda: curves({"y": {"PPO": AGAINST, "aim": 1.0}}, x="step", draw="band"),
        lambda: intervals({"x": {"PPO": Seeds([1, 2])}}),
        lambda: frontier({"PPO": {"a": near}}, ("kl", "KL"), {"score": "s"}, root=True),
        lambda: diagram({"SFT": (0, 0), "PPO": (2, 1)}, ["SFT > PPO"]),
    ]
    for each in draw:
        assert bytes_of(each()) == bytes_of(each())
