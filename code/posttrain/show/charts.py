"""The charts that chapters draw, each in one call that returns the figure.

A cell that ends with the call shows it; figure.axes are there for what is left to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from posttrain.show.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    stage_colour,
)
from posttrain.show.runs import Runs
from posttrain.show.seeds import Seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
# Mark the points of lines that have no more than these
FEW = 10


def curves(
    panels: Mapping[str, Mapping[str, object]],
    x: str | Sequence[str],
    draw: str = "lines",
    log: str = "",
    colours: Mapping[str, str] | None = None,
    diagonal: bool = False,
) -> Figure:
    """Line charts side by side: y label to {label: what is drawn}, with one legend.

    What is drawn: a list of numbers or (xs, ys); a list of either, one per seed, as
    `Runs.series` gives them; {x: Seeds}, dots with a line through their means; or one
    number, a dotted level. x: its label, or one for each panel. draw: "lines", a thin
    one per seed; "mean" adds their mean; "band", the mean and its 95% interval. log:
    "x", "y" or "xy". colours: label to a colour or a stage, where the label says none.
    Raises ValueError for another draw, and for a mean of seeds with unequal xs.
    """
    if draw not in ("lines", "mean", "band"):
        raise ValueError(f'draw is "{draw}": choose "lines", "mean" or "band"')
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    levels = [name for name in labels if is_level(panels, name)]
    looks = looks_of([name for name in labels if name not in levels], colours or {})
    figure, axes = panel_grid(len(panels))
    names = [x] * len(panels) if isinstance(x, str) else x
    for axis, x_label, (y_label, lines) in zip(axes, names, panels.items()):
        if diagonal:
            axis.axline((0, 0), slope=1, linestyle=":", color=GREY)
        for label, line in lines.items():
            if label in levels:
                axis.axhline(line, linestyle=":", color=GREY, label=label)
            elif isinstance(line, Mapping):
                draw_dots(axis, line, label, looks[label][0])
            else:
                draw_lines(axis, lines_of(line), label, looks[label], draw)
        set_scales(
            axis, log, [line for line in lines.values() if isinstance(line, Mapping)]
        )
        axis.set(xlabel=x_label, ylabel=y_label)
    add_legend(figure)
    return figure


def is_level(panels: Mapping[str, Mapping[str, object]], label: str) -> bool:
    """Whether a label stands for numbers alone, and so for dotted levels."""
    drawn = [lines[label] for lines in panels.values() if label in lines]
    return all(isinstance(line, (int, float)) for line in drawn)


def looks_of(
    labels: Sequence[str], colours: Mapping[str, str]
) -> dict[str, tuple[str, str, str]]:
    """Each label's colour, line and marker, of which no two labels share all.

    The first label of a stage has the stage's colour and a second one is grey; a label
    of no stage takes the next colour that is free.
    """
    named = {label: colour_of(colours.get(label, label)) for label in labels}
    cycle = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY)
    free = iter([colour for colour in cycle if colour not in named.values()])
    taken, looks = set(), {}
    for i, label in enumerate(labels):
        colour = named[label] or next(free, GREY)
        if label not in colours and colour in taken:
            colour = GREY
        taken.add(colour)
        looks[label] = colour, STYLES[i % len(STYLES)], MARKERS[i % len(MARKERS)]
    return looks


def colour_of(name: str) -> str | None:
    """A stage's colour by its name, a colour as it is, or None."""
    from matplotlib.colors import is_color_like

    return stage_colour(name) or (name if is_color_like(name) else None)


def panel_grid(n: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure of n panels, at most three in a row; four are two and two."""
    from matplotlib.figure import Figure

    columns = 2 if n == 4 else min(n, 3)
    rows = -(-n // columns)
    width = {1: 6.4, 2: 8.8, 3: 9.6}[columns]
    figure = Figure(
        figsize=(width, 3.4 if rows == 1 else 2.5 * rows), layout="constrained"
    )
    return figure, figure.subplots(rows, columns, squeeze=False).flat[:n]


def lines_of(drawn: object) -> list[tuple[Sequence[float], Sequence[float]]]:
    """Lines as (xs, ys), from one line or a list of them, with xs or without."""
    single = isinstance(drawn, tuple) or isinstance(drawn[0], (int, float))
    lines = [drawn] if single else drawn
    return [
        line if isinstance(line, tuple) else (range(len(line)), list(line))
        for line in lines
    ]


def draw_lines(axis: Axes, lines: list, label: str, look: tuple, draw: str) -> None:
    """One line per seed, or their mean, or both."""
    colour, style, _ = look
    few = "." if len(lines[0][1]) <= FEW else ""
    how = dict(linestyle=style, color=colour, marker=few)
    if draw == "lines" or len(lines) == 1:
        thin = dict(linewidth=1, alpha=0.8) if len(lines) > 1 else {}
        for i, (xs, ys) in enumerate(lines):
            axis.plot(xs, ys, label=None if i else label, **how, **thin)
        return
    if len({tuple(xs) for xs, _ in lines}) > 1:
        raise ValueError(
            f'the seeds of "{label}" were noted at unequal places: no mean'
        )
    xs, means = lines[0][0], [Seeds(ys) for ys in zip(*(ys for _, ys in lines))]
    if draw == "band":
        low, high = zip(*(point.interval for point in means))
        axis.fill_between(xs, low, high, color=colour, alpha=0.25, linewidth=0)
    else:
        for _, ys in lines:
            axis.plot(xs, ys, linestyle=style, color=colour, linewidth=0.8, alpha=0.5)
    axis.plot(xs, [point.mean for point in means], linewidth=2.2, label=label, **how)


def draw_dots(axis: Axes, dots: Mapping[float, Seeds], label: str, colour: str) -> None:
    """A dot per seed at each x, and a line through their means."""
    for x, values in dots.items():
        axis.plot(
            [x] * len(values),
            list(values),
            "o",
            color=colour,
            alpha=0.6,
            markeredgewidth=0,
        )
    means = [values.mean for values in dots.values()]
    axis.plot(list(dots), means, color=colour, label=label)


def set_scales(axis: Axes, log: str, dots: list[Mapping[float, Seeds]]) -> None:
    """Logarithmic scales where asked; on x, ticks at the places of the dots alone."""
    if "y" in log:
        axis.set_yscale("log")
    if "x" in log:
        axis.set_xscale("log")
        if dots:
            axis.set_xticks(list(dots[0]), [f"{x:g}" for x in dots[0]])
            axis.minorticks_off()


def add_legend(figure: Figure) -> None:
    """One legend beside the panels, each label once; none where there is one label."""
    found = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            found.setdefault(label, handle)
    if len(found) > 1:
        figure.legend(
            list(found.values()), list(found), loc="outside right center", fontsize=8
        )


def intervals(panels: Mapping[str, Mapping[str, Seeds | float]]) -> Figure:
    """Results one below the other: x label to {name: Seeds}, side by side.

    A faint dot per seed, the mean with its 95% interval; a number instead of Seeds is a
    dotted line from top to bottom. Names of stages have the stage's colour.
    """
    figure, axes = panel_grid(len(panels))
    names = list(
        dict.fromkeys(
            name
            for rows in panels.values()
            for name, values in rows.items()
            if isinstance(values, Seeds)
        )
    )
    for axis, (x_label, rows) in zip(axes, panels.items()):
        for name, values in rows.items():
            if not isinstance(values, Seeds):
                axis.axvline(values, linestyle=":", color=GREY, label=name)
                continue
            draw_interval(axis, names.index(name), values, stage_colour(name) or BLUE)
        axis.set(xlabel=x_label, ylim=(len(names) - 0.5, -0.5))
        axis.set_yticks(
            range(len(names)), names if axis is axes[0] else [""] * len(names)
        )
    figure.set_figheight(1.0 + 0.34 * len(names))
    return figure


def draw_interval(axis: Axes, place: int, values: Seeds, colour: str) -> None:
    """One row: the seeds, and their mean with its interval if there are several."""
    seen = dict(color=colour, alpha=0.4, markersize=4, markeredgewidth=0)
    axis.plot(list(values), [place] * len(values), "o", **seen)
    axis.plot(values.mean, place, "|", color=colour, markersize=14, markeredgewidth=2.5)
    if len(values) > 1:
        axis.plot(values.interval, [place, place], color=colour, linewidth=2)


def frontier(
    groups: Mapping[str, Mapping[str, Runs]],
    x: tuple[str, str],
    panels: Mapping[str, str],
    root: bool = False,
) -> Figure:
    """What is gained against what it costs: a mark per setting, a line per method.

    groups: method to {setting: runs}. x: the key of the cost, and its label; panels:
    key of a gain to its label. Small marks are seeds, large ones means, which a line
    joins; settings are named in the first panel. root: x on a square-root scale.
    """
    looks = looks_of(list(groups), {})
    figure, axes = panel_grid(len(panels))
    for axis, (key, y_label) in zip(axes, panels.items()):
        for method, settings in groups.items():
            found = [(Runs(runs)[x[0]], Runs(runs)[key]) for runs in settings.values()]
            draw_tradeoff(axis, found, method, looks[method])
            if axis is axes[0]:
                name_points(axis, settings, found)
        if root:
            axis.set_xscale("function", functions=(signed_root, signed_square))
        axis.set(xlabel=x[1], ylabel=y_label)
    add_legend(figure)
    return figure


def draw_tradeoff(axis: Axes, found: list, method: str, look: tuple) -> None:
    """The seeds of each setting, and a line through the settings' means."""
    colour, style, mark = look
    for costs, gains in found:
        seen = dict(color=colour, alpha=0.5, markersize=4, markeredgewidth=0)
        axis.plot(list(costs), list(gains), mark, **seen)
    means = [(costs.mean, gains.mean) for costs, gains in found]
    axis.plot(*zip(*means), linestyle=style, marker=mark, color=colour, label=method)


def name_points(axis: Axes, settings: Mapping[str, Runs], found: list) -> None:
    """The setting's name beside its mean."""
    for name, (costs, gains) in zip(settings, found):
        axis.annotate(
            name,
            (costs.mean, gains.mean),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=7,
            color=GREY,
        )


def signed_root(values):
    """The square root; of a number below zero, which a scale's margin has, 0."""
    return values.clip(0) ** 0.5


def signed_square(values):
    """What undoes `signed_root`."""
    return values**2


def histogram(
    groups: Mapping[str, Sequence[float]], x: str, y: str, bins: int = 20
) -> Figure:
    """Heaps of values over one another: label to values, in bins that all share."""
    figure, (axis,) = panel_grid(1)
    values = [value for group in groups.values() for value in group]
    low, high = min(values), max(values)
    edges = [low + (high - low) * i / bins for i in range(bins + 1)]
    for label, (colour, _, _) in looks_of(list(groups), {}).items():
        axis.hist(list(groups[label]), edges, color=colour, alpha=0.6, label=label)
    axis.set(xlabel=x, ylabel=y)
    add_legend(figure)
    return figure


def diagram(
    boxes: Mapping[str, tuple[float, float]],
    arrows: Sequence[str],
    heavy: Sequence[str] = (),
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Boxes and arrows: text to its place (x, y), and "one > other" for each arrow.

    A box goes by the first line of its text. Stages, and those that colours names (to a
    stage or a colour), have a frame, which is heavy where they are named so.
    """
    from matplotlib.figure import Figure

    across, up = zip(*boxes.values())
    width, height = max(across) - min(across) + 2.0, max(up) - min(up) + 1.0
    figure = Figure(figsize=(0.85 * width, 1.05 * height), layout="constrained")
    axis = figure.subplots()
    axis.set(
        xlim=(min(across) - 1.0, max(across) + 1.0), ylim=(min(up) - 0.5, max(up) + 0.5)
    )
    axis.axis("off")
    drawn = {}
    for text, place in boxes.items():
        name = text.split("\n")[0]
        colour = colour_of((colours or {}).get(name, text.replace("\n", " ")))
        frame = dict(
            boxstyle="round,pad=0.4", facecolor="none", edgecolor=colour or "none"
        )
        frame["linewidth"] = 2.5 if name in heavy else 1
        middle = dict(ha="center", va="center", fontsize=9)
        drawn[name] = axis.text(*place, text, bbox=frame, **middle)
    for arrow in arrows:
        draw_arrow(axis, *(drawn[name.strip()] for name in arrow.split(">")))
    return figure


def draw_arrow(axis: Axes, start, end) -> None:
    """An arrow from one text's frame to another's."""
    frames = dict(patchA=start.get_bbox_patch(), patchB=end.get_bbox_patch())
    how = dict(arrowstyle="->", color=GREY, shrinkA=3, shrinkB=3)
    axis.annotate("", end.get_position(), start.get_position(), arrowprops=how | frames)
